"""What an endpoint speaks, looked at without S3: HTTP or TLS.

Plain sockets, a time limit each; any thread may call.
"""

import contextlib
import socket
import ssl
from urllib.parse import urlsplit

LIMIT_S = 2.0
PORTS = {"http": 80, "https": 443}


def address(endpoint: str) -> tuple[str, int]:
    """Return host and port of an endpoint's URL."""
    parts = urlsplit(endpoint)
    return parts.hostname or "", parts.port or PORTS[parts.scheme]


def wrong_scheme(endpoint: str) -> str | None:
    """Return what is wrong where http is said of an endpoint that speaks TLS, or https of none."""
    host, port = address(endpoint)
    scheme, _, rest = endpoint.partition("://")
    if scheme == "http" and not _speaks_http(host, port) and _speaks_tls(host, port):
        return f"{endpoint} speaks TLS: write endpoint = 'https://{rest}'"
    if scheme == "https" and not _speaks_tls(host, port) and _speaks_http(host, port):
        return f"{endpoint} speaks no TLS: write endpoint = 'http://{rest}', or let it have one"
    return None


def _speaks_tls(host: str, port: int) -> bool:
    """Tell whether a handshake succeeds; who the other side is does not matter here."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError), socket.create_connection((host, port), LIMIT_S) as plain:
        plain.settimeout(LIMIT_S)
        with context.wrap_socket(plain, server_hostname=host):
            return True
    return False


def _speaks_http(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), LIMIT_S) as plain:
        plain.settimeout(LIMIT_S)
        plain.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        said = plain.recv(64)
        # A server of TLS may say in plain HTTP that it wants TLS: 400.
        return said.startswith(b"HTTP/") and b" 400" not in said[:16]
    return False
