"""Parts of an upload, from a file to a plain connection by sendfile(2).

Where there is no TLS, and no proxy between, the kernel sends a file's pages by itself, and boto3's
layers need not be gone through for every part: a third of the processor time of an UploadPart; most
of the rest is its SHA-256. Other endpoints, and buckets in another region, are left to boto3.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import boto3.session
import urllib3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ClientError, NoCredentialsError
from botocore.utils import get_environ_proxies
from urllib3.connection import HTTPConnection

from modelfs.registry.bodies import FileBody
from modelfs.registry.s3_answers import Answer
from modelfs.registry.s3_get import KEY_SAFE, SOCKET_OPTIONS, Getter

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


REDIRECTS = (301, 302, 307, 308)  # to another region


class _Connection(HTTPConnection):
    def send(self, data: Any) -> None:
        if isinstance(data, FileBody):
            data.send_to(self.sock)
        else:
            super().send(data)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _Signature(S3SigV4Auth):
    """Signs a request whose body is not looked at, as its digest is known."""

    def __init__(self, credentials: Any, region: str, digest: str) -> None:
        super().__init__(credentials, "s3", region)
        self._digest = digest

    def payload(self, request: AWSRequest) -> str:
        return self._digest


class Putter:
    """Sends parts to one bucket; any thread may call."""

    def __init__(self, session: boto3.session.Session, client: "S3Client", getter: Getter) -> None:
        core: Any = session._session
        config: Any = client.meta.config
        url = client.meta.endpoint_url
        proxies = get_environ_proxies(url) if config.proxies is None else config.proxies
        self.serves = urlsplit(url).scheme == "http" and not proxies
        self._credentials = core.get_credentials
        self._region = client.meta.region_name
        self._agent = config.user_agent
        self._getter = getter
        self._parser = core.get_component("response_parser_factory").create_parser("rest-xml")
        self._shape = client.meta.service_model.operation_model("UploadPart").output_shape
        self._http = urllib3.PoolManager(
            maxsize=config.max_pool_connections,
            timeout=urllib3.Timeout(connect=config.connect_timeout, read=config.read_timeout),
            socket_options=SOCKET_OPTIONS,
        )
        self._http.pool_classes_by_scheme = {"http": _Pool}

    def put_part(self, key: str, query: Mapping[str, str], body: FileBody) -> Answer | None:
        """Send a part of a file; return the answer, None where the bucket is elsewhere.

        Raises what boto3 would raise.
        """
        credentials = self._credentials()
        if credentials is None:
            raise NoCredentialsError
        request = AWSRequest(
            "PUT",
            self._getter.base() + quote(key, safe=KEY_SAFE),
            headers={"User-Agent": self._agent, "Content-Length": str(len(body))},
            params=query,
        )
        digest = body.sha256().hex()
        _Signature(credentials.get_frozen_credentials(), self._region, digest).add_auth(request)
        prepared = request.prepare()
        chunks: Any = [body]  # urllib3 hands each to its connection as it is
        # By its pool: what takes a whole URL makes another key of one with dots.
        response = self._http.connection_from_url(prepared.url).urlopen(
            "PUT",
            prepared.url[prepared.url.index("/", len("http://")) :],
            body=chunks,
            headers=dict(prepared.headers.items()),
            redirect=False,
            retries=False,
            assert_same_host=False,
        )
        if response.status in REDIRECTS:
            return None
        parsed = {
            "status_code": response.status,
            "headers": response.headers,
            "body": response.data,
        }
        answer: Any = self._parser.parse(parsed, self._shape)
        if response.status >= 300:
            raise ClientError(answer, "UploadPart")
        return answer  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the connections that are kept."""
        self._http.clear()
