"""GETs of ranges: connections that are kept, bodies that stop, and never another's bytes.

A server of this test's own speaks HTTP/1.1 and keeps connections, as a gateway does; where it
matters what a real one does, moto and Ceph's gateway are asked.
"""

import contextlib
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from modelfs.concurrency import BUFFER_BYTES
from modelfs.errors import (
    AccessDenied,
    CertificateRejected,
    NoSpace,
    NotFound,
    RegistryUnavailable,
    Stale,
)
from modelfs.registry import bodies
from modelfs.registry.bodies import TRICKLE_BYTES, TRICKLE_S, Trickle, receive
from modelfs.registry.objects import ObjectId
from modelfs.registry.s3 import S3Store
from tests.endpoints import CephServer, S3Endpoint, store_at, write_credentials
from tests.faulty_proxy import Fault, FaultyProxy, is_data

MIB = 1 << 20
DATA = os.urandom(5 * MIB + 321)
ETAG = "0123456789abcdef0123456789abcdef"
FILE = ObjectId("m/a file+%é", ETAG)
LIMIT_S = 10.0
DATE = "Sat, 22 Nov 2025 10:00:00 GMT"

Send = Callable[["Handler", bytes], None]  # sends a body


def ignore(count: int) -> None:
    """Take no notice of progress."""


class Handler(BaseHTTPRequestHandler):
    """Serves DATA under the key of FILE."""

    protocol_version = "HTTP/1.1"
    server: "Gateway"

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        status, send = self.server.faults.pop(0) if self.server.faults else (206, whole)
        key = unquote(self.path.partition("?")[0]).removeprefix("/bucket/")
        if status == 206 and key != FILE.key:
            status = 404
        found = re.fullmatch(r"bytes=([0-9]+)-([0-9]+)", self.headers["Range"])
        assert found is not None
        start, last = map(int, found.groups())
        body = DATA[start : last + 1]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(DATA)}")
            self.send_header("ETag", f'"{ETAG}"')
            self.send_header("Last-Modified", DATE)
        else:
            body = b"<Error><Code>%d</Code><Message>words</Message></Error>" % status
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked may not want the rest
            send(self, body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def whole(handler: Handler, body: bytes) -> None:
    handler.wfile.write(body)


def stall(after: int) -> Send:
    def send(handler: Handler, body: bytes) -> None:
        handler.wfile.write(body[:after])
        handler.server.over.wait(LIMIT_S)
        handler.close_connection = True

    return send


def cut(after: int) -> Send:
    def send(handler: Handler, body: bytes) -> None:
        handler.wfile.write(body[:after])
        handler.close_connection = True

    return send


def dribble(size: int, pause_s: float = 0.0) -> Send:
    def send(handler: Handler, body: bytes) -> None:
        for at in range(0, len(body), size):
            handler.wfile.write(body[at : at + size])
            time.sleep(pause_s)

    return send


class Gateway(ThreadingHTTPServer):
    """The server: counts connections and requests; `faults` befall the next requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.connections = 0
        self.paths: list[str] = []
        self.faults: list[tuple[int, Send]] = []
        self.over = threading.Event()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    thread = threading.Thread(target=gateway.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield gateway
    gateway.over.set()
    gateway.shutdown()
    gateway.socket.close()
    thread.join(LIMIT_S)


@pytest.fixture
def store(gateway: Gateway, tmp_path: Path) -> Iterator[S3Store]:
    with store_at(gateway.endpoint, tmp_path) as store:
        yield store


@pytest.fixture
def hasty(gateway: Gateway, tmp_path: Path) -> Iterator[S3Store]:
    """The same, and half a second is long."""
    with store_at(gateway.endpoint, tmp_path, timeout_s=1.5) as store:
        yield store


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def check(store: S3Store, target: int, offset: int = 0, length: int = len(DATA)) -> None:
    """Get a range and compare it."""
    os.ftruncate(target, 0)
    moved: list[int] = []
    info = store.get_range(FILE, offset, length, target, offset, moved.append)
    assert (info.id, info.size, sum(moved)) == (FILE, len(DATA), length)
    assert os.pread(target, length + 1, offset) == DATA[offset : offset + length]


RANGES = [(0, 1), (0, len(DATA)), (7, 100), (MIB - 1, MIB + 2), (len(DATA) - 1, 1), (3, 8192)]


# ------------------------------------------------------------- connections are kept


def test_one_connection_serves_one_get_after_the_other(store, gateway, target):
    for _ in range(3):
        for offset, length in RANGES:
            check(store, target, offset, length)
    assert gateway.connections == 1


@pytest.mark.parametrize(
    ("status", "expected"), [(404, NotFound), (412, Stale), (403, AccessDenied)]
)
def test_an_error_leaves_the_connection_to_the_next_get(store, gateway, target, status, expected):
    for _ in range(3):
        gateway.faults = [(status, whole)]
        with pytest.raises(expected):
            check(store, target)
        assert os.fstat(target).st_size == 0
        check(store, target)
    assert gateway.connections == 1


def test_threads_get_side_by_side_and_use_their_connections_again(store, gateway, tmp_path):
    def work(number: int) -> None:
        fd = os.open(tmp_path / f"target{number}", os.O_RDWR | os.O_CREAT)
        try:
            for offset, length in RANGES * 3:
                check(store, fd, offset, length)
        finally:
            os.close(fd)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert gateway.connections <= 8


@pytest.mark.parametrize("size", [1000, 70_000])
def test_a_body_that_comes_in_small_pieces_is_put_together(store, gateway, target, size):
    for _ in range(2):
        gateway.faults = [(206, dribble(size))]
        check(store, target)
    assert gateway.connections == 1


# --------------------------------------------------------------- bodies that stop


@pytest.mark.parametrize("after", [0, 1, 300_000, MIB, len(DATA) - 1])
@pytest.mark.parametrize("fault", [stall, cut])
def test_a_body_that_stops_is_unavailable_and_the_next_get_has_its_own_answer(
    hasty, gateway, target, fault, after
):
    gateway.faults = [(206, fault(after))]
    moved: list[int] = []
    with pytest.raises(RegistryUnavailable):
        hasty.get_range(FILE, 0, len(DATA), target, 0, moved.append)
    assert sum(moved) == after
    assert os.pread(target, after, 0) == DATA[:after]
    for offset, length in RANGES:
        check(hasty, target, offset, length)
    assert gateway.connections == 2


def test_a_body_that_is_slow_and_goes_on_is_no_fault(gateway, target, tmp_path):
    gateway.faults = [(206, dribble(20_000, 0.25))]  # in all longer than one wait may be
    with store_at(gateway.endpoint, tmp_path, timeout_s=6) as store:
        check(store, target, 0, 200_000)
        check(store, target)
    assert gateway.connections == 1


def test_a_body_that_is_not_read_to_its_end_leaves_nothing_to_the_next_get(store, gateway, target):
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        for number in range(3):
            with pytest.raises(NoSpace):
                store.get_range(FILE, 0, len(DATA), full, 0, ignore)
            check(store, target)
            assert gateway.connections == number + 2
    finally:
        os.close(full)


def test_a_body_whose_taker_fails_leaves_nothing_to_the_next_get(store, gateway, target):
    def fail(count: int) -> None:
        raise ValueError("a bug")

    for length in (10, len(DATA)):
        with pytest.raises(ValueError, match="a bug"):
            store.get_range(FILE, 0, length, target, 0, fail)
        check(store, target)


@pytest.mark.parametrize("status", [301, 307, 400])
def test_what_may_be_a_bucket_of_another_region_is_asked_again_by_boto3(
    store, gateway, target, status
):
    gateway.faults = [(status, whole)]
    check(store, target)
    check(store, target)
    assert len(gateway.paths) == 3
    assert len({unquote(path.partition("?")[0]) for path in gateway.paths}) == 1
    assert store.requests() == {"GetObject": 3}


# ---------------------------------------------------------------- real gateways


class Counter:
    """A TCP proxy that counts connections and carries bytes, whatever they are."""

    def __init__(self, endpoint: str) -> None:
        where = urlsplit(endpoint)
        self._target = (str(where.hostname), int(where.port or 80))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        self.endpoint = f"{where.scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.create_connection(self._target, LIMIT_S)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._carry, args=pair, daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError), source:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def counted(bucket: S3Endpoint, endpoint: str, **settings: object) -> Iterator[tuple]:
    with (
        closing(Counter(endpoint)) as counter,
        closing(S3Store(bucket.settings(endpoint=counter.endpoint, **settings))) as store,
    ):
        yield store, counter


ODD_KEYS = [
    *(
        "a b",
        "100%",
        "a+b",
        "%2F",
        "%41",
        "~tilde",
        "k=v&x=y",
        "ключ/模型",
        "a//b",
        "/lead",
        "end/",
    ),
    *("..", "a/../b", "?versionId=1", "#frag", "'\"<>", "semi;colon,comma", "a\\b|c^`{}[]"),
]


def test_keys_with_odd_characters_are_got(bucket, target):
    with closing(S3Store(bucket.settings())) as store:
        for number, key in enumerate(ODD_KEYS):
            etag = bucket.put(key, b"0123456789%d" % number)
            store.get_range(ObjectId(key, etag), 2, 8, target, 0, ignore)
            assert os.pread(target, 8, 0) == b"23456789", key
            with pytest.raises(Stale):
                store.get_range(ObjectId(key, ETAG), 2, 8, target, 0, ignore)
            with pytest.raises(NotFound):
                store.get_range(ObjectId(f"{key}x", etag), 2, 8, target, 0, ignore)


def test_a_version_is_got_by_its_id_and_no_other(bucket, target):
    versioning = {"Status": "Enabled"}
    bucket.client.put_bucket_versioning(Bucket=bucket.bucket, VersioningConfiguration=versioning)
    where = {"Bucket": bucket.bucket, "Key": "a file"}
    made = [bucket.client.put_object(**where, Body=body) for body in (b"first", b"other")]
    with closing(S3Store(bucket.settings())) as store:
        for answer, body in zip(made, (b"first", b"other"), strict=True):
            found = ObjectId("a file", answer["ETag"].strip('"'))
            info = store.get_range(found, 0, 5, target, 0, ignore, answer["VersionId"])
            assert (os.pread(target, 9, 0), info.version_id) == (body, answer["VersionId"])
            with pytest.raises(Stale):
                store.get_range(ObjectId("a file", ETAG), 0, 5, target, 0, ignore, info.version_id)


def test_a_body_that_stalls_on_its_way_ends_by_the_read_limit(bucket, target):
    etag = bucket.put("file", DATA)
    with (
        FaultyProxy(bucket.endpoint) as proxy,
        closing(S3Store(bucket.settings(endpoint=proxy.endpoint, timeout_s=1.5))) as store,
    ):
        moved: list[int] = []
        with proxy.faulty(Fault.STALL, is_data), pytest.raises(RegistryUnavailable):
            store.get_range(ObjectId("file", etag), 0, MIB, target, 0, moved.append)
        assert sum(moved) <= MIB // 2
        store.get_range(ObjectId("file", etag), 0, MIB, target, 0, ignore)
    assert os.pread(target, MIB + 1, 0) == DATA[:MIB]


@pytest.mark.ceph
def test_wrong_credentials_are_denied_by_a_get(ceph_bucket: S3Endpoint, target):
    etag = ceph_bucket.put("file", b"12345")
    good = ceph_bucket.access_key, ceph_bucket.secret_key
    with closing(S3Store(ceph_bucket.settings())) as store:
        for keys in ((good[0], "wrong"), ("UNKNOWN", good[1])):
            write_credentials(ceph_bucket.credentials_file, *keys)
            with pytest.raises(AccessDenied):
                store.get_range(ObjectId("file", etag), 0, 5, target, 0, ignore)
        write_credentials(ceph_bucket.credentials_file, *good)
        store.get_range(ObjectId("file", etag), 0, 5, target, 0, ignore)


@pytest.mark.ceph
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
def test_ceph_s_gateway_serves_many_gets_by_one_connection(
    ceph: CephServer, ceph_bucket: S3Endpoint, target, is_tls
):
    etag = ceph_bucket.put("file", DATA)
    file = ObjectId("file", etag)
    endpoint, more = ceph.endpoint, {}
    if is_tls:
        endpoint, more = ceph.tls_endpoint, {"ca_bundle": ceph.ca}
    with counted(ceph_bucket, endpoint, **more) as (store, counter):
        for offset, length in RANGES * 2:
            store.get_range(file, offset, length, target, offset, ignore)
            assert os.pread(target, length, offset) == DATA[offset : offset + length]
            with pytest.raises(NotFound):
                store.get_range(ObjectId("absent", etag), 0, 1, target, 0, ignore)
        assert counter.connections == 1
        full = os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(NoSpace):
            store.get_range(file, 0, len(DATA), full, 0, ignore)
        os.close(full)
        os.ftruncate(target, 0)
        store.get_range(file, 0, len(DATA), target, 0, ignore)
        assert os.pread(target, len(DATA) + 1, 0) == DATA
        assert counter.connections == 2


@pytest.mark.ceph
def test_a_certificate_that_is_not_trusted_is_rejected_by_a_get(
    ceph: CephServer, ceph_bucket: S3Endpoint, target
):
    etag = ceph_bucket.put("file", b"12345")
    with (
        closing(S3Store(ceph_bucket.settings(endpoint=ceph.tls_endpoint))) as store,
        pytest.raises(CertificateRejected, match="set ca_bundle = FILE"),
    ):
        store.get_range(ObjectId("file", etag), 0, 5, target, 0, ignore)
    assert os.fstat(target).st_size == 0


# --------------------------------------------------------------------- trickles


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(bodies.time, "monotonic", lambda: self.now)


class Slow:
    """A body of which so many bytes come at a time, each after a while."""

    def __init__(self, clock: Clock, size: int, pause_s: float) -> None:
        self._clock, self._size, self._pause_s = clock, size, pause_s

    def readinto(self, buffer: memoryview, /) -> int:
        self._clock.now += self._pause_s
        count = min(self._size, len(buffer))
        buffer[:count] = bytes(count)
        return count


def test_a_stream_that_only_trickles_is_given_up(monkeypatch, target):
    clock, moved = Clock(monkeypatch), []
    with pytest.raises(RegistryUnavailable, match="less than 32768 bytes in 10 s"):
        receive(Slow(clock, 1000, 1.0), MIB, target, 0, moved.append)
    assert clock.now <= 1000 + TRICKLE_S + 1
    assert sum(moved) == os.fstat(target).st_size < TRICKLE_BYTES


def test_a_stream_that_began_well_and_then_trickles_is_given_up_too(monkeypatch):
    clock = Clock(monkeypatch)
    pace, done = Trickle(), 0
    for _ in range(20):
        clock.now, done = clock.now + 5, done + TRICKLE_BYTES
        pace.check(done)
    for _ in range(2):  # what came in these 10 s is due to the good beginning
        clock.now, done = clock.now + 4.9, done + 100
        pace.check(done)
    clock.now += 5
    with pytest.raises(RegistryUnavailable):
        pace.check(done + 100)


def test_a_slow_stream_that_is_faster_than_a_trickle_is_read_to_its_end(monkeypatch, target):
    clock = Clock(monkeypatch)
    body = Slow(clock, TRICKLE_BYTES, TRICKLE_S)
    assert receive(body, 3 * BUFFER_BYTES, target, 0, ignore) == 3 * BUFFER_BYTES
    assert clock.now > 1000 + 50 * TRICKLE_S
