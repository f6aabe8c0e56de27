"""GET of a range of an object, by botocore's signer, connections and parser alone.

boto3's own get_object costs 1.4 ms of processor time, most of it in layers that need not be
gone through for every GET (endpoint rules, validation, hooks): a thousand small files would
wait for that. This costs half of it. What it does not know (a bucket in another region) is
left to boto3.
"""

import os
import socket
import struct
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import boto3.session
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies
from urllib3.exceptions import ProtocolError, ReadTimeoutError

from modelfs.registry.s3_answers import Answer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

KEY_SAFE = "/~"  # what botocore leaves as it is in a key
SOCKET_OPTIONS = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
]
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

    def __init__(
        self, session: boto3.session.Session, client: "S3Client", bucket: str, verify: str | None
    ) -> None:
        """Take limits from `client`, credentials from the session; `verify` names a CA bundle."""
        core = session._session
        config: Any = client.meta.config
        connections: Any = URLLib3Session  # whose stubs are narrower than what it takes
        self._credentials = core.get_credentials
        self._client = client
        self._bucket = bucket
        self._parser = core.get_component("response_parser_factory").create_parser("rest-xml")
        self._shape = client.meta.service_model.operation_model("GetObject").output_shape
        known = core.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE", True)
        proxies = config.proxies
        self._http = connections(
            verify=verify or known,
            proxies=get_environ_proxies(client.meta.endpoint_url) if proxies is None else proxies,
            timeout=(config.connect_timeout, config.read_timeout),
            max_pool_connections=config.max_pool_connections,
            socket_options=SOCKET_OPTIONS,
        )
        self._agent = config.user_agent
        self._place: str | None = None

    def get(
        self, key: str, byte_range: str, etag: str, version_id: str | None
    ) -> tuple[Answer, Body]:
        """Return the answer, as boto3 would have it, and its body, which the caller closes.

        Raises what boto3 would raise.
        """
        request = AWSRequest(
            "GET",
            self.base() + quote(key, safe=KEY_SAFE),
            headers={
                "Range": byte_range,
                "If-Match": f'"{etag}"',
                "User-Agent": self._agent,
            },
            params={"versionId": version_id} if version_id else {},
            stream_output=True,
        )
        credentials = self._credentials()
        if credentials is None:
            raise NoCredentialsError
        S3SigV4Auth(
            credentials.get_frozen_credentials(), "s3", self._client.meta.region_name
        ).add_auth(request)
        response = self._http.send(request.prepare())
        is_error = response.status_code >= 300
        content = response.content if is_error else b""  # read, so that the connection is kept
        if response.status_code in ELSEWHERE:
            return self._by_boto3(key, byte_range, etag, version_id)
        answer = self._parser.parse(
            {
                "status_code": response.status_code,
                "headers": response.headers,
                "body": content,
            },
            self._shape,
        )
        if is_error:
            raise ClientError(answer, "GetObject")
        return answer, Body(response.raw)

    def base(self) -> str:
        """Return the URL before the key, as boto3 addresses the bucket."""
        if self._place is None:
            url = self._client.generate_presigned_url(
                "get_object", Params={"Bucket": self._bucket, "Key": "k"}
            )
            self._place = url.partition("?")[0].removesuffix("k")
        return self._place

    def _by_boto3(
        self, key: str, byte_range: str, etag: str, version_id: str | None
    ) -> tuple[Answer, Body]:
        wish: dict[str, Any] = {"VersionId": version_id} if version_id else {}
        answer: Any = self._client.get_object(
            Bucket=self._bucket, Key=key, Range=byte_range, IfMatch=f'"{etag}"', **wish
        )
        return answer, Body(answer["Body"]._raw_stream)

    def send(self, request: AWSRequest) -> AWSResponse:
        """Send a request as it is."""
        answer: AWSResponse = self._http.send(request.prepare())
        return answer

    def close(self) -> None:
        """Close the connections that are kept."""
        self._http.close()
