"""Requests that are signed now and sent later, by someone else.

Signed by Version 4 alone: of the older one a listing's prefix is no part. With s3_clients.py
and s3_http.py, what knows botocore.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from botocore.auth import S3SigV4PostAuth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.httpsession import URLLib3Session

from modelfs.registry.s3_http import KEY_SAFE, VALUE_SAFE, BucketHttp, now

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True, slots=True)
class Sent:
    """What was answered to a request that was signed before."""

    status: int
    headers: Mapping[str, str]


class _AsOf(S3SigV4QueryAuth):
    """Signs as of a moment that is given: requests that share their URL share its time."""

    def __init__(self, keys: ReadOnlyCredentials, region: str, expires_s: int, at: str) -> None:
        super().__init__(keys, "s3", region, expires=expires_s)
        self._at = at

    def _modify_request_before_signing(self, request: AWSRequest) -> None:
        request.context["timestamp"] = self._at
        super()._modify_request_before_signing(request)  # type: ignore[misc]  # of its stubs


class Signer:
    """Signs requests to one bucket; any thread may call."""

    def __init__(self, client: "S3Client", http: BucketHttp) -> None:
        self.region = client.meta.region_name
        self._limits: Any = client.meta.config
        self._http = http

    def bucket_url(self) -> str:
        """Return where the bucket is, without a slash at its end."""
        return self._http.base().removesuffix("/")

    def presign(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        expires_s: int,
        at: str | None = None,
    ) -> str:
        """Return the URL of a request that anyone may send, with just these headers, for a time
        that begins now, or at `at`.
        """
        odd = "surrogateescape"  # keys of others need not be UTF-8
        asked = "&".join(f"{k}={quote(v, safe=VALUE_SAFE, errors=odd)}" for k, v in query.items())
        url = self._http.base() + quote(key, safe=KEY_SAFE)
        request = AWSRequest(method, f"{url}?{asked}" if asked else url, headers=dict(headers))
        _AsOf(self._http.keys(), self.region, expires_s, at or now()).add_auth(request)
        return str(request.url)

    def sign_form(
        self, conditions: list[Any], fields: Mapping[str, str], expires_s: int
    ) -> tuple[int, dict[str, str]]:
        """Return until when (seconds since 1970) a form may be sent, and its fields."""
        until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=expires_s)
        policy = {
            "expiration": until.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "conditions": list(conditions),
        }
        request = AWSRequest("POST", self._http.base())
        request.context["s3-presign-post-fields"] = dict(fields)
        request.context["s3-presign-post-policy"] = policy
        S3SigV4PostAuth(self._http.keys(), "s3", self.region).add_auth(request)
        signed: dict[str, str] = request.context["s3-presign-post-fields"]
        return int(until.timestamp()), signed

    def send(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> Sent:
        """Send a signed request as someone else would, headers that are not signed included."""
        request = AWSRequest(method, url, headers=dict(headers or {}), data=b"")
        limits_s = (self._limits.connect_timeout, self._limits.read_timeout)
        sessions: Any = URLLib3Session  # whose stubs are narrower than what it takes
        session = sessions(self._http.trusted, self._http.proxies, limits_s)
        with closing(session):
            answer = session.send(request.prepare())
        return Sent(answer.status_code, {k.lower(): v for k, v in answer.headers.items()})
