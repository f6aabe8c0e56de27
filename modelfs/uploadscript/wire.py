"""Requests to the registry, and their answers."""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from modelfs.uploadscript.files import Source
from modelfs.uploadscript.troubles import Fatal, NoAnswer, Refused, Stopped, Trouble
from modelfs.uploadscript.xmltext import parsed, text_of

TRIES = 7  # of one request: 32 s of pauses
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 16.0
CONNECT_LIMIT_S = 10.0
ANSWER_MAX_BYTES, ANSWER_PIECE_BYTES = 16 << 20, 64 << 10
_EXPIRED = re.compile(rb"<(?:Code|Message)>[^<]*expired", re.IGNORECASE)
PASSING = {"RequestTimeout", "RequestTimeoutException", "SlowDown", "BadDigest", "InternalError"}


class Answer(NamedTuple):
    """An answer of the registry; `code` is the name of an error, '' where it is none."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    code: str

    @property
    def etag(self) -> str:
        return self.headers.get("etag", "").strip('"')

    def check_md5(self, md5: bytes) -> None:
        """Raise Trouble where the registry has other bytes than were sent."""
        if self.headers.get("x-amz-server-side-encryption", "").startswith("aws:kms"):
            return  # the ETag of what is encrypted so is no MD5
        if self.etag != md5.hex():
            raise Trouble(f"the registry has other bytes than were sent ({self.etag or 'none'})")

    def __str__(self) -> str:
        return f"{self.status} {self.code}".strip()


class Body:
    """A range of a file, between two pieces of text; read anew for each try."""

    def __init__(
        self,
        source: Source,
        offset: int,
        length: int,
        moved: Callable[[int], None],
    ) -> None:
        self.source = source
        self._offset, self._length = offset, length
        self._moved = moved
        self._told = 0
        self.before = self.after = b""

    def __len__(self) -> int:
        return len(self.before) + self._length + len(self.after)

    def send_to(self, send: Callable[[Any], None]) -> None:
        """Send everything; raises Trouble where the file is not what it was."""
        self._moved(-self._told)  # of an earlier try
        self._told = 0
        send(self.before)
        for piece in self.source.pieces(self._offset, self._length):
            send(piece)
            self._told += len(piece)
            self._moved(len(piece))
        send(self.after)


Make = Callable[[], tuple[str, str, Mapping[str, str]]]  # method, target, headers


class Wire:
    """Requests to the registry: a connection a thread, certificates verified, bounded tries.

    The registry's clock, as its answers tell it, decides what has expired.
    """

    def __init__(self, grant: Mapping[str, Any], stop: threading.Event) -> None:
        self._grant = grant
        self._stop = stop
        self._url = urlsplit(grant["url"])
        self._mine = threading.local()
        self._clock_s: float | None = None  # how far the registry's clock is ahead of ours
        self._expires_s = parse_time(grant["expires"])
        self._tls = None
        if self._url.scheme == "https":
            self._tls = ssl.create_default_context(cadata=grant["ca_bundle"] or None)

    @property
    def host(self) -> str:
        return str(self._url.netloc)

    def ask(
        self,
        make: Make,
        body: Body | bytes = b"",
        *,
        limit_s: float | None = None,
        tries: int = TRIES,
    ) -> Answer:
        """Send a request until it is answered; raises NoAnswer, Refused, Stopped, Trouble.

        Other errors are returned, for the caller to judge. `make` is asked anew for each try:
        signatures age.
        """
        reason = ""
        for attempt in range(tries):
            self._wait_before(attempt)
            self._check_time()
            try:
                answer = self._once(*make(), body, limit_s or self._grant["timeout_s"])
            except ssl.SSLCertVerificationError as error:
                raise NoAnswer(
                    f"the certificate of {self.host} cannot be verified ({error.verify_message})"
                ) from None
            except (OSError, http.client.HTTPException) as error:
                reason = str(error) or type(error).__name__
                continue
            if answer.code == "BadDigest" and isinstance(body, Body):
                body.source.check_unchanged()
            if answer.status >= 500 or answer.status in (408, 429) or answer.code in PASSING:
                reason = str(answer)
                continue
            if answer.code == "QuotaExceeded":
                raise Fatal("the quota of the registry is used up")
            if answer.status in (401, 403) or answer.code in ("ExpiredToken", "InvalidToken"):
                raise self._refusal(answer)
            return answer
        raise NoAnswer(
            f"{self.host} does not answer ({reason}); start this again later: it goes on"
        )

    def _wait_before(self, attempt: int) -> None:
        pause_s = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S) if attempt else 0.0
        if self._stop.wait(pause_s * random.uniform(0.8, 1.2)):
            raise Stopped

    def _once(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Body | bytes,
        limit_s: float,
    ) -> Answer:
        try:
            connection = self._connection()
            connection.sock.settimeout(limit_s)
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            broken = self._send(connection, body)
            try:
                answer = self._receive(connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                raise broken or error from None
        except BaseException:
            self._hang_up()
            raise
        if broken or answer.headers.get("connection", "").lower() == "close":
            self._hang_up()
        return answer

    def _send(self, connection: http.client.HTTPConnection, body: Body | bytes) -> OSError | None:
        """Send a body; return what broke it off: the registry may have answered before."""

        def send(data: Any) -> None:
            if self._stop.is_set():
                raise Stopped
            if data:
                connection.send(data)

        try:
            if isinstance(body, bytes):
                send(body)
            else:
                body.send_to(send)
        except OSError as error:
            return error
        return None

    def _receive(self, response: http.client.HTTPResponse) -> Answer:
        data = b""
        while len(data) < ANSWER_MAX_BYTES and (piece := response.read(ANSWER_PIECE_BYTES)):
            data += piece
        headers = {name.lower(): value for name, value in response.getheaders()}
        with contextlib.suppress(KeyError, ValueError, TypeError):
            self._clock_s = parsedate_to_datetime(headers["date"]).timestamp() - time.time()
        status, code = response.status, ""
        if b"<Error>" in data.lstrip()[:200]:  # also in a 200, of parts being put together
            code = text_of(parsed(data), "Code")
            status = 500 if status == 200 else status
        return Answer(status, headers, data, code)

    def _connection(self) -> http.client.HTTPConnection:
        known: http.client.HTTPConnection | None = getattr(self._mine, "connection", None)
        if known is None:
            known = self._mine.connection = self._connect()
        return known

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        proxy = urllib.request.getproxies().get(self._url.scheme)
        if proxy is None or urllib.request.proxy_bypass(host) or is_loopback(host):
            connection = self._opened(host, port)
        else:
            through = urlsplit(proxy if "//" in proxy else f"//{proxy}")
            connection = self._opened(through.hostname or "", through.port)
            connection.set_tunnel(host, port or (443 if self._tls else 80))
        connection.connect()
        return connection

    def _opened(self, host: str, port: int | None) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=CONNECT_LIMIT_S)
        return http.client.HTTPSConnection(host, port, timeout=CONNECT_LIMIT_S, context=self._tls)

    def _hang_up(self) -> None:
        connection = getattr(self._mine, "connection", None)
        self._mine.connection = None
        if connection is not None:
            connection.close()

    # ------------------------------------------------------------------ what is refused

    def _check_time(self) -> None:
        if self._clock_s is not None and self._has_expired():
            raise self._expired()

    def _has_expired(self) -> bool:
        return time.time() + (self._clock_s or 0.0) >= self._expires_s

    def _expired(self) -> Refused:
        until = self._grant["expires"].replace("T", " ").replace("Z", " UTC")
        return Refused(
            f"this script has expired ({until}); what it sent stays, and another one goes on "
            f"from there: {self._grant['another']}"
        )

    def _refusal(self, answer: Answer) -> Refused:
        if self._has_expired() or _EXPIRED.search(answer.body):
            return self._expired()
        if answer.code == "RequestTimeTooSkewed":
            return Refused("the clock of this machine is not the registry's: set it")
        return Refused(
            f"the registry refuses the token of this script ({answer}): it was altered or "
            f"withdrawn, or is not for {self._grant['model']}; get another: "
            f"{self._grant['another']}"
        )


def parse_time(text: str) -> float:
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
    return moment.replace(tzinfo=timezone.utc).timestamp()


def is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
