"""Small files that came early: held open for their reader, checked, never in the way."""

from itertools import accumulate
from pathlib import Path

import pytest
import trio

from modelfs.errors import AccessDenied
from modelfs.store import smallfiles
from modelfs.store.openings import SMALL_FIRST
from tests.fake_store import FakeStore, Request
from tests.store.test_prefetch import file_of, filled, opened, quiet, read_whole
from tests.trio_tests import PREFIX, House, open_house, trio_test, until

NAMES = [f"f{number:04d}.bin" for number in range(30)]
FILES = {name: name.encode() * 100 for name in NAMES}
EARLY = NAMES[1 : SMALL_FIRST + 1]


def held(house: House) -> list[str]:
    """Return the files that are open though nobody has opened them."""
    files = [file for file in house.cache._files.values() if file.users and file.fd >= 0]
    return sorted(file.info.id.key.removeprefix(PREFIX) for file in files)


async def open_first(house: House) -> None:
    """Open the first file, and wait until those after it are here."""
    assert await read_whole(house, NAMES[0]) == FILES[NAMES[0]]
    await quiet(house)
    assert all(file_of(house, name).is_complete for name in EARLY)


@trio_test
async def test_what_came_early_is_open_until_it_was_opened(tmp_path: Path) -> None:
    async with open_house(tmp_path / "s", filled(FILES)) as house:
        await open_first(house)
        assert held(house) == EARLY
        assert await read_whole(house, EARLY[0]) == FILES[EARLY[0]]
        assert EARLY[0] not in held(house)
        assert file_of(house, EARLY[0]).fd < 0


@trio_test
async def test_what_nobody_opens_is_closed_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smallfiles, "HELD_S", 0.05)
    async with open_house(tmp_path / "s", filled(FILES)) as house:
        await open_first(house)
        await until(lambda: not held(house))
        assert await read_whole(house, EARLY[3]) == FILES[EARLY[3]]


@pytest.mark.parametrize("bound", ["HELD_FILES", "HELD_BYTES"])
@trio_test
async def test_few_files_and_few_bytes_are_held_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(smallfiles, bound, 3 if bound == "HELD_FILES" else 3 * 900)
    async with open_house(tmp_path / "s", filled(FILES)) as house:
        await open_first(house)
        assert len(held(house)) == 3
        for name in EARLY:
            assert await read_whole(house, name) == FILES[name]


@trio_test
async def test_a_file_that_came_early_can_be_evicted(tmp_path: Path) -> None:
    async with open_house(tmp_path / "s", filled(FILES)) as house:
        await open_first(house)
        file = file_of(house, EARLY[0])
        house.services.prefetcher.let_go(file.info)
        await house.cache.evict(file.info.id)
        assert house.cache.cached_bytes(file.info.id) == 0
        assert await read_whole(house, EARLY[0]) == FILES[EARLY[0]]


@trio_test
async def test_wrong_bytes_that_came_early_are_not_read(tmp_path: Path) -> None:
    store = filled(FILES)
    store.flip(PREFIX + EARLY[2])
    async with open_house(tmp_path / "s", store) as house:
        await read_whole(house, NAMES[0])
        await until(lambda: house.cache.statistics().wrong_files == 1)
        await quiet(house)
        assert await read_whole(house, EARLY[2]) == FILES[EARLY[2]]
        assert [wrong.key for wrong in house.wrong] == [PREFIX + EARLY[2]]


@trio_test
async def test_a_file_that_could_not_come_early_is_fetched_by_its_reader(tmp_path: Path) -> None:
    store = filled(FILES)

    def refuse_once(store: FakeStore, request: Request) -> None:
        if request.key == PREFIX + EARLY[1]:
            store.unhook()
            raise AccessDenied("not this once")

    store.hook(refuse_once)
    async with open_house(tmp_path / "s", store) as house:
        await read_whole(house, NAMES[0])
        await quiet(house)
        assert not file_of(house, EARLY[1]).present
        for name in EARLY:
            assert await read_whole(house, name) == FILES[name]


@trio_test
async def test_a_file_that_is_refused_takes_none_of_those_beside_it_along(tmp_path: Path) -> None:
    store = filled(FILES)
    refused = PREFIX + EARLY[1]

    def refuse(store: FakeStore, request: Request) -> None:
        if request.key == refused:
            raise AccessDenied("this one is not for you")

    store.hook(refuse)
    async with open_house(tmp_path / "s", store) as house:
        await read_whole(house, NAMES[0])
        await quiet(house)
        assert held(house) == [name for name in EARLY if PREFIX + name != refused]
        for name in EARLY:
            if PREFIX + name != refused:
                assert await read_whole(house, name) == FILES[name]
                assert len(store.asked(PREFIX + name)) == 1
        with pytest.raises(AccessDenied, match="not for you"):
            await read_whole(house, EARLY[1])


@trio_test
async def test_no_more_requests_are_under_way_than_may_be(tmp_path: Path) -> None:
    """What one thread makes at once counts as so many of `parallel_requests`."""
    store = filled({f"f{number:04d}.bin": b"content" for number in range(400)})
    asked: list[int] = []

    class Counted:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def get_whole(self, infos, at_once, progress):  # type: ignore[no-untyped-def]
            asked.append(at_once)
            try:
                yield from store.get_whole(infos, at_once, progress)
            finally:
                asked.append(-at_once)

    async with open_house(tmp_path / "s", store) as house:
        house.registry.store = Counted()  # type: ignore[assignment]
        for number in range(400):
            await read_whole(house, f"f{number:04d}.bin")
        await quiet(house)
    most = max(accumulate(asked))
    assert most == house.registry._data.limit < smallfiles.REQUESTS_AT_ONCE


@trio_test
async def test_who_opens_a_file_that_is_just_coming_waits_for_it(tmp_path: Path) -> None:
    store = filled(FILES)
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject", PREFIX + EARLY[0])
        found: list[bytes] = []

        async def read() -> None:
            async with opened(house, EARLY[0]) as handle:
                found.append(bytes(await handle.read(0, 10)))

        async with trio.open_nursery() as nursery:
            await read_whole(house, NAMES[0])
            await until(lambda: gate.waiting)
            for _ in range(3):
                nursery.start_soon(read)
            await until(lambda: file_of(house, EARLY[0]).users == 4)
            assert not found
            gate.open()
        await quiet(house)
        assert found == [FILES[EARLY[0]][:10]] * 3
        assert store.asked(PREFIX + EARLY[0]) == [(0, 900)]
