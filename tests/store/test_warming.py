"""Warms: whole files brought in the background, within every bound; and what is evicted by hand."""

import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio

from modelfs.errors import Busy, NoSpace
from modelfs.registry.objects import ObjectInfo
from modelfs.store import layout, room, sidecar, warming
from modelfs.store.parts import Urgency
from tests.fake_store import FakeStore, Request, slow, unavailable
from tests.trio_tests import PART, PREFIX, House, open_house, trio_test, until


def data_of(name: object, parts: float) -> bytes:
    return random.Random(str(name)).randbytes(int(parts * PART))


def place(store: FakeStore, name: object, parts: float) -> ObjectInfo:
    return store.place(f"{PREFIX}{name}", data_of(name, parts))


async def ended(house: House, *infos: ObjectInfo) -> None:
    await until(lambda: all(house.warmer.state(info.id) is None for info in infos))


def here(house: House, info: ObjectInfo) -> float:
    return house.cache.cached_bytes(info.id) / PART


@trio_test
async def test_a_warm_brings_every_missing_part_once_and_reading_asks_for_nothing(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    info = place(store, "a", 40.5)
    async with open_house(tmp_path / "s", store) as house:
        await house.read(info.id.key, 5 * PART, 2 * PART)
        gets = store.requests()["GetObject"]
        house.warmer.start(info)
        house.warmer.start(info)  # asked for twice is done once
        assert house.warmer.state(info.id) == "under way"
        assert house.warmer.statistics().missing_bytes == info.size - 2 * PART
        await ended(house, info)
        assert house.warmer.error(info.id) is None
        assert store.requests()["GetObject"] == gets + 39
        assert await house.read(info.id.key) == data_of("a", 40.5)
        house.warmer.start(info)
        assert house.warmer.state(info.id) is None
        assert store.requests()["GetObject"] == gets + 39
        statistics = house.warmer.statistics()
        assert (statistics.files_done, statistics.files_failed, statistics.missing_bytes) == (
            *(1, 0, 0),
        )


@trio_test
async def test_few_files_and_few_parts_of_each_are_asked_for_at_once_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "FILES_AT_ONCE", 2)
    monkeypatch.setattr(warming, "PARTS_AT_ONCE", 3)
    store = FakeStore()
    infos = [place(store, number, 8) for number in range(5)]
    async with open_house(tmp_path / "s", store, parallel=2) as house:
        gate = store.hold("GetObject")
        for info in infos:
            house.warmer.start(info)
        await until(lambda: gate.waiting == 2)
        files = [house.cache._files[info.id] for info in infos[:2]]
        await until(lambda: all(len(file.flights) == 3 for file in files))
        states = [house.warmer.state(info.id) for info in infos]
        assert states == ["under way"] * 2 + ["waiting"] * 3
        statistics = house.warmer.statistics()
        assert (statistics.files_waiting, statistics.files_under_way) == (3, 2)
        assert statistics.missing_bytes == 40 * PART
        most: Counter[str] = Counter()

        def count(store: FakeStore, request: Request) -> None:
            for file in house.cache._files.values():
                flights = len(file.flights)
                most[file.info.id.key] = max(most[file.info.id.key], flights)

        store.hook(count)
        monkeypatch.setattr(warming, "FILES_AT_ONCE", 1)  # so that their order shows
        gate.open()
        await ended(house, *infos)
        assert max(most.values()) <= 3
        begun = list(dict.fromkeys(request.key for request in store.sent))
        assert begun[2:] == [info.id.key for info in infos[2:]]


@trio_test
async def test_a_reader_does_not_wait_for_the_parts_of_a_warm_that_wait(tmp_path: Path) -> None:
    store = FakeStore()
    warm, read = place(store, "warm", 12), place(store, "read", 1)
    async with open_house(tmp_path / "s", store, parallel=1) as house:
        gate = store.hold("GetObject")
        house.warmer.start(warm)
        await until(lambda: gate.waiting)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.read, read.id.key)
            await until(lambda: (file := house.cache._files.get(read.id)) and file.flights)
            gate.open()
        keys = [request.key for request in store.sent]
        assert keys.index(read.id.key) == 1
        await ended(house, warm)


@trio_test
async def test_a_file_larger_than_the_cache_is_refused_at_once(tmp_path: Path) -> None:
    store = FakeStore()
    info, fits = place(store, "large", 4.1), place(store, "fits", 4)
    async with open_house(tmp_path / "s", store, max_bytes=4 * PART) as house:
        with pytest.raises(NoSpace, match=r"max_size, 262,144 bytes\) is too small for .*large"):
            house.warmer.start(info)
        assert store.sent == []
        house.warmer.start(fits)
        await ended(house, fits)
        assert here(house, fits) == 4


@trio_test
async def test_files_that_are_together_larger_than_the_cache_come_once_and_never_in_circles(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    infos = [place(store, number, 3) for number in range(12)]
    async with open_house(tmp_path / "s", store, max_bytes=10 * PART) as house:
        used = []
        store.hook(lambda store, request: used.append(house.cache.used_bytes))
        for info in infos:
            house.warmer.start(info)
        house.check()
        await ended(house, *infos)
        assert store.requests() == {"GetObject": 36}
        assert max(used) <= 10 * PART
        assert house.cache.used_bytes <= 10 * PART
        assert here(house, infos[-1]) == 3
        assert house.warmer.statistics().files_failed == 0


@trio_test
async def test_readers_and_a_warm_share_a_small_cache_that_keeps_its_size_and_what_is_in_use(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    names = [f"read-{number}" for number in range(8)]
    for name in names:  # an ETag that is no MD5: nothing is checked, so nothing else is pinned
        store.place(f"{PREFIX}{name}", data_of(name, 3), etag=f"opaque-{name}")
    warms = [place(store, f"warm-{number}", 5) for number in range(4)]
    pinned = place(store, "pinned", 2)
    async with open_house(tmp_path / "s", store, max_bytes=16 * PART, parallel=4) as house:
        used = []
        store.hook(lambda store, request: used.append(house.cache.used_bytes))
        store.hook(slow("GetObject", 0.001))
        held = await house.cache.open(pinned)
        await house.fetcher.bring(held, [0, 1], Urgency.DEMAND)
        with held.pinned([0, 1]):

            async def read(seed: int) -> None:
                chance = random.Random(seed)
                for _ in range(25):
                    name = chance.choice(names)
                    file = await house.cache.open(store._info(f"{PREFIX}{name}"))
                    try:
                        at = chance.randrange(3) * PART
                        found = await house.fetcher.read(file, at, PART)
                        assert found == data_of(name, 3)[at : at + PART]
                        assert file.path.exists()
                    finally:
                        house.cache.close(file)

            async with trio.open_nursery() as nursery:
                for seed in range(3):
                    nursery.start_soon(read, seed)
                for info in warms:
                    house.warmer.start(info)
            await ended(house, *warms)
            assert held.present.keys() == {0, 1}
            assert held.path.exists()
        house.cache.close(held)
        assert [house.warmer.error(info.id) for info in warms] == [None] * 4
        asked = Counter((r.key, r.offset) for r in store.sent if "warm" in r.key)
        assert (len(asked), max(asked.values())) == (20, 1)
        assert house.cache.statistics().evicted_bytes > 0
        assert max(used) <= 16 * PART


@trio_test
async def test_a_warm_gives_way_where_the_disk_fills_up_and_works_when_there_is_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, total, others = FakeStore(), 100 * PART, 0
    info, old = place(store, "a", 30), place(store, "old", 1)
    monkeypatch.setattr(warming, "PARTS_AT_ONCE", 2)
    async with open_house(tmp_path / "s", store, min_free=50 * PART, parallel=1) as house:
        monkeypatch.setattr(room, "FREE_SPACE_AGE_S", -1.0)
        monkeypatch.setattr(
            layout, "free_bytes", lambda _: (total - others - house.cache.used_bytes, total)
        )
        await house.read(old.id.key)

        def fill(store: FakeStore, request: Request) -> None:
            nonlocal others
            if request.offset >= 10 * PART:
                others = 45 * PART

        store.hook(fill)
        house.warmer.start(info)
        await ended(house, info)
        assert "min_free) is too small for" in (house.warmer.error(info.id) or "")
        assert here(house, old) == 0
        assert here(house, info) < 14
        store.unhook()
        others = 0
        house.warmer.start(info)
        assert house.warmer.error(info.id) is None
        await ended(house, info)
        assert house.warmer.error(info.id) is None
        assert here(house, info) == 30


@trio_test
async def test_a_registry_that_is_away_ends_a_warm_with_the_reason(tmp_path: Path) -> None:
    store = FakeStore()
    infos = [place(store, number, 3) for number in range(20)]
    async with open_house(tmp_path / "s", store) as house:
        store.is_down = True
        for info in infos:
            house.warmer.start(info)
        await ended(house, *infos)
        assert all("down" in (house.warmer.error(info.id) or "") for info in infos)
        assert house.warmer.statistics().files_failed == 20
        await until(lambda: not any(file.users for file in house.cache._files.values()))
        store.is_down = False
        await house.registry.wait_reachable()
        assert await house.read(infos[0].id.key) == data_of(0, 3)
        assert house.warmer.error(infos[0].id) is None  # by whom it came does not matter
        house.warmer.start(infos[1])
        await ended(house, infos[1])
        assert (here(house, infos[1]), house.warmer.error(infos[1].id)) == (3, None)


@trio_test
async def test_an_object_that_others_change_ends_a_warm_with_the_reason(tmp_path: Path) -> None:
    store = FakeStore()
    info = place(store, "a", 6)
    async with open_house(tmp_path / "s", store, parallel=1) as house:

        def change(store: FakeStore, request: Request) -> None:
            if len(store.sent) == 3:
                store.place(info.id.key, b"another")

        store.hook(change)
        house.warmer.start(info)
        await ended(house, info)
        assert house.warmer.error(info.id) == "it was changed in the registry by someone else"


@trio_test
async def test_a_part_that_fails_in_passing_is_tried_again(tmp_path: Path) -> None:
    store = FakeStore()
    info = place(store, "a", 6)
    async with open_house(tmp_path / "s", store) as house:
        store.fail(3, unavailable())
        house.warmer.start(info)
        await ended(house, info)
        assert (here(house, info), house.warmer.error(info.id)) == (6, None)


@trio_test
async def test_a_bug_or_a_broken_disk_costs_one_file_its_warm_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore()
    infos = [place(store, number, 2) for number in range(3)]
    monkeypatch.setattr(warming, "FILES_AT_ONCE", 1)
    async with open_house(tmp_path / "s", store) as house:
        real = house.cache.open
        faults = {infos[0].id: ZeroDivisionError("a bug"), infos[1].id: OSError(5, "no disk")}

        async def open_or_fail(info: ObjectInfo) -> Any:
            if info.id in faults:
                raise faults[info.id]
            return await real(info)

        monkeypatch.setattr(house.cache, "open", open_or_fail)
        for info in infos:
            house.warmer.start(info)
        await ended(house, *infos)
        assert [house.warmer.error(info.id) for info in infos] == [
            *("a bug of modelfs, see the log", "the cache's disk: no disk", None),
        ]
        assert here(house, infos[2]) == 2
        assert "ZeroDivisionError" in caplog.text


@trio_test
async def test_no_more_warms_wait_and_no_more_errors_are_kept_than_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "FILES_AT_ONCE", 1)
    monkeypatch.setattr(warming, "WAITING_MAX", 2)
    monkeypatch.setattr(warming, "ERRORS_MAX", 2)
    store = FakeStore()
    infos = [place(store, number, 1) for number in range(4)]
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        for info in infos[:3]:
            house.warmer.start(info)
        with pytest.raises(Busy, match="2 files wait"):
            house.warmer.start(infos[3])
        store.is_down = True
        gate.open()
        await ended(house, *infos)
        assert [house.warmer.error(info.id) is None for info in infos[:3]] == [True, False, False]


# ------------------------------------------------------------ evicted by hand


@trio_test
async def test_what_is_evicted_by_hand_is_fetched_again_and_its_time_stays_known(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    info = store.place(f"{PREFIX}a", data_of("a", 3), {"mtime": "1234.5"})
    async with open_house(tmp_path / "s", store) as house:
        await house.cache.evict(info.id)  # of which nothing is known
        await house.read(info.id.key)
        path = house.cache._files[info.id].path
        await house.cache.evict(info.id)
        assert (house.cache.used_bytes, path.exists()) == (0, False)
        assert house.cache.statistics().evicted_bytes == 3 * PART
        await house.cache.evict(info.id)  # of which nothing is here
        assert house.cache.recorded_mtime_ns(info.id) == 1234_500_000_000
        assert await house.read(info.id.key) == data_of("a", 3)
        assert store.requests() == {"GetObject": 6}


@trio_test
async def test_what_is_open_or_just_coming_is_not_evicted(tmp_path: Path) -> None:
    store = FakeStore()
    info = place(store, "a", 3)
    async with open_house(tmp_path / "s", store) as house:
        file = await house.cache.open(info)
        await house.fetcher.read(file, 0, PART)
        with pytest.raises(Busy):
            await house.cache.evict(info.id)
        gate = store.hold("GetObject")
        house.fetcher.start(file, [1], Urgency.AHEAD)
        house.cache.close(file)
        with pytest.raises(Busy):
            await house.cache.evict(info.id)
        gate.open()
        await until(lambda: not file.users)
        assert house.cache.used_bytes == 2 * PART
        await house.cache.evict(info.id)
        assert house.cache.used_bytes == 0


@pytest.mark.parametrize("is_wrong", [False, True])
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_file_that_is_only_being_checked_is_evicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_wrong: bool, by_hand: bool
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    real = sidecar.md5_of

    def md5_of(fd: int, size: int) -> str:
        entered.set()
        assert go_on.wait(20)
        return "another" if is_wrong else real(fd, size)

    monkeypatch.setattr(sidecar, "md5_of", md5_of)

    async def check() -> None:
        store = FakeStore()
        info = place(store, "a", 2)
        async with open_house(tmp_path / "s", store, max_bytes=3 * PART) as house:
            house.warmer.start(info)
            await ended(house, info)
            await until(entered.is_set)
            file = house.cache._files[info.id]
            if by_hand:
                await house.cache.evict(info.id)
            else:
                await house.cache.make_room(3 * PART)
            assert (house.cache.used_bytes, file.path.exists()) == (0, False)
            house.check()
            go_on.set()
            await until(lambda: not file.users)
            assert (house.cache.used_bytes, file.fd) == (0, -1)
            assert await house.read(info.id.key) == data_of("a", 2)

    trio_test(check)()
