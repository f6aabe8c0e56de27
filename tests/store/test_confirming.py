"""What came is compared with all that the registry says of it: MD5, checksum, ETag of parts."""

import hashlib
import logging
import random
import zlib
from pathlib import Path

import pytest

from modelfs.errors import AccessDenied, WrongBytes
from modelfs.registry.objects import Checksum, ObjectId, ObjectInfo
from modelfs.store import versions
from modelfs.store.confirming import Expected, Hashing, expected_of
from modelfs.store.cuts import MIB, Cut
from modelfs.store.etags import GUESSES_MAX, part_sizes_of
from modelfs.store.freeze import State
from modelfs.store.manifest import Entry
from tests.fake_store import FakeStore, Request, unavailable
from tests.trio_tests import PART, PREFIX, ROOT, House, open_house, trio_test, until, version

KEY = PREFIX + "big"
DATA = random.Random(0).randbytes(3 * PART)
ODD = PART + 777  # no tool's part size, and no even cut of DATA
SHA256 = Checksum("sha256", hashlib.sha256(DATA).hexdigest())
CHECKSUMS = [
    SHA256,
    Checksum("sha1", hashlib.sha1(DATA).hexdigest()),
    Checksum("crc32", f"{zlib.crc32(DATA):08x}"),
]


def entry_of(house: House, name: str = "v1") -> Entry:
    (entry,) = versions.read_manifest(house.layout, version(name)).files
    return entry


def count(store: FakeStore, operation: str) -> int:
    return store.requests().get(operation, 0)


# ------------------------------------------------------------------ part sizes


@pytest.mark.parametrize(
    ("size", "part_size"),
    [
        *((20 * MIB, 8 * MIB), (11 * MIB, 5 * MIB), (40 * MIB, 16 * MIB)),  # boto3, rclone, mc
        *((5 * 10**9, 8 * MIB), (5 * 10**9, 128 * MIB), (100 * MIB, 64 * MIB)),
        *((400 * 10**9, 40 * 10**6), (200 * 10**9, 32 * MIB)),  # as modelfs cuts; boto3 doubled
        *((10**9, 50 * 10**6), (10**9, 48 * 10**6), (300 * MIB, 7 * MIB)),
        *((6 * MIB, 6 * MIB), (1, 1), (27, 9), (10 << 30, 4 << 30)),
    ],
)
def test_the_likely_part_sizes_are_few_and_hold_those_of_tools(size: int, part_size: int) -> None:
    parts = -(-size // part_size)
    found = part_sizes_of(size, parts)
    assert part_size in found
    assert len(found) == len(set(found)) <= GUESSES_MAX
    assert {-(-size // guess) for guess in found} == {parts}


@pytest.mark.parametrize(("size", "parts"), [(0, 1), (5, 6), (0, 10_000)])
def test_no_part_size_gives_more_parts_than_there_are_bytes(size: int, parts: int) -> None:
    assert part_sizes_of(size, parts) == []


@pytest.mark.parametrize("size", [1, 99, 100, 101, 199, 200, 1000])
@pytest.mark.parametrize("step", [1, 7, 100, 250, 1000])
def test_all_hashes_come_from_one_pass_over_pieces_of_any_length(size: int, step: int) -> None:
    data, store = DATA[:size], FakeStore()
    etags = [store.place("key", data, part_size=n).id.etag for n in (100, 60)]
    hashing = Hashing(
        Expected(ObjectId("key", ""), Checksum("crc32", ""), (Cut.even(100), Cut.even(60)))
    )
    for at in range(0, size, step):
        hashing.update(memoryview(data)[at : at + step])
    found = hashing.hashes()
    assert list(found.etags) == etags
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert found.sums["crc32"] == f"{zlib.crc32(data):08x}"


def test_what_is_sure_is_asked_for_before_what_is_guessed() -> None:
    info = ObjectInfo(ObjectId(KEY, "etag-3"), len(DATA), 0, etag_parts=3)
    assert expected_of(info).cuts
    assert expected_of(info, SHA256) == Expected(info.id, SHA256)
    md5 = ObjectInfo(ObjectId(KEY, "etag"), 3, 0, md5="etag")
    assert expected_of(md5, SHA256) == Expected(md5.id, Checksum("md5", "etag"))
    assert expected_of(ObjectInfo(ObjectId(KEY, "x"), 3, 0)) == Expected(ObjectId(KEY, "x"))


def test_other_bytes_than_those_of_a_checksum_are_wrong() -> None:
    expected = Expected(ObjectId(KEY, "etag"), SHA256)
    with pytest.raises(WrongBytes, match=f"big arrived with SHA256 e3b0.* instead of {SHA256.hex}"):
        expected.confirmed_by(Hashing(expected).hashes())


# ------------------------------------------------------- objects that came in parts


@trio_test
async def test_an_object_of_likely_parts_is_confirmed_by_its_etag(tmp_path: Path) -> None:
    store = FakeStore()
    store.place(KEY, DATA, part_size=PART)
    async with open_house(tmp_path / "s", store) as house:
        assert (await house.freeze("v1")).state is State.READY
        assert (entry_of(house).confirmed, entry_of(house).md5) == ("multipart", None)
        assert (await house.freeze("v2")).state is State.READY  # a link, confirmed before
        assert entry_of(house, "v2").confirmed == "multipart"
        assert count(store, "GetObject") == 3
        assert count(store, "HeadObject") == 0


@trio_test
async def test_a_flipped_bit_of_an_object_in_parts_is_found_and_fetched_again(
    tmp_path: Path,
) -> None:
    data = DATA[:27]
    for times in range(1, 6):
        store = FakeStore()
        store.place(KEY, data, part_size=9)
        async with open_house(tmp_path / str(times), store) as house:
            store.flip(KEY, times)
            view = await house.freeze("v1")
            if times < 4:  # the first time it may be right, three times it is not
                assert view.state is State.READY
                assert house.plain("v1") == {"big": data}
                assert entry_of(house).confirmed == "multipart"
                assert count(store, "GetObject") == times + 1
            else:
                assert view.state is State.FAILED
                assert f"{KEY} has the ETag" in str(view.error)
                assert not house.layout.version(version("v1")).exists()


@trio_test
async def test_parts_of_an_odd_size_are_believed_when_they_came_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore()
    store.place(KEY, DATA, part_size=ODD)
    with caplog.at_level(logging.INFO):
        async with open_house(tmp_path / "s", store) as house:
            assert (await house.freeze("v1")).state is State.READY
            assert house.plain("v1") == {"big": DATA}
            assert entry_of(house).confirmed is None
            assert count(store, "GetObject") == 6
            assert (await house.freeze("v2")).state is State.READY  # a link: nothing is fetched
            assert (count(store, "GetObject"), entry_of(house, "v2").confirmed) == (6, None)
    told = [r for r in caplog.records if KEY in r.getMessage()]
    assert [(r.levelname, "came twice" in r.getMessage()) for r in told] == [("INFO", True)]


@trio_test
async def test_of_odd_parts_the_bytes_that_came_twice_are_taken_whichever_came_first(
    tmp_path: Path,
) -> None:
    for times in (1, 2):
        store = FakeStore()
        store.place(KEY, DATA[:25], part_size=10)
        async with open_house(tmp_path / str(times), store) as house:
            store.flip(KEY, times)
            assert (await house.freeze("v1")).state is State.READY
            assert house.plain("v1") == {"big": DATA[:25]}
            assert count(store, "GetObject") == times + 2


@trio_test
async def test_what_the_cache_has_of_odd_parts_is_fetched_once_to_compare(tmp_path: Path) -> None:
    store = FakeStore()
    info = store.place(KEY, DATA, part_size=ODD)
    async with open_house(tmp_path / "s", store) as house:
        await house.read(KEY)
        assert (await house.freeze("v1")).state is State.READY
        assert count(store, "GetObject") == 6
        assert house.cache.cached_bytes(info.id) == len(DATA)
        assert house.cache.statistics().wrong_files == 0


@trio_test
async def test_bit_rot_that_a_freeze_finds_in_the_cache_is_not_served_any_more(
    tmp_path: Path,
) -> None:
    for kind in ("md5", "multipart", "sha256"):
        store = FakeStore()
        if kind == "md5":
            info = store.place(KEY, DATA)
        elif kind == "multipart":
            info = store.place(KEY, DATA, part_size=PART)
        else:
            info = store.place(KEY, DATA, part_size=ODD, checksum=SHA256)
        async with open_house(tmp_path / kind, store) as house:
            await house.read(KEY)
            file = house.cache.complete_file(info.id)
            assert file is not None
            with file.path.open("r+b") as rotten:
                rotten.write(b"rot")
            assert (await house.freeze("v1")).state is State.READY
            assert (house.plain("v1"), entry_of(house).confirmed) == ({"big": DATA}, kind)
            assert await house.read(KEY) == DATA
            assert house.wrong == [info.id]


@trio_test
async def test_the_cache_s_copy_in_likely_parts_is_confirmed_after_a_restart_too(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    store.place(KEY, DATA, part_size=PART)
    async with open_house(tmp_path / "s", store) as house:
        await house.read(KEY)
    async with open_house(tmp_path / "s", store) as house:
        assert (await house.freeze("v1")).state is State.READY
        assert (entry_of(house).confirmed, count(store, "GetObject")) == ("multipart", 3)


@pytest.mark.parametrize("etag", ["0" * 32, "0" * 32 + "-3"])
@trio_test
async def test_an_etag_that_says_nothing_of_the_bytes_is_no_reason_to_fetch_again(
    tmp_path: Path, etag: str
) -> None:
    store = FakeStore()
    store.place(KEY, DATA, etag=etag)
    store.place(PREFIX + "empty", b"", etag=etag)  # which the listing alone tells of
    async with open_house(tmp_path / "s", store) as house:
        view = await house.freeze("v1")
        assert (view.state, view.error) == (State.READY, None)
        assert house.plain("v1") == {"big": DATA, "empty": b""}
        assert [e.confirmed for e in view.manifest.files] == [None, None]
        assert count(store, "GetObject") == 3


@trio_test
async def test_what_a_listing_takes_for_an_etag_of_parts_a_get_puts_right_in_the_cache(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    store.place(KEY, DATA, etag="0" * 32 + "-3")
    async with open_house(tmp_path / "s", store) as house:
        file = await house.cache.open(store._info(KEY, listed=True))
        assert await house.fetcher.read(file, 0, len(DATA)) == DATA
        house.cache.close(file)
        assert (await house.freeze("v1")).state is State.READY
        assert entry_of(house).confirmed is None
        assert count(store, "GetObject") == 3


# ---------------------------------------------------------- the registry's checksums


@pytest.mark.parametrize("checksum", CHECKSUMS, ids=lambda checksum: checksum.algorithm)
@trio_test
async def test_the_registry_s_own_checksum_confirms_what_no_md5_does(
    tmp_path: Path, checksum: Checksum
) -> None:
    for times in (0, 1, 2):
        store = FakeStore()
        store.place(KEY, DATA, part_size=ODD, checksum=checksum)
        async with open_house(tmp_path / str(times), store) as house:
            store.flip(KEY, times)
            assert (await house.freeze("v1")).state is State.READY
            assert house.plain("v1") == {"big": DATA}
            assert entry_of(house).confirmed == entry_of(house).checksum == checksum.algorithm
            tries = 2 if times else 1  # the first GETs are those of one try
            assert count(store, "GetObject") == 3 * tries
            assert count(store, "HeadObject") == tries


@trio_test
async def test_an_md5_needs_no_other_checksum(tmp_path: Path) -> None:
    store = FakeStore()
    store.place(KEY, DATA, checksum=SHA256)
    async with open_house(tmp_path / "s", store) as house:
        assert (await house.freeze("v1")).state is State.READY
        assert entry_of(house).confirmed == "md5"
        assert count(store, "HeadObject") == 0


@trio_test
async def test_a_checksum_of_the_registry_that_is_wrong_fails_the_freeze_with_a_reason(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    store.place(KEY, DATA, part_size=PART, checksum=Checksum("crc32", "00000000"))
    async with open_house(tmp_path / "s", store) as house:
        view = await house.freeze("v1")
        assert view.state is State.FAILED
        assert view.error == (
            f"{KEY} arrived with CRC32 {zlib.crc32(DATA):08x} instead of 00000000"
        )
        assert count(store, "GetObject") == 9


@trio_test
async def test_a_checksum_that_cannot_be_had_any_more_is_done_without(tmp_path: Path) -> None:
    def replace(store: FakeStore, request: Request) -> None:
        if request.operation == "HeadObject":
            store.place(KEY, b"changed after its bytes had come")

    def refuse(store: FakeStore, request: Request) -> None:
        if request.operation == "HeadObject":
            raise AccessDenied("no HEAD for you")

    data = DATA[:27]  # one request: of more parts the rest comes while the HEAD is asked for
    for number, hook in enumerate((replace, refuse)):
        store = FakeStore()
        store.place(KEY, data, part_size=9, checksum=SHA256)
        store.hook(hook)
        async with open_house(tmp_path / str(number), store) as house:
            assert (await house.freeze("v1")).state is State.READY
            assert house.plain("v1") == {"big": data}
            assert entry_of(house).confirmed == "multipart"


@trio_test
async def test_a_registry_that_is_down_is_waited_for_with_its_checksum(tmp_path: Path) -> None:
    store, failed = FakeStore(), []

    def hook(store: FakeStore, request: Request) -> None:
        if request.operation == "HeadObject" and len(failed) < 5:
            failed.append(request)
            raise unavailable()

    store.place(KEY, DATA, part_size=ODD, checksum=SHA256)
    store.hook(hook)
    async with open_house(tmp_path / "s", store) as house:
        assert (await house.freeze("v1")).state is State.READY
        assert entry_of(house).confirmed == "sha256"
        assert count(store, "GetObject") == 3


# -------------------------------------------------------------------- restarts


@trio_test
async def test_a_restart_remembers_what_confirmed_the_files_that_were_finished(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    store.place(PREFIX + "last", b"data")
    store.place(PREFIX + "md5", DATA)
    store.place(PREFIX + "parts", DATA, part_size=PART)
    store.place(PREFIX + "sum", DATA, part_size=ODD, checksum=SHA256)
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        gate = store.hold("GetObject", PREFIX + "last")
        await house.library.freezes.begin(version("v1"), ROOT)
        freeze = house.library.freezes._under_way[version("v1")]
        await until(lambda: len(freeze.done) == 3 and gate.waiting)
    gate.open()
    async with open_house(tmp_path / "s", store) as house:
        assert (await house.ended("v1")).state is State.READY
        files = versions.read_manifest(house.layout, version("v1")).files
        assert {e.path: e.confirmed for e in files} == {
            "last": "md5",
            "md5": "md5",
            "parts": "multipart",
            "sum": "sha256",
        }
