"""What is brought before it is asked for: by files' formats and by the order of small files.

Files are opened and read in the tree, as the kernel would, on the fake registry. The headers are
those that safetensors' own library writes.
"""

import json
import logging
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import trio
from safetensors.numpy import save
from trio.testing import wait_all_tasks_blocked

from modelfs.errors import RegistryUnavailable
from modelfs.mount.tree import ROOT_INODE, Handle, Node
from modelfs.store import prefetch, readahead
from modelfs.store.cachedfile import CachedFile
from modelfs.store.openings import SMALL_FIRST, SMALL_MAX
from modelfs.store.prefetch import (
    PAST_HEADER_BYTES,
    SHARDS_AHEAD,
    PrefetchStatistics,
)
from modelfs.store.smallfiles import FILES_A_THREAD
from tests.fake_store import FakeStore
from tests.store.test_parts import bytes_asked
from tests.trio_tests import PART, PREFIX, House, open_house, trio_test, until

MIB = 1 << 20
NOTHING = PrefetchStatistics(0, 0, 0, 0)


@pytest.fixture(autouse=True)
def _what_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are small here: a reader that skips one does not read on."""
    monkeypatch.setattr(readahead, "NEAR_BYTES", PART // 2)


def tensors(count: int = 6, size: int = MIB, seed: int = 0) -> bytes:
    """Return a safetensors file of `count` tensors of `size` random bytes, in order."""
    noise = np.random.default_rng(seed)
    return save({f"t{n:04d}": noise.integers(0, 255, size, np.uint8) for n in range(count)})


def header_of(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def filled(files: dict[str, bytes]) -> FakeStore:
    store = FakeStore()
    for name, data in files.items():
        store.place(PREFIX + name, data)
    return store


@asynccontextmanager
async def opened(house: House, path: str) -> AsyncIterator[Handle]:
    """Open a file of acme/llama/main as the kernel does."""
    node: Node = house.tree[ROOT_INODE]
    for name in ("acme", "llama", "main", *path.split("/")):
        node = await house.tree.folder(node.inode).lookup(name)
    handle = (await node.open(write=False, truncate=False)).handle
    try:
        yield handle
    finally:
        await handle.release()
        house.tree.drop_unused(node)


async def read_whole(house: House, path: str, step: int = 2 * PART) -> bytes:
    """Open a file, read it from its beginning to its end, and close it."""
    found = []
    async with opened(house, path) as handle:
        while data := bytes(await handle.read(sum(map(len, found)), step)):
            found.append(data)
    return b"".join(found)


async def touch(house: House, path: str, offset: int, size: int = 4096) -> None:
    """Open a file and read one place of it."""
    async with opened(house, path) as handle:
        await handle.read(offset, size)


async def quiet(house: House) -> None:
    """Return when nothing is on its way any more."""
    calm = 0
    while calm < 2:
        await wait_all_tasks_blocked()
        threads = (house.services.disk, house.registry._data)
        is_busy = any(pool._limiter.borrowed_tokens for pool in threads)
        calm = 0 if is_busy or flights(house) else calm + 1
        await trio.sleep(0.001)


def flights(house: House) -> int:
    return sum(len(file.flights) for file in house.cache._files.values())


def file_of(house: House, name: str) -> CachedFile:
    return house.cache._files[house.store._info(PREFIX + name).id]


def parts_of(store: FakeStore, name: str) -> list[int]:
    """Return which parts of a file were asked for, in order of the requests."""
    asked = store.asked(PREFIX + name)
    return [part for offset, n in asked for part in range(offset // PART, -(-(offset + n) // PART))]


def begun(store: FakeStore, names: Iterable[str]) -> list[str]:
    """Return those of the files of which something was asked for."""
    return [name for name in names if store.asked(PREFIX + name)]


# ------------------------------------------------------------------------- tensors


@trio_test
async def test_of_a_file_of_tensors_whose_header_is_read_nothing_more_is_brought(
    tmp_path: Path,
) -> None:
    store = filled({"w.safetensors": tensors()})
    async with open_house(tmp_path / "s", store) as house:
        async with opened(house, "w.safetensors") as handle:
            await handle.read(0, 2 * PART)
            await quiet(house)
        assert sorted(parts_of(store, "w.safetensors")) == [0, 1]
        assert house.services.prefetcher.statistics() == NOTHING


@trio_test
async def test_of_a_file_of_tensors_the_kernel_s_first_mib_alone_is_brought(
    tmp_path: Path,
) -> None:
    store = filled({"w.safetensors": tensors(), "w.bin": tensors()})
    async with open_house(tmp_path / "s", store) as house:
        for name in ("w.safetensors", "w.bin"):
            async with opened(house, name) as handle:
                await handle.read(0, MIB)
                await quiet(house)
    assert sorted(parts_of(store, "w.safetensors")) == list(range(MIB // PART))
    assert len(set(parts_of(store, "w.bin"))) > MIB // PART


@trio_test
async def test_a_header_of_several_parts_is_brought_as_far_as_it_goes(tmp_path: Path) -> None:
    content = tensors(count=4000, size=500)
    store = filled({"w.safetensors": content})
    async with open_house(tmp_path / "s", store) as house:
        async with opened(house, "w.safetensors") as handle:
            await handle.read(0, 8)
            await quiet(house)
        last = (header_of(content) - 1) // PART
        assert last >= 3
        assert sorted(parts_of(store, "w.safetensors")) == list(range(last + 1))


@trio_test
async def test_reading_behind_the_header_brings_the_rest_of_that_tensor_and_then_the_file_in_order(
    tmp_path: Path,
) -> None:
    content = tensors()
    store = filled({"w.safetensors": content})
    place = header_of(content) + 3 * MIB + 100
    async with open_house(tmp_path / "s", store, parallel=1) as house:
        async with opened(house, "w.safetensors") as handle:
            await handle.read(0, PART)
            await quiet(house)
            assert await handle.read(place, 4096) == content[place : place + 4096]
            await quiet(house)
        first, end = place // PART, header_of(content) + 4 * MIB
        rest = list(range(first, (end - 1) // PART + 1))
        others = [part for part in range(1, -(-len(content) // PART)) if part not in rest]
        assert parts_of(store, "w.safetensors") == [0, *rest, *others]
        said = house.services.prefetcher.statistics()
        assert (said.tensor_parts, said.shards) == (len(rest) - 1 + len(others), 0)
        assert said.parts_ahead == said.tensor_parts
        assert bytes_asked(store, PREFIX + "w.safetensors") == len(content)
        assert await read_whole(house, "w.safetensors") == content
        assert bytes_asked(store, PREFIX + "w.safetensors") == len(content)


@trio_test
async def test_no_more_than_the_window_is_on_its_way_however_much_is_read(tmp_path: Path) -> None:
    content, window = tensors(count=2, size=5 * MIB), 8
    store = filled({"w.safetensors": content})
    async with open_house(tmp_path / "s", store, read_ahead=window * PART) as house:
        async with opened(house, "w.safetensors") as handle:
            await handle.read(0, PART)
            await quiet(house)
            gate = store.hold("GetObject")
            gate.open()
            most = 0
            for offset in range(0, len(content), PART):
                await handle.read(offset, PART)
                most = max(most, flights(house))
        assert 0 < most <= window + 1
        await quiet(house)
        assert bytes_asked(store, PREFIX + "w.safetensors") == len(content)


@trio_test
async def test_of_a_file_of_which_little_is_read_little_is_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "SWEEP_START_BYTES", 4 * PART)
    content = tensors(count=96, size=PART)
    store = filled({"w.safetensors": content})
    async with (
        open_house(tmp_path / "s", store) as house,
        opened(house, "w.safetensors") as handle,
    ):
        await handle.read(0, PART)
        await quiet(house)
        before = bytes_asked(store, PREFIX + "w.safetensors")
        for count, part in enumerate((90, 40, 70, 30), 1):
            await handle.read(part * PART, PART)
            await quiet(house)
            brought = bytes_asked(store, PREFIX + "w.safetensors") - before - count * PART
            allowed = 4 * PART + prefetch.SWEEP_FACTOR * (1 + count) * PART
            assert 0 < brought <= allowed + PART


@trio_test
async def test_of_a_file_larger_than_half_of_the_cache_only_the_tensor_is_brought(
    tmp_path: Path,
) -> None:
    content = tensors()
    store = filled({"w.safetensors": content})
    place = header_of(content) + 2 * MIB
    async with open_house(tmp_path / "s", store, max_bytes=10 * MIB) as house:
        async with opened(house, "w.safetensors") as handle:
            await handle.read(0, PART)
            await quiet(house)
            await handle.read(place, 4096)
            await quiet(house)
        wanted = {0, *range(place // PART, (place + MIB - 1) // PART + 1)}
        assert set(parts_of(store, "w.safetensors")) == wanted
        assert bytes_asked(store, PREFIX + "w.safetensors") == len(wanted) * PART


@pytest.mark.parametrize(
    "head",
    [b"\xff" * 8, bytes(8), (50 * MIB).to_bytes(8, "little"), (30).to_bytes(8, "little")],
    ids=["huge", "empty", "past the end", "no JSON"],
)
def test_a_file_whose_header_is_garbage_is_read_like_any_other(
    tmp_path: Path, head: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    content = head + random.Random(1).randbytes(3 * MIB)

    @trio_test
    async def body() -> None:
        store = filled({"w.safetensors": content, "w.gguf": content})
        async with open_house(tmp_path / "s", store) as house:
            for name in ("w.safetensors", "w.gguf"):
                assert await read_whole(house, name) == content
                await quiet(house)
                assert bytes_asked(store, PREFIX + name) == len(content)
            said = house.services.prefetcher.statistics()
            assert said.parts_ahead > 0
            assert said.tensor_parts == 0

    with caplog.at_level(logging.INFO):
        body()
    assert not caplog.records


@trio_test
async def test_a_file_of_tensors_that_is_closed_at_once_is_closed(tmp_path: Path) -> None:
    store = filled({"w.safetensors": tensors()})
    async with open_house(tmp_path / "s", store) as house:
        for _ in range(5):
            await touch(house, "w.safetensors", 0)
        await quiet(house)
        assert file_of(house, "w.safetensors").users == 0
        assert parts_of(store, "w.safetensors") == [0]


# -------------------------------------------------------------------------- shards


def numbered(count: int) -> list[str]:
    return [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]


def index_of(names: list[str]) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {f"t{n}": n for n in names}}).encode()


@trio_test
async def test_when_a_shard_was_brought_the_beginning_of_the_next_comes_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "SWEEP_START_BYTES", 4 * PART)
    names = numbered(3)
    files = {name: tensors(3, seed=n) for n, name in enumerate(names)}
    store = filled(files)
    async with open_house(tmp_path / "s", store) as house:
        assert await read_whole(house, names[0]) == files[names[0]]
        await quiet(house)
        assert sorted(parts_of(store, names[1])) == [0, 1, 2, 3]
        assert begun(store, names) == names[:2]
        assert house.services.prefetcher.statistics().shards == 1
        for name in names[1:]:
            assert await read_whole(house, name) == files[name]
        for name in names:
            assert bytes_asked(store, PREFIX + name) == len(files[name])


@trio_test
async def test_a_shard_of_which_the_header_is_read_brings_no_other(tmp_path: Path) -> None:
    names = numbered(3)
    store = filled({name: tensors(3) for name in names})
    async with open_house(tmp_path / "s", store) as house:
        await touch(house, names[0], 0)
        await quiet(house)
        assert begun(store, names) == names[:1]


@trio_test
async def test_an_index_brings_the_first_part_of_each_shard_and_tells_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "SWEEP_START_BYTES", 4 * PART)
    names = [f"{letter}.safetensors" for letter in "abcdefghijkl"]
    files = {name: tensors(3, seed=n) for n, name in enumerate(names)}
    store = filled({**files, "model.safetensors.index.json": index_of([*names, "absent"])})
    async with open_house(tmp_path / "s", store) as house:
        await read_whole(house, "model.safetensors.index.json")
        await until(lambda: house.services.prefetcher.statistics().shards == SHARDS_AHEAD)
        await quiet(house)
        assert begun(store, names) == names[:SHARDS_AHEAD]
        assert all(parts_of(store, name) == [0] for name in names[:SHARDS_AHEAD])
        for at in (0, 10):  # of the next of one, the first part is here already
            await read_whole(house, names[at])
            await quiet(house)
            assert sorted(parts_of(store, names[at + 1])) == [0, 1, 2, 3]
        assert begun(store, names) == [*names[:SHARDS_AHEAD], *names[10:]]
        await read_whole(house, "model.safetensors.index.json")
        await quiet(house)
        assert house.services.prefetcher.statistics().shards == SHARDS_AHEAD + 2


@trio_test
async def test_an_index_that_came_beside_the_configuration_brings_its_shards_when_it_is_opened(
    tmp_path: Path,
) -> None:
    names = numbered(3)
    index = "model.safetensors.index.json"
    store = filled(
        {**{name: tensors(3) for name in names}, index: index_of(names), "config.json": b"{}"}
    )
    async with open_house(tmp_path / "s", store) as house:
        await read_whole(house, "config.json")
        await quiet(house)
        assert file_of(house, index).is_complete
        assert begun(store, names) == []
        await read_whole(house, index)
        await until(lambda: begun(store, names) == names)


@pytest.mark.parametrize("index", [b"", b"{", b"[]", b'{"weight_map": {"a": 5}}'])
def test_an_index_that_is_none_brings_nothing(
    tmp_path: Path, index: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    @trio_test
    async def body() -> None:
        store = filled({"w.safetensors": tensors(3), "m.safetensors.index.json": index})
        async with open_house(tmp_path / "s", store) as house:
            assert await read_whole(house, "m.safetensors.index.json") == index
            await quiet(house)
            assert begun(store, ["w.safetensors"]) == []

    with caplog.at_level(logging.INFO):
        body()
    assert not caplog.records


# --------------------------------------------------------------------- small files


def small(count: int, size: int = 1000) -> dict[str, bytes]:
    return {f"f{n:04d}.bin": random.Random(n).randbytes(size) for n in range(count)}


@trio_test
async def test_small_files_that_are_read_in_order_are_there_before_they_are_opened(
    tmp_path: Path,
) -> None:
    files = small(150)
    names, store = list(files), filled(files)
    async with open_house(tmp_path / "s", store, ttl_s=0) as house:  # each open lists them anew
        ahead = []
        for number, name in enumerate(names):
            info = store._info(PREFIX + name)
            assert number == 0 or house.cache.cached_bytes(info.id) == info.size
            assert await read_whole(house, name) == files[name]
            await quiet(house)
            ahead.append(len(begun(store, names)) - number - 1)
        assert ahead[0] == SMALL_FIRST
        assert max(ahead) == SMALL_MAX
        assert store.requests()["ListObjectsV2"] > len(names)
        assert all(store.asked(PREFIX + name) == [(0, 1000)] for name in names)
        said = house.services.prefetcher.statistics()
        assert said.small_files == len(names) - 1


@trio_test
async def test_small_files_come_side_by_side(tmp_path: Path) -> None:
    store = filled(small(50))
    async with open_house(tmp_path / "s", store, parallel=5) as house:
        gate = store.hold("GetObject")
        async with opened(house, "f0000.bin"):
            await until(lambda: gate.waiting == SMALL_FIRST // FILES_A_THREAD)
            gate.open()
            await quiet(house)
    assert store.requests()["GetObject"] == SMALL_FIRST


@trio_test
async def test_of_small_files_no_more_bytes_are_brought_at_once_than_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, most = 3000, 10
    monkeypatch.setattr(prefetch, "SMALL_AHEAD_BYTES", most * size)
    files = small(150, size)
    names, store = list(files), filled(files)
    async with open_house(tmp_path / "s", store) as house:
        for number, name in enumerate(names):
            info, before = store._info(PREFIX + name), len(begun(store, names))
            assert number == 0 or house.cache.cached_bytes(info.id) == info.size
            await read_whole(house, name)
            await quiet(house)
            after = len(begun(store, names))
            assert after - before <= most
            assert after - number - 1 <= 2 * most
        assert all(len(store.asked(PREFIX + name)) == 1 for name in names)


@trio_test
async def test_small_files_that_are_opened_here_and_there_bring_no_others(tmp_path: Path) -> None:
    files = small(100)
    names, store = list(files), filled(files)
    async with open_house(tmp_path / "s", store) as house:
        chosen = [50, 3, 90, 20, 70, 11, 60, 33, 5, 77]
        for number in chosen:
            assert await read_whole(house, names[number]) == files[names[number]]
            await quiet(house)
        assert begun(store, names) == sorted(names[number] for number in chosen)
        for number in (12, 13, 14):  # and then in order
            await read_whole(house, names[number])
            await quiet(house)
        assert begun(store, names[12:40]) == [*names[12 : 14 + SMALL_FIRST], names[33]]


MODEL = {
    "config.json": b'{"a": 1}',
    "generation_config.json": b"{}",
    "merges.txt": b"x" * 5000,
    "model.safetensors": tensors(3),
    "tokenizer.json": b"t" * 900_000,
    "tokenizer_config.json": b"{}",
    "empty.json": b"",
    "deep/other.json": b"{}",
}
NEIGHBOURS = ["generation_config.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"]


@trio_test
async def test_a_configuration_brings_the_small_files_beside_it_once(tmp_path: Path) -> None:
    store = filled(MODEL)
    async with open_house(tmp_path / "s", store) as house:
        assert await read_whole(house, "config.json") == MODEL["config.json"]
        await until(lambda: house.services.prefetcher.statistics().small_files == len(NEIGHBOURS))
        await quiet(house)
        assert begun(store, MODEL) == sorted(["config.json", *NEIGHBOURS])
        for name in (*NEIGHBOURS, "config.json"):
            assert await read_whole(house, name) == MODEL[name]
        await quiet(house)
        for name in NEIGHBOURS:
            assert bytes_asked(store, PREFIX + name) == len(MODEL[name])
        assert house.services.prefetcher.statistics().small_files == len(NEIGHBOURS)


@trio_test
async def test_what_is_opened_to_be_written_brings_nothing(tmp_path: Path) -> None:
    store = filled(MODEL)
    async with open_house(tmp_path / "s", store) as house:
        node: Node = house.tree[ROOT_INODE]
        for name in ("acme", "llama", "main", "config.json"):
            node = await house.tree.folder(node.inode).lookup(name)
        handle = (await node.open(write=True, truncate=False)).handle
        await quiet(house)
        await handle.release()
        assert begun(store, MODEL) == []


# -------------------------------------------------------------- switched off, down


@trio_test
async def test_read_ahead_0_switches_all_of_it_off(tmp_path: Path) -> None:
    names = numbered(2)
    index = "model.safetensors.index.json"
    files = {**MODEL, **{name: tensors(3) for name in names}, index: index_of(names), **small(20)}
    store = filled(files)
    async with open_house(tmp_path / "s", store, read_ahead=0) as house:
        read: list[str] = []
        for name in ("config.json", index, "f0000.bin", "f0001.bin", "f0002.bin"):
            assert await read_whole(house, name) == files[name]
            read.append(name)
        async with opened(house, names[0]) as handle:
            read.append(names[0])
            for part in (0, 1, 20, 21):
                await handle.read(part * PART, PART)
        await quiet(house)
        assert sorted(begun(store, files)) == sorted(read)
        assert parts_of(store, names[0]) == [0, 1, 20, 21]
        assert house.services.prefetcher.statistics() == NOTHING


@trio_test
async def test_read_ahead_formats_switches_off_what_knows_of_files_and_leaves_the_window(
    tmp_path: Path,
) -> None:
    store = filled({**MODEL, **small(20)})
    async with open_house(tmp_path / "s", store, read_ahead_formats=False) as house:
        for name in ("config.json", "f0000.bin", "f0001.bin"):
            await read_whole(house, name)
        content = MODEL["model.safetensors"]
        async with opened(house, "model.safetensors") as handle:
            for part in (0, 20, 30):
                await handle.read(part * PART, PART)
            await quiet(house)
            assert parts_of(store, "model.safetensors") == [0, 20, 30]
            await handle.read(31 * PART, PART)
            await quiet(house)
            assert len(parts_of(store, "model.safetensors")) > 4
        assert await read_whole(house, "model.safetensors") == content
        assert bytes_asked(store, PREFIX + "model.safetensors") == len(content)
        names = ["config.json", "model.safetensors", "f0000.bin", "f0001.bin"]
        assert begun(store, [*MODEL, *small(20)]) == names
        said = house.services.prefetcher.statistics()
        assert (said.tensor_parts, said.shards, said.small_files) == (0, 0, 0)
        assert said.parts_ahead > 0


def test_while_the_registry_is_down_nothing_is_brought_and_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = numbered(2)
    index = "model.safetensors.index.json"
    files = {**MODEL, **{name: tensors(3) for name in names}, index: index_of(names)}
    header = header_of(files[names[0]])

    @trio_test
    async def body() -> None:
        store = filled(files)
        async with open_house(tmp_path / "s", store, ttl_s=60, read_ahead=0) as house:
            for name in ("config.json", index):
                await read_whole(house, name)
            await touch(house, names[0], 0)
            await touch(house, names[0], header + PAST_HEADER_BYTES)
            await quiet(house)
        async with open_house(tmp_path / "s", store, ttl_s=60) as house:
            async with opened(house, "merges.txt"):  # which lists the model
                pass
            await quiet(house)
            store.is_down = True
            with pytest.raises(RegistryUnavailable):
                await house.registry.probe()
            asked = store.requests()["GetObject"]
            for name in ("config.json", index):
                assert await read_whole(house, name) == files[name]
            async with opened(house, names[0]) as handle:
                for offset in (0, header + PAST_HEADER_BYTES):
                    await handle.read(offset, 4096)
                    await quiet(house)
            assert store.requests()["GetObject"] == asked
            store.is_down = False
            await house.registry.probe()
            async with opened(house, names[0]) as handle:
                await handle.read(header + PAST_HEADER_BYTES, 4096)
                await quiet(house)
                await handle.read(header + PAST_HEADER_BYTES, 4096)
            await quiet(house)
            assert await read_whole(house, names[0]) == files[names[0]]

    with caplog.at_level(logging.INFO):
        body()
    assert {record.name for record in caplog.records} == {"modelfs.registry.calls"}


@trio_test
async def test_what_is_brought_ahead_of_all_readers_fits_into_half_of_the_cache(
    tmp_path: Path,
) -> None:
    names = [f"{number}.bin" for number in range(4)]
    store = filled({name: bytes(40 * PART) for name in names})
    async with open_house(tmp_path / "s", store, max_bytes=16 * PART) as house:
        windows = []
        async with AsyncExitStack() as stack:
            for name in names:
                handle = await stack.enter_async_context(opened(house, name))
                await handle.read(0, 100)
                windows.append(house.services.prefetcher.window_of(file_of(house, name)))
        assert [window // PART for window in windows] == [8, 4, 2, 2]
        await read_whole(house, names[0])
        assert bytes_asked(store, PREFIX + names[0]) <= 41 * PART
