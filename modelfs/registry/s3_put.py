"""Parts of an upload, from a file to a plain connection by sendfile(2).

Where there is no TLS, and no proxy between, the kernel sends a file's pages by itself, and boto3's
layers need not be gone through for every part: a third of the processor time of an UploadPart; most
of the rest is its SHA-256. Other endpoints, and buckets in another region, are left to boto3.
"""

from collections.abc import Mapping

from modelfs.registry.bodies import FileBody
from modelfs.registry.s3_answers import Answer, answer_of
from modelfs.registry.s3_http import BucketHttp

REDIRECTS = (301, 302, 307, 308)  # to another region


class Putter:
    """Sends parts to one bucket; any thread may call."""

    def __init__(self, http: BucketHttp) -> None:
        self.serves = http.serves and http.is_plain
        self._http = http

    def put_part(self, key: str, query: Mapping[str, str], body: FileBody) -> Answer | None:
        """Send a part of a file; return the answer, None where the bucket is elsewhere.

        Raises what boto3 would raise, or urllib3's errors.
        """
        response = self._http.send("PUT", key, query, body, body.sha256().hex())
        if response.status in REDIRECTS:
            response.drain_conn()
            return None
        if response.status >= 300:
            said = (response.status, response.headers, response.data)
            raise self._http.error_of(*said, "UploadPart")
        response.drain_conn()
        return answer_of(response.headers)
