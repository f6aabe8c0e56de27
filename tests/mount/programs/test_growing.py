"""Files that grow by many small openings: logs, uploads in pieces, downloads that are resumed."""

import hashlib
import logging
import logging.handlers
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.mount.twins import Twins

pytestmark = pytest.mark.mount

MIB = 1 << 20
PIECES = 6

# Another process sees whole lines at each moment, and never fewer than before.
WATCH = """
import sys, time
path, end, seen = sys.argv[1], int(sys.argv[2]), 0
while seen < end:
    with open(path, "rb") as file:
        lines = file.read().split(b"\\n")
    assert lines.pop() == b"", lines
    assert lines == [b"line %d" % n for n in range(len(lines))], lines[-3:]
    assert len(lines) >= seen, (len(lines), seen)
    seen = len(lines)
    time.sleep(0.005)
"""


def test_a_file_that_is_opened_for_each_line_is_whole_for_others_at_each_moment(
    everywhere: Twins,
) -> None:
    count = 60

    def step(folder: Path) -> object:
        path = folder / "log"
        path.touch()
        watch = subprocess.Popen([sys.executable, "-c", WATCH, str(path), str(count)])
        for number in range(count):
            with path.open("ab") as file:
                file.write(b"line %d\n" % number)
        assert watch.wait(30) == 0
        return path.read_bytes().count(b"\n")

    assert everywhere.same(step) == count


@pytest.mark.ceph
def test_what_is_in_the_registry_after_each_close_of_a_log_is_the_log(ceph_twins: Twins) -> None:
    path, mount = ceph_twins.mount.main / "log", ceph_twins.mount
    for number in range(20):
        with path.open("a") as file:
            file.write(f"line {number}\n")
        assert mount.objects()["log"] == path.read_bytes()
    assert path.read_text().count("\n") == 20


def test_a_file_that_is_uploaded_in_pieces_as_jupyterlab_does_is_whole(everywhere: Twins) -> None:
    """Each piece of 1 MiB is its own opening, the first for writing and the others to append."""
    pieces = [bytes([number]) * MIB for number in range(PIECES - 1)] + [b"the end"]

    def step(folder: Path) -> object:
        path, sizes = folder / "model.bin", []
        for number, piece in enumerate(pieces):
            with path.open("ab" if number else "wb") as file:
                file.write(piece)
            sizes.append(path.stat().st_size)
            if number == 2:
                sizes.append(len(path.read_bytes()))
        return sizes, hashlib.sha256(path.read_bytes()).hexdigest()

    everywhere.same(step)


def test_python_s_loggers_write_and_rotate_as_on_a_disk(twins: Twins) -> None:
    def step(folder: Path) -> object:
        handlers: list[logging.Handler] = [
            logging.handlers.RotatingFileHandler(folder / "rotated", maxBytes=500, backupCount=3),
            logging.handlers.WatchedFileHandler(folder / "watched"),
            logging.FileHandler(folder / "plain"),
        ]
        for number in range(60):
            record = logging.makeLogRecord({"msg": f"line {number}"})
            for handler in handlers:
                handler.handle(record)
            if number == 30:
                (folder / "watched").rename(folder / "watched.1")
        for handler in handlers:
            handler.close()
        return {path.name: path.read_text() for path in sorted(folder.iterdir())}

    twins.same(step)


@pytest.mark.ceph
def test_tail_follows_a_log_as_on_a_disk(ceph_twins: Twins) -> None:
    ceph_twins.same(
        """
        echo first > log
        (for n in 1 2 3 4; do sleep 0.2; echo line $n >> log; done) &
        timeout 20 tail -s 0.1 -n +1 -f log | head -n 5; wait
        (sleep 0.3; mv log log.1; echo anew > log) &
        timeout 20 tail -s 0.1 -n 1 -F log 2> /dev/null | head -n 2; wait
        """
    )


# ------------------------------------------------------------------- downloads

SOURCE = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(100_000))


class _Source(BaseHTTPRequestHandler):
    """Sends SOURCE, from any byte on; without a range it breaks off in the middle."""

    def do_GET(self) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(SOURCE) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(SOURCE) - 1}/{len(SOURCE)}")
        self.end_headers()
        if "Range" in self.headers:
            self.wfile.write(SOURCE[start:])
        else:
            self.wfile.write(SOURCE[: len(SOURCE) // 2])
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def source() -> Iterator[str]:
    """Serve the source; yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Source)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/model.bin"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.ceph
def test_a_download_that_broke_off_is_resumed_as_on_a_disk(ceph_twins: Twins) -> None:
    with source() as url:
        ceph_twins.same(
            """
            curl -s --noproxy '*' -o f "$URL" || stat -c %s f
            curl -s --noproxy '*' -C - -o f "$URL" && stat -c %s f
            curl -s --noproxy '*' "$URL" > g; stat -c %s g
            curl -s --noproxy '*' -r 1600000- "$URL" >> g; cmp f g
            md5sum f
            """,
            URL=url,
        )
    assert (ceph_twins.mount.main / "f").read_bytes() == SOURCE
