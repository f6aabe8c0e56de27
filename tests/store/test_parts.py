"""Parts on their way: each once, the urgent first, few at a time, errors to all who wait."""

import os
import random
import threading
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from modelfs.errors import ModelfsError, NotFound, RegistryUnavailable, Stale
from modelfs.registry.objects import ObjectId, ObjectInfo
from modelfs.store.flights import Flight
from modelfs.store.parts import PartFile, Urgency
from tests.fake_store import LONGEST_WAIT_S, BodyHook, FakeStore, Request, slow, unavailable
from tests.trio_tests import PART, open_house, trio_test, until

KEY = "models/acme/llama/weights"


def data_of(parts: float, seed: bytes = b"x") -> bytes:
    block = bytes(range(256)) + seed
    size = int(parts * PART)
    return (block * (size // len(block) + 1))[:size]


def bytes_asked(store: FakeStore, key: str = KEY) -> int:
    """Return how many bytes were asked for in all; fails where any was asked for twice."""
    ranges = sorted(store.asked(key))
    for (offset, length), (following, _) in pairwise(ranges):
        assert offset + length <= following, ranges
    return sum(length for _, length in ranges)


class Barrier:
    """A BodyHook: bodies stop where `limit` of their bytes have come, until it is raised."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._moved = threading.Condition()
        self.reached = 0

    def __call__(self, request: Request, done: int) -> None:
        with self._moved:
            self.reached = max(self.reached, done)
            assert self._moved.wait_for(lambda: done < self._limit, LONGEST_WAIT_S)

    def raise_to(self, limit: int) -> None:
        with self._moved:
            self._limit = limit
            self._moved.notify_all()


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
        assert bytes_asked(store) == len(data)
        assert house.fetcher.fetched_parts == 6
        assert house.cache.used_bytes == len(data)
        await house.read(KEY)
        assert bytes_asked(store) == len(data)


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
    info = store.place(KEY, data_of(40))
    async with open_house(tmp_path / "s", store, parallel=3) as house:
        file = await house.cache.open(info)
        gate = store.hold("GetObject")
        async with trio.open_nursery() as nursery:
            for urgency, parts in ((Urgency.DEMAND, range(20)), (Urgency.AHEAD, range(20, 40))):
                nursery.start_soon(house.fetcher.bring, file, parts, urgency)
            await until(lambda: gate.waiting == 3)
            gate.open()
        house.cache.close(file)
        assert await house.read(KEY) == data_of(40)
        assert store.most_at_once["GetObject"] == 3
        assert bytes_asked(store) == 40 * PART


@trio_test
async def test_a_reader_goes_before_read_ahead_that_before_a_warm_and_it_before_a_freeze(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    info = store.place(KEY, data_of(13))  # of which none that is asked for is beside another
    async with open_house(tmp_path / "s", store, parallel=1) as house:
        file = await house.cache.open(info)
        gate = store.hold("GetObject")
        flights = house.fetcher.start(file, [0], Urgency.FREEZE)
        await until(lambda: gate.waiting)
        flights += house.fetcher.start(file, [2, 4], Urgency.FREEZE)
        flights += house.fetcher.start(file, [12], Urgency.WARM)
        flights += house.fetcher.start(file, [6, 8], Urgency.AHEAD)
        flights += house.fetcher.start(file, [10], Urgency.DEMAND)
        flights += house.fetcher.start(file, [4], Urgency.DEMAND)  # one that waits already
        gate.open()
        for flight in flights:
            await flight.done.wait()
        order = [request.offset // PART for request in store.sent]
        assert order == [0, 10, 4, 6, 8, 12, 2]
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
        assert bytes_asked(store) == len(data)


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
async def test_a_reader_of_the_beginning_of_a_part_has_it_before_the_part_has_come(
    tmp_path: Path,
) -> None:
    store, data = FakeStore(), data_of(2)
    store.place(KEY, data)
    store.pieces = 8
    async with open_house(tmp_path / "s", store) as house:
        barrier = Barrier(PART // 2)
        store.hook_bodies(barrier)
        ends: list[bytes] = []

        async def read_end() -> None:
            ends.append(await house.read(KEY, PART - 10, 20))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_end)
            assert await house.read(KEY, 0, PART // 2) == data[: PART // 2]
            assert await house.read(KEY, 5, 100) == data[5:105]
            assert not ends
            assert house.cache.used_bytes == 0
            barrier.raise_to(2 * PART)
        assert ends == [data[PART - 10 : PART + 10]]
        assert bytes_asked(store) == len(data)


@trio_test
async def test_who_waits_for_bytes_of_one_part_goes_on_when_they_are_there(tmp_path: Path) -> None:
    store, data = FakeStore(), data_of(1)
    store.place(KEY, data)
    store.pieces = 8
    step = PART // store.pieces
    async with open_house(tmp_path / "s", store) as house:
        barrier = Barrier(0)
        have: set[int] = set()
        store.hook_bodies(barrier)

        async def read(number: int) -> None:
            assert await house.read(KEY, number * step + 7, 11) == data[number * step + 7 :][:11]
            have.add(number)

        async with trio.open_nursery() as nursery:
            for number in (7, 0, 3, 5, 1, 6, 2, 4):
                nursery.start_soon(read, number)
            for number in range(store.pieces):
                barrier.raise_to((number + 1) * step)
                await until(partial(have.__contains__, number))
                assert have == set(range(number + 1))
            barrier.raise_to(PART + 1)
        assert bytes_asked(store) == PART


@trio_test
async def test_bytes_that_came_just_before_they_were_waited_for_are_no_wait(
    tmp_path: Path,
) -> None:
    flight = Flight(
        PartFile(tmp_path / "part", ObjectInfo(ObjectId(KEY, "e"), PART, 0), PART, BrokenDisk()), 0
    )
    flight.move(100)  # while a reader looked, and before it waits
    assert flight.event_of(100).is_set()
    later = flight.event_of(101)
    assert not later.is_set()
    flight.move(1)
    await later.wait()


@trio_test
async def test_a_request_that_breaks_off_asks_for_the_rest_alone_when_it_is_tried_again(
    tmp_path: Path,
) -> None:
    store, data = FakeStore(), data_of(8.5)
    info = store.place(KEY, data)
    store.pieces = 8
    broken: dict[tuple[int, int], int] = {}

    def break_once(request: Request, done: int) -> None:
        asked = (request.offset, request.length)
        if done > request.length // 2 and asked not in broken and request.length >= PART:
            broken[asked] = done
            raise unavailable()

    async with open_house(tmp_path / "s", store, parallel=1) as house:
        store.hook_bodies(break_once)
        file = await house.cache.open(info)
        await house.fetcher.bring(file, range(file.part_count), Urgency.AHEAD)
        house.cache.close(file)
        assert await house.read(KEY) == data
        assert house.fetcher.fetched_parts == 9
    asked = store.asked(KEY)
    for (offset, length), done in broken.items():
        assert asked[asked.index((offset, length)) + 1] == (offset + done, length - done)
    assert broken
    came = sum(broken.get(each, each[1]) for each in asked)
    assert came == len(data)


@trio_test
async def test_what_came_before_an_error_stays_and_the_error_reaches_who_waits_for_the_rest(
    tmp_path: Path,
) -> None:
    store, data = FakeStore(), data_of(2)
    info = store.place(KEY, data)
    store.pieces = 8
    released = threading.Event()
    failed: set[int] = set()

    def break_second_part(request: Request, done: int) -> None:
        if request.offset + done >= PART:
            assert released.wait(LONGEST_WAIT_S)
            raise NotFound("gone in passing")

    async with open_house(tmp_path / "s", store, parallel=1) as house:
        store.hook_bodies(break_second_part)
        file = await house.cache.open(info)

        async def read(offset: int) -> None:
            with pytest.raises(NotFound):
                await house.fetcher.read(file, offset, 10)
            failed.add(offset)

        async with trio.open_nursery() as nursery:
            house.fetcher.start(file, [0, 1], Urgency.AHEAD)
            for offset in (PART - 5, PART, 2 * PART - 10):
                nursery.start_soon(read, offset)
            assert await house.fetcher.read(file, 0, PART) == data[:PART]
            await wait_all_tasks_blocked()
            released.set()
        assert failed == {PART - 5, PART, 2 * PART - 10}
        assert list(file.present) == [0]
        house.cache.close(file)
        store.unhook()
        before = len(store.asked(KEY))
        assert await house.read(KEY) == data
        assert store.asked(KEY)[before:] == [(PART, PART)]


@trio_test
async def test_random_readers_evictions_and_broken_requests_never_give_wrong_bytes(
    tmp_path: Path,
) -> None:
    store, keys = FakeStore(), [f"{KEY}-{number}" for number in range(4)]
    contents = {key: data_of(6.5, key.encode()) for key in keys}
    for key in keys:
        store.place(key, contents[key])
    store.pieces = 4
    async with open_house(tmp_path / "s", store, max_bytes=9 * PART, parallel=6) as house:

        async def read(chance: random.Random) -> None:
            for _ in range(3):
                key = chance.choice(keys)
                data, file = contents[key], await house.cache.open(store._info(key))
                try:
                    for _ in range(4):
                        at, size = chance.randrange(len(data)), chance.randrange(1, 3 * PART)
                        ahead = range(chance.randrange(6), 7)
                        house.fetcher.start(file, ahead, chance.choice(list(Urgency)))
                        try:
                            found = await house.fetcher.read(file, at, size)
                            assert found == data[at : at + size], (key, at, size)
                        except RegistryUnavailable:
                            assert house.registry.reachability.reachable
                finally:
                    house.cache.close(file)

        for seed in range(20):
            chance = random.Random(seed)
            store.unhook()
            store.hook(slow("GetObject", 0.0005))
            store.hook_bodies(breaking(0.02, seed))
            async with trio.open_nursery() as nursery:
                for _ in range(10):
                    nursery.start_soon(read, random.Random(chance.random()))
            await until(lambda: not any(file.flights for file in house.cache._files.values()))
            house.check()
            await house.cache.make_room()
            assert house.cache.used_bytes <= 9 * PART
        assert house.cache.statistics().evicted_bytes > 0
        assert house.cache.statistics().wrong_files == 0
        store.unhook()
        for key in keys:
            assert await house.read(key) == contents[key]


def breaking(share: float, seed: int) -> BodyHook:
    """Return what breaks this share of the pieces off."""
    chance = random.Random(seed)

    def hook(request: Request, done: int) -> None:
        if chance.random() < share:
            raise unavailable()

    return hook


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
