"""A registry that misbehaves for a while: a proxy between a daemon and a real gateway.

One request a connection: each answer says `Connection: close`, so an answer ends where the
gateway's does, and nothing of HTTP need be understood but heads. The signature holds, since
the gateway is told the host that the client named.
"""

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from enum import Enum, auto
from types import TracebackType
from urllib.parse import urlsplit

PIECE_BYTES = 64 << 10
SLOW_PAUSE_S = 0.02
LIMIT_S = 60.0

_CONNECTION = re.compile(rb"\r\nconnection:[^\r]*", re.IGNORECASE)
_LENGTH = re.compile(rb"(\r\ncontent-length: *)([0-9]+)", re.IGNORECASE)
_RANGE = re.compile(rb"\r\nrange: *bytes=([0-9]+)-", re.IGNORECASE)
_ETAG = re.compile(rb'(\r\netag: *"?)([0-9a-f]{4})', re.IGNORECASE)
_IF_MATCH = re.compile(rb"\r\nif-match:[^\r]*", re.IGNORECASE)
_DATE = re.compile(rb"(\r\ndate: *)[^\r]*", re.IGNORECASE)
_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Fault(Enum):
    """What befalls a request, or its answer."""

    NONE = auto()
    UNAVAILABLE = auto()  # 503
    RESET = auto()  # the connection is reset before an answer
    RESET_AFTER = auto()  # the gateway does what was asked, its answer is lost
    STALL = auto()  # half of the body, then silence
    SHORT = auto()  # half of the body, then the end
    SHORT_LENGTH = auto()  # half of the body, and a length that says so
    WRONG = auto()  # every byte of the body is another one
    SLOW = auto()  # the right body, a little at a time
    HOLD = auto()  # the request waits as long as the fault lasts
    FORBIDDEN = auto()  # 403, the rights are missing
    QUOTA = auto()  # 403, the quota is used up
    WRONG_ETAG = auto()  # the answer names another ETag than the gateway did
    ANSWER = auto()  # `answer` in place of the gateway's
    NO_IF_MATCH = auto()  # the gateway knows no If-Match
    CLOCK = auto()  # the gateway's clock is off by `clock_off_s`


def _refusal(code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    head = f"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\nConnection: close\r\n\r\n" + body


_REFUSALS = {
    Fault.UNAVAILABLE: _UNAVAILABLE,
    Fault.FORBIDDEN: _refusal("AccessDenied"),
    Fault.QUOTA: _refusal("QuotaExceeded"),
}


def is_any(head: bytes) -> bool:
    """Choose every request."""
    return True


def refusal(status: int, code: str) -> bytes:
    """Return the answer of a gateway that refuses a request for the reason `code`."""
    body = f"<Error><Code>{code}</Code><Message/></Error>".encode()
    head = f"HTTP/1.1 {status} Refused\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


def is_data(head: bytes) -> bool:
    """Choose the requests for parts of objects."""
    return head.startswith(b"GET ") and _RANGE.search(head) is not None


def is_listing(head: bytes) -> bool:
    """Choose the listings of objects."""
    return head.startswith(b"GET ") and b"list-type=2" in head


def is_change(head: bytes) -> bool:
    """Choose what changes the registry."""
    return not head.startswith((b"GET ", b"HEAD "))


class FaultyProxy:
    """See the module. `fault` may be changed at any time; it befalls what `chosen` chooses."""

    def __init__(self, endpoint: str) -> None:
        self._target = (str(urlsplit(endpoint).hostname), int(urlsplit(endpoint).port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._lock = threading.Lock()
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.fault = Fault.NONE
        self.chosen: Callable[[bytes], bool] = is_any
        self.heads: list[bytes] = []  # of the requests that came
        self.faults = 0
        self.answer = _UNAVAILABLE
        self.clock_off_s = 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "FaultyProxy":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @contextmanager
    def faulty(self, fault: Fault, chosen: Callable[[bytes], bool] = is_any) -> Iterator[None]:
        """Let a fault befall what comes inside the block."""
        self.chosen, self.fault = chosen, fault
        try:
            yield
        finally:
            self.fault = Fault.NONE

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        with conn, contextlib.suppress(OSError):
            conn.settimeout(LIMIT_S)
            head, rest = _read_head(conn)
            if not head:
                return
            fault = self.fault if self.chosen(head) else Fault.NONE
            with self._lock:
                self.heads.append(head)
                self.faults += fault is not Fault.NONE
            if fault is Fault.RESET:
                _reset(conn)
            elif refusal := _REFUSALS.get(fault):
                conn.sendall(refusal)
            elif fault is Fault.ANSWER:
                conn.sendall(self.answer)
            else:
                while fault is Fault.HOLD is self.fault and not self._over.wait(0.01):
                    pass
                if fault is Fault.NO_IF_MATCH:
                    head = _IF_MATCH.sub(b"", head)
                with socket.create_connection(self._target, LIMIT_S) as gateway:
                    gateway.sendall(_closing(head) + rest)
                    threading.Thread(target=_pump, args=(conn, gateway), daemon=True).start()
                    self._answer(gateway, conn, fault)
                    # The other thread waits in a recv, which keeps a closed socket open.
                    conn.shutdown(
                        socket.SHUT_RD if fault is Fault.RESET_AFTER else socket.SHUT_RDWR
                    )

    def _answer(self, gateway: socket.socket, conn: socket.socket, fault: Fault) -> None:
        head, rest = _read_head(gateway)
        while head.startswith(b"HTTP/1.1 100"):
            conn.sendall(head)
            head, rest = _read_head(gateway, rest)
        if fault is Fault.RESET_AFTER:
            _reset(conn)
            return
        found = _LENGTH.search(head)
        half = int(found[2]) // 2 if found else 0
        if fault is Fault.CLOCK:
            wrong = formatdate(time.time() + self.clock_off_s, usegmt=True).encode()
            head = _DATE.sub(rb"\g<1>" + wrong, head)
        if fault is Fault.SHORT_LENGTH:
            head = _LENGTH.sub(rb"\g<1>%d" % half, head)
        if fault is Fault.WRONG_ETAG:
            head = _ETAG.sub(rb"\g<1>0bad", head)
        conn.sendall(_closing(head))
        is_cut = fault in (Fault.STALL, Fault.SHORT, Fault.SHORT_LENGTH)
        left = half if is_cut else 1 << 62
        while left and (piece := rest or gateway.recv(PIECE_BYTES)):
            piece, rest = piece[:left], b""
            left -= len(piece)
            conn.sendall(bytes(b ^ 0xFF for b in piece) if fault is Fault.WRONG else piece)
            if fault is Fault.SLOW:
                time.sleep(SLOW_PAUSE_S)
        if fault is Fault.STALL:
            self._over.wait(LIMIT_S)


def _closing(head: bytes) -> bytes:
    return _CONNECTION.sub(b"", head).removesuffix(b"\r\n\r\n") + b"\r\nConnection: close\r\n\r\n"


def _reset(conn: socket.socket) -> None:
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _read_head(conn: socket.socket, data: bytes = b"") -> tuple[bytes, bytes]:
    while b"\r\n\r\n" not in data:
        piece = conn.recv(PIECE_BYTES)
        if not piece:
            return b"", b""
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Hand on the body of a request, until a side is closed."""
    with contextlib.suppress(OSError):
        while piece := source.recv(PIECE_BYTES):
            target.sendall(piece)
