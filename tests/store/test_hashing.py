"""Files are hashed while they arrive: in order, each byte as it lies in the file at the end."""

import hashlib
import os
import random
from pathlib import Path

import pytest
import trio

from modelfs.concurrency import Threads
from modelfs.registry.objects import Checksum, ObjectId, ObjectInfo
from modelfs.store import hashing, pending, versions
from modelfs.store.confirming import Expected, Hasher, Hashing
from modelfs.store.cuts import Cut
from modelfs.store.freeze import State
from modelfs.store.hashing import Following
from modelfs.store.manifest import Entry
from modelfs.store.parts import PartFile
from tests.fake_store import FakeStore
from tests.trio_tests import PART, PREFIX, ROOT, House, open_house, trio_test, until, version

KEY = PREFIX + "weights"
DATA = random.Random(5).randbytes(11 * PART + 3)
LAST = 11 * PART  # where the last part begins


def entry_of(house: House, name: str = "v1") -> Entry:
    (entry,) = versions.read_manifest(house.layout, version(name)).files
    return entry


class Pieces:
    """What hashes were fed with, in which order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fed: list[tuple[int, int]] = []
        feed = hashing.update_from

        def update_from(hasher: Hasher | Hashing, fd: int, start: int, end: int) -> None:
            feed(hasher, fd, start, end)
            self.fed.append((start, end))

        monkeypatch.setattr(hashing, "update_from", update_from)

    @property
    def until(self) -> int:
        return max((end for _, end in self.fed), default=0)


@trio_test
@pytest.mark.parametrize("is_alone", [True, False])
@pytest.mark.parametrize("seed", range(5))
async def test_parts_that_arrive_in_any_order_are_hashed_in_theirs(
    tmp_path: Path, seed: int, is_alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(hashing, "STEP_BYTES", chance.choice([1, PART, 3 * PART]))
    info = ObjectInfo(ObjectId(KEY, "etag"), len(DATA), 0)
    file = PartFile(tmp_path / "0", info, PART, None)  # type: ignore[arg-type]  # nobody fetches
    file.open_now()
    file.users = 1
    following = Following(file, Threads(4))
    order = chance.sample(range(file.part_count), file.part_count)
    expected = Expected(info.id, Checksum("md5", ""), (Cut.even(5 * PART),))
    found = []

    async def follow() -> None:
        found.append(await following.hashes(expected, is_alone))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        for index in order:
            at = index * PART
            os.pwrite(file.fd, DATA[at : at + PART], at)
            file.add(index)
            following.part_arrived(chance.random() < 0.5)
            if chance.random() < 0.5:
                await trio.sleep(0.001)
    file.leave()
    (tmp_path / "whole").write_bytes(DATA)
    assert found == [hashing.hashes(tmp_path / "whole", expected)]
    assert found[0].sums == {
        "sha256": hashlib.sha256(DATA).hexdigest(),
        "md5": hashlib.md5(DATA).hexdigest(),
    }


@trio_test
async def test_what_has_come_is_hashed_while_the_rest_is_awaited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, pieces = FakeStore(), Pieces(monkeypatch)
    store.place(KEY, DATA)
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        store.unhook()
        store.hook(lambda _, r: gate(_, r) if r.offset == LAST else None)
        await house.library.freezes.begin(version("v1"), ROOT)
        await until(lambda: gate.waiting == 1 and pieces.until == LAST)
        gate.open()
        assert (await house.ended("v1")).state is State.READY
        assert entry_of(house).sha256 == hashlib.sha256(DATA).hexdigest()
        assert entry_of(house).confirmed == "md5"


@trio_test
@pytest.mark.parametrize("times", [1, 2])
async def test_wrong_bytes_that_were_hashed_are_hashed_anew_when_they_are_right(
    tmp_path: Path, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, pieces = FakeStore(), Pieces(monkeypatch)
    store.place(KEY, DATA)
    store.flip(KEY, times)
    async with open_house(tmp_path / "s", store) as house:
        assert (await house.freeze("v1")).state is State.READY
        assert house.plain("v1") == {"weights": DATA}
        assert entry_of(house).sha256 == hashlib.sha256(DATA).hexdigest()
        assert sum(start == 0 for start, _ in pieces.fed) >= 2
        assert store.requests()["GetObject"] > len(DATA) // PART + 1


@trio_test
async def test_what_is_hashed_waits_for_what_the_registry_says_of_the_object(
    tmp_path: Path,
) -> None:
    """The first parts of a request arrive before its answer is known to be whole."""
    store, data = FakeStore(), DATA[:LAST]
    store.place(KEY, data, part_size=PART)
    async with open_house(tmp_path / "s", store, request_parts=4) as house:
        assert (await house.freeze("v1")).state is State.READY
        assert entry_of(house).confirmed == "multipart"
        assert entry_of(house).sha256 == hashlib.sha256(data).hexdigest()
        assert store.requests()["GetObject"] == 3


def test_a_file_that_was_sealed_when_its_daemon_died_is_opened_by_who_is_not_root(
    tmp_path: Path,
) -> None:
    path = tmp_path / "partial" / "0"
    path.parent.mkdir()
    path.write_bytes(b"data")
    path.chmod(0o444)

    def open_now() -> None:
        if not path.stat().st_mode & 0o200:  # as the kernel says to all but root
            raise PermissionError

    assert pending.open_coming(path, open_now) == 0


def test_a_file_that_is_shorter_than_it_should_be_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"data")
    with path.open("rb") as file, pytest.raises(OSError, match="ends at 4"):
        hashing.update_from(Hashing(), file.fileno(), 0, 5)
