"""A registry that is far away: a TCP proxy that holds back each request for a while.

`python -m benchmarks.delay HOST:PORT SECONDS` prints the port on which it listens. What a client
sends after the server has answered, and first on a connection, is a new request: its first
bytes wait. Bodies never do: what the server sends is spliced through a pipe, so that it is not
copied and costs little of a processor that the contenders need.
"""

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

PIECE_BYTES = 256 << 10
PIPE_BYTES = 1 << 20
ROOT = Path(__file__).parent.parent
END_LIMIT_S = 5.0


@contextmanager
def delayed(endpoint: str, delay_s: float) -> Iterator[str]:
    """Run a proxy before an endpoint; yield its own endpoint."""
    where = urlsplit(endpoint).netloc
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.delay", where, str(delay_s)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(END_LIMIT_S)


class Connection:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket, delay_s: float) -> None:
        self._client = client
        self._server = server
        self._delay_s = delay_s
        self._is_answered = True  # the next bytes of the client are a new request
        for side in (client, server):
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def carry(self) -> None:
        """Carry bytes both ways until one side ends."""
        up = threading.Thread(target=self._requests, daemon=True)
        up.start()
        with self._client, self._server:
            with contextlib.suppress(OSError):
                self._answers()
            # The other thread waits in a recv, which closing alone does not end.
            for side in (self._client, self._server):
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)
            up.join()

    def _requests(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._client.recv(PIECE_BYTES):
                if self._is_answered:
                    self._is_answered = False
                    time.sleep(self._delay_s)
                self._server.sendall(data)
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_WR)

    def _answers(self) -> None:
        out, into = os.pipe()
        try:
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            while held := os.splice(self._server.fileno(), into, PIPE_BYTES):
                self._is_answered = True
                while held:
                    held -= os.splice(out, self._client.fileno(), held)
        finally:
            os.close(out)
            os.close(into)


def main() -> None:
    """Serve until killed."""
    host, _, port = sys.argv[1].rpartition(":")
    delay_s = float(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        server = socket.create_connection((host, int(port)))
        carried = Connection(client, server, delay_s)
        threading.Thread(target=carried.carry, daemon=True).start()


if __name__ == "__main__":
    main()
