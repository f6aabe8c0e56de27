"""The boto3 clients of one bucket, and the border where botocore's errors become ours.

With s3_http.py and s3_sign.py, the only file that knows boto3. The clients differ in their time
limits: for what answers at once, for what may take the registry a while (putting parts together,
copying), and for the probe; the one for parts signs bodies. They are made in the constructor,
because making one is not safe in threads; using one is. botocore's own retries are off: calls.py
retries.
"""

import base64
import hashlib
import ipaddress
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3.session
import botocore.session
from botocore.config import Config
from botocore.credentials import Credentials, ReadOnlyCredentials
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    SSLError,
)
from urllib3.exceptions import HTTPError
from urllib3.exceptions import SSLError as PlainSSLError

from modelfs.errors import (
    AccessDenied,
    CertificateRejected,
    ConfigError,
    InvalidName,
    ModelfsError,
    RegistryUnavailable,
)
from modelfs.registry import s3_answers as answers
from modelfs.registry import s3_listings
from modelfs.registry.bodies import FileBody
from modelfs.registry.credentials import CredentialsFile
from modelfs.registry.objects import RequestStatistics
from modelfs.registry.s3_counts import NO_ANSWER, RequestCounts, outcome_of
from modelfs.registry.s3_errors import error_of
from modelfs.registry.s3_get import Getter
from modelfs.registry.s3_http import BucketHttp
from modelfs.registry.s3_put import Putter
from modelfs.registry.s3_settings import S3Settings
from modelfs.registry.s3_sign import Signer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECT_MAX_S = 5.0
PROBE_CONNECT_S, PROBE_READ_S = 2.0, 3.0
LISTING = "modelfs_listing"  # in an answer to ListObjectsV2: its XML
_BEGUN = "modelfs_begun"  # in botocore's context of one request: monotonic seconds
_CERTIFICATE = re.compile("certificate|hostname|doesn't match", re.IGNORECASE)


class _FileCredentials(Credentials):
    """botocore's view of a CredentialsFile; asked for every request."""

    def __init__(self, file: CredentialsFile) -> None:
        pair = file.current()
        super().__init__(pair.access_key, pair.secret_key, pair.token, method="modelfs")
        self._file = file

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        pair = self._file.current()
        return ReadOnlyCredentials(pair.access_key, pair.secret_key, pair.token)


class _FileChain:
    """A chain of credential providers of which there is one."""

    def __init__(self, file: CredentialsFile) -> None:
        self._credentials = _FileCredentials(file)

    def load_credentials(self) -> Credentials:
        return self._credentials


class S3Clients:
    """`fast`, `slow` and `probe`: the same bucket, other time limits. `signing` is `fast`, too.

    Bodies are bound to their signature by their Content-MD5, which is the ETag that the registry
    must answer with. Parts are bound by their SHA-256 instead, which `signing` takes of them: it
    costs less than half of the time, and registries refuse other bodies just as well.

    INVARIANT: nothing but the counters and the connections changes after the constructor.
    """

    def __init__(self, settings: S3Settings, before: "S3Clients | None" = None) -> None:
        """Make the clients; no request is sent. They count on from those `before`.

        Raises ConfigError.
        """
        self._settings = settings
        self.counts: RequestCounts = before.counts if before else RequestCounts()
        path = settings.credentials
        self._file = CredentialsFile(path) if path is not None else None
        session = self._session = self._make_session()
        connect_s, read_s = min(CONNECT_MAX_S, settings.timeout_s / 3), settings.timeout_s / 3
        self.fast = self._client(session, connect_s, read_s)
        self._signing = self._client(session, connect_s, read_s, signs_bodies=True)
        self.slow = self._client(session, connect_s, settings.slow_timeout_s)
        self.probe = self._client(session, PROBE_CONNECT_S, PROBE_READ_S)
        self._http = BucketHttp(session, self.fast, settings.bucket, settings.verify)
        self.getter = Getter(self.fast, settings.bucket, self._http, self.counts)
        self._putter = Putter(self._http)
        self.signer = Signer(self.fast, self._http)

    def _make_session(self) -> boto3.session.Session:
        # With a file of its own no AWS_PROFILE of the environment matters.
        is_own = self._settings.credentials is not None
        core = botocore.session.Session({"profile": (None, None, None, None)} if is_own else None)
        core.get_component("response_parser_factory").set_parser_defaults(
            timestamp_parser=answers.parse_time
        )
        if self._file is not None:
            core.register_component("credential_provider", _FileChain(self._file))
        if self._settings.ca_bundle is not None:
            _check_ca_bundle(self._settings.ca_bundle)
        try:
            return boto3.session.Session(botocore_session=core)
        except BotoCoreError as error:  # AWS_PROFILE names a profile that is not there
            raise ConfigError(f"{_line(error)}: set credentials = FILE, or AWS_PROFILE") from error

    @property
    def credentials_source(self) -> str | None:
        """Return botocore's name of the place where it found credentials; None: nowhere."""
        found = self._session.get_credentials()
        return None if found is None else str(found.method)

    def tls_context(self) -> ssl.SSLContext:
        """Return what verifies the endpoint's certificate, as for all requests."""
        return self._http.tls_context()

    def _client(
        self,
        session: boto3.session.Session,
        connect_s: float,
        read_s: float,
        *,
        signs_bodies: bool = False,
    ) -> "S3Client":
        settings = self._settings
        try:
            client = session.client(
                "s3",
                endpoint_url=settings.endpoint,
                region_name=settings.region,
                verify=settings.verify,
                config=self._config(connect_s, read_s, signs_bodies),
            )
        except (BotoCoreError, ValueError) as error:
            raise ConfigError(f"endpoint {settings.endpoint}: {_line(error)}") from error
        client.meta.events.register("before-send.s3", self._sent)
        client.meta.events.register("before-call.s3", _note_begin)
        client.meta.events.register("after-call.s3", self._answered)
        client.meta.events.register("after-call-error.s3", self._not_answered)
        client.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
        client.meta.events.register("before-parse.s3.ListObjectsV2", _take_listing)
        return client

    def _config(self, connect_s: float, read_s: float, signs_bodies: bool = False) -> Config:
        settings = self._settings
        host = urlsplit(settings.endpoint).hostname or ""
        style = settings.addressing
        if style == "auto":
            style = "virtual" if host.endswith(".amazonaws.com") else "path"
        return Config(
            connect_timeout=connect_s,
            read_timeout=read_s,
            max_pool_connections=settings.connections,
            retries={"total_max_attempts": 1, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": style, "payload_signing_enabled": signs_bodies},
            proxies={} if is_loopback(host) else None,
            tcp_keepalive=True,
        )

    def _sent(self, event_name: str, **_: object) -> None:
        self.counts.begin(_operation(event_name))

    def _answered(
        self, event_name: str, http_response: Any, context: dict[str, Any], **_: object
    ) -> None:
        self._ended(event_name, outcome_of(http_response.status_code), context)

    def _not_answered(self, event_name: str, context: dict[str, Any], **_: object) -> None:
        self._ended(event_name, NO_ANSWER, context)

    def _ended(self, event_name: str, outcome: str, context: dict[str, Any]) -> None:
        seconds = time.monotonic() - context[_BEGUN]
        self.counts.end(_operation(event_name), outcome, seconds)

    def put_part(self, key: str, upload_id: str, number: int, body: FileBody) -> answers.Answer:
        """Return the answer to an UploadPart; `body` is signed. In `translated`."""
        if self._putter.serves:
            query = {"partNumber": str(number), "uploadId": upload_id}
            with self._counted("UploadPart"):
                answer = self._putter.put_part(key, query, body)
            if answer is not None:
                return answer
        where: Any = {"Key": key, "UploadId": upload_id, "PartNumber": number, "Body": body}
        return self._signing.upload_part(Bucket=self._settings.bucket, **where)

    @contextmanager
    def _counted(self, operation: str) -> Iterator[None]:
        """Count a request that no client of S3 sends."""
        self.counts.begin(operation)
        begun, outcome = time.monotonic(), NO_ANSWER
        try:
            yield
            outcome = "ok"
        except ClientError as error:
            outcome = outcome_of(_status_of(error))
            raise
        finally:
            self.counts.end(operation, outcome, time.monotonic() - begun)

    def assume_role(
        self,
        role: str,
        name: str,
        expires_s: int,
        policy: str | None,
        credentials: Mapping[str, Any] | None = None,
    ) -> Mapping[str, Any]:
        """Return temporary credentials of a role, as STS gives them; not safe in threads.

        `credentials` are the temporary ones that ask, instead of the registry's own.
        """
        settings, said = self._settings, credentials or {}
        is_aws = (urlsplit(settings.endpoint).hostname or "").endswith(".amazonaws.com")
        wish: dict[str, Any] = {} if policy is None else {"Policy": policy}
        with self.translated():
            client = self._session.client(
                "sts",
                endpoint_url=None if is_aws else settings.endpoint,
                region_name=settings.region,
                verify=settings.verify,
                config=self._config(CONNECT_MAX_S, settings.timeout_s / 3),
                aws_access_key_id=said.get("AccessKeyId"),
                aws_secret_access_key=said.get("SecretAccessKey"),
                aws_session_token=said.get("SessionToken"),
            )
            with closing(client), self._counted("AssumeRole"):
                answer = client.assume_role(
                    RoleArn=role, RoleSessionName=name, DurationSeconds=expires_s, **wish
                )
        return answer["Credentials"]

    def close(self) -> None:
        """Close the connections that are kept."""
        for client in (self.fast, self._signing, self.slow, self.probe, self._http):
            client.close()

    def statistics(self) -> RequestStatistics:
        """Return how requests have ended."""
        return self.counts.statistics(self._file.read_ns if self._file else None)

    @contextmanager
    def translated(self, key: str | None = None) -> Iterator[None]:
        """Raise our errors for botocore's; `key` is what was asked for, None the bucket."""
        settings = self._settings
        where = f"bucket {settings.bucket!r} at {settings.endpoint}"
        where = where if key is None else f"{key!r} in {where}"
        try:
            yield
        except ClientError as error:
            said = error.response.get("Error", {})
            code, message = said.get("Code") or "", said.get("Message") or ""
            raise error_of(_status_of(error), code, message, where) from error
        except (ParamValidationError, UnicodeEncodeError) as error:
            raise InvalidName(f"{where}: not a key to ask for: {_line(error)}") from error
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
            raise AccessDenied(
                f"no credentials for {where}: set credentials = FILE ({_line(error)})"
            ) from error
        except KeyError as error:
            raise RegistryUnavailable(f"{where}: the answer lacks its {error}") from error
        except (BotoCoreError, HTTPError, HTTPException) as error:
            raise self._no_answer(error) from error

    def _no_answer(self, error: Exception) -> Exception:
        cause = error.kwargs.get("error") if isinstance(error, HTTPClientError) else None
        if isinstance(cause, Exception) and not isinstance(cause, OSError | HTTPError):
            return cause  # raised by the body that was being sent, wrapped by botocore
        if isinstance(error, SSLError | PlainSSLError) and _CERTIFICATE.search(str(error)):
            return CertificateRejected(
                f"{self._settings.endpoint}: its certificate cannot be verified; "
                f"set ca_bundle = FILE to the CA that signed it ({_line(error)})"
            )
        return RegistryUnavailable(f"{self._settings.endpoint} does not answer: {_line(error)}")


def was_answered(error: ModelfsError) -> bool:
    """Tell whether the registry answered with this error, rather than not at all."""
    return isinstance(error.__cause__, ClientError)


def _operation(event_name: str) -> str:
    return event_name.rpartition(".")[2]


def _note_begin(context: dict[str, Any], **_: object) -> None:
    context[_BEGUN] = time.monotonic()


def _status_of(error: ClientError) -> int:
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def _add_md5(params: dict[str, Any], **_: object) -> None:
    """Give a DeleteObjects its Content-MD5: Ceph and MinIO want it, botocore sends a CRC-32."""
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = _base64(digest)
    params["context"].pop("checksum", None)


def _take_listing(
    response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: object
) -> None:
    """Take a listing as it came, past botocore's parser; see s3_listings.py."""
    body = response_dict["body"]
    if s3_listings.ROOT in body:
        customized_response_dict[LISTING] = body
        response_dict["body"] = b""
        response_dict["status_code"] = 200  # botocore has made it 500 where XML cannot say a key


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _check_ca_bundle(path: Path) -> None:
    try:
        ssl.create_default_context(cafile=str(path))
    except (ssl.SSLError, OSError) as error:
        why = "not PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(
            f"ca_bundle: {path} cannot be used ({why}): name a file of PEM certificates"
        ) from error


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).removeprefix("None: ") or type(error).__name__
