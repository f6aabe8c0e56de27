"""A store's disk that refuses, goes away, hangs and comes back: what freezes and files do."""

import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from modelfs.concurrency import Threads
from modelfs.errors import StoreError
from modelfs.names import VersionId
from modelfs.store import health as healths
from modelfs.store import pending, versions
from modelfs.store.freeze import State
from modelfs.store.health import StoreHealth
from modelfs.store.layout import Layout, free_bytes
from modelfs.store.staging import Promise, Staging
from tests.fake_store import FakeStore
from tests.trio_tests import LLAMA, PART, PREFIX, ROOT, open_house, trio_test, until, version

MANY = 40  # parts of the large file: more than two of the batches that are made durable


def large_model() -> tuple[FakeStore, bytes]:
    store, data = FakeStore(), os.urandom(MANY * PART + 5)
    store.place(PREFIX + "large", data)
    return store, data


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "store", "node-a")
    layout.make()
    return layout


@contextmanager
def away(root: Path) -> Iterator[None]:
    """Let the store's disk be gone for a while, an empty folder in its place."""
    hidden = root.with_name("away")
    root.rename(hidden)
    root.mkdir()
    try:
        yield
    finally:
        root.rmdir()  # nothing was made in it
        hidden.rename(root)


# ------------------------------------------------------------- after a crash


async def crash_in_mid_freeze(folder: Path, store: FakeStore) -> None:
    """Freeze v1 until two batches of parts are durable, and the next one has begun; then crash."""
    async with open_house(folder, store, is_crash=True) as house:
        gate = store.hold("GetObject")
        store.unhook()
        store.hook(lambda _, r: gate(_, r) if r.offset >= 36 * PART else None)
        await house.library.freezes.begin(version("v1"), ROOT)
        mark = house.layout.pending(version("v1")) / "partial" / "0.durable"
        await until(lambda: mark.exists() and int(mark.read_bytes()) == 32 * PART)
        await until(lambda: gate.waiting == 4)
        store.unhook()
        store.is_down = True
        gate.open()
    store.is_down = False


@trio_test
async def test_a_restart_fetches_only_the_parts_that_were_not_durable(tmp_path: Path) -> None:
    store, data = large_model()
    await crash_in_mid_freeze(tmp_path / "s", store)
    before = store.requests()["GetObject"]
    async with open_house(tmp_path / "s", store) as house:
        assert (await house.ended("v1")).state is State.READY
        assert house.plain("v1") == {"large": data}
        (entry,) = versions.read_manifest(house.layout, version("v1")).files
        assert entry.sha256 == hashlib.sha256(data).hexdigest()  # of what was there, too
    assert store.requests()["GetObject"] - before == MANY + 1 - 32


@trio_test
async def test_durable_parts_are_used_by_a_daemon_with_another_part_size(tmp_path: Path) -> None:
    store, data = large_model()
    await crash_in_mid_freeze(tmp_path / "s", store)
    async with open_house(tmp_path / "s", store, part_size=3 * PART) as house:
        assert (await house.ended("v1")).state is State.READY
        assert house.plain("v1") == {"large": data}


@trio_test
async def test_what_a_freeze_has_written_is_no_longer_reserved(tmp_path: Path) -> None:
    store, data = large_model()
    await crash_in_mid_freeze(tmp_path / "s", store)
    layout = Layout(tmp_path / "s", "node-b")
    assert pending.reserved_bytes(layout) == len(data) - 32 * PART


# ------------------------------------------------------- a disk that refuses


@trio_test
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
async def test_what_a_full_disk_lost_at_fsync_is_fetched_again_when_there_is_space(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data = large_model()
    sync, refuses = os.fsync, threading.Event()
    refuses.set()

    def fsync(fd: int) -> None:
        if refuses.is_set() and "/partial/0" in os.readlink(f"/proc/self/fd/{fd}"):
            os.pwrite(fd, bytes(5 * PART), 34 * PART)  # what was written since is lost
            raise OSError(number, os.strerror(number))
        sync(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    async with open_house(tmp_path / "s", store) as house:
        await house.library.freezes.begin(version("v1"), ROOT)
        freeze = house.library.freezes._under_way[version("v1")]
        await until(lambda: freeze.error is not None)
        assert os.strerror(number) in str(freeze.error)
        assert freeze.state is State.DOWNLOADING
        refuses.clear()
        assert (await house.ended("v1")).state is State.READY
        assert house.plain("v1") == {"large": data}
        again = store.requests()["GetObject"] - (MANY + 1)
        assert again % (MANY + 1 - 32) == 0  # a try or more of what was not durable, no more
        assert again > 0


@trio_test
async def test_a_failure_that_cannot_be_written_down_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelfs.store import freeze as freezing

    store, _ = large_model()
    write, refusals = freezing.write_durably, iter([True, True])

    def write_durably(path: Path, content: bytes) -> None:
        if path.name == "failed" and next(refusals, False):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(freezing, "write_durably", write_durably)
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        await house.library.freezes.begin(version("v1"), ROOT)
        store.place(PREFIX + "large", b"another")
        gate.open()
        view = await house.ended("v1")
        assert view.state is State.FAILED
        assert "large" in str(view.error)


# ----------------------------------------------------------------- the locks


@trio_test
async def test_a_freeze_whose_lock_was_lost_takes_it_again_and_goes_on(tmp_path: Path) -> None:
    store, data = large_model()
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        await house.library.freezes.begin(version("v1"), ROOT)
        freeze = house.library.freezes._under_way[version("v1")]
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, freeze._lock_fd)  # as after a new mount of the store: no lock, no file
        os.close(nothing)
        store.is_down = True  # so that it tries again
        gate.open()
        store.unhook()
        await until(lambda: freeze.error is not None)
        store.is_down = False
        assert (await house.ended("v1")).state is State.READY
        assert house.plain("v1") == {"large": data}


@trio_test
async def test_a_store_that_goes_away_again_meanwhile_costs_no_other_file_its_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, data = large_model()
    take_over, gone = pending.take_over, threading.Event()

    def refuse(layout: Layout, wanted: VersionId) -> int | None:
        if not gone.is_set():
            gone.set()
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return take_over(layout, wanted)

    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        await house.library.freezes.begin(version("v1"), ROOT)
        freeze = house.library.freezes._under_way[version("v1")]
        lost = freeze._lock_fd
        fcntl.flock(lost, fcntl.LOCK_UN)
        os.dup2(nothing := os.open(os.devnull, os.O_RDONLY), lost)
        os.close(nothing)
        monkeypatch.setattr(pending, "take_over", refuse)
        store.is_down = True
        gate.open()
        store.unhook()
        await until(lambda: freeze.error is not None)
        store.is_down = False
        await until(gone.is_set)
        others = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]  # one gets its number
        assert (await house.ended("v1")).state is State.READY
        assert house.plain("v1") == {"large": data}
        for fd in others:
            os.close(fd)  # still open


@trio_test
async def test_a_freeze_whose_lock_another_node_has_taken_leaves_it_to_that_node(
    tmp_path: Path,
) -> None:
    store, _ = large_model()
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        await house.library.freezes.begin(version("v1"), ROOT)
        freeze = house.library.freezes._under_way[version("v1")]
        fcntl.flock(freeze._lock_fd, fcntl.LOCK_UN)
        other = pending.take_over(house.layout, version("v1"))
        assert other is not None
        store.is_down = True
        gate.open()
        store.unhook()
        await until(freeze.over.is_set)
        store.is_down = False
        assert not freeze.is_ours
        assert version("v1") not in house.library.freezes._under_way
        assert (await house.library.view(version("v1"))).state is State.DOWNLOADING
        assert house.layout.pending(version("v1")).is_dir()  # it is the other's
        os.close(other)
        await house.library.freezes.resume()
        assert (await house.ended("v1")).state is State.READY


# -------------------------------------------------------------------- health


@trio_test
async def test_nothing_is_made_where_the_disk_of_the_store_is_gone(tmp_path: Path) -> None:
    store, _ = large_model()
    async with open_house(tmp_path / "s", store) as house:
        await house.freeze("v1")
        with away(house.layout.root):  # which fails where something was made
            with pytest.raises(StoreError, match="is its disk mounted"):
                await house.library.freezes.begin(version("v2"), ROOT)
            with pytest.raises(StoreError, match="is its disk mounted"):
                await house.library.make_alias(LLAMA, "production", "v1", 0)
            with pytest.raises(StoreError, match="is its disk mounted"):
                await house.library.remove(version("v1"))
        await house.freeze("v2")
        await house.library.make_alias(LLAMA, "production", "v2", 0)


@trio_test
async def test_a_freeze_waits_for_a_disk_that_is_gone_and_goes_on_when_it_is_back(
    tmp_path: Path,
) -> None:
    store, data = large_model()
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        await house.library.freezes.begin(version("v1"), ROOT)
        freeze = house.library.freezes._under_way[version("v1")]
        await until(lambda: gate.waiting)
        with away(house.layout.root):
            gate.open()
            await until(lambda: freeze.error is not None and "is not there" in freeze.error)
        assert (await house.ended("v1")).state is State.READY
        assert house.plain("v1") == {"large": data}


@trio_test
async def test_a_store_that_does_not_answer_is_noticed_named_and_found_again(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healths, "ANSWER_LIMIT_S", 0.05)
    monkeypatch.setattr(healths, "AWAY_INTERVAL_S", 0.01)
    monkeypatch.setattr(healths, "INTERVAL_S", 0.01)
    hangs, goes_on = threading.Event(), threading.Event()

    def check_disk() -> None:
        if hangs.is_set():
            goes_on.wait(20)

    health, returns = StoreHealth(layout, check_disk), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(health.watch, lambda: returns.append(time.time_ns()))
        await until(lambda: health.state.total_bytes)
        health.check()
        hangs.set()
        await until(lambda: health.state.error is not None)
        since_ns = health.state.since_ns
        with pytest.raises(StoreError, match="does not answer"):
            health.check()
        assert health.state.total_bytes  # as it was last seen
        hangs.clear()
        goes_on.set()
        await until(lambda: returns)
        health.check()
        assert health.state.since_ns > since_ns
        nursery.cancel_scope.cancel()


@trio_test
async def test_a_full_store_is_there(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    health = StoreHealth(layout)
    await health.ask()
    health.check()


# --------------------------------------------------------------------- files


@trio_test
async def test_a_staged_file_that_was_durable_is_sent_when_its_store_is_mounted_anew(
    layout: Layout,
) -> None:
    staging = Staging(layout.staged, Threads(4))
    durable = await staging.create(LLAMA, "a", None)
    await staging.write(durable, 0, b"all of it")
    await staging.promise(durable, Promise.CLOSED, durable=True)
    other = await staging.create(LLAMA, "b", None)
    await staging.write(other, 0, b"perhaps lost")
    await staging.promise(other, Promise.CLOSED, durable=False)
    for staged in (durable, other):
        os.dup2(os.open(os.devnull, os.O_RDWR), staged.fd)  # dead
    await staging.revive(durable)
    assert await staging.read(durable, 0, 99) == b"all of it"
    with pytest.raises(StoreError, match="before it had all bytes"):
        await staging.revive(other)
    assert other.failure is not None  # it is never uploaded


def test_a_quota_on_a_folder_above_the_store_is_its_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "quota" / "store" / "models"
    store.mkdir(parents=True)
    said = {"ceph.quota.max_bytes": b"1000", "ceph.dir.rbytes": b"400"}

    def getxattr(path: Path, name: str) -> bytes:
        if Path(path) != tmp_path / "quota":
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return said[name]

    monkeypatch.setattr(os, "getxattr", getxattr)
    assert free_bytes(store) == (600, 1000)
    said["ceph.dir.rbytes"] = b"2000"
    assert free_bytes(store) == (0, 1000)


@trio_test
async def test_a_disk_that_is_gone_is_no_model_without_versions(tmp_path: Path) -> None:
    store, _ = large_model()
    async with open_house(tmp_path / "s", store) as house:
        await house.freeze("v1")
        house.library.shelves.changed(LLAMA)
        with away(house.layout.root):
            with pytest.raises(StoreError, match="is its disk mounted"):
                await house.library.shelves.of(LLAMA)
            with pytest.raises(StoreError, match="is its disk mounted"):
                await house.library.namespaces()
            with pytest.raises(StoreError, match="is its disk mounted"):
                await house.library.has_namespace("acme")
            with pytest.raises(StoreError, match="is its disk mounted"):
                await house.library.models("acme")
        assert (await house.library.shelves.of(LLAMA)).ready == {"v1"}
