"""Connections to one endpoint, kept, on which GETs follow each other.

A request is written and its answer read later, so that one thread has several under way on as
many connections. llhttp parses the heads of answers: http.client takes 0.1 ms of processor time
for one, and can send nothing before it has read the last answer.
"""

import socket
import ssl
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable

from httptools import HttpParserError, HttpResponseParser
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ProtocolError, ReadTimeoutError, SSLError
from urllib3.util.wait import wait_for_read

HEAD_MAX_BYTES = 256 << 10
PIECE_BYTES = 64 << 10  # received at once, until it is known how long the body is


class Connection:
    """One connection, one request at a time. Raises urllib3's errors.

    INVARIANT: of an answer that `is_over` every byte was received; `pieces` are those of its body
    that came with its head, or in chunks, and were not asked for yet.
    """

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        """Take a socket that is connected; a wait on it ends after `timeout_s`.

        Where there is no TLS, the kernel sees to the time, and is told to fill whole buffers
        (MSG_WAITALL): a receive for each packet that has come makes a dozen threads hand the
        interpreter's lock to each other sixty times a MiB, which costs more than the bytes.
        """
        self._socket = sock
        self._flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL
        if self._flags:
            seconds = int(timeout_s)
            limit = struct.pack("@ll", seconds, int((timeout_s - seconds) * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        sock.settimeout(None if self._flags else timeout_s)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_over = True
        self._parser: HttpResponseParser | None = None
        self._pieces: deque[memoryview] = deque()
        self._has_head = False
        self._is_kept = True
        self._left: int | None = 0  # bytes of the body still to be received, where that is known

    @property
    def is_reusable(self) -> bool:
        """Tell whether another request may be sent: the answer was read, and no end announced."""
        return self._is_kept and self.is_over

    @property
    def is_alive(self) -> bool:
        """Tell whether the other side has not closed it; no bytes are to come."""
        return not wait_for_read(self._socket, timeout=0.0)

    def ask(self, request: bytes) -> None:
        """Send a request that has no body."""
        self._parser = HttpResponseParser(self)
        self.headers = {}
        self._pieces.clear()
        self.is_over = self._has_head = False
        self._left = None
        try:
            self._socket.sendall(request)
        except OSError as error:
            raise _told(error) from error

    def receive_head(self) -> None:
        """Wait until `status` and `headers` (names in lower case) are here."""
        count = 0
        while not self._has_head:
            count += self._receive_piece()
            if count > HEAD_MAX_BYTES and not self._has_head:
                raise ProtocolError(f"an answer's head has more than {HEAD_MAX_BYTES} bytes")
        length = self.headers.get("content-length")
        if length is not None and not self.is_over:
            self._left = int(length) - sum(map(len, self._pieces))

    def _receive_piece(self) -> int:
        """Receive some bytes, and have them parsed."""
        assert self._parser is not None
        try:
            data = self._socket.recv(PIECE_BYTES)
            if not data:
                raise ProtocolError("Connection broken: it was closed before the answer's end")
            self._parser.feed_data(data)
        except OSError as error:
            raise _told(error) from error
        except HttpParserError as error:
            raise ProtocolError(f"the answer is not HTTP: {error}") from error
        return len(data)

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the buffer with the body, or its beginning; return how much, 0 at the end.

        Also 0 where a body breaks off whose length is known.
        """
        while not self._pieces and not self.is_over and self._left is None:
            self._receive_piece()
        if self._pieces:
            piece = self._pieces.popleft()
            count = min(len(piece), len(buffer))
            buffer[:count] = piece[:count]
            if count < len(piece):
                self._pieces.appendleft(piece[count:])
            return count
        if self.is_over or not buffer:
            return 0
        assert self._left is not None
        try:
            count = self._socket.recv_into(buffer[: self._left], 0, self._flags)
        except OSError as error:
            raise _told(error) from error
        self._left -= count
        self.is_over = not self._left
        self._is_kept &= count > 0
        return count

    def close(self) -> None:
        self._parser = None
        self._socket.close()

    # ------------------------------------------------------- the parser's calls

    def on_message_begin(self) -> None:
        self._is_kept &= not self.is_over  # bytes behind an answer belong to nobody

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self.status = self._parser.get_status_code()
        self._has_head = self.status >= 200
        self._is_kept &= self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._pieces.append(memoryview(body))

    def on_message_complete(self) -> None:
        if self._has_head:
            self.is_over = True
        else:  # a head that only says that the answer is to come (1xx)
            self.headers = {}


def _told(error: OSError) -> Exception:
    """Return urllib3's error for one of a socket."""
    if isinstance(error, TimeoutError | BlockingIOError):
        return ReadTimeoutError(None, "", "Read timed out.")  # type: ignore[arg-type]
    if isinstance(error, ssl.SSLError):
        return SSLError(error)
    return ProtocolError(f"Connection broken: {error}", error)


class Connections:
    """The connections to one endpoint that are kept; any thread may call."""

    def __init__(self, make: Callable[[], HTTPConnection], timeout_s: float, kept: int) -> None:
        """`make` returns a connection that is not connected yet; at most `kept` are kept."""
        self._make = make
        self._timeout_s = timeout_s
        self._idle: deque[Connection] = deque(maxlen=kept)
        self._lock = threading.Lock()
        weakref.finalize(self, _close_all, self._idle)  # of settings that are no longer asked by

    def take(self) -> Connection:
        """Return a connection that is kept, the last one given back, or a new one."""
        while (connection := self._pop()) is not None:
            if connection.is_alive:
                return connection
            connection.close()
        made = self._make()
        try:
            made.connect()
        except ssl.SSLError as error:
            raise SSLError(error) from error
        except OSError as error:
            raise _told(error) from error
        assert made.sock is not None
        return Connection(made.sock, self._timeout_s)

    def _pop(self) -> Connection | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def give(self, connection: Connection) -> None:
        """Keep a connection whose answer was read to its end; close any other."""
        with self._lock:
            has_room = len(self._idle) != self._idle.maxlen
            if has_room and connection.is_reusable:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Close the connections that are kept."""
        with self._lock:
            _close_all(self._idle)


def _close_all(connections: deque[Connection]) -> None:
    while connections:
        connections.pop().close()
