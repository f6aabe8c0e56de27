"""A registry that misbehaves: each fault is the right error, in bounded time, and never data.

The server is a socket and a script: what it sends, how long it waits, how it hangs up.
"""

import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from modelfs.errors import (
    AccessDenied,
    NotFound,
    QuotaExceeded,
    RegistryError,
    RegistryUnavailable,
    Stale,
    WrongBytes,
)
from modelfs.registry.objects import (
    ObjectId,
    ObjectInfo,
    UploadedPart,
    format_mtime,
    parse_mtime,
)
from modelfs.registry.s3 import S3Store
from modelfs.registry.s3_answers import decode_metadata, encode_metadata
from modelfs.registry.s3_listings import list_page_of
from modelfs.registry.s3_settings import S3Settings
from tests.endpoints import write_credentials

TIMEOUT_S = 1.5  # a third of it is the limit of one wait
LIMIT_S = 3.0
DATA = bytes(range(256)) * 4
MD5 = hashlib.md5(DATA).hexdigest()
DATE = "Sat, 22 Nov 2025 10:00:00 GMT"
EMBEDDED_ERROR = b"<Error><Code>InternalError</Code></Error>"
RESET, HANG = "reset", "hang"
Step = bytes | str


def ignore(count: int) -> None:
    """Take no notice of progress."""


class FaultyServer:
    """Answers the n-th request with the n-th script, and later ones with the last."""

    def __init__(self, scripts: Sequence[Sequence[Step]], *, reads_bodies: bool = True) -> None:
        self.requests: list[bytes] = []
        self._scripts = scripts
        self._reads_bodies = reads_bodies
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(conn,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, conn: socket.socket) -> None:
        with conn, suppress(OSError):
            conn.settimeout(LIMIT_S)
            request = self._read(conn)
            script = self._scripts[min(len(self.requests), len(self._scripts) - 1)]
            self.requests.append(request)
            for step in script:
                if step == RESET:
                    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return
                if step == HANG:
                    self._over.wait(60)
                    return
                conn.sendall(step.encode() if isinstance(step, str) else step)

    def _read(self, conn: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += conn.recv(65536)
        head, _, body = data.partition(b"\r\n\r\n")
        if not self._reads_bodies:
            return head
        if b"100-continue" in head:
            conn.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        while len(body) < int(fields.get(b"content-length", 0)):
            body += conn.recv(65536)
        return head


def answer(status: str, body: bytes = b"", **fields: object) -> bytes:
    """Return an HTTP answer; a _ in a field's name is a hyphen."""
    given: dict[str, object] = {"Content-Length": len(body), "Date": DATE}
    given.update({name.replace("_", "-"): value for name, value in fields.items()})
    lines = [f"{name}: {value}" for name, value in given.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "Connection: close", "", ""]).encode() + body


def ranged(body: bytes = DATA, **fields: object) -> bytes:
    """Return the right answer to a GET of the first 1,024 bytes, but for `fields`."""
    given = {
        "Content-Range": "bytes 0-1023/5000",
        "ETag": f'"{MD5}"',
        "Last-Modified": DATE,
    }
    given.update({name.replace("_", "-"): str(value) for name, value in fields.items()})
    return answer("206 Partial Content", body, **given)


def error(status: str, code: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>words</Message></Error>"
    return answer(status, body.encode())


@contextmanager
def served(
    tmp_path: Path, *scripts: Sequence[Step], **how: bool
) -> Iterator[tuple[S3Store, FaultyServer]]:
    credentials = write_credentials(tmp_path / "credentials", "key", "SECRET")
    with closing(FaultyServer(scripts, **how)) as server:
        settings = S3Settings(
            server.endpoint,
            "bucket",
            credentials=credentials,
            timeout_s=TIMEOUT_S,
            slow_timeout_s=1,
        )
        with closing(S3Store(settings)) as store:
            yield store, server


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@contextmanager
def bounded() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < LIMIT_S


def get(store: S3Store, target: int) -> ObjectInfo:
    return store.get_range(ObjectId("m/file", MD5), 0, len(DATA), target, 0, ignore)


def test_the_server_of_these_tests_can_also_answer_rightly(tmp_path, target):
    with served(tmp_path, [ranged()]) as (store, server):
        info = get(store, target)
    assert (info.size, info.md5, os.pread(target, 2000, 0)) == (5000, MD5, DATA)
    assert b'if-match: "' + MD5.encode() + b'"' in server.requests[0]
    assert b"range: bytes=0-1023" in server.requests[0]


def test_a_registry_behind_a_proxy_is_read_through_it(tmp_path, target, monkeypatch):
    with served(tmp_path, [ranged()]) as (_, proxy):
        monkeypatch.setenv("http_proxy", proxy.endpoint)
        monkeypatch.delenv("no_proxy", raising=False)
        credentials = write_credentials(tmp_path / "credentials", "key", "SECRET")
        settings = S3Settings("http://registry.invalid", "bucket", credentials=credentials)
        with closing(S3Store(settings)) as store:
            get(store, target)
        assert proxy.requests[0].startswith(b"GET http://registry.invalid/bucket/m/file ")
    assert os.pread(target, 2000, 0) == DATA


# Reading: what is wrong from the start is not written


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (ranged(Content_Range="bytes 1-1024/5000"), WrongBytes),
        (ranged(Content_Range="bytes 0-1022/5000"), WrongBytes),
        (ranged(Content_Range="bytes 0-1023/*"), WrongBytes),
        (ranged(Content_Range="nonsense"), WrongBytes),
        (ranged(DATA[:1000]), WrongBytes),
        (ranged(DATA + b"more"), WrongBytes),
        (answer("200 OK", DATA, ETag=f'"{MD5}"', Last_Modified=DATE), WrongBytes),
        (ranged(ETag='"another"'), Stale),
        (error("412 Precondition Failed", "PreconditionFailed"), Stale),
        (error("416 Range Not Satisfiable", "InvalidRange"), WrongBytes),
        (error("404 Not Found", "NoSuchKey"), NotFound),
        (error("403 Forbidden", "RequestTimeTooSkewed"), AccessDenied),
    ],
)  # fmt: skip
def test_an_answer_that_was_not_asked_for_is_an_error_and_no_data(tmp_path, target, said, expected):
    with served(tmp_path, [said]) as (store, _), bounded():
        with pytest.raises(expected, match="m/file") as caught:
            get(store, target)
        assert type(caught.value) is expected
    assert os.fstat(target).st_size == 0


def kept(said: bytes) -> bytes:
    """Return an answer after which the connection may be used again: its body is read otherwise."""
    return said.replace(b"Connection: close\r\n", b"")


@pytest.mark.parametrize("begin", [bytes, kept], ids=["closing", "kept"])
@pytest.mark.parametrize("end", [[], [RESET], [HANG]], ids=["closes", "resets", "stalls"])
@pytest.mark.parametrize("sent", [0, 1000], ids=["nothing", "some"])
def test_a_body_that_breaks_off_is_unavailable(tmp_path, target, begin, end, sent):
    script = [begin(ranged(DATA)[: -len(DATA)]), DATA[:sent], *end]
    with served(tmp_path, script) as (store, _), bounded(), pytest.raises(RegistryUnavailable):
        get(store, target)


@pytest.mark.parametrize("begin", [bytes, kept], ids=["closing", "kept"])
def test_after_a_body_that_broke_off_the_next_request_gets_its_own_answer(tmp_path, target, begin):
    broken = [begin(ranged(DATA)[: -len(DATA)]), DATA[:100], HANG]
    with served(tmp_path, broken, [begin(ranged())]) as (store, _), bounded():
        with pytest.raises(RegistryUnavailable):
            get(store, target)
        get(store, target)
    assert os.pread(target, 2000, 0) == DATA


# Any request


def calls(source: int) -> dict[str, Callable[[S3Store], object]]:
    part = [UploadedPart(1, MD5)]
    return {
        "list": lambda store: store.list_page("m/", by_folder=True),
        "head": lambda store: store.head("m/file"),
        "put": lambda store: store.put("m/file", source, len(DATA), {}, ignore),
        "mark": lambda store: store.put_empty("m/", {}),
        "start": lambda store: store.start_upload("m/file", {}),
        "part": lambda store: store.upload_part("m/file", "id", 1, source, 0, len(DATA), ignore),
        "finish": lambda store: store.finish_upload("m/file", "id", part, len(DATA)),
        "abort": lambda store: store.abort_upload("m/file", "id"),
        "copy": lambda store: store.copy(ObjectInfo(ObjectId("m/file", MD5), 5, 0), "m/copy"),
        "delete": lambda store: store.delete("m/file"),
        "delete many": lambda store: store.delete_many(["m/file"]),
        "probe": lambda store: store.probe(),
    }


@pytest.mark.parametrize(
    "script",
    [
        [RESET],
        [],
        ["no HTTP at all"],
        [error("503 Service Unavailable", "SlowDown")],
        [error("500 Internal Server Error", "InternalError")],
        [answer("502 Bad Gateway", b"<html>proxy</html>")],
        [error("429 Too Many Requests", "TooManyRequests")],
    ],
    ids=["reset", "close", "garbage", "503", "500", "502", "429"],
)
@pytest.mark.parametrize("call", calls(0))
def test_every_call_says_unavailable(tmp_path, source, script, call):
    with served(tmp_path, script) as (store, _), bounded():
        with pytest.raises(RegistryUnavailable) as caught:
            calls(source)[call](store)
        assert "SECRET" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("call", ["list", "head", "put", "part", "finish", "delete many"])
def test_every_call_ends_where_nothing_answers(tmp_path, source, call):
    with served(tmp_path, [HANG]) as (store, _), bounded(), pytest.raises(RegistryUnavailable):
        calls(source)[call](store)


@pytest.mark.timeout(30)
def test_a_probe_ends_where_nothing_answers(tmp_path):
    with served(tmp_path, [HANG]) as (store, _):
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            store.probe()
        assert time.monotonic() - began < 4


def test_an_upload_whose_bytes_nobody_takes_ends(tmp_path):
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    with served(tmp_path, [HANG], reads_bodies=False) as (store, _), path.open("rb") as file:
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            store.put("m/file", file.fileno(), 64 << 20, {}, ignore)
        assert time.monotonic() - began < LIMIT_S + 2  # and a second for 100 Continue


@pytest.mark.parametrize(
    ("said", "expected", "words"),
    [
        (error("403 Forbidden", "InvalidAccessKeyId"), AccessDenied, "check the credentials"),
        (error("403 Forbidden", "SignatureDoesNotMatch"), AccessDenied, "secret key is wrong"),
        (error("400 Bad Request", "ExpiredToken"), AccessDenied, "renew"),
        (error("403 Forbidden", "RequestTimeTooSkewed"), AccessDenied, "clock"),
        (error("403 Forbidden", "QuotaExceeded"), QuotaExceeded, "quota"),
        (error("507 Insufficient Storage", "XMinioStorageFull"), QuotaExceeded, "used up"),
        (error("400 Bad Request", "EntityTooLarge"), RegistryError, "larger than"),
        (error("400 Bad Request", "BadDigest"), WrongBytes, "changed on their way"),
        (error("400 Bad Request", "XAmzContentSHA256Mismatch"), WrongBytes, "changed on their way"),
        (error("400 Bad Request", "InvalidPart"), WrongBytes, "does not have a part"),
        (error("412 Precondition Failed", "PreconditionFailed"), Stale, "someone else"),
        (answer("418 Teapot", b""), RegistryError, "refuses the request"),
    ],
)  # fmt: skip
def test_a_refusal_says_what_to_do(tmp_path, source, said, expected, words):
    with served(tmp_path, [said]) as (store, _), bounded():
        with pytest.raises(expected, match=words) as caught:
            store.put("m/file", source, len(DATA), {}, ignore)
        assert type(caught.value) is expected
        assert "m/file" in str(caught.value)
        assert "'bucket'" in str(caught.value)


@pytest.mark.parametrize("call", ["list", "head", "start", "finish", "copy"])
def test_an_answer_without_its_content_is_unavailable(tmp_path, source, call):
    script = [answer("200 OK")]
    with served(tmp_path, script) as (store, _), pytest.raises((RegistryUnavailable, Stale)):
        calls(source)[call](store)


# Listings


@pytest.mark.parametrize(
    "body",
    [b"", b"<ListBucketResult><Contents><Key>a</Key>", b"hello", b"<html></html>", EMBEDDED_ERROR],
)  # fmt: skip
def test_a_listing_that_is_cut_or_none_is_unavailable_and_never_empty(tmp_path, body):
    with (
        served(tmp_path, [answer("200 OK", body)]) as (store, _),
        pytest.raises(RegistryUnavailable),
    ):
        store.list_page("m/", by_folder=False)


def test_a_listing_that_breaks_off_is_unavailable(tmp_path):
    listing = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    script = [answer("200 OK", listing[:-10], Content_Length=len(listing))]
    with served(tmp_path, script) as (store, _), bounded(), pytest.raises(RegistryUnavailable):
        store.list_page("m/", by_folder=False)


def test_keys_of_a_listing_may_be_any_bytes(tmp_path):
    entries = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2025-11-22T10:00:00.000Z</LastModified>"
        "<ETag>&quot;x&quot;</ETag><Size>1</Size></Contents>"
        for key in ("bad%FFkey", "a%00b", "a+b%2Bc", "%E2%82%AC", "%2525")
    )
    body = (
        "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>"
        f"{entries}<CommonPrefixes><Prefix>f%FE/</Prefix></CommonPrefixes></ListBucketResult>"
    )
    with served(tmp_path, [answer("200 OK", body.encode())]) as (store, _):
        page = store.list_page("", by_folder=True)
    keys = [info.id.key for info in page.objects]
    assert keys == ["bad\udcffkey", "a\0b", "a b+c", "€", "%25"]
    assert (list(page.folders), page.objects[0].md5) == (["f\udcfe/"], None)


def test_a_token_that_xml_cannot_say_is_mended():
    body = (
        b"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>true</IsTruncated>"
        b"<NextContinuationToken>a&#x1F;&amp;\x02b</NextContinuationToken></ListBucketResult>"
    )
    assert list_page_of(body).token == "a\x1f&\x02b"


@pytest.mark.parametrize(
    ("field", "value"), [("Size", "many"), ("LastModified", "yesterday"), ("Key", None)]
)
def test_a_listing_with_an_entry_that_is_none_is_unavailable(tmp_path, field, value):
    said = {"Key": "a", "LastModified": "2025-11-22T10:00:00.000Z", "ETag": "x", "Size": "1"}
    fields = {k: v for k, v in {**said, field: value}.items() if v is not None}
    entry = "".join(f"<{k}>{v}</{k}>" for k, v in fields.items())
    body = (
        "<ListBucketResult><IsTruncated>false</IsTruncated>"
        f"<Contents>{entry}</Contents></ListBucketResult>"
    )
    with (
        served(tmp_path, [answer("200 OK", body.encode())]) as (store, _),
        pytest.raises(RegistryUnavailable),
    ):
        store.list_page("m/", by_folder=False)


# Writing


def test_another_md5_than_was_sent_is_wrong_bytes(tmp_path, source):
    with served(tmp_path, [answer("200 OK", ETag=f'"{"0" * 32}"')]) as (store, _):
        for call in ("put", "mark"):  # a part is bound by its signature
            with pytest.raises(WrongBytes, match="others"):
                calls(source)[call](store)


def test_the_etag_of_an_encrypted_object_is_not_compared(tmp_path, source):
    fields = {"ETag": f'"{"0" * 32}"', "x-amz-server-side-encryption": "aws:kms"}
    with served(tmp_path, [answer("200 OK", **fields)]) as (store, _):
        info = store.put("m/file", source, len(DATA), {}, ignore)
    assert (info.id.etag, info.md5) == ("0" * 32, None)


COMPLETE = b"<CompleteMultipartUploadResult><ETag></ETag></CompleteMultipartUploadResult>"
PARTS = [UploadedPart(1, MD5)]
JOINED = hashlib.md5(bytes.fromhex(MD5)).hexdigest() + "-1"


def head_of(etag: str, size: int = len(DATA)) -> bytes:
    fields = {"Content-Length": size, "Last-Modified": DATE}
    return answer("200 OK", ETag=f'"{etag}"', **fields)


@pytest.mark.parametrize(
    ("said", "head", "expected"),
    [
        (answer("200 OK", COMPLETE), head_of("0" * 32 + "-1"), WrongBytes),
        (answer("200 OK", COMPLETE), head_of(JOINED, 7), WrongBytes),
        (answer("200 OK", COMPLETE.replace(b"><", b">ours<")), head_of("theirs"), Stale),
        (answer("200 OK", COMPLETE), error("404 Not Found", "NoSuchKey"), NotFound),
        (error("404 Not Found", "NoSuchUpload"), head_of("0" * 32 + "-1"), NotFound),
        (error("404 Not Found", "NoSuchUpload"), head_of(JOINED, 7), NotFound),
        (answer("200 OK", EMBEDDED_ERROR), head_of(JOINED), RegistryUnavailable),
    ],
)  # fmt: skip
def test_finishing_an_upload_ends_well_only_with_our_object(tmp_path, said, head, expected):
    parts = answer("200 OK", b"<ListPartsResult></ListPartsResult>")
    scripts = [[said], [head]] if expected is not RegistryUnavailable else [[said], [parts]]
    with served(tmp_path, *scripts) as (store, _), pytest.raises(expected):
        store.finish_upload("m/file", "id", PARTS, len(DATA))


@pytest.mark.parametrize(
    "said", [answer("200 OK", COMPLETE), error("404 Not Found", "NoSuchUpload")]
)
def test_finishing_an_upload_that_is_there_is_a_success(tmp_path, said):
    with served(tmp_path, [said], [head_of(JOINED)]) as (store, _):
        info = store.finish_upload("m/file", "id", PARTS, len(DATA))
    assert (info.id, info.size) == (ObjectId("m/file", JOINED), len(DATA))


def test_what_could_not_be_deleted_is_named_with_the_reason(tmp_path):
    body = (
        b"<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
        b"<Error><Key>b</Key><Code>NoSuchKey</Code></Error></DeleteResult>"
    )
    with served(tmp_path, [answer("200 OK", body)]) as (store, server):
        assert store.delete_many(["a", "b", "c"]) == {"a": "AccessDenied no"}
    assert b"Content-MD5" in server.requests[0]


# Values


@pytest.mark.parametrize(
    ("mtime_ns", "text"),
    [
        (0, "0"),
        (1_700_000_000_123_456_789, "1700000000.123456789"),
        (1_700_000_000_500_000_000, "1700000000.5"),
        (10 * 10**9, "10"),
        (-1, "-0.000000001"),
        (-1_500_000_000, "-1.5"),
    ],
)
def test_an_mtime_is_written_as_rclone_does_and_read_back_exactly(mtime_ns, text):
    assert format_mtime(mtime_ns) == text
    assert parse_mtime(text) == mtime_ns


@pytest.mark.parametrize("text", [None, "", "x", "1e9", "1,5", "0x1", "nan", " 1", "٣", "9" * 12])
def test_what_is_no_mtime_is_none(text):
    assert parse_mtime(text) is None


def test_an_mtime_may_have_more_or_fewer_digits_than_nanoseconds():
    assert parse_mtime("1.1234567899") == 1_123_456_789
    assert parse_mtime("5.") == 5 * 10**9


@pytest.mark.parametrize("text", ["plain", "", "é", "a\nb", " x", "=?x", "日" * 300])
def test_metadata_survives_its_header(text):
    sent = encode_metadata({"Description": text})
    assert all(value.isascii() and value.isprintable() for value in sent.values())
    assert decode_metadata(sent) == {"description": text}


@pytest.mark.parametrize(
    "text", ["=?broken?=", "=?no-such-charset?B?AAAA?=", "a =? b", "=?utf-8?B?!?="]
)
def test_metadata_of_others_that_cannot_be_decoded_is_still_text(text):
    assert isinstance(decode_metadata({"k": text})["k"], str)
