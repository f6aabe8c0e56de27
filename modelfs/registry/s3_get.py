"""GET of a range of an object, past most of boto3 (s3_http.py).

What that does not know (a proxy, a bucket in another region) is left to boto3.
"""

import socket
import struct
from typing import TYPE_CHECKING, Any

from urllib3.exceptions import ProtocolError, ReadTimeoutError

from modelfs.registry.s3_answers import Answer, answer_of
from modelfs.registry.s3_http import BucketHttp

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

FIRST_BYTES = 64 << 10  # more than http.client has read with the head
ELSEWHERE = (301, 302, 307, 308, 400)  # how AWS says that a bucket is in another region


class Body:
    """The body of an answer; a connection whose body was read to its end is kept.

    Where there is no TLS, the kernel is told to fill the whole buffer (MSG_WAITALL): a receive
    for each packet that has come makes a dozen threads hand the interpreter's lock to each
    other sixty times a MiB, which costs more than the bytes.
    """

    def __init__(self, raw: Any) -> None:
        self._response = raw
        self._stream = raw._fp  # http.client's: urllib3's own cannot fill a buffer
        sock = raw.connection.sock if raw.connection is not None else None
        is_plain = type(sock) is socket.socket and not self._stream.chunked
        self._socket: socket.socket | None = sock if is_plain and self._stream.length else None
        self._left = self._stream.length or 0
        self._timeout_s: float | None = None

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer or its beginning, return how much; 0 at the end.

        Raises urllib3's errors.
        """
        try:
            if self._socket is None:
                return int(self._stream.readinto(buffer))
            return self._receive(self._socket, buffer[: self._left])
        except (TimeoutError, BlockingIOError) as error:
            raise ReadTimeoutError(None, "", "Read timed out.") from error  # type: ignore[arg-type]
        except OSError as error:
            raise ProtocolError(f"Connection broken: {error}", error) from error

    def _receive(self, sock: socket.socket, buffer: memoryview) -> int:
        if not buffer:
            return 0
        if self._timeout_s is None:  # what came with the head is in a buffer of http.client's
            first = self._stream.read1(min(len(buffer), FIRST_BYTES))
            buffer[: len(first)] = first
            count = len(first)
            if count == len(buffer):  # more of it may be there
                self._left -= count
                return count
            self._timeout_s = sock.gettimeout() or 0.0
            seconds = int(self._timeout_s)
            limit = struct.pack("@ll", seconds, int((self._timeout_s - seconds) * 1e6))
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        else:
            count = sock.recv_into(buffer, len(buffer), socket.MSG_WAITALL)
        self._left -= count
        return count

    def close(self) -> None:
        """Give the connection back, or end it where bytes of the body are still to come."""
        if self._socket is not None and not self._left:
            if self._timeout_s is not None:
                self._socket.settimeout(self._timeout_s or None)
            self._stream.close()  # http.client does not know that its body was read
        if not self._stream.isclosed():
            self._response.close()
        self._response.release_conn()


class Getter:
    """Gets objects of one bucket; any thread may call."""

    def __init__(self, client: "S3Client", bucket: str, http: BucketHttp) -> None:
        self._client = client
        self._bucket = bucket
        self._http = http

    def get(
        self, key: str, byte_range: str, etag: str, version_id: str | None
    ) -> tuple[Answer, Body]:
        """Return the answer, as boto3 would have it, and its body, which the caller closes.

        Raises what boto3 would raise, or urllib3's errors.
        """
        if not self._http.serves:
            return self._by_boto3(key, byte_range, etag, version_id)
        wish = {"versionId": version_id} if version_id else {}
        headers = {"range": byte_range, "if-match": f'"{etag}"'}
        response = self._http.send("GET", key, wish, headers)
        if response.status < 300:
            return answer_of(response.headers), Body(response)
        error = self._http.error_of(response, "GetObject")  # read, so that the connection is kept
        if response.status in ELSEWHERE:
            return self._by_boto3(key, byte_range, etag, version_id)
        raise error

    def _by_boto3(
        self, key: str, byte_range: str, etag: str, version_id: str | None
    ) -> tuple[Answer, Body]:
        wish: dict[str, Any] = {"VersionId": version_id} if version_id else {}
        answer: Any = self._client.get_object(
            Bucket=self._bucket, Key=key, Range=byte_range, IfMatch=f'"{etag}"', **wish
        )
        return answer, Body(answer["Body"]._raw_stream)
