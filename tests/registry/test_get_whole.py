"""Small objects got whole, several requests under way in one thread; and answers of every shape.

A server of this test's own sends what it is told, byte for byte; what a real gateway does, moto
and Ceph's are asked.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

import pytest

from modelfs.errors import (
    AccessDenied,
    InvalidName,
    ModelfsError,
    NotFound,
    RegistryUnavailable,
    Stale,
    WrongBytes,
)
from modelfs.registry.connections import HEAD_MAX_BYTES
from modelfs.registry.objects import ObjectId, ObjectInfo
from modelfs.registry.s3 import S3Store
from modelfs.registry.s3_get import ERROR_MAX_BYTES
from tests.endpoints import CephServer, S3Endpoint, store_at
from tests.mounting import wait_until

LIMIT_S = 10.0
ETAG = "0123456789abcdef0123456789abcdef"
NAMES = [f"f{number:02d}" for number in range(20)]


def ignore(count: int) -> None:
    """Take no notice of progress."""


def content_of(name: str) -> bytes:
    return name.encode() * 100


def info_of(name: str, etag: str = ETAG) -> ObjectInfo:
    return ObjectInfo(ObjectId(name, etag), len(content_of(name)), 0, None, None)


def head_of(body: bytes, *more: str, status: str = "206 Partial Content") -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f'ETag: "{ETAG}"',
        f"Content-Range: bytes 0-{len(body) - 1}/{len(body)}",
        "Last-Modified: Sat, 22 Nov 2025 10:00:00 GMT",
        *more,
    ]
    return "\r\n".join((*lines, "", "")).encode()


def plain(name: str) -> bytes:
    body = content_of(name)
    return head_of(body, f"Content-Length: {len(body)}") + body


def chunked(body: bytes, status: str = "206 Partial Content") -> bytes:
    pieces = [body[:1], body[1:20], body[20:]]
    said = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return head_of(body, "Transfer-Encoding: chunked", status=status) + said + b"0\r\n\r\n"


def words_of(code: str) -> bytes:
    return b"<Error><Code>%s</Code><Message>words</Message></Error>" % code.encode()


def refusal(code: str, status: str) -> bytes:
    body = words_of(code)
    return head_of(body, f"Content-Length: {len(body)}", status=status) + body


class Gateway:
    """Answers each request for a key by `answers[key]`, else as it should.

    A connection whose answer is in `last` is closed behind it. While `go` is not set, none come.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.answers: dict[str, bytes] = {}
        self.last: set[str] = set()
        self.asked: list[str] = []
        self.connections = 0
        self.go = threading.Event()
        self.go.set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.go.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, client.makefile("rb") as lines:
            while line := lines.readline():
                key = unquote(line.split()[1].decode()).partition("/bucket/")[2]
                while lines.readline().strip():
                    pass
                self.asked.append(key)
                self.go.wait(LIMIT_S)
                client.sendall(self.answers.get(key) or plain(key))
                if key in self.last:
                    return


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with closing(Gateway()) as gateway:
        yield gateway


@pytest.fixture
def store(gateway: Gateway, tmp_path: Path) -> Iterator[S3Store]:
    with store_at(gateway.endpoint, tmp_path, timeout_s=6) as store:
        yield store


def got(store: S3Store, names: list[str], at_once: int = 4) -> dict[str, bytes]:
    """Get objects whole; return the content of each."""
    moved: list[int] = []
    found: dict[str, bytes] = {}
    with closing(store.get_whole(list(map(info_of, names)), at_once, moved.append)) as all_of_them:
        for info, content in all_of_them:
            assert info.size == len(content)
            found[info.id.key] = bytes(content)
    assert sum(moved) == sum(map(len, found.values()))
    return found


def is_right(found: dict[str, bytes], names: list[str] = NAMES) -> bool:
    return list(found.items()) == [(name, content_of(name)) for name in names]


def test_objects_come_in_their_order_by_as_many_connections_as_there_are_requests(store, gateway):
    for _ in range(3):
        assert is_right(got(store, NAMES))
    assert gateway.connections == 4
    assert sorted(gateway.asked) == sorted(NAMES * 3)
    assert store.requests() == {"GetObject": 3 * len(NAMES)}


def test_no_more_requests_are_under_way_than_may_be(store, gateway):
    gateway.go.clear()
    thread = threading.Thread(target=got, args=(store, NAMES, 3))
    thread.start()
    wait_until(lambda: len(gateway.asked) == 3)
    time.sleep(0.1)
    assert len(gateway.asked) == 3
    gateway.go.set()
    thread.join(LIMIT_S)
    assert len(gateway.asked) == len(NAMES)
    assert gateway.connections == 3


ANSWERS = {
    "an interim answer before it": b"HTTP/1.1 100 Continue\r\n\r\n" + plain("f05"),
    "two interim answers": b"HTTP/1.1 102 Processing\r\nETag: x\r\n\r\n" * 2 + plain("f05"),
    "names in upper case": plain("f05").replace(b"ETag", b"ETAG").replace(b"Range:", b"RANGE:"),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_answers_of_every_shape_are_understood(store, gateway, answer):
    gateway.answers["f05"] = answer
    assert is_right(got(store, NAMES))


def test_an_answer_that_does_not_say_how_long_it_is_is_no_content(store, gateway):
    gateway.answers["f05"] = chunked(content_of("f05"))
    with pytest.raises(WrongBytes):
        got(store, ["f05"])


def test_a_refusal_in_chunks_is_understood_and_its_connection_kept(store, gateway):
    gateway.answers["f05"] = chunked(words_of("NoSuchKey"), "404 Not Found")
    for _ in range(3):
        with pytest.raises(NotFound, match="NoSuchKey words"):
            got(store, ["f05"])
    assert gateway.connections == 1


def test_a_connection_that_is_closed_behind_an_answer_is_not_used_again(store, gateway):
    gateway.last = {"f05", "f06"}
    for name in ("f05", "f06"):
        gateway.answers[name] = plain(name).replace(b"ETag", b"Connection: close\r\nETag")
    assert is_right(got(store, NAMES))
    assert is_right(got(store, NAMES))


def test_a_connection_that_was_closed_since_is_not_used_again(store, gateway):
    gateway.last = set(NAMES[-4:])
    assert is_right(got(store, NAMES))
    time.sleep(0.1)
    assert is_right(got(store, NAMES))
    assert gateway.connections == 8


BROKEN = {
    "no HTTP": b"\x16\x03\x01 something else\r\n\r\n",
    "cut in its head": plain("f05")[:40],
    "cut in its body": plain("f05")[:-1],
    "an endless head": b"HTTP/1.1 206 Fine\r\n"
    + b"X-Word: %s\r\n" % (b"x" * 1000) * (HEAD_MAX_BYTES // 1000),
    "two lengths": plain("f05").replace(b"Content-Length", b"Content-Length: 7\r\nContent-Length"),
    "a line that is no header": plain("f05").replace(b"ETag: ", b"ETag "),
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
def test_an_answer_that_is_broken_is_unavailable_and_those_before_it_came(store, gateway, answer):
    gateway.answers["f05"] = answer
    gateway.last = {"f05"}
    found = store.get_whole(list(map(info_of, NAMES)), 4, ignore)
    assert [info.id.key for info, _ in islice(found, 5)] == NAMES[:5]
    with pytest.raises(RegistryUnavailable):
        next(found)
    del gateway.answers["f05"]
    gateway.last = set()
    assert is_right(got(store, NAMES))


def test_bytes_behind_an_answer_are_no_answer_to_the_next_request(store, gateway):
    gateway.answers["f05"] = plain("f05") + plain("f06")
    with contextlib.suppress(RegistryUnavailable):
        assert is_right(got(store, NAMES))
    del gateway.answers["f05"]
    assert is_right(got(store, NAMES))


REFUSALS = {
    NotFound: refusal("NoSuchKey", "404 Not Found"),
    AccessDenied: refusal("AccessDenied", "403 Forbidden"),
    Stale: refusal("PreconditionFailed", "412 Precondition Failed"),
    RegistryUnavailable: refusal("SlowDown", "503 Slow Down"),
}


@pytest.mark.parametrize("expected", REFUSALS)
def test_a_refusal_is_raised_in_its_place_and_no_connection_is_spoilt(store, gateway, expected):
    gateway.answers["f05"] = REFUSALS[expected]
    found = store.get_whole(list(map(info_of, NAMES)), 4, ignore)
    assert [info.id.key for info, _ in islice(found, 5)] == NAMES[:5]
    with pytest.raises(expected, match="f05"):
        next(found)
    assert is_right(got(store, NAMES[6:]), NAMES[6:])
    ended = sum(store.statistics().outcomes.values())
    assert ended == store.requests()["GetObject"]


def test_an_error_s_body_is_read_so_far_and_no_further(store, gateway):
    gateway.answers["f05"] = head_of(
        b"x", f"Content-Length: {100 * ERROR_MAX_BYTES}", status="404 Not Found"
    ) + b"x" * (2 * ERROR_MAX_BYTES)
    with pytest.raises(NotFound):
        got(store, ["f05"])
    assert is_right(got(store, NAMES[6:]), NAMES[6:])


def test_what_is_not_asked_for_to_the_end_leaves_no_connection_open_or_spoilt(store, gateway):
    for count in range(4):
        found = store.get_whole(list(map(info_of, NAMES)), 4, ignore)
        for _ in range(count):
            next(found)
        found.close()
    assert is_right(got(store, NAMES))
    ended = sum(store.statistics().outcomes.values())
    assert ended == store.requests()["GetObject"]


@pytest.mark.parametrize("etag", ["a\r\nX-Other: b", "a\nb"])
def test_an_etag_with_a_line_s_end_makes_no_header(store, gateway, etag):
    with pytest.raises(InvalidName, match="line"):
        next(store.get_whole([info_of("f05", etag)], 4, ignore))
    assert not gateway.asked


def test_through_a_proxy_they_come_too(gateway, tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", gateway.endpoint)
    monkeypatch.delenv("no_proxy", raising=False)
    with store_at("http://registry.invalid", tmp_path) as store:
        assert is_right(got(store, NAMES))
        assert store.requests() == {"GetObject": len(NAMES)}


# ---------------------------------------------------------------- real gateways


def check_registry(bucket: S3Endpoint, **settings: object) -> None:
    etags = {name: bucket.put(name, content_of(name)) for name in NAMES}
    infos = [info_of(name, etags[name]) for name in NAMES]
    with closing(S3Store(bucket.settings(**settings))) as store:
        for _ in range(2):
            found = {i.id.key: bytes(content) for i, content in store.get_whole(infos, 8, ignore)}
            assert is_right(found)
        for wrong, expected in ((info_of("f05"), Stale), (info_of("absent"), NotFound)):
            some = store.get_whole([*infos[:3], wrong, *infos[3:]], 8, ignore)
            assert [info.id.key for info, _ in islice(some, 3)] == NAMES[:3]
            with pytest.raises(expected):
                next(some)
        with pytest.raises(ModelfsError):
            next(store.get_whole([info_of("f05", "x" * 32)], 8, ignore))


def test_a_registry_gives_small_objects_whole(bucket: S3Endpoint) -> None:
    check_registry(bucket)


@pytest.mark.ceph
def test_ceph_s_gateway_gives_them_by_tls(ceph: CephServer, ceph_bucket: S3Endpoint) -> None:
    check_registry(ceph_bucket, endpoint=ceph.tls_endpoint, ca_bundle=ceph.ca)


def test_an_object_of_the_most_bytes_comes_whole(bucket: S3Endpoint) -> None:
    data = os.urandom(1 << 20)
    etag = bucket.put("big", data)
    info = ObjectInfo(ObjectId("big", etag), len(data), 0, None, None)
    with closing(S3Store(bucket.settings())) as store:
        [(found, content)] = store.get_whole([info], 8, ignore)
        assert (found.md5, content) == (etag, data)
