"""The cache: what it evicts and what never, and what a restart finds."""

import json
import os
import random
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from modelfs.registry.objects import ObjectInfo
from modelfs.store import layout, room, saving
from modelfs.store.parts import Urgency
from modelfs.store.saving import Saver
from tests.fake_store import FakeStore, slow
from tests.trio_tests import PART, House, open_house, trio_test, until


def key(name: object) -> str:
    return f"models/acme/llama/{name}"


def data_of(name: object, parts: float = 1) -> bytes:
    return random.Random(str(name)).randbytes(int(parts * PART))


def filled(count: int, parts: float = 1) -> FakeStore:
    store = FakeStore()
    for number in range(count):
        store.place(key(number), data_of(number, parts))
    return store


def on_disk(house: House) -> int:
    """Return the bytes of disk that the cache's files take."""
    used = 0
    for path in house.layout.cache.glob("??/*"):
        with suppress(FileNotFoundError):  # it was a sidecar's new text just now
            used += path.stat().st_blocks * 512 if path.suffix != ".json" else 0
    return used


@trio_test
async def test_the_least_recently_used_files_make_room(tmp_path: Path) -> None:
    store = filled(4)
    async with open_house(tmp_path / "s", store, max_bytes=3 * PART) as house:
        for number in (0, 1, 2, 0, 3):
            assert await house.read(key(number)) == data_of(number)
        cached = [house.cache.cached_bytes(store._info(key(n)).id) // PART for n in range(4)]
        assert cached == [1, 0, 1, 1]
        assert house.cache.statistics().evicted_bytes == PART
        await until(lambda: on_disk(house) <= 3 * PART)
        assert await house.read(key(1)) == data_of(1)
        assert store.requests() == {"GetObject": 5}


@trio_test
async def test_the_cache_never_grows_beyond_its_size_however_many_read(tmp_path: Path) -> None:
    store = filled(40, 1.5)
    async with open_house(tmp_path / "s", store, max_bytes=8 * PART, parallel=4) as house:
        store.hook(slow("GetObject", 0.001))

        async def read(number: int) -> None:
            assert await house.read(key(number)) == data_of(number, 1.5)

        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(read, number)
            house.check()
            await house.cache.make_room(0)
            assert house.cache.used_bytes <= 8 * PART
        assert await house.read(key(0)) == data_of(0, 1.5)


@trio_test
async def test_space_is_kept_free_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, total = filled(10), 100 * PART
    async with open_house(tmp_path / "s", store, min_free=90 * PART) as house:
        others = 6 * PART
        monkeypatch.setattr(room, "FREE_SPACE_AGE_S", -1.0)
        monkeypatch.setattr(
            layout, "free_bytes", lambda _: (total - others - house.cache.used_bytes, total)
        )
        for number in range(10):
            assert await house.read(key(number)) == data_of(number)
        assert house.cache.used_bytes <= 4 * PART
        others = 100 * PART  # a full disk: all goes, and reads work on
        assert await house.read(key(1)) == data_of(1)
        assert house.cache.used_bytes <= PART


@trio_test
async def test_a_file_that_is_open_stays_and_only_loses_parts_that_nobody_reads(
    tmp_path: Path,
) -> None:
    store, data = filled(3), data_of("big", 6)
    info = store.place(key("big"), data)
    async with open_house(tmp_path / "s", store, max_bytes=6 * PART) as house:
        file = await house.cache.open(info)
        await house.fetcher.read(file, 0, len(data))
        file.pins.update([0, 1])
        for number in range(3):
            await house.read(key(number))
        assert {0, 1} <= set(file.present)
        assert house.cache.used_bytes <= 6 * PART
        path, before = file.path, store.requests()["GetObject"]
        assert path.exists()
        await house.fetcher.read(file, 0, 2 * PART)
        assert store.requests()["GetObject"] == before
        assert await house.fetcher.read(file, 0, len(data)) == data
        file.pins.clear()
        house.cache.close(file)


@trio_test
async def test_readers_and_evictions_side_by_side_never_see_wrong_bytes(tmp_path: Path) -> None:
    names = [f"f{n}" for n in range(6)]
    store = FakeStore()
    for name in names:
        store.place(key(name), data_of(name, 5))
    async with open_house(tmp_path / "s", store, max_bytes=7 * PART, parallel=8) as house:

        async def read(seed: int) -> None:
            chance = random.Random(seed)
            for _ in range(8):
                name = chance.choice(names)
                data = data_of(name, 5)
                file = await house.cache.open(store._info(key(name)))
                try:
                    for _ in range(4):
                        at, size = chance.randrange(len(data)), chance.randrange(2 * PART)
                        found = await house.fetcher.read(file, at, size)
                        assert found == data[at : at + size]
                finally:
                    house.cache.close(file)

        async with trio.open_nursery() as nursery:
            for seed in range(12):
                nursery.start_soon(read, seed)
        house.check()
        assert house.cache.statistics().wrong_files == 0
        assert house.cache.statistics().evicted_bytes > 0


@trio_test
async def test_what_did_not_fit_while_it_was_read_goes_by_itself_afterwards(tmp_path: Path) -> None:
    store, data = FakeStore(), data_of("big", 8)
    info = store.place(key("big"), data)
    async with open_house(tmp_path / "s", store, max_bytes=3 * PART) as house:
        file = await house.cache.open(info)
        assert await house.fetcher.read(file, 0, len(data)) == data  # all of it pinned at once
        await until(lambda: house.cache.used_bytes <= 3 * PART)
        await until(lambda: on_disk(house) <= 3 * PART)
        house.cache.close(file)
        assert await house.read(key("big")) == data
        await until(lambda: house.cache.used_bytes <= 3 * PART)


@trio_test
async def test_rooms_made_side_by_side_count_what_they_evict_once(tmp_path: Path) -> None:
    store = filled(12)
    async with open_house(tmp_path / "s", store) as house:
        for number in range(12):
            await house.read(key(number))
        house.cache.max_bytes = 2 * PART
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(house.cache.make_room, 0)
        house.check()
        assert house.cache.used_bytes == 2 * PART
        assert house.cache.statistics().evicted_bytes == 10 * PART


@trio_test
async def test_a_part_that_a_reader_began_to_use_while_others_went_is_not_evicted(
    tmp_path: Path,
) -> None:
    store = filled(2, 2)
    async with open_house(tmp_path / "s", store) as house:
        first = await house.cache.open(store._info(key(0)))
        second = await house.cache.open(store._info(key(1)))
        for file in (first, second):
            await house.fetcher.read(file, 0, 2 * PART)
        await until(lambda: first.users == second.users == 1)  # they have been checked
        victims = room.victims_of([first, second], 4 * PART)
        assert [file for file, _ in victims] == [first, second]
        second.pins[0] += 1
        await house.cache._evict(victims)
        assert list(second.present) == [0]
        second.pins.clear()
        house.cache.close(first)
        house.cache.close(second)


@trio_test
async def test_a_file_larger_than_the_cache_comes_whole_where_all_of_it_is_needed(
    tmp_path: Path,
) -> None:
    store, data = filled(2), data_of("big", 6)
    info = store.place(key("big"), data)
    async with open_house(tmp_path / "s", store, max_bytes=3 * PART) as house:
        file = await house.cache.open(info)
        await house.fetcher.bring(file, range(6), Urgency.DEMAND)
        assert file.is_complete
        assert store.requests() == {"GetObject": 6}
        house.cache.close(file)
        await until(lambda: not file.users)  # it has been checked
        await house.read(key(0))
        assert house.cache.used_bytes == PART


# ------------------------------------------------------------------ restarts


@trio_test
async def test_a_restart_finds_what_was_cached(tmp_path: Path) -> None:
    store = filled(2, 3)
    store.place(key("empty"), b"")
    async with open_house(tmp_path / "s", store) as house:
        await house.read(key(0))
        await house.read(key(1), PART, PART)
        await house.read(key("empty"))
    store.place(key("timed"), b"t", {"mtime": "3"})
    sent = len(store.sent)
    async with open_house(tmp_path / "s", store) as house:
        assert await house.read(key(0)) == data_of(0, 3)
        assert await house.read(key(1), PART, PART) == data_of(1, 3)[PART : 2 * PART]
        assert len(store.sent) == sent
        assert await house.read(key(1)) == data_of(1, 3)
        assert len(store.sent) == sent + 2


@trio_test
async def test_a_crash_loses_no_more_than_what_was_not_recorded(tmp_path: Path) -> None:
    store = filled(1, 3)
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        await house.read(key(0), 0, PART)
        await house.cache.save_all()
        await house.read(key(0), PART, PART)
    async with open_house(tmp_path / "s", store) as house:
        assert house.cache.used_bytes == PART
        assert await house.read(key(0)) == data_of(0, 3)


@trio_test
async def test_a_file_that_waits_twice_for_its_sidecar_gets_it_and_so_do_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SAVE_INTERVAL_S", 0.05)
    async with open_house(tmp_path / "s", filled(2)) as house:
        files = []
        for number in range(2):
            await house.read(key(number))
            (file,) = [f for f in house.cache._files.values() if f.info.id.key == key(number)]
            files.append(file)
            await until(lambda: not file.is_unsaved)  # noqa: B023
        saver = Saver(house.layout.cache, house.services.disk, house.background, lambda _: True)
        saver.save_soon(files[1])
        await until(lambda: not files[1].is_unsaved)  # from now on what is asked for waits
        saver.save_soon(files[0])
        await saver.save(files[0])
        saver.save_soon(files[0])
        saver.save_soon(files[1])
        await until(lambda: not any(file.is_unsaved for file in files))


def damage_nothing(path: Path) -> None:
    path.unlink()


def damage_json(path: Path) -> None:
    path.write_bytes(b'{"file": ')


def damage_shape(path: Path) -> None:
    path.write_bytes(b"[1, 2]")


def damage_etag(path: Path) -> None:
    content = json.loads(path.read_bytes())
    del content["etag"]
    path.write_text(json.dumps(content))


def damage_bytes(path: Path) -> None:
    (data,) = [p for p in path.parent.iterdir() if p.suffix != ".json"]
    os.truncate(data, 5)


def damage_missing_bytes(path: Path) -> None:
    (data,) = [p for p in path.parent.iterdir() if p.suffix != ".json"]
    data.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        *(damage_nothing, damage_json, damage_shape, damage_etag, damage_bytes),
        damage_missing_bytes,
    ],
)
@trio_test
async def test_what_a_damaged_sidecar_tells_of_is_thrown_away(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    store = filled(1, 2)
    async with open_house(tmp_path / "s", store) as house:
        await house.read(key(0))
    (path,) = house.layout.cache.glob("??/*.json")
    damage(path)
    async with open_house(tmp_path / "s", store) as house:
        assert house.cache.used_bytes == 0
        assert on_disk(house) == 0
        assert await house.read(key(0)) == data_of(0, 2)
        house.check()


@trio_test
async def test_a_folder_that_someone_emptied_is_filled_anew_and_never_read_as_zeros(
    tmp_path: Path,
) -> None:
    store = filled(1, 2)
    async with open_house(tmp_path / "s", store) as house:
        await house.read(key(0))
        await until(lambda: not house.cache._files[store._info(key(0)).id].users)
        for path in house.layout.cache.glob("??/*"):
            path.unlink()
        assert await house.read(key(0)) == data_of(0, 2)
        house.check()


@trio_test
async def test_a_file_that_was_renamed_in_the_registry_keeps_its_bytes_over_a_restart(
    tmp_path: Path,
) -> None:
    store = filled(8)
    async with open_house(tmp_path / "s", store) as house:
        for number in range(8):
            await house.read(key(number))
            moved = store.copy(store._info(key(number)), key(f"moved{number}"))
            house.cache.rename(store._info(key(number)).id, moved)
            assert house.cache.cached_bytes(moved.id) == PART
    gets = store.requests()["GetObject"]
    async with open_house(tmp_path / "s", store) as house:
        for number in range(8):
            assert await house.read(key(f"moved{number}")) == data_of(number)
        assert store.requests()["GetObject"] == gets


@trio_test
async def test_times_that_were_learned_outlive_the_bytes_and_a_restart(tmp_path: Path) -> None:
    store = FakeStore()
    info = store.place(key("a"), data_of("a"), {"mtime": "1234.5"})
    async with open_house(tmp_path / "s", store, max_bytes=PART) as house:
        assert house.cache.recorded_mtime_ns(info.id) is None
        await house.read(key("a"))
        assert house.cache.recorded_mtime_ns(info.id) == 1234_500_000_000
        store.place(key("b"), data_of("b"))
        await house.read(key("b"))
        assert house.cache.cached_bytes(info.id) == 0
        assert house.cache.recorded_mtime_ns(info.id) == 1234_500_000_000
    async with open_house(tmp_path / "s", store) as house:
        assert house.cache.recorded_mtime_ns(info.id) == 1234_500_000_000


# --------------------------------------------------------------- right bytes


@trio_test
async def test_a_file_whose_md5_is_wrong_is_thrown_away_and_told(tmp_path: Path) -> None:
    store = filled(1, 3)
    info = store._info(key(0))
    async with open_house(tmp_path / "s", store, parallel=1) as house:
        store.flip(key(0))
        await house.read(key(0))
        await until(lambda: house.wrong == [info.id])
        assert house.cache.statistics().wrong_files == 1
        assert house.cache.cached_bytes(info.id) == 0
        assert await house.read(key(0)) == data_of(0, 3)
        await until(lambda: house.cache._files[info.id].users == 0)
        assert house.cache.complete_file(info.id) is not None


@trio_test
async def test_a_wrong_file_that_a_version_is_linked_to_is_replaced_and_never_written(
    tmp_path: Path,
) -> None:
    store, data = filled(1, 3), data_of(0, 3)
    info = store._info(key(0))
    async with open_house(tmp_path / "s", store) as house:
        await house.read(key(0))
        file = house.cache.complete_file(info.id)
        assert file is not None
        house.cache.seal(file)
        old, linked = file.path, tmp_path / "linked"
        os.link(old, linked)
        rot = b"rot" + data[3:]
        linked.write_bytes(rot)
        opened = await house.cache.open(info)  # a reader that has it open all the time
        assert await house.fetcher.read(opened, 0, info.size) == rot

        for _ in range(2):  # two freezes may find it
            await house.cache.throw_away(file)
        assert house.wrong == [info.id]
        assert house.cache.statistics().wrong_files == 1
        assert await house.fetcher.read(opened, 0, info.size) == data
        house.cache.close(opened)
        await until(lambda: file.users == 0 and not old.exists())
        assert linked.read_bytes() == rot
        assert await house.read(key(0)) == data
        assert store.requests()["GetObject"] == 6
    async with open_house(tmp_path / "s", store) as house:
        assert await house.read(key(0)) == data
        assert store.requests()["GetObject"] == 6
        assert len(list(house.layout.cache.glob("??/*"))) == 2  # and its sidecar


@trio_test
async def test_a_wrong_file_that_nobody_has_open_is_thrown_away_too(tmp_path: Path) -> None:
    store = filled(1, 2)
    info = store._info(key(0))
    async with open_house(tmp_path / "s", store) as house:
        await house.read(key(0))
        file = house.cache.complete_file(info.id)
        assert file is not None
        await house.cache.throw_away(file)
        assert (file.fd, house.cache.used_bytes) == (-1, 0)
        assert await house.read(key(0)) == data_of(0, 2)
        house.cache.forget(info.id)
        await house.cache.throw_away(file)  # evicted meanwhile
        await until(lambda: not list(house.layout.cache.glob("??/*")))
        assert house.wrong == [info.id]


@trio_test
async def test_a_part_that_is_evicted_before_the_check_is_no_wrong_byte(tmp_path: Path) -> None:
    store = filled(1, 2)
    info = store._info(key(0))
    async with open_house(tmp_path / "s", store) as house:
        file = await house.cache.open(info)
        arrived = house.cache.part_arrived

        def arrive(part_file, index: int, said: ObjectInfo) -> None:  # type: ignore[no-untyped-def]
            arrived(part_file, index, said)
            if file.is_complete:  # the check has been started, and has not begun
                house.cache._drop_parts(file, [0])

        house.cache.part_arrived = arrive  # type: ignore[method-assign]
        house.fetcher.start(file, range(2), Urgency.DEMAND)
        await until(lambda: house.fetcher.fetched_parts == 2 and file.users == 1)
        assert house.wrong == []
        house.cache.part_arrived = arrived  # type: ignore[method-assign]
        assert await house.fetcher.read(file, 0, 2 * PART) == data_of(0, 2)
        house.cache.close(file)


@trio_test
async def test_a_sealed_file_is_never_punched_only_its_name_goes(tmp_path: Path) -> None:
    store = filled(3, 2)
    async with open_house(tmp_path / "s", store, max_bytes=4 * PART) as house:
        await house.read(key(0))
        file = house.cache.complete_file(store._info(key(0)).id)
        assert file is not None
        await until(lambda: file.users == 0)
        house.cache.seal(file)
        link = tmp_path / "link"
        os.link(file.path, link)
        opened = await house.cache.open(file.info)
        await house.read(key(1))
        await house.read(key(2))
        assert len(opened.present) == 2  # open and sealed: stays whole
        house.cache.close(opened)
        await house.cache.make_room(4 * PART)
        assert house.cache.cached_bytes(file.info.id) == 0
        assert link.read_bytes() == data_of(0, 2)
        assert await house.read(key(0)) == data_of(0, 2)
        assert link.read_bytes() == data_of(0, 2)


@trio_test
async def test_a_linked_file_is_sealed_again_after_a_restart(tmp_path: Path) -> None:
    store = filled(2, 2)
    async with open_house(tmp_path / "s", store) as house:
        await house.read(key(0))
        await house.read(key(1))
        file = house.cache.complete_file(store._info(key(0)).id)
        assert file is not None
        os.link(file.path, tmp_path / "link")
        other = house.cache.complete_file(store._info(key(1)).id)
        assert other is not None
        os.chmod(other.path, 0o444)  # was linked, and that version has been removed since
    async with open_house(tmp_path / "s", store) as house:
        for number in range(2):
            sealed = house.cache.complete_file(store._info(key(number)).id)
            assert sealed is not None
            assert sealed.is_sealed


@trio_test
async def test_a_file_of_this_disk_is_taken_in_with_its_bytes(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = house.layout.staged / "x"
        staged.write_bytes(data_of("a", 1.5))
        info = store.place(key("a"), data_of("a", 1.5))
        await house.cache.adopt(staged, info)
        assert not staged.exists()
        assert await house.read(key("a")) == data_of("a", 1.5)
        house.cache.forget(info.id)
        assert house.cache.used_bytes == 0
        assert store.requests() == {}


@trio_test
async def test_hits_and_misses_are_counted(tmp_path: Path) -> None:
    store = filled(1)
    async with open_house(tmp_path / "s", store) as house:
        await house.read(key(0))
        await house.read(key(0))
        said = house.cache.statistics()
        assert (said.misses, said.hits, said.files, said.bytes) == (1, 1, 1, PART)
