"""A file that waits to be uploaded, and is written again before the registry has it."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from modelfs.mount import moving
from modelfs.store.stagedfile import Promise, StagedFile
from tests.fake_store import FakeStore, Gate
from tests.trio_tests import LLAMA, PREFIX, House, open_house, trio_test, until

PROMISED = b"what close() or fsync() said yes to"
KILLED = "is killed before it is closed"


@pytest.fixture
def store() -> FakeStore:
    """A registry that holds uploads back, with another state of the file."""
    store = FakeStore()
    store.place(PREFIX + "a", b"before")
    return store


@asynccontextmanager
async def waiting(folder: Path, store: FakeStore) -> AsyncIterator[tuple[House, StagedFile, Gate]]:
    """A restarted daemon's house, and its file that waits and is just being sent; killed after."""
    async with open_house(folder, store, is_crash=True) as house:
        info = await house.registry.call(store.head, PREFIX + "a")
        staged = await house.staging.create(LLAMA, "a", info)
        await house.staging.write(staged, 0, PROMISED)
        await house.staging.promise(staged, Promise.CLOSED, durable=True)
    gate = store.hold("PutObject")
    async with open_house(folder, store, is_crash=True) as house:
        await until(lambda: gate.waiting)
        staged = house.staging.get(LLAMA, "a")
        assert staged is not None
        staged.users += 1
        yield house, staged, gate


def fails(gate: Gate, store: FakeStore) -> None:
    """Have the upload that is under way, and all after it, fail."""
    store.is_down = True
    gate.open()


async def is_back(house: House, store: FakeStore) -> None:
    store.is_down = False
    await house.registry.wait_reachable()


async def after_a_restart(folder: Path, store: FakeStore) -> tuple[dict[str, bytes], list[bytes]]:
    """Return what the registry has in the end, and what was put aside."""
    store.is_down = False
    async with open_house(folder, store) as house:
        await house.writeback.drain()
        aside = [staged.path.read_bytes() for staged in house.staging.aside]
        await until(lambda: not list(house.staging))
        assert len(list(house.layout.staged.iterdir())) == 2 * len(aside)
        assert house.writeback.uploader.conflicts.count == 0
        return store.below(PREFIX), aside


@pytest.mark.parametrize("keeps", [0, 4, len(PROMISED)])
@trio_test
async def test_what_waits_is_what_a_crash_goes_back_to_while_it_is_written_anew(
    tmp_path: Path, store: FakeStore, keeps: int
) -> None:
    async with waiting(tmp_path, store) as (house, staged, gate):
        fails(gate, store)
        if keeps < len(PROMISED):
            await house.staging.truncate(staged, keeps)
        await house.staging.write(staged, keeps, b"anew")
        assert await house.staging.read(staged, 0, 99) == PROMISED[:keeps] + b"anew"
    objects, aside = await after_a_restart(tmp_path, store)
    assert objects == {"a": PROMISED}
    assert aside == [PROMISED[:keeps] + b"anew"]


@trio_test
async def test_an_upload_that_is_under_way_sends_what_was_closed_and_nothing_of_what_comes_then(
    tmp_path: Path, store: FakeStore
) -> None:
    async with waiting(tmp_path, store) as (house, staged, gate):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.staging.truncate, staged, 0)
            await trio.sleep(0.01)
            assert await house.staging.read(staged, 0, 99) == PROMISED
            gate.open()
        await house.staging.write(staged, 0, b"anew")
        assert store.below(PREFIX) == {"a": PROMISED}
        assert staged.fallback is None, "the registry has it: there is nothing to keep"
    assert await after_a_restart(tmp_path, store) == ({"a": PROMISED}, [b"anew"])


@trio_test
async def test_what_is_written_anew_goes_when_it_is_closed_and_not_before(
    tmp_path: Path, store: FakeStore
) -> None:
    async with waiting(tmp_path, store) as (house, staged, gate):
        fails(gate, store)
        await house.staging.write(staged, 0, b"WHAT")
        await is_back(house, store)
        await until(lambda: house.writeback.waiting() == [])
        assert store.below(PREFIX) == {"a": b"before"}
        await house.writeback.publish(staged)
        assert store.below(PREFIX) == {"a": b"WHAT" + PROMISED[4:]}
        staged.users -= 1
        await house.writeback.settle(staged)
        assert list(house.layout.staged.iterdir()) == []


@pytest.mark.parametrize("is_durable", [True, False])
@trio_test
async def test_what_is_promised_anew_replaces_what_waited_wherever_it_stops(
    tmp_path: Path, store: FakeStore, is_durable: bool
) -> None:
    """The power may go before the file that waited is off the disk."""
    async with waiting(tmp_path, store) as (house, staged, gate):
        fails(gate, store)
        await house.staging.truncate(staged, 0)
        await house.staging.write(staged, 0, b"anew")
        shutil.copytree(house.layout.staged, tmp_path / "then")
        await house.staging.promise(staged, Promise.CLOSED, durable=is_durable)
        assert len(list(house.layout.staged.iterdir())) == 2
        assert staged.synced_generation == staged.generation, "nothing durable was replaced by less"
        for path in (tmp_path / "then").iterdir():
            if not (house.layout.staged / path.name).exists():
                shutil.copy(path, house.layout.staged)
        assert len(list(house.layout.staged.iterdir())) == 4
    assert await after_a_restart(tmp_path, store) == ({"a": b"anew"}, [])


@trio_test
async def test_a_file_whose_new_bytes_are_refused_by_the_disk_is_again_what_it_was(
    tmp_path: Path, store: FakeStore
) -> None:
    async with waiting(tmp_path, store) as (house, staged, gate):
        fails(gate, store)
        await house.staging.truncate(staged, 0)
        await house.staging.write(staged, 0, b"an")
        assert await house.staging.go_back(staged)
        assert await house.staging.read(staged, 0, 99) == PROMISED
        assert len(list(house.layout.staged.iterdir())) == 2
        assert not await house.staging.go_back(staged), "there is nothing to go back to any more"
        await is_back(house, store)
        house.writeback.start(staged)
        await house.writeback.drain()
        assert store.below(PREFIX) == {"a": PROMISED}


@trio_test
async def test_what_a_crash_goes_back_to_has_the_file_s_new_name(
    tmp_path: Path, store: FakeStore
) -> None:
    async with waiting(tmp_path, store) as (house, staged, gate):
        fails(gate, store)
        await house.staging.truncate(staged, 0)
        house.staging.move(staged, LLAMA, "b")
        await house.staging.record(staged)
    store.take(PREFIX + "a")  # as the rename does, which copies it before
    store.place(PREFIX + "b", b"before")
    objects, aside = await after_a_restart(tmp_path, store)
    assert (objects, aside) == ({"b": PROMISED}, [b""])


@trio_test
async def test_a_file_that_was_removed_while_it_is_written_anew_does_not_come_back(
    tmp_path: Path, store: FakeStore
) -> None:
    async with waiting(tmp_path, store) as (house, staged, gate):
        fails(gate, store)
        await house.staging.truncate(staged, 0)
        await is_back(house, store)
        await house.registry.folder(LLAMA, "")  # as rm does, which looks the name up
        await moving.delete_file(house.services, LLAMA, "a")
    assert await after_a_restart(tmp_path, store) == ({}, [])


@trio_test
async def test_two_who_write_at_once_go_on_with_one_copy(tmp_path: Path, store: FakeStore) -> None:
    async with waiting(tmp_path, store) as (house, staged, gate):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.staging.write, staged, 0, b"11")
            nursery.start_soon(house.staging.write, staged, 2, b"22")
            await trio.sleep(0.01)
            fails(gate, store)
        assert await house.staging.read(staged, 0, 4) == b"1122"
        assert len(list(house.layout.staged.iterdir())) == 4
    objects, _ = await after_a_restart(tmp_path, store)
    assert objects == {"a": PROMISED}


@trio_test
async def test_a_copy_counts_among_what_may_wait(tmp_path: Path, store: FakeStore) -> None:
    async with waiting(tmp_path, store) as (house, staged, gate):
        fails(gate, store)
        house.staging.set_limits((), len(PROMISED) + 10)
        with pytest.raises(OSError, match="staged_max"):
            await house.staging.write(staged, 0, b"anew")
        assert staged.failure is None, "nothing was written, so nothing is missing"
        assert await house.staging.read(staged, 0, 99) == PROMISED
        await house.staging.truncate(staged, 0)  # as O_TRUNC: there is room for that
        await house.staging.write(staged, 0, b"anew")
        assert house.staging.statistics().bytes == len(PROMISED) + 4
