"""Parts on their way: each once, the urgent first, few at a time, errors to all who wait."""

import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from modelfs.errors import ModelfsError, NotFound, RegistryUnavailable, Stale
from modelfs.store.parts import PartFile, Urgency
from tests.fake_store import FakeStore, Request, unavailable
from tests.trio_tests import PART, open_house, trio_test, until

KEY = "models/acme/llama/weights"


def data_of(parts: float, seed: bytes = b"x") -> bytes:
    block = bytes(range(256)) + seed
    size = int(parts * PART)
    return (block * (size // len(block) + 1))[:size]


@trio_test
async def test_each_part_is_fetched_once_for_many_readers(tmp_path: Path) -> None:
    store, data = FakeStore(), data_of(5.5)
    store.place(KEY, data)
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        answers: list[bytes] = []

        async def read(offset: int, size: int) -> None:
            answers.append(await house.read(KEY, offset, size))
            assert answers[-1] == data[offset : offset + size]

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(read, number * 1000, len(data))
            await until(lambda: gate.waiting)
            gate.open()
        assert len(answers) == 30
        assert store.requests() == {"GetObject": 6}
        assert house.fetcher.fetched_parts == 6
        assert house.cache.used_bytes == len(data)
        await house.read(KEY)
        assert store.requests() == {"GetObject": 6}


@trio_test
async def test_reads_at_every_edge_are_right(tmp_path: Path) -> None:
    store, data = FakeStore(), data_of(2.25)
    store.place(KEY, data)
    edges = [0, 1, PART - 1, PART, PART + 1, 2 * PART, len(data) - 1, len(data), len(data) + 5]
    async with open_house(tmp_path / "s", store) as house:
        for offset in edges:
            for size in (0, 1, 2, PART, PART + 1, len(data)):
                assert await house.read(KEY, offset, size) == data[offset : offset + size]
        store.place("models/acme/llama/empty", b"")
        assert await house.read("models/acme/llama/empty", 0, 10) == b""


@trio_test
async def test_no_more_parts_are_under_way_than_may_be(tmp_path: Path) -> None:
    store = FakeStore()
    store.place(KEY, data_of(40))
    async with open_house(tmp_path / "s", store, parallel=3) as house:
        gate = store.hold("GetObject")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.read, KEY)
            await until(lambda: gate.waiting == 3)
            gate.open()
        assert await house.read(KEY) == data_of(40)
        assert store.most_at_once["GetObject"] == 3


@trio_test
async def test_a_reader_goes_before_read_ahead_and_that_before_a_freeze(tmp_path: Path) -> None:
    store = FakeStore()
    info = store.place(KEY, data_of(7))
    async with open_house(tmp_path / "s", store, parallel=1) as house:
        file = await house.cache.open(info)
        gate = store.hold("GetObject")
        flights = house.fetcher.start(file, [0], Urgency.FREEZE)
        await until(lambda: gate.waiting)
        flights += house.fetcher.start(file, [1, 2], Urgency.FREEZE)
        flights += house.fetcher.start(file, [3, 4], Urgency.AHEAD)
        flights += house.fetcher.start(file, [5], Urgency.DEMAND)
        flights += house.fetcher.start(file, [2], Urgency.DEMAND)  # one that waits already
        gate.open()
        for flight in flights:
            await flight.done.wait()
        order = [request.offset // PART for request in store.sent]
        assert order == [0, 5, 2, 3, 4, 1]
        house.cache.close(file)


@trio_test
async def test_an_error_reaches_all_who_wait_for_the_part_and_the_next_try_works(
    tmp_path: Path,
) -> None:
    store, data = FakeStore(), data_of(1)
    store.place(KEY, data)
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        caught: list[ModelfsError] = []

        async def read() -> None:
            with pytest.raises(NotFound) as error:
                await house.read(KEY)
            caught.append(error.value)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(read)
            await until(lambda: gate.waiting)
            store.fail(0, NotFound("gone in passing"))
            gate.open()
        assert len(caught) == 5
        store.unhook()
        assert await house.read(KEY) == data


@trio_test
async def test_a_reader_that_gives_up_ends_nothing(tmp_path: Path) -> None:
    store, data = FakeStore(), data_of(2)
    store.place(KEY, data)
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        with trio.move_on_after(0.02) as scope:
            await house.read(KEY)
        assert scope.cancelled_caught
        gate.open()
        assert await house.read(KEY) == data
        assert store.requests() == {"GetObject": 2}


@trio_test
async def test_bytes_of_two_states_are_never_mixed(tmp_path: Path) -> None:
    store, old, new = FakeStore(), data_of(3), data_of(3, b"y")
    info = store.place(KEY, old)
    async with open_house(tmp_path / "s", store) as house:
        file = await house.cache.open(info)
        assert await house.fetcher.read(file, 0, 10) == old[:10]
        store.place(KEY, new)
        assert await house.fetcher.read(file, 0, PART) == old[:PART]
        with pytest.raises(Stale):
            await house.fetcher.read(file, 0, len(old))
        assert await house.read(KEY) == new
        assert await house.fetcher.read(file, 5, 10) == old[5:15]
        house.cache.close(file)


@trio_test
async def test_a_registry_that_sends_nothing_is_given_up_in_time(tmp_path: Path) -> None:
    store = FakeStore()
    store.place(KEY, data_of(1))
    async with open_house(tmp_path / "s", store, timeout_s=0.1) as house:
        gate = store.hold("GetObject")
        with pytest.raises(RegistryUnavailable, match="nothing"):
            await house.read(KEY)
        gate.open()
        await until(lambda: house.fetcher.fetched_parts == 1)


@trio_test
async def test_a_part_that_breaks_off_is_tried_again(tmp_path: Path) -> None:
    store, data = FakeStore(), data_of(3)
    store.place(KEY, data)
    async with open_house(tmp_path / "s", store, parallel=1) as house:
        store.fail(1, unavailable())
        store.fail(4, unavailable(), after=True)
        assert await house.read(KEY) == data


class BrokenDisk:
    """A PartOwner whose disk is gone."""

    def room(self, count: int) -> AbstractAsyncContextManager[None]:
        raise OSError(5, "Input/output error")

    def part_arrived(self, file: PartFile, index: int, info: object) -> None: ...


@trio_test
async def test_a_disk_that_fails_is_an_error_and_not_tried_for_ever(tmp_path: Path) -> None:
    store = FakeStore()
    info = store.place(KEY, data_of(1))
    async with open_house(tmp_path / "s", store) as house:
        file = PartFile(tmp_path / "part", info, PART, BrokenDisk())
        file.users += 1
        file.open_now()
        with trio.fail_after(5), pytest.raises(ModelfsError, match="Input/output"):
            await house.fetcher.read(file, 0, 10)
        file.leave()
        assert file.fd == -1


@trio_test
async def test_the_kernel_asks_no_part_of_a_file_that_is_closed_to_stay_open(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    store.place(KEY, data_of(4))

    def change(store: FakeStore, request: Request) -> None:
        if request.offset == 2 * PART:
            store.take(KEY)

    async with open_house(tmp_path / "s", store, parallel=1) as house:
        before = len(os.listdir("/proc/self/fd"))
        info = store._info(KEY)
        store.hook(change)
        with pytest.raises(NotFound):
            await house.read(KEY)
        await until(lambda: not house.cache._files[info.id].users)
        assert len(os.listdir("/proc/self/fd")) <= before
        assert house.cache.cached_bytes(info.id) == 2 * PART
