"""The way to the registry: credentials, endpoint, certificate, clocks. No key is sent."""

import socket
import ssl
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from modelfs.doctor.outcome import Outcome, failed, ok, warning
from modelfs.doctor.running import Steps
from modelfs.registry.credentials import CredentialsFile
from modelfs.registry.s3_clients import S3Clients, is_loopback
from modelfs.registry.s3_settings import S3Settings
from modelfs.registry.wire import address, wrong_scheme
from modelfs.tables import RegistryConfig

LIMIT_S = 5.0
EXPIRY_WARNING_DAYS = 30
CLOCK_WARNING_S = 60.0
CLOCK_LIMIT_S = 900.0  # S3 refuses requests whose time differs by more

_DAY_S = 86400
_REST = "what needs it was not checked"
_EXPIRED, _NOT_YET, _SELF_SIGNED = 10, 9, (18, 19)  # OpenSSL's verify errors
_OTHER_HOST = (62, 64)


def examine(config: RegistryConfig, step: Steps) -> bool:
    """Check the way to the registry; tell whether its bucket can be asked."""
    settings = S3Settings.of(config)
    if not step("credentials", lambda: _credentials(settings)):
        return False
    if proxy := _proxy(config.endpoint):
        return step("endpoint", lambda: _proxied(settings, proxy))
    if not step("endpoint", lambda: _endpoint(config.endpoint), _reach_advice()):
        return False
    if not step("certificate", lambda: _certificate(settings)):
        return False
    step("clock", lambda: _clock(settings))
    return True


# ----------------------------------------------------------------- credentials


def _credentials(settings: S3Settings) -> Sequence[Outcome]:
    path = settings.credentials
    if path is None:
        source = S3Clients(settings).credentials_source
        if source is None:
            return [failed("credentials", "none found", "set credentials = FILE")]
        return [ok("credentials", f"boto3's own, from {source}")]
    CredentialsFile(path).current()
    return [_mode(path)]


def _mode(path: Path) -> Outcome:
    mode = path.stat().st_mode & 0o777
    readers = " and ".join(
        [who for who, bit in (("its group", 0o040), ("everyone", 0o004)) if mode & bit]
    )
    if readers:
        return warning(
            "credentials",
            f"{path} can be read by {readers} (mode {mode:04o})",
            f"chmod 600 {path}",
        )
    return ok("credentials", f"{path}, for its owner alone (mode {mode:04o})")


# -------------------------------------------------------------------- endpoint


def _proxy(endpoint: str) -> str | None:
    """Return the proxy of the environment that requests go through; none to this machine."""
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    proxy = getproxies().get(parts.scheme)
    return proxy and proxy.rpartition("@")[2]  # without the password


def _proxied(settings: S3Settings, proxy: str) -> Outcome:
    S3Clients(settings)  # raises ConfigError where ca_bundle is wrong
    return ok("endpoint", f"{settings.endpoint}, through the proxy {proxy}: not looked at itself")


def _reach_advice() -> str:
    return f"start the gateway, open the firewall, or correct `endpoint`; {_REST}"


def _endpoint(endpoint: str) -> Outcome:
    host, port = address(endpoint)
    began_s = time.monotonic()
    try:
        with socket.create_connection((host, port), LIMIT_S) as connection:
            peer = connection.getpeername()[0]
    except socket.gaierror as error:
        advice = f"correct `endpoint`, or this node's DNS; {_REST}"
        return failed("endpoint", f"{host} has no address ({error.strerror})", advice)
    except TimeoutError:
        return failed(
            "endpoint", f"{host}:{port} takes no connection in {LIMIT_S:g} s", _reach_advice()
        )
    except OSError as error:
        return failed(
            "endpoint", f"nothing answers at {host}:{port} ({error.strerror})", _reach_advice()
        )
    took_ms = (time.monotonic() - began_s) * 1000
    if wrong := wrong_scheme(endpoint):
        return failed("endpoint", wrong)
    return ok("endpoint", f"{endpoint} ({peer}, connected in {took_ms:.0f} ms)")


# ----------------------------------------------------------------- certificate


@cache
def _context(settings: S3Settings) -> ssl.SSLContext:
    """Return what verifies a certificate as the daemon does; raises ConfigError."""
    return S3Clients(settings).tls_context()


def _certificate(settings: S3Settings) -> Outcome:
    host, port = address(settings.endpoint)
    context = _context(settings)
    if not settings.endpoint.startswith("https:"):
        if is_loopback(host):
            return ok("certificate", "none: http, inside this machine")
        return warning(
            "certificate",
            "none: http; whoever is on the way can read and change what is sent",
            "let the gateway speak TLS, and write https:// in `endpoint`",
        )
    bundle = settings.ca_bundle or "the authorities that this system trusts"
    try:
        with (
            socket.create_connection((host, port), LIMIT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            shown = connection.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        advice = f"{_certificate_advice(error, settings)}; {_REST}"
        return failed("certificate", f"not accepted: {error.verify_message}", advice)
    ends_s = ssl.cert_time_to_seconds(str(shown["notAfter"]))
    days = int((ends_s - time.time()) // _DAY_S)
    found = f"valid for {host} until {time.strftime('%Y-%m-%d', time.gmtime(ends_s))} ({days} days)"
    if days < EXPIRY_WARNING_DAYS:
        return warning("certificate", found, "renew it at the gateway before it ends")
    return ok("certificate", f"{found}, vouched for by {bundle}")


def _certificate_advice(error: ssl.SSLCertVerificationError, settings: S3Settings) -> str:
    code = error.verify_code
    if code == _EXPIRED:
        return "renew it at the gateway (is this node's clock right?)"
    if code == _NOT_YET:
        return "is this node's clock right?"
    if code in _OTHER_HOST:
        return "write the name in `endpoint` that the certificate is for, or renew it with this one"
    if settings.ca_bundle is None or code in _SELF_SIGNED:
        return "set ca_bundle = FILE to the certificate of the authority that signed it"
    return f"ask for the authority that signed it: {settings.ca_bundle} does not have it"


# ----------------------------------------------------------------------- clock


def _clock(settings: S3Settings) -> Outcome:
    """Compare the Date of an answer, whatever it is, with this node's clock."""
    host, port = address(settings.endpoint)
    connection = (
        HTTPSConnection(host, port, timeout=LIMIT_S, context=_context(settings))
        if settings.endpoint.startswith("https:")
        else HTTPConnection(host, port, timeout=LIMIT_S)
    )
    began_s = time.time()
    try:
        connection.request("GET", "/")
        date = connection.getresponse().headers.get("Date", "")
        theirs_s = parsedate_to_datetime(date).timestamp() + 0.5  # it tells whole seconds
    except (HTTPException, ValueError) as error:
        return warning(
            "clock",
            f"the endpoint tells no time ({type(error).__name__})",
            "is it a gateway of S3?",
        )
    finally:
        connection.close()
    off_s = theirs_s - (began_s + time.time()) / 2
    return _clock_outcome(off_s)


def _clock_outcome(off_s: float) -> Outcome:
    way = "behind" if off_s > 0 else "ahead of"
    if abs(off_s) < 2:
        return ok("clock", "this node's and the registry's agree within 2 s")
    found = f"this node's clock is {abs(off_s):.0f} s {way} the registry's"
    advice = "set both by NTP (chronyc tracking, timedatectl)"
    if abs(off_s) >= CLOCK_LIMIT_S:
        return failed("clock", f"{found}, and requests are refused from 900 s on", advice)
    if abs(off_s) >= CLOCK_WARNING_S:
        return warning("clock", found, advice)
    return ok("clock", found)
