"""The contract of ObjectStore, against moto and against Ceph's gateway.

Where the two differ, the test says so. moto believes every key pair, so what is about
credentials runs on Ceph alone.
"""

import hashlib
import json
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, unquote_plus

import pytest

from modelfs.errors import (
    AccessDenied,
    CertificateRejected,
    ConfigError,
    InvalidName,
    ModelfsError,
    NoSpace,
    NoSuchBucket,
    NotFound,
    NotSupported,
    QuotaExceeded,
    RegistryError,
    RegistryUnavailable,
    Stale,
    StoreError,
    WrongBytes,
)
from modelfs.registry.objects import (
    ABSENT,
    PART_SIZES,
    Checksum,
    ObjectId,
    ObjectStore,
    UploadedPart,
    format_mtime,
)
from modelfs.registry.s3 import S3Store
from modelfs.store.confirming import Hashing, expected_of
from tests.endpoints import CephServer, S3Endpoint, free_port, write_credentials

MIB = 1 << 20
PART = 5 * MIB  # the least that S3 takes
MTIME_NS = 1_700_000_000_123_456_789
ODD_KEYS = [
    "a+b c%20é",
    "..",
    "a//b",
    "line\nbreak",
    "return\rkey",
    "tab\tkey",
    "control\x01\x1f",
    "<&\"'>",
    "~*()!'$@,:;=?#[]{}|\\^`",
    "日本語/モデル",
    "k" * 1000,
    "/leading",
    "folder/",
]


def ignore(count: int) -> None:
    """Take no notice of progress."""


@pytest.fixture
def store(bucket: S3Endpoint) -> Iterator[S3Store]:
    with closing(S3Store(bucket.settings())) as store:
        yield store


@pytest.fixture
def open_store() -> Iterator[Callable[..., S3Store]]:
    stores: list[S3Store] = []

    def open_one(endpoint_of: S3Endpoint, /, **changes: object) -> S3Store:
        stores.append(S3Store(endpoint_of.settings(**changes)))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


class Source:
    """A file of random bytes to upload."""

    def __init__(self, path: Path, size: int) -> None:
        self.data = os.urandom(size)
        path.write_bytes(self.data)
        self.file = path.open("rb")
        self.fd, self.size = self.file.fileno(), size
        self.md5 = hashlib.md5(self.data).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Callable[[int], Source]]:
    sources: list[Source] = []

    def make(size: int) -> Source:
        sources.append(Source(tmp_path / f"source{len(sources)}", size))
        return sources[-1]

    yield make
    for made in sources:
        made.file.close()


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def upload(store: ObjectStore, key: str, source: Source, part: int = PART) -> list[UploadedPart]:
    upload_id = store.start_upload(key, {})
    return upload_parts(store, key, upload_id, source, part)


def upload_parts(
    store: ObjectStore, key: str, upload_id: str, source: Source, part: int = PART
) -> list[UploadedPart]:
    return [
        store.upload_part(key, upload_id, n, source.fd, at, min(part, source.size - at), ignore)
        for n, at in enumerate(range(0, source.size, part), 1)
    ]


def put_big(store: ObjectStore, key: str, source: Source, metadata: dict[str, str]):
    upload_id = store.start_upload(key, metadata)
    parts = upload_parts(store, key, upload_id, source)
    return store.finish_upload(key, upload_id, parts, source.size)


def list_keys(store: ObjectStore, prefix: str = "") -> list[str]:
    keys, token = [], None
    while True:
        page = store.list_page(prefix, by_folder=False, token=token)
        keys += [info.id.key for info in page.objects]
        if (token := page.token) is None:
            return keys


# Reading


def test_what_was_put_is_got_back_with_its_size_time_and_metadata(store, source, target):
    made = source(300_000)
    before_ns = time.time_ns()
    metadata = {"mtime": format_mtime(MTIME_NS), "note": "plain text"}

    put = store.put("m/file", made.fd, made.size, metadata, ignore)
    got = store.get_range(put.id, 0, made.size, target, 0, ignore)

    assert os.pread(target, made.size + 1, 0) == made.data
    assert put.md5 == put.id.etag == made.md5
    for info in (put, got, store.head("m/file")):
        assert (info.id, info.size, info.md5) == (put.id, made.size, made.md5)
        assert (info.mtime_ns, info.metadata) == (MTIME_NS, metadata)
        assert abs(info.modified_ns - before_ns) < 10 * 10**9
        assert info.version_id is None


def test_a_range_lands_where_it_is_told_and_nothing_else_is_touched(store, bucket, target):
    etag = bucket.put("file", bytes(range(100)))
    os.pwrite(target, b"." * 50, 0)
    store.get_range(ObjectId("file", etag), 10, 5, target, 20, ignore)
    assert os.pread(target, 100, 0) == b"." * 20 + bytes(range(10, 15)) + b"." * 25


def test_progress_adds_up_to_the_bytes_that_moved(store, source, target):
    made, sent, received = source(3 * MIB + 7), [], []
    info = store.put("file", made.fd, made.size, {}, sent.append)
    store.get_range(info.id, 1, made.size - 1, target, 0, received.append)
    assert (sum(sent), sum(received)) == (made.size, made.size - 1)
    assert max(*sent, *received) <= MIB


def test_a_range_of_a_changed_object_is_stale(store, bucket, target):
    etag = bucket.put("file", b"old")
    bucket.put("file", b"new")
    with pytest.raises(Stale, match="changed"):
        store.get_range(ObjectId("file", etag), 0, 3, target, 0, ignore)
    assert os.fstat(target).st_size == 0


def test_a_range_of_a_deleted_object_is_not_found(store, target):
    with pytest.raises(NotFound):
        store.get_range(ObjectId("gone", "0" * 32), 0, 3, target, 0, ignore)


@pytest.mark.parametrize(("offset", "length"), [(0, 11), (8, 5), (10, 1), (100, 1)])
def test_a_range_beyond_the_end_is_an_error_and_no_data(store, bucket, target, offset, length):
    etag = bucket.put("file", b"0123456789")
    with pytest.raises(ModelfsError, match="file"):
        store.get_range(ObjectId("file", etag), offset, length, target, 0, ignore)
    assert os.fstat(target).st_size == 0


def test_a_full_disk_is_no_space_and_the_next_range_works(store, bucket, target):
    etag = bucket.put("file", b"x" * MIB)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(NoSpace):
            store.get_range(ObjectId("file", etag), 0, MIB, full, 0, ignore)
    finally:
        os.close(full)
    store.get_range(ObjectId("file", etag), 0, MIB, target, 0, ignore)


def test_head_of_what_is_not_there_is_not_found(store):
    with pytest.raises(NotFound, match="gone"):
        store.head("gone")


# Listing


def test_a_listing_has_sizes_etags_and_times(store, bucket):
    bucket.put("m/a", b"123", Metadata={"mtime": "1.5"})
    (info,) = store.list_page("m/", by_folder=False).objects
    head = store.head("m/a")
    assert (info.id, info.modified_ns) == (head.id, head.modified_ns)
    assert (info.size, info.md5, info.mtime_ns) == (3, hashlib.md5(b"123").hexdigest(), None)
    assert abs(info.modified_ns - time.time_ns()) < 10 * 10**9


def test_a_listing_by_folder_stops_at_the_next_slash(store, bucket):
    for key in ("m/", "m/a", "m/b/c", "m/b/d/e", "m/f/", "mm/x"):
        bucket.put(key)
    page = store.list_page("m/", by_folder=True)
    assert [info.id.key for info in page.objects] == ["m/", "m/a"]
    assert (list(page.folders), page.token) == (["m/b/", "m/f/"], None)


def test_a_listing_of_nothing_is_empty(store):
    page = store.list_page("nothing/", by_folder=True)
    assert (list(page.objects), list(page.folders), page.token) == ([], [], None)


def test_2500_keys_come_in_three_pages_even_where_a_page_ends_in_an_odd_key(store):
    # Ceph's continuation token is the last key, unescaped: XML that cannot be parsed.
    keys = [f"m/{n:04d}" for n in range(2500)]
    keys[999] += "\x01\x1f+ %é"
    keys[1999] += "<&>\r"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put_empty(key, {}), keys))

    assert list_keys(store, "m/") == keys
    assert store.requests()["ListObjectsV2"] == 3
    for at in range(0, 2500, 1000):
        assert store.delete_many(keys[at : at + 1000]) == {}
    assert list_keys(store) == []
    # and one for the key that XML cannot say
    assert (store.requests()["DeleteObjects"], store.requests()["DeleteObject"]) == (3, 1)


def test_folders_come_in_pages_too(store):
    keys = [f"m/{n:04d}/x" for n in range(1001)]
    keys[999] = "m/0999\x01/x"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put_empty(key, {}), keys))
    first = store.list_page("m/", by_folder=True)
    second = store.list_page("m/", by_folder=True, token=first.token)
    assert [*first.folders, *second.folders] == [key[:-1] for key in keys]
    assert (len(first.folders), second.token) == (1000, None)


@pytest.mark.parametrize("key", ODD_KEYS)
def test_an_odd_key_can_be_put_listed_read_copied_and_deleted(store, bucket, source, target, key):
    made = source(10)
    if bucket.kind == "moto" and "\n" in key:  # moto's routes know no key with a newline
        with pytest.raises(NotFound):
            store.put(key, made.fd, made.size, {}, ignore)
        return
    put = store.put(key, made.fd, made.size, {}, ignore)

    assert list_keys(store) == [key]
    assert store.head(key).id == put.id
    store.get_range(put.id, 0, 10, target, 0, ignore)
    assert os.pread(target, 11, 0) == made.data
    copy = store.copy(put, "copy/" + key if len(key) < 900 else "copy")
    assert store.head(copy.id.key).md5 == made.md5
    assert store.delete_many([key]) == {}
    store.delete(copy.id.key)
    assert list_keys(store) == []


def test_a_prefix_may_be_odd_too(store, bucket):
    bucket.put("a+b c%20é/\x01 +/x")
    bucket.put("a b c é/y")
    page = store.list_page("a+b c%20é/", by_folder=True)
    assert list(page.folders) == ["a+b c%20é/\x01 +/"]


def test_a_key_that_is_no_utf8_is_refused_here_whatever_the_server_does(store, bucket):
    # Ceph's gateway refuses such keys (400); moto stores them under another name.
    assert bucket.put_raw("bad%FF") == (400 if bucket.kind == "ceph" else 200)
    with pytest.raises(InvalidName):
        store.head("bad\udcff")
    assert list(store.delete_many(["bad\udcff", "other"])) == ["bad\udcff"]


# Writing


def test_the_file_position_is_neither_used_nor_moved(store, source):
    made = source(100)
    os.lseek(made.fd, 42, os.SEEK_SET)
    assert store.put("file", made.fd, made.size, {}, ignore).md5 == made.md5
    assert os.lseek(made.fd, 0, os.SEEK_CUR) == 42


def test_an_empty_file_and_a_marker_are_objects_of_no_bytes(store, source):
    empty = hashlib.md5(b"").hexdigest()
    made = store.put("file", source(0).fd, 0, {"mtime": "7"}, ignore)
    marker = store.put_empty("folder/", {"description": "d"})
    assert (made.size, made.md5, made.mtime_ns) == (0, empty, 7 * 10**9)
    assert (marker.size, marker.md5, store.head("folder/").metadata) == (
        0,
        empty,
        {"description": "d"},
    )


@pytest.mark.parametrize(
    "text", ["", "é – 日本", "two\nlines", " blanks ", "=?utf-8?q?x?=", "a" * 900]
)
def test_metadata_may_be_any_text(store, text):
    store.put_empty("marker/", {"description": text})
    assert (store.head("marker/").metadata or {}).get("description", "") == text


def test_a_file_that_became_shorter_is_an_error_and_makes_no_object(store, source, monkeypatch):
    made = source(100_000)
    with pytest.raises(StoreError, match="shorter"):
        store.put("file", made.fd, made.size + 1, {}, ignore)
    # and where it happens between the hash and the sending:
    monkeypatch.setattr("modelfs.registry.s3.md5_of", lambda *_: b"\0" * 16)
    with pytest.raises(StoreError, match="shorter"):
        store.put("file", made.fd, made.size + 1, {}, ignore)
    assert list_keys(store) == []


def test_bytes_that_change_while_they_are_sent_are_refused(store, bucket, source, monkeypatch):
    made = source(100_000)
    monkeypatch.setattr("modelfs.registry.s3.md5_of", lambda *_: b"\0" * 16)
    with pytest.raises(WrongBytes, match="file"):
        store.put("file", made.fd, made.size, {}, ignore)
    # moto does not look at Content-MD5: it is its ETag that tells.
    assert list_keys(store) == (["file"] if bucket.kind == "moto" else [])


def test_an_error_raised_by_progress_reaches_the_caller(store, source, target):
    made = source(MIB)

    def stop(count: int) -> None:
        raise StoreError("stop")

    with pytest.raises(StoreError, match="stop"):
        store.put("file", made.fd, made.size, {}, stop)
    info = store.put("file", made.fd, made.size, {}, ignore)
    with pytest.raises(StoreError, match="stop"):
        store.get_range(info.id, 0, made.size, target, 0, stop)


# Multipart uploads


def test_parts_become_one_object_with_the_etag_of_parts(store, source, target):
    made = source(2 * PART + 1000)
    info = put_big(store, "big", made, {"mtime": format_mtime(MTIME_NS)})

    assert (info.size, info.md5, info.mtime_ns) == (made.size, None, MTIME_NS)
    assert info.id.etag.endswith("-3")
    assert store.head("big") == info
    store.get_range(info.id, PART - 5, 10, target, 0, ignore)
    assert os.pread(target, 10, 0) == made.data[PART - 5 : PART + 5]


def test_parts_may_arrive_in_any_order_and_at_once(store, source):
    made = source(3 * PART)
    upload_id = store.start_upload("big", {})

    def part(number: int) -> UploadedPart:
        at = (number - 1) * PART
        return store.upload_part("big", upload_id, number, made.fd, at, PART, ignore)

    with ThreadPoolExecutor(3) as pool:
        parts = sorted(pool.map(part, [3, 1, 2]), key=lambda part: part.number)
    info = store.finish_upload("big", upload_id, parts, made.size)
    assert info.size == made.size


def test_finishing_twice_is_a_success(store, source):
    # After an answer was lost. moto and Ceph answer the second time with NoSuchUpload.
    made = source(PART + 1)
    upload_id = store.start_upload("big", {})
    parts = upload_parts(store, "big", upload_id, made)
    first = store.finish_upload("big", upload_id, parts, made.size)
    assert store.finish_upload("big", upload_id, parts, made.size) == first


def test_finishing_an_upload_that_was_aborted_is_not_found(store, source, bucket):
    made = source(PART + 1)
    bucket.put("big", b"other")
    upload_id = store.start_upload("big", {})
    parts = upload_parts(store, "big", upload_id, made)
    store.abort_upload("big", upload_id)
    store.abort_upload("big", upload_id)
    with pytest.raises(NotFound):
        store.finish_upload("big", upload_id, parts, made.size)
    # moto answers 500 to a part of an upload that is gone
    with pytest.raises(RegistryUnavailable if bucket.kind == "moto" else NotFound):
        store.upload_part("big", upload_id, 1, made.fd, 0, PART, ignore)
    assert bucket.get("big") == b"other"


@pytest.mark.parametrize("key", ["m/plain file", *ODD_KEYS])
def test_bytes_of_an_object_become_a_part_or_are_refused_and_are_never_another_s(
    store, bucket, source, key
):
    if bucket.kind == "moto" and "\n" in key:  # moto's routes know no key with a newline
        return
    made = source(1000)
    info = store.put(key, made.fd, made.size, {}, ignore)
    for other in {unquote(key), unquote_plus(key), unquote_plus(unquote_plus(key))} - {key}:
        with suppress(ModelfsError):
            store.put(other, source(1000).fd, 1000, {}, ignore)
    upload_id = store.start_upload("big", {PART_SIZES: "600*1"})
    try:
        part = store.copy_part(info, 300, 600, "big", upload_id, 1)
    except NotSupported:
        assert "%" in key or "+" in key
        return
    made_of_it = store.finish_upload("big", upload_id, [part], 600)
    assert bucket.get("big") == made.data[300:900]
    assert made_of_it.part_sizes == "600*1"


@pytest.mark.ceph
def test_a_part_that_changes_on_its_way_is_refused_by_its_signature(ceph_bucket, source):
    # moto looks at no signature, and would take it.
    made = source(PART)

    def change(count: int) -> None:
        with open(f"/proc/self/fd/{made.fd}", "r+b") as file:  # it is hashed, and not all sent yet
            file.seek(PART - 1)
            file.write(b"\x00\x01"[made.data[-1] == 0 :][:1])

    with closing(S3Store(ceph_bucket.settings())) as store:
        upload_id = store.start_upload("big", {})
        with pytest.raises(WrongBytes):
            store.upload_part("big", upload_id, 1, made.fd, 0, PART, change)
        part = store.upload_part("big", upload_id, 1, made.fd, 0, PART, ignore)
        assert store.finish_upload("big", upload_id, [part], PART).size == PART


def test_uploads_that_were_not_finished_are_listed(store, bucket):
    before = time.time_ns()
    keys = ["m/a", "m/b c", "n/a"]
    ids = {key: store.start_upload(key, {}) for key in keys}
    found = store.unfinished_uploads("m/")
    assert {upload.key: upload.id for upload in found} == {k: ids[k] for k in keys[:2]}
    if bucket.kind != "moto":  # which says 2010
        assert all(abs(upload.started_ns - before) < 60 * 10**9 for upload in found)
    store.abort_upload("m/a", ids["m/a"])
    assert [upload.key for upload in store.unfinished_uploads("m/")] == ["m/b c"]


def test_a_put_on_condition_replaces_what_is_meant_alone(store, bucket, source):
    made, other = source(10), source(20)
    info = store.put("file", made.fd, made.size, {}, ignore, ABSENT)
    for condition in (ABSENT, "0" * 32):
        with pytest.raises(Stale):
            store.put("file", other.fd, other.size, {}, ignore, condition)
    assert bucket.get("file") == made.data
    store.put("file", other.fd, other.size, {}, ignore, info.id.etag)
    assert bucket.get("file") == other.data


# What the registry says of the bytes


def test_the_parts_of_an_object_are_told_wherever_it_is_told_of(store, bucket, source, target):
    made = source(2 * PART + 1000)
    put_big(store, "big", made, {})
    single = ObjectId("single", bucket.put("single"))
    listed = {info.id.key: info for info in store.list_page("", by_folder=False).objects}
    for info in (
        listed["big"],
        store.head("big"),
        store.get_range(listed["big"].id, 0, 1, target, 0, ignore),
    ):
        assert (info.md5, info.etag_parts, info.checksum) == (None, 3, None)
    assert store.get_range(single, 0, 1, target, 0, ignore).etag_parts is None
    assert listed["single"].etag_parts is None


@pytest.mark.parametrize(
    ("part", "is_likely"),
    [(8 * MIB, True), (5 * MIB, True), (6_000_000, True), (5 * MIB + 54_321, False)],
)
def test_the_etag_of_parts_that_others_uploaded_confirms_the_bytes(
    store, bucket, source, part, is_likely
):
    made = source(20 * MIB + 1)
    bucket.put_in_parts("big", made.data, part)
    (info,) = store.list_page("", by_folder=False).objects
    expected = expected_of(info)
    hashing = Hashing(expected)
    hashing.update(memoryview(made.data))
    assert expected.confirmed_by(hashing.hashes()) == ("multipart" if is_likely else None)
    flipped = bytearray(made.data)
    flipped[-1] ^= 1
    hashing = Hashing(expected)
    hashing.update(memoryview(flipped))
    assert expected.confirmed_by(hashing.hashes()) is None


CHECKSUMS = {
    "sha256": lambda data: hashlib.sha256(data).hexdigest(),
    "sha1": lambda data: hashlib.sha1(data).hexdigest(),
    "crc32": lambda data: f"{zlib.crc32(data):08x}",
}


@pytest.mark.parametrize("algorithm", CHECKSUMS)
def test_the_registry_s_own_checksum_is_told_where_it_keeps_one(store, bucket, algorithm):
    # Ceph's gateway of version 16 takes checksums of any value, and keeps none.
    keeps = bucket.kind == "moto"
    etag = bucket.put("file", b"data", ChecksumAlgorithm=algorithm.upper())
    bucket.put("plain")
    file, plain = store.list_page("", by_folder=False).objects
    assert (file.checksum, plain.checksum) == (algorithm if keeps else None, None)
    said = Checksum(algorithm, CHECKSUMS[algorithm](b"data"))
    assert store.checksum(ObjectId("file", etag)) == (said if keeps else None)
    assert store.checksum(plain.id) is None
    bucket.put("file", b"other")
    with pytest.raises(Stale):
        store.checksum(file.id)
    with pytest.raises(NotFound):
        store.checksum(ObjectId("gone", etag))


def test_a_checksum_of_the_parts_checksums_is_none_of_the_content(store, bucket, source):
    made = source(PART + 1000)
    bucket.put_in_parts("parts", made.data, PART, ChecksumAlgorithm="SHA256")
    bucket.put_in_parts(
        "whole", made.data, PART, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT"
    )
    said = {info.id.key: store.checksum(info.id) for info in listed(store)}
    whole = Checksum("crc32", f"{zlib.crc32(made.data):08x}")
    assert said == {"parts": None, "whole": whole if bucket.kind == "moto" else None}


def listed(store: ObjectStore):
    return store.list_page("", by_folder=False).objects


def test_a_version_of_an_object_is_read_and_asked_about_when_it_is_no_longer_the_current_one(
    store, bucket, target
):
    bucket.client.put_bucket_versioning(
        Bucket=bucket.bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    assert store.is_versioned()
    bucket.put("file", b"first", ChecksumAlgorithm="SHA1")
    (first,) = store.list_versions_page("").objects
    bucket.put("file", b"second")
    (second,) = store.list_versions_page("").objects
    assert first.version_id != second.version_id
    store.get_range(first.id, 0, 5, target, 0, ignore, first.version_id)
    assert os.pread(target, 9, 0) == b"first"
    with pytest.raises(Stale):
        store.checksum(first.id)
    kept = Checksum("sha1", hashlib.sha1(b"first").hexdigest())
    said = store.checksum(first.id, first.version_id)
    assert said == (kept if bucket.kind == "moto" else None)


# Copying


@pytest.mark.parametrize("metadata", [None, {"mtime": "5", "note": "new"}])
def test_a_copy_keeps_the_metadata_or_takes_the_new(store, bucket, metadata):
    old = {"mtime": format_mtime(MTIME_NS), "note": "old"}
    bucket.put("from", b"12345", Metadata=old, ContentType="text/x-test")

    made = store.copy(store.head("from"), "to", metadata)

    there = store.head("to")
    assert (made.id, made.size, made.md5) == (there.id, 5, there.md5)
    assert there.metadata == made.metadata == (metadata or old)
    assert made.mtime_ns == there.mtime_ns == (MTIME_NS if metadata is None else 5 * 10**9)
    assert abs(made.modified_ns - there.modified_ns) < 2 * 10**9
    assert bucket.get("to") == b"12345"
    assert bucket.client.head_object(Bucket=bucket.bucket, Key="to")["ContentType"] == "text/x-test"


def test_a_copy_onto_itself_replaces_the_metadata(store, bucket):
    bucket.put("file", b"12345")
    made = store.copy(store.head("file"), "file", {"mtime": "5"})
    assert (made.mtime_ns, store.head("file").mtime_ns) == (5 * 10**9, 5 * 10**9)
    assert bucket.get("file") == b"12345"


def test_a_copy_of_a_changed_or_deleted_object_is_refused(store, bucket):
    bucket.put("from", b"old")
    old = store.head("from")
    bucket.put("from", b"new")
    with pytest.raises(Stale):
        store.copy(old, "to")
    store.delete("from")
    with pytest.raises(NotFound):
        store.copy(old, "to")
    assert list_keys(store) == []


@pytest.mark.parametrize("metadata", [None, {"mtime": "5"}])
def test_a_large_object_is_copied_in_parts(bucket, open_store, source, metadata):
    store = open_store(bucket, copy_limit_bytes=PART, copy_part_bytes=PART)
    made = source(2 * PART + 17)
    old = put_big(store, "from a+b%", made, {"mtime": "3.25", "note": "old"})

    new = store.copy(old, "to", metadata)

    # Ceph's gateway copies references, not bytes: whole, whatever the size.
    assert store.requests().get("UploadPartCopy", 0) == (3 if bucket.kind == "moto" else 0)
    assert new == store.head("to")
    assert (new.size, new.id.etag) == (old.size, old.id.etag)
    assert new.metadata == (metadata or {"mtime": "3.25", "note": "old"})
    assert hashlib.md5(bucket.get("to")).hexdigest() == made.md5


@pytest.mark.ceph
def test_a_large_object_that_the_gateway_does_not_copy_whole_is_copied_in_parts(
    ceph_bucket, open_store, source, monkeypatch
):
    store = open_store(ceph_bucket, copy_limit_bytes=PART, copy_part_bytes=PART)
    made = source(2 * PART + 17)
    old = put_big(store, "from a+b", made, {"note": "old"})

    def refuse(*_: object) -> None:
        raise RegistryError("EntityTooLarge")

    monkeypatch.setattr(store, "_copy_whole", refuse)
    new = store.copy(old, "to")
    assert store.requests()["UploadPartCopy"] == 3
    assert (new, new.metadata) == (store.head("to"), {"note": "old"})
    assert hashlib.md5(ceph_bucket.get("to")).hexdigest() == made.md5


def test_a_large_copy_of_what_changes_meanwhile_leaves_nothing_behind(
    moto_bucket, open_store, source, monkeypatch
):
    store = open_store(moto_bucket, copy_limit_bytes=PART, copy_part_bytes=PART)
    old = put_big(store, "from", source(2 * PART), {})
    unchanged, heads = store._head_unchanged, []

    def change_later(info):
        heads.append(info)
        if len(heads) == 2:
            moto_bucket.put("from", b"new")
        return unchanged(info)

    monkeypatch.setattr(store, "_head_unchanged", change_later)
    with pytest.raises(Stale):
        store.copy(old, "to")
    assert "Uploads" not in moto_bucket.client.list_multipart_uploads(Bucket=moto_bucket.bucket)
    assert list_keys(store) == ["from"]


def test_a_part_that_cannot_be_copied_ends_the_upload(moto_bucket, open_store, source, monkeypatch):
    store = open_store(moto_bucket, copy_limit_bytes=PART, copy_part_bytes=PART)
    old = put_big(store, "from", source(2 * PART), {})
    monkeypatch.setattr(store, "_copy_source", lambda _: {"CopySource": "nowhere/nothing"})
    with pytest.raises(NoSuchBucket):
        store.copy(old, "to")
    assert "Uploads" not in moto_bucket.client.list_multipart_uploads(Bucket=moto_bucket.bucket)


# Deleting


def test_deleting_what_is_not_there_is_no_error(store):
    store.delete("gone")
    assert store.delete_many(["gone", "gone too"]) == {}
    assert store.delete_many([]) == {}


# The registry as a whole


def test_requests_are_counted_by_operation(store, bucket, target):
    etag = bucket.put("file")
    store.probe()
    store.get_range(ObjectId("file", etag), 0, 1, target, 0, ignore)
    with pytest.raises(NotFound):
        store.head("gone")
    assert store.requests() == {"ListObjectsV2": 1, "GetObject": 1, "HeadObject": 1}


def test_a_missing_bucket_says_so(bucket, open_store, source, target):
    store = open_store(bucket, bucket="no-such-bucket")
    made = source(1)
    for call in (
        store.probe,
        lambda: store.list_page("", by_folder=False),
        lambda: store.put("file", made.fd, 1, {}, ignore),
        lambda: store.put_empty("file", {}),
        lambda: store.start_upload("file", {}),
        lambda: store.get_range(ObjectId("file", "0" * 32), 0, 1, target, 0, ignore),
        lambda: store.delete("file"),
        lambda: store.delete_many(["file"]),
    ):
        with pytest.raises(NoSuchBucket, match=r"'no-such-bucket' at http.*check 'bucket'"):
            call()
    with pytest.raises(NotFound):  # a HEAD has no body that would say what is missing
        store.head("file")


def test_nothing_that_listens_is_unavailable_at_once(bucket, open_store, source, target):
    endpoint = f"http://127.0.0.1:{free_port()}"
    store = open_store(bucket, endpoint=endpoint)
    made = source(1)
    began = time.monotonic()
    for call in (
        store.probe,
        lambda: store.list_page("", by_folder=True),
        lambda: store.head("file"),
        lambda: store.get_range(ObjectId("file", "0" * 32), 0, 1, target, 0, ignore),
        lambda: store.put("file", made.fd, 1, {}, ignore),
        lambda: store.finish_upload("file", "id", [UploadedPart(1, "0" * 32)], 1),
        lambda: store.delete_many(["file"]),
    ):
        with pytest.raises(RegistryUnavailable, match=endpoint):
            call()
    assert time.monotonic() - began < 3


def test_a_proxy_in_the_environment_does_not_matter_for_loopback(bucket, open_store, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    open_store(bucket).probe()


def test_many_threads_may_ask_at_once(store, bucket):
    etag = bucket.put("file", b"x" * 100_000)
    barrier = threading.Barrier(8)

    def read(_: int) -> int:
        fd = os.memfd_create("read")
        try:
            barrier.wait(10)
            for _ in range(5):
                store.get_range(ObjectId("file", etag), 0, 100_000, fd, 0, ignore)
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(8))) == [100_000] * 8
    assert store.requests()["GetObject"] == 40


# Credentials


@pytest.mark.ceph
@pytest.mark.parametrize(("access_key", "secret_key"), [("nobody", "x"), (None, "wrong")])
def test_wrong_credentials_are_denied_and_the_message_holds_no_secret(
    ceph_bucket, open_store, access_key, secret_key
):
    write_credentials(
        ceph_bucket.credentials_file, access_key or ceph_bucket.access_key, secret_key
    )
    store = open_store(ceph_bucket)
    for call in (store.probe, lambda: store.put_empty("file", {}), lambda: store.delete("file")):
        with pytest.raises(AccessDenied, match="check") as caught:
            call()
        assert ceph_bucket.secret_key not in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(AccessDenied):
        store.head("file")


@pytest.mark.ceph
def test_new_credentials_in_the_file_are_used_by_the_next_request(ceph_bucket, open_store):
    file = write_credentials(ceph_bucket.credentials_file, "old", "old")
    store = open_store(ceph_bucket)
    with pytest.raises(AccessDenied):
        store.probe()
    write_credentials(file, ceph_bucket.access_key, ceph_bucket.secret_key)
    store.probe()
    write_credentials(file, "newer", "newer")
    with pytest.raises(AccessDenied):
        store.probe()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"no section \[default\]"),
        ("[other]\naws_access_key_id = a", r"no section \[default\]"),
        ("[default]\naws_access_key_id = a", "aws_secret_access_key is missing"),
        ("[default]\naws_secret_access_key = TOPSECRET", "aws_access_key_id is missing"),
        ("aws_secret_access_key = TOPSECRET", r"not in AWS credentials format \(line 1\)"),
        ("[default]\nTOPSECRET", r"not in AWS credentials format"),
    ],
)
def test_a_wrong_credentials_file_is_named_and_never_quoted(moto_bucket, open_store, text, problem):
    good = moto_bucket.credentials_file.read_text()
    store = open_store(moto_bucket)
    moto_bucket.credentials_file.write_text(text)
    for call in (lambda: S3Store(moto_bucket.settings()), store.probe):
        with pytest.raises(ConfigError, match=problem) as caught:
            call()
        assert str(moto_bucket.credentials_file) in str(caught.value)
        assert "TOPSECRET" not in str(caught.value)
    moto_bucket.credentials_file.write_text(good)
    store.probe()


def test_a_missing_credentials_file_is_named(moto_bucket, tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.here: cannot be read"):
        S3Store(moto_bucket.settings(credentials=tmp_path / "nothing.here"))


def test_no_credentials_at_all_is_said(moto_bucket, open_store, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    store = open_store(moto_bucket, credentials=None)
    with pytest.raises(AccessDenied, match=r"no credentials .* set credentials = FILE"):
        store.probe()


@pytest.mark.ceph
def test_without_a_file_the_chain_of_boto3_is_used(ceph_bucket, open_store, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ceph_bucket.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ceph_bucket.secret_key)
    open_store(ceph_bucket, credentials=None).probe()


# Certificates


@pytest.mark.ceph
def test_https_works_with_the_ca_and_only_with_it(
    ceph: CephServer, ceph_bucket, open_store, source
):
    made = source(100_000)
    trusted = open_store(ceph_bucket, endpoint=ceph.tls_endpoint, ca_bundle=ceph.ca)
    info = trusted.put("file", made.fd, made.size, {}, ignore)
    assert trusted.head("file").id == info.id
    assert trusted.delete_many(["file"]) == {}

    with pytest.raises(CertificateRejected, match="set ca_bundle = FILE"):
        open_store(ceph_bucket, endpoint=ceph.tls_endpoint).probe()
    by_name = ceph.tls_endpoint.replace("127.0.0.1", socket.gethostname())
    if by_name != ceph.tls_endpoint and resolves_to_loopback(socket.gethostname()):
        with pytest.raises(CertificateRejected):
            open_store(ceph_bucket, endpoint=by_name, ca_bundle=ceph.ca).probe()


def resolves_to_loopback(host: str) -> bool:
    try:
        return socket.gethostbyname(host).startswith("127.0.0.1")
    except OSError:
        return False


def test_a_ca_bundle_that_is_none_is_named(moto_bucket, tmp_path):
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate")
    for path in (wrong, tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match=path.name):
            S3Store(moto_bucket.settings(ca_bundle=path))


# Ceph alone


@pytest.mark.ceph
def test_a_gateway_that_hangs_is_unavailable_in_time_and_back_afterwards(
    ceph: CephServer, ceph_bucket, open_store
):
    store = open_store(ceph_bucket, timeout_s=3)
    store.probe()
    ceph.run("pause-rgw")
    try:
        began = time.monotonic()
        with pytest.raises(RegistryUnavailable):
            store.list_page("", by_folder=False)
        assert time.monotonic() - began < 3
        with pytest.raises(RegistryUnavailable):
            store.probe()
        assert time.monotonic() - began < 8
    finally:
        ceph.run("resume-rgw")
    store.probe()


@pytest.mark.ceph
def test_a_bucket_of_another_user_is_denied(ceph: CephServer, ceph_bucket, open_store):
    name = f"other{time.time_ns()}"
    keys = json.loads(ceph.run("user", name))["keys"][0]
    write_credentials(ceph_bucket.credentials_file, keys["access_key"], keys["secret_key"])
    store = open_store(ceph_bucket)
    with pytest.raises(AccessDenied, match="their rights"):
        store.put_empty("file", {})
    ceph.run("radosgw-admin", "user", "rm", "--uid", name)


@pytest.mark.ceph
def test_a_full_quota_is_quota_exceeded(ceph: CephServer, ceph_bucket, open_store, source):
    made = source(100_000)
    name = ("--bucket", ceph_bucket.bucket)
    ceph.run("radosgw-admin", "quota", "set", "--quota-scope=bucket", *name, "--max-objects=1")
    ceph.run("radosgw-admin", "quota", "enable", "--quota-scope=bucket", *name)
    store = open_store(ceph_bucket)
    store.put_empty("one", {})
    with pytest.raises(QuotaExceeded, match="quota is used up"):
        store.put("more", made.fd, made.size, {}, ignore)
