"""One try of an upload: parts while a file is written, what differs alone, foreign changes."""

import logging
from pathlib import Path

import pytest
import trio

from modelfs.errors import AccessDenied, NotFound, RegistryUnavailable, WrongBytes
from modelfs.registry.objects import ObjectInfo
from modelfs.store import conflicts, cuts, etags, uploads
from modelfs.store.confirming import Hashing, expected_of
from modelfs.store.cuts import Cut
from modelfs.store.stagedfile import Promise, StagedFile
from tests.fake_store import FakeStore, Request
from tests.trio_tests import LLAMA, PREFIX, House, open_house, trio_test, until

PART = 5_000
DATA = bytes(range(250)) * 200  # 50,000 bytes: ten parts


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etags, "SINGLE_PUT_MAX", 10_000)
    monkeypatch.setattr(cuts, "PART_MIN", 3_000)
    monkeypatch.setattr(cuts, "UPLOAD_CUT", Cut(((PART, 10_000),)))
    monkeypatch.setattr(uploads, "AHEAD_FROM", 12_000)


async def create(house: House, name: str = "a") -> StagedFile:
    """Return a new staged file that somebody has open."""
    staged = await house.staging.create(LLAMA, name, None)
    staged.users += 1
    return staged


async def staged_over(house: House, info: ObjectInfo, name: str = "a") -> StagedFile:
    """Return a staged file with an object's bytes, that somebody has open."""
    await house.read(info.id.key)
    source = await house.cache.open(info)
    staged = await house.staging.create(LLAMA, name, info, source, info.size)
    house.cache.close(source)
    staged.users += 1
    return staged


async def write(house: House, staged: StagedFile, at: int, data: bytes) -> None:
    """Write as an open file does."""
    await house.staging.write(staged, at, data)
    house.writeback.uploader.written(staged)


async def close(house: House, staged: StagedFile) -> None:
    await house.writeback.publish(staged)
    staged.users -= 1
    await house.writeback.settle(staged)


def sent_bytes(store: FakeStore) -> int:
    return sum(r.length for r in store.sent if r.operation in ("PutObject", "UploadPart"))


# ------------------------------------------------------ while it is written


@trio_test
async def test_parts_of_a_file_that_is_written_in_order_go_before_it_is_closed(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await create(house)
        for at in range(0, 48_000, 1_000):
            await write(house, staged, at, DATA[at : at + 1_000])
        await until(lambda: store.requests()["UploadPart"] == 9 and not staged.upload.flights)  # type: ignore[union-attr]
        assert store.below(PREFIX) == {}  # nobody sees it before it is whole
        await write(house, staged, 48_000, DATA[48_000:])
        await close(house, staged)
        assert store.below(PREFIX) == {"a": DATA}
        assert sent_bytes(store) == len(DATA)
        assert store.uploads_open == 0


@trio_test
async def test_a_part_that_is_written_again_is_sent_again_and_no_other(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await create(house)
        await write(house, staged, 0, DATA)
        await until(lambda: store.requests()["UploadPart"] == 10 and not staged.upload.flights)  # type: ignore[union-attr]
        await write(house, staged, 12_000, b"again")
        await close(house, staged)
        assert store.below(PREFIX) == {"a": DATA[:12_000] + b"again" + DATA[12_005:]}
        assert sent_bytes(store) == len(DATA) + PART


@pytest.mark.parametrize("size", [0, 7_000, 23_000, 50_000, 61_000])
@trio_test
async def test_a_file_that_is_cut_after_parts_of_it_went_is_right(
    tmp_path: Path, size: int
) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await create(house)
        await write(house, staged, 0, DATA)
        await until(lambda: store.requests()["UploadPart"] == 10)
        await house.staging.truncate(staged, size)
        await close(house, staged)
        assert store.below(PREFIX) == {"a": (DATA + bytes(20_000))[:size]}
        assert store.uploads_open == 0


@trio_test
async def test_what_is_written_here_and_there_waits_for_its_close(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await create(house)
        for at in range(48_000, -1, -2_000):
            await write(house, staged, at, DATA[at : at + 2_000])
        assert store.requests() == {}
        await close(house, staged)
        assert store.below(PREFIX) == {"a": DATA}


@trio_test
async def test_few_parts_are_on_their_way_while_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PARALLEL_PARTS", 4)
    store = FakeStore()
    async with open_house(tmp_path / "s", store, parallel=16) as house:
        gate = store.hold("UploadPart")
        staged = await create(house)
        await write(house, staged, 0, DATA)
        await until(lambda: gate.waiting == uploads.PARALLEL_PARTS)
        await write(house, staged, len(DATA), DATA)
        assert gate.waiting == uploads.PARALLEL_PARTS
        gate.open()
        await close(house, staged)
        assert store.below(PREFIX) == {"a": DATA + DATA}
        assert sent_bytes(store) == 2 * len(DATA)


@trio_test
async def test_what_fails_before_the_close_is_sent_by_it(tmp_path: Path) -> None:
    for number in range(1, 12):
        store = FakeStore()
        store.fail(number, AccessDenied("not now"))
        async with open_house(tmp_path / str(number), store) as house:
            staged = await create(house)
            await write(house, staged, 0, DATA)
            await until(lambda store=store: store.sent)  # type: ignore[misc]
            try:
                await house.writeback.publish(staged)
            except AccessDenied:
                await house.writeback.publish(staged)
            assert store.below(PREFIX) == {"a": DATA}
            assert store.uploads_open == 0
            staged.users -= 1
            await house.writeback.settle(staged)


@trio_test
async def test_a_file_that_is_renamed_while_parts_of_it_went_arrives_under_its_new_name(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await create(house)
        await write(house, staged, 0, DATA)
        await until(lambda: store.requests()["UploadPart"] >= 4)
        house.staging.move(staged, LLAMA, "b")
        await close(house, staged)
        assert store.below(PREFIX) == {"b": DATA}
        await until(lambda: store.uploads_open == 0)


@trio_test
async def test_a_file_that_is_removed_while_parts_of_it_went_leaves_no_upload(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await create(house)
        await write(house, staged, 0, DATA)
        await until(lambda: store.requests()["UploadPart"] >= 4)
        await house.staging.discard(staged)
        assert store.uploads_open == 0
        staged.users -= 1
        await house.writeback.settle(staged)
        assert store.below(PREFIX) == {}
        assert list(house.layout.staged.iterdir()) == []


@trio_test
async def test_a_file_of_very_many_parts_is_written_on_after_a_close_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuts, "UPLOAD_CUT", Cut(((20, 10_000),)))
    monkeypatch.setattr(uploads, "AHEAD_FROM", 50_001)  # by its close alone, at first
    store = FakeStore()

    def refuse_the_last(store: FakeStore, request: Request) -> None:
        if request.operation == "CompleteMultipartUpload":
            store.unhook()
            raise AccessDenied("not now")

    store.hook(refuse_the_last)
    async with open_house(tmp_path / "s", store) as house:
        staged = await create(house)
        await write(house, staged, 0, DATA)
        with pytest.raises(AccessDenied):
            await house.writeback.publish(staged)
        assert staged.upload is not None
        assert staged.upload.take_ahead(staged.size) is None  # 2,500 parts are there already
        await write(house, staged, len(DATA), DATA[:1000])
        await close(house, staged)
        assert store.below(PREFIX) == {"a": DATA + DATA[:1000]}


@trio_test
async def test_an_upload_that_others_aborted_is_begun_anew(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await create(house)
        await write(house, staged, 0, DATA)
        await until(lambda: store.requests()["UploadPart"] == 10 and not staged.upload.flights)  # type: ignore[union-attr]
        assert staged.upload is not None
        store.abort_upload(staged.upload.key, staged.upload.id)
        with pytest.raises(RegistryUnavailable, match="upload is gone"):
            await house.writeback.publish(staged)
        await house.writeback.drain()
        assert store.below(PREFIX) == {"a": DATA}
        staged.users -= 1
        await house.writeback.settle(staged)


@trio_test
async def test_a_part_that_came_wrong_is_sent_again_at_once(tmp_path: Path) -> None:
    store = FakeStore()
    wrong = ["PutObject", "UploadPart"]

    def spoil(store: FakeStore, request: Request) -> None:
        if request.operation in wrong:
            wrong.remove(request.operation)
            raise WrongBytes("other bytes")

    store.hook(spoil)
    async with open_house(tmp_path / "s", store) as house:
        for name, data in (("a", DATA), ("b", b"small")):
            staged = await create(house, name)
            await write(house, staged, 0, data)
            await close(house, staged)
        assert store.below(PREFIX) == {"a": DATA, "b": b"small"}
        assert wrong == []


@trio_test
async def test_the_time_of_a_file_whose_upload_began_early_is_that_of_its_last_write(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await create(house)
        await write(house, staged, 0, DATA)
        await until(lambda: store.requests()["UploadPart"] == 10)
        staged.mtime_ns = 1234_500_000_000
        await house.writeback.publish(staged)
        assert store.objects[PREFIX + "a"].metadata["mtime"] == "1234.5"
        assert staged.base is not None
        assert staged.base.mtime_ns == 1234_500_000_000
        staged.users -= 1
        await house.writeback.settle(staged)
        assert await house.read(PREFIX + "a") == DATA  # what is cached is of the object as it is
        assert store.requests()["GetObject"] == 0


@pytest.mark.parametrize("is_killed", [False, True])
@trio_test
async def test_a_time_that_was_set_without_an_answer_is_no_one_else_s_change(
    tmp_path: Path, is_killed: bool
) -> None:
    store = FakeStore()

    def lose(store: FakeStore, request: Request) -> None:
        if request.operation == "CopyObject":
            store.fail(0, AccessDenied("the answer was lost"), after=True)  # of this request
        elif is_killed and store.requests()["CopyObject"]:
            raise AccessDenied("the daemon was killed")

    store.hook(lose)
    async with open_house(tmp_path / "s", store, is_crash=is_killed) as house:
        staged = await create(house)
        await write(house, staged, 0, DATA)
        await until(lambda: store.requests()["UploadPart"] == 10)
        staged.mtime_ns = 1234_500_000_000
        try:
            await house.writeback.publish(staged)
            assert not is_killed
            await write(house, staged, 0, b"more")
            await close(house, staged)
            assert store.below(PREFIX) == {"a": b"more" + DATA[4:]}
            assert house.writeback.uploader.conflicts.count == 0
        except AccessDenied:
            assert is_killed
    store.unhook()
    async with open_house(tmp_path / "s", store) as house:
        await house.writeback.drain()
        assert list(store.below(PREFIX)) == ["a"]
        assert house.writeback.uploader.conflicts.count == 0


# ------------------------------------------------------- what differs alone


@trio_test
async def test_of_an_append_what_was_appended_is_sent_and_the_rest_copied(tmp_path: Path) -> None:
    store = FakeStore()
    base = store.place(PREFIX + "a", DATA)
    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_over(house, base)
        await write(house, staged, len(DATA), b"more")
        await close(house, staged)
        assert store.below(PREFIX) == {"a": DATA + b"more"}
        assert sent_bytes(store) == 4
        made = store.head(PREFIX + "a")
        assert made.part_sizes == "50000*1,4*1"
        expected = expected_of(made)
        hashing = Hashing(expected)
        hashing.update(memoryview(DATA + b"more"))
        assert expected.confirmed_by(hashing.hashes()) == "multipart"
        assert store.uploads_open == 0


@trio_test
async def test_bytes_sent_do_not_grow_with_the_square_of_the_appends(tmp_path: Path) -> None:
    store, whole = FakeStore(), b""
    async with open_house(tmp_path / "s", store) as house:
        for number in range(60):
            info = store.head(PREFIX + "a") if number else None
            staged = await staged_over(house, info) if info else await create(house)
            piece = bytes([number]) * 1_000
            await write(house, staged, len(whole), piece)
            whole += piece
            await close(house, staged)
            assert store.below(PREFIX) == {"a": whole}
        assert sent_bytes(store) < 2 * len(whole)


@trio_test
async def test_several_appends_by_one_open_file_send_each_piece_once(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await create(house)
        await write(house, staged, 0, DATA)
        await house.writeback.publish(staged)
        before = sent_bytes(store)
        for number in range(5):
            await write(house, staged, len(DATA) + number * 100, bytes([number]) * 100)
            await house.writeback.publish(staged)
        assert sent_bytes(store) - before < 5 * (PART + 500)
        await close(house, staged)
        assert store.below(PREFIX)["a"].endswith(bytes([4]) * 100)


@trio_test
async def test_what_was_written_in_the_middle_is_sent_with_little_around_it(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    base = store.place(PREFIX + "a", DATA, part_size=PART)
    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_over(house, base)
        await write(house, staged, 20_000, b"here")
        await close(house, staged)
        assert store.below(PREFIX) == {"a": DATA[:20_000] + b"here" + DATA[20_004:]}
        assert sent_bytes(store) == cuts.PART_MIN


@trio_test
async def test_what_is_written_while_parts_are_copied_is_sent_after(tmp_path: Path) -> None:
    store = FakeStore()
    base = store.place(PREFIX + "a", DATA)
    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_over(house, base)
        await write(house, staged, len(DATA), b"more")
        gate = store.hold("UploadPartCopy")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.writeback.publish, staged)
            await until(lambda: gate.waiting)
            await write(house, staged, 10, b"early")
            gate.open()
        await close(house, staged)
        assert store.below(PREFIX) == {"a": DATA[:10] + b"early" + DATA[15:] + b"more"}


@pytest.mark.parametrize("error", [AccessDenied("no copies"), NotFound("no such key")])
@trio_test
async def test_where_the_registry_copies_no_parts_the_file_is_sent_whole(
    tmp_path: Path, error: Exception
) -> None:
    def refuse(store: FakeStore, request: Request) -> None:
        if request.operation == "UploadPartCopy":
            raise error

    store = FakeStore()
    base = store.place(PREFIX + "a", DATA)
    store.hook(refuse)
    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_over(house, base)
        await write(house, staged, len(DATA), b"more")
        await close(house, staged)
        assert store.below(PREFIX) == {"a": DATA + b"more"}
        assert store.uploads_open == 0


@trio_test
async def test_an_object_that_changes_while_parts_of_it_are_copied_is_mixed_with_nothing(
    tmp_path: Path,
) -> None:
    def change(store: FakeStore, request: Request) -> None:
        if request.operation == "UploadPartCopy":
            store.unhook()
            store.place(PREFIX + "a", DATA[::-1])

    store = FakeStore()
    base = store.place(PREFIX + "a", DATA)
    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_over(house, base)
        await write(house, staged, len(DATA), b"more")
        store.hook(change)
        await close(house, staged)
        found = store.below(PREFIX)
        assert found.pop("a") == DATA[::-1]
        assert list(found.values()) == [DATA + b"more"]
        assert house.writeback.uploader.conflicts.count == 1


# ---------------------------------------------------------- foreign changes


@pytest.mark.parametrize("size", [10, 40_000])
@pytest.mark.parametrize("when", ["before", "after the look"])
@trio_test
async def test_what_others_wrote_while_a_file_was_open_stays_and_ours_is_kept_beside_it(
    tmp_path: Path, size: int, when: str
) -> None:
    store = FakeStore()
    base = store.place(PREFIX + "a", b"base")

    def change(store: FakeStore, request: Request) -> None:
        if request.operation in ("PutObject", "UploadPart"):
            store.unhook()
            store.place(PREFIX + "a", b"theirs")

    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_over(house, base)
        await write(house, staged, 0, DATA[:size])
        if when == "before":
            store.place(PREFIX + "a", b"theirs")
        else:
            store.hook(change)
        await close(house, staged)
        found = store.below(PREFIX)
        assert found.pop("a") == b"theirs"
        assert list(found.values()) == [DATA[:size]]
        assert house.writeback.uploader.conflicts.count == 1
        assert staged.name.startswith("a.conflict-node-a-")


@trio_test
async def test_two_conflicts_of_one_moment_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conflicts, "moment", lambda _: "20261127T120000.000")
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        for ours in (b"ours 1", b"ours 2"):
            staged = await staged_over(house, store.place(PREFIX + "a", b"base"))
            await write(house, staged, 0, ours)
            store.place(PREFIX + "a", b"theirs")
            await close(house, staged)
        assert sorted(store.below(PREFIX).values()) == [b"ours 1", b"ours 2", b"theirs"]


@trio_test
async def test_what_others_made_while_a_new_file_was_written_stays(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await create(house)
        await write(house, staged, 0, b"ours")
        store.place(PREFIX + "a", b"theirs")
        await close(house, staged)
        found = store.below(PREFIX)
        assert found.pop("a") == b"theirs"
        assert list(found.values()) == [b"ours"]


@trio_test
async def test_a_file_that_others_deleted_while_it_was_open_is_put_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore()
    base = store.place(PREFIX + "a", b"base")
    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_over(house, base)
        await write(house, staged, 0, b"ours")
        store.take(PREFIX + "a")
        with caplog.at_level(logging.WARNING):
            await close(house, staged)
        assert store.below(PREFIX) == {"a": b"ours"}
        assert "a was deleted by someone else" in caplog.text


@trio_test
async def test_what_others_wrote_with_the_same_bytes_is_no_conflict(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await create(house)
        await write(house, staged, 0, b"same")
        store.place(PREFIX + "a", b"same")
        await close(house, staged)
        assert store.below(PREFIX) == {"a": b"same"}
        assert house.writeback.uploader.conflicts.count == 0


@trio_test
async def test_where_conditions_that_hold_are_refused_none_are_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, put = FakeStore(), FakeStore.put
    asked: list[str | None] = []

    def of_a_versioned_bucket(*args: object) -> ObjectInfo:
        asked.append(args[-1])  # type: ignore[arg-type]
        return put(*args[:-1], "wrong" if args[-1] else None)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeStore, "put", of_a_versioned_bucket)
    base = store.place(PREFIX + "a", b"base")
    async with open_house(tmp_path / "s", store) as house:
        for data in (b"one", b"two"):
            info = store.head(PREFIX + "a")
            staged = await staged_over(house, info)
            await house.staging.truncate(staged, 0)
            await write(house, staged, 0, data)
            await close(house, staged)
            assert store.below(PREFIX) == {"a": data}
        assert asked == [base.id.etag, None, None]
        assert caplog.text.count("refuses conditions that hold") == 1


# ------------------------------------------------------- what is left over


@trio_test
async def test_an_upload_that_a_crash_left_is_aborted_and_others_are_named(tmp_path: Path) -> None:
    store = FakeStore()
    theirs = store.start_upload(PREFIX + "b", {})
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        staged = await create(house)
        await write(house, staged, 0, DATA)
        await until(lambda: store.requests()["UploadPart"] == 10)
        assert store.uploads_open == 2
    async with open_house(tmp_path / "s", store) as house:
        await house.writeback.uploader.sweep()
        assert store.uploads_open == 1
        assert [upload.id for upload in house.writeback.uploader.unfinished] == [theirs]
        assert [found.promise for found in house.staging.aside] == [Promise.ASIDE]


@trio_test
async def test_an_upload_that_began_in_the_moment_of_a_crash_is_found_and_aborted(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    store.fail(2, AccessDenied("the answer was lost"), after=True)  # after a HEAD
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        staged = await house.staging.create(LLAMA, "a", None)
        await house.staging.write(staged, 0, DATA)
        with pytest.raises(AccessDenied):
            await house.writeback.publish(staged)
        assert store.uploads_open == 1
    async with open_house(tmp_path / "s", store) as house:
        await house.writeback.uploader.sweep()
        await house.writeback.drain()
        assert store.uploads_open == 0
        assert store.below(PREFIX) == {"a": DATA}


@trio_test
async def test_a_file_that_waits_keeps_the_parts_that_the_registry_has(tmp_path: Path) -> None:
    store = FakeStore()

    def refuse_the_last(store: FakeStore, request: Request) -> None:
        if request.operation == "CompleteMultipartUpload":
            store.unhook()
            raise AccessDenied("not now")

    async with open_house(tmp_path / "s", store) as house:
        store.hook(refuse_the_last)
        staged = await create(house)
        await write(house, staged, 0, DATA)
        with pytest.raises(AccessDenied):
            await house.writeback.publish(staged)
        await house.writeback.publish(staged)
        assert store.below(PREFIX) == {"a": DATA}
        assert sent_bytes(store) == len(DATA)
        staged.users -= 1
        await house.writeback.settle(staged)
