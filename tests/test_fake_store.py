"""The fake registry keeps the contract of ObjectStore, as moto and Ceph's gateway do."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfs.errors import NotFound, RegistryUnavailable, Stale, WrongBytes
from modelfs.registry.objects import ObjectStore
from tests.fake_store import FakeStore


def ignore(count: int) -> None:
    """Take no notice of progress."""


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def test_it_is_an_object_store(store: FakeStore) -> None:
    typed: ObjectStore = store
    assert typed.requests() == {}


def test_what_was_put_is_got_back(store: FakeStore, fd: int) -> None:
    os.pwrite(fd, b"0123456789", 0)
    put = store.put("m/a", fd, 10, {"mtime": "1.5"}, ignore)
    assert put.md5 == put.id.etag == hashlib.md5(b"0123456789").hexdigest()
    moved: list[int] = []
    got = store.get_range(put.id, 2, 5, fd, 100, moved.append)
    assert (os.pread(fd, 5, 100), sum(moved)) == (b"23456", 5)
    assert got == store.head("m/a") == put
    assert got.mtime_ns == 1_500_000_000
    (listed,) = store.list_page("m/", by_folder=False).objects
    assert (listed.id, listed.size, listed.mtime_ns, listed.md5) == (put.id, 10, None, put.md5)
    assert store.requests() == {"PutObject": 1, "GetObject": 1, "HeadObject": 1, "ListObjectsV2": 1}


def test_a_range_is_of_one_state(store: FakeStore, fd: int) -> None:
    old = store.place("a", b"old")
    store.place("a", b"new")
    with pytest.raises(Stale):
        store.get_range(old.id, 0, 3, fd, 0, ignore)
    store.take("a")
    with pytest.raises(NotFound):
        store.get_range(old.id, 0, 3, fd, 0, ignore)
    with pytest.raises(NotFound):
        store.head("a")
    with pytest.raises(WrongBytes):
        store.get_range(store.place("a", b"new").id, 0, 4, fd, 0, ignore)


def test_parts_have_the_etag_that_s3_gives_them(store: FakeStore, fd: int) -> None:
    os.pwrite(fd, b"onetwo", 0)
    upload = store.start_upload("m/a", {"mtime": "7"})
    parts = [store.upload_part("m/a", upload, n, fd, 3 * (n - 1), 3, ignore) for n in (1, 2)]
    info = store.finish_upload("m/a", upload, parts, 6)
    digests = hashlib.md5(b"one").digest() + hashlib.md5(b"two").digest()
    assert info.id.etag == hashlib.md5(digests).hexdigest() + "-2"
    assert (info.md5, info.size, info.mtime_ns) == (None, 6, 7 * 10**9)
    assert store.place("m/b", b"onetwo", part_size=3).id.etag == info.id.etag
    assert store.finish_upload("m/a", upload, parts, 6) == info  # an earlier try succeeded
    store.abort_upload("m/a", upload)
    assert store.uploads_open == 0
    with pytest.raises(NotFound):
        store.upload_part("m/a", upload, 1, fd, 0, 3, ignore)


def test_a_listing_comes_in_pages_and_by_folder(store: FakeStore) -> None:
    for number in range(2500):
        store.place(f"m/{number:04d}", b"")
    for number in range(1200):
        store.place(f"f/{number:04d}/x", b"")
        store.place(f"f/{number:04d}/y", b"")
    keys, token = [], None
    for expected in (1000, 1000, 500):
        page = store.list_page("m/", by_folder=True, token=token)
        assert len(page.objects) == expected
        keys += [info.id.key for info in page.objects]
        token = page.token
    assert (keys, token) == ([f"m/{n:04d}" for n in range(2500)], None)
    first = store.list_page("f/", by_folder=True)
    second = store.list_page("f/", by_folder=True, token=first.token)
    assert [*first.folders, *second.folders] == [f"f/{n:04d}/" for n in range(1200)]
    assert second.token is None
    top = store.list_page("", by_folder=True)
    assert (list(top.objects), list(top.folders)) == ([], ["f/", "m/"])
    assert list(store.list_page("nothing/", by_folder=True).objects) == []


def test_a_copy_keeps_or_replaces_metadata_and_is_of_one_state(store: FakeStore) -> None:
    info = store.place("a", b"data", {"note": "x"})
    assert store.copy(info, "b").metadata == {"note": "x"}
    assert store.copy(info, "a", {"mtime": "1"}).mtime_ns == 10**9
    store.place("a", b"new")
    with pytest.raises(Stale):
        store.copy(info, "c")
    store.delete_many(["a", "b", "never was"])
    store.delete("never was")
    assert store.objects == {}


def test_faults_come_when_they_are_told_to(store: FakeStore, fd: int) -> None:
    store.fail(2, RegistryUnavailable("503"))
    store.fail(3, RegistryUnavailable("the answer is lost"), after=True)
    store.put_empty("a", {})
    with pytest.raises(RegistryUnavailable):
        store.put_empty("b", {})
    with pytest.raises(RegistryUnavailable):
        store.put_empty("c", {})
    assert sorted(store.objects) == ["a", "c"]
    info = store.place("d", b"data")
    store.flip("d")
    store.get_range(info.id, 0, 4, fd, 0, ignore)
    assert os.pread(fd, 4, 0) != b"data"
    store.get_range(info.id, 0, 4, fd, 0, ignore)
    assert os.pread(fd, 4, 0) == b"data"
    store.is_down = True
    with pytest.raises(RegistryUnavailable):
        store.probe()
