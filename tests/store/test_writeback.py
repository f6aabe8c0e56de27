"""Uploads: retries, parts, conflicts, drain."""

from functools import partial
from pathlib import Path

import pytest
import trio

from modelfs.errors import AccessDenied, QuotaExceeded, RegistryUnavailable, WrongBytes
from modelfs.store import cuts, etags, uploads
from modelfs.store import writeback as writebacks
from modelfs.store.cuts import Cut
from modelfs.store.stagedfile import Promise, StagedFile
from tests.fake_store import FakeStore, Request, unavailable
from tests.trio_tests import LLAMA, PREFIX, House, open_house, trio_test, until

BIG = 40_000


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etags, "SINGLE_PUT_MAX", 10_000)
    monkeypatch.setattr(cuts, "PART_MIN", 3_000)
    monkeypatch.setattr(cuts, "UPLOAD_CUT", Cut(((5_000, 1000),)))
    monkeypatch.setattr(uploads, "AHEAD_FROM", 12_000)


async def staged_with(house: House, name: str, data: bytes, base: object = None) -> StagedFile:
    staged = await house.staging.create(LLAMA, name, base)  # type: ignore[arg-type]
    await house.staging.write(staged, 0, data)
    return staged


@trio_test
async def test_publish_returns_when_the_registry_has_the_file(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_with(house, "a", b"data")
        staged.mtime_ns = 1234_500_000_000
        await house.writeback.publish(staged)
        assert store.below(PREFIX) == {"a": b"data"}
        assert store.objects[PREFIX + "a"].metadata == {"mtime": "1234.5"}
        assert store.requests() == {"HeadObject": 1, "PutObject": 1}
        assert house.writeback.uploaded_files == 1
        await until(lambda: not list(house.staging))
        assert await house.read(PREFIX + "a") == b"data"  # from the cache
        assert store.requests() == {"HeadObject": 1, "PutObject": 1}


@trio_test
async def test_a_failed_upload_is_an_error_at_once_and_tried_until_it_is_there(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_with(house, "a", b"data")
        for number in (1, 2, 3, 4):
            store.fail(number, QuotaExceeded("the bucket is full"))
        with pytest.raises(QuotaExceeded):
            await house.writeback.publish(staged)
        assert staged.error == "the bucket is full"
        assert house.writeback.waiting() == [staged]
        await house.writeback.drain()
        assert store.below(PREFIX) == {"a": b"data"}
        assert staged.error is None


@trio_test
async def test_what_waits_survives_a_restart_while_the_registry_is_down(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        staged = await staged_with(house, "a", b"data")
        store.is_down = True
        with pytest.raises(RegistryUnavailable):
            await house.writeback.publish(staged)
    async with open_house(tmp_path / "s", store) as house:
        await until(lambda: not house.registry.reachability.reachable)
        assert [s.name for s in house.writeback.waiting()] == ["a"]
        store.is_down = False
        await house.writeback.drain()
        assert store.below(PREFIX) == {"a": b"data"}


@trio_test
async def test_drain_waits_for_all(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("PutObject")
        for number in range(5):
            staged = await staged_with(house, str(number), b"data")
            await house.staging.promise(staged, Promise.CLOSED, durable=False)
            house.writeback.start(staged)
        with trio.move_on_after(0.02) as scope:
            await house.writeback.drain()
        assert scope.cancelled_caught
        gate.open()
        await house.writeback.drain()
        assert len(store.below(PREFIX)) == 5
        assert house.writeback.waiting() == []


@trio_test
async def test_what_is_written_while_it_is_uploaded_is_uploaded_after(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_with(house, "a", b"one")
        staged.users += 1
        gate = store.hold("PutObject")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.writeback.publish, staged)
            await until(lambda: gate.waiting)
            await house.staging.write(staged, 0, b"two")
            gate.open()
        await house.writeback.drain()
        assert store.below(PREFIX) == {"a": b"two"}
        assert not staged.is_dirty
        staged.users -= 1
        await house.writeback.settle(staged)


@pytest.mark.parametrize("is_cut", [False, True])
@trio_test
async def test_a_file_that_is_changed_while_it_is_sent_is_no_error_and_sent_again(
    tmp_path: Path, is_cut: bool
) -> None:
    """What was hashed and what was sent are of two states then; a registry refuses them."""
    store = FakeStore()

    def refuse_what_changes(store: FakeStore, request: Request) -> None:
        if request.operation != "PutObject":
            return
        change = partial(house.staging.truncate, staged, 2)
        if not is_cut:
            change = partial(house.staging.write, staged, 1, b"xx")
        trio.from_thread.run(change)
        store.unhook()
        if not is_cut:
            raise WrongBytes("400 BadDigest")

    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_with(house, "a", b"data")
        store.hook(refuse_what_changes)
        await house.writeback.publish(staged)
        assert store.below(PREFIX) == {"a": b"da" if is_cut else b"dxxa"}
        assert store.requests()["PutObject"] == 2


@trio_test
async def test_a_file_that_changes_whenever_it_is_sent_is_an_error_in_the_end(
    tmp_path: Path,
) -> None:
    store = FakeStore()

    def refuse_what_changes(store: FakeStore, request: Request) -> None:
        if request.operation != "PutObject":
            return
        trio.from_thread.run(house.staging.write, staged, 0, b"x")
        raise WrongBytes("400 BadDigest")

    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_with(house, "a", b"data")
        store.hook(refuse_what_changes)
        with pytest.raises(WrongBytes):
            await house.writeback.publish(staged)
        store.unhook()
        await house.writeback.drain()
        assert store.below(PREFIX) == {"a": b"xata"}


@trio_test
async def test_who_closes_a_file_does_not_wait_for_what_others_write_after_that(
    tmp_path: Path,
) -> None:
    store, is_over = FakeStore(), False

    def write_on(store: FakeStore, request: Request) -> None:
        if not is_over:
            trio.from_thread.run(house.staging.write, staged, 4, b"more")

    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_with(house, "a", b"data")
        staged.users += 1
        store.hook(write_on)
        await house.writeback.publish(staged)
        assert len(store.sent) < 8
        is_over = True
        await house.writeback.drain()
        assert store.below(PREFIX) == {"a": b"datamore"}
        staged.users -= 1
        await house.writeback.settle(staged)


@pytest.mark.usefixtures("small_parts")
@trio_test
async def test_a_large_file_goes_in_parts_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "PARALLEL_PARTS", 8)
    store, data = FakeStore(), bytes(range(250)) * (BIG // 250) + b"end"
    async with open_house(tmp_path / "s", store, parallel=8) as house:
        gate = store.hold("UploadPart")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.writeback.publish, await staged_with(house, "a", data))
            await until(lambda: gate.waiting == uploads.PARALLEL_PARTS)
            gate.open()
        assert store.below(PREFIX) == {"a": data}
        assert store.objects[PREFIX + "a"].etag.endswith("-9")
        assert store.requests()["UploadPart"] == 9
        assert store.most_at_once["UploadPart"] == uploads.PARALLEL_PARTS
        assert "mtime" in store.objects[PREFIX + "a"].metadata


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("after", [False, True])
@trio_test
async def test_an_upload_ends_well_wherever_it_fails(tmp_path: Path, after: bool) -> None:
    data = bytes(range(250)) * (BIG // 250)
    for number in range(1, 30):
        store = FakeStore()
        store.fail(number, AccessDenied("not now"), after=after)
        async with open_house(tmp_path / str(number), store) as house:
            staged = await staged_with(house, "a", data)
            try:
                await house.writeback.publish(staged)
                is_told = False
            except AccessDenied:
                is_told = True
            await house.writeback.drain()
            assert store.below(PREFIX) == {"a": data}
            assert house.writeback.uploader.conflicts.count == 0
            assert store.uploads_open <= after
        if len(store.sent) < number:
            assert not is_told
            return
    raise AssertionError("it made more requests than were expected")


@pytest.mark.parametrize("after", [False, True])
@trio_test
async def test_a_small_upload_ends_well_wherever_it_fails(tmp_path: Path, after: bool) -> None:
    for number in range(1, 4):
        store = FakeStore()
        base = store.place(PREFIX + "a", b"old")
        store.fail(number, unavailable(), after=after)
        store.fail(number + 1, unavailable())
        async with open_house(tmp_path / str(number), store) as house:
            staged = await staged_with(house, "a", b"new", base)
            try:  # noqa: SIM105  # either is right
                await house.writeback.publish(staged)
            except RegistryUnavailable:
                pass
            await house.writeback.drain()
            assert store.below(PREFIX) == {"a": b"new"}
            assert house.writeback.uploader.conflicts.count == 0


# ----------------------------------------------------------------- conflicts


async def crash_with(folder: Path, store: FakeStore, base: object) -> None:
    async with open_house(folder, store, is_crash=True) as house:
        staged = await staged_with(house, "a", b"ours", base)
        await house.staging.promise(staged, Promise.CLOSED, durable=True)


@trio_test
async def test_where_others_changed_the_object_theirs_stays_and_ours_is_kept_beside_it(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    base = store.place(PREFIX + "a", b"base")
    await crash_with(tmp_path / "s", store, base)
    store.place(PREFIX + "a", b"theirs")
    async with open_house(tmp_path / "s", store) as house:
        await house.writeback.drain()
        found = store.below(PREFIX)
        assert found.pop("a") == b"theirs"
        ((name, data),) = found.items()
        assert (name[:19], data) == ("a.conflict-node-a-2", b"ours")
        assert house.writeback.uploader.conflicts.count == 1


@trio_test
async def test_where_others_made_the_object_theirs_stays(tmp_path: Path) -> None:
    store = FakeStore()
    await crash_with(tmp_path / "s", store, None)
    store.place(PREFIX + "a", b"theirs")
    async with open_house(tmp_path / "s", store) as house:
        await house.writeback.drain()
        assert sorted(store.below(PREFIX).values()) == [b"ours", b"theirs"]
        assert store.below(PREFIX)["a"] == b"theirs"


@trio_test
async def test_where_others_deleted_the_object_before_a_restart_ours_is_kept_beside_it(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    base = store.place(PREFIX + "a", b"base")
    await crash_with(tmp_path / "s", store, base)
    store.take(PREFIX + "a")
    async with open_house(tmp_path / "s", store) as house:
        await house.writeback.drain()
        ((name, data),) = store.below(PREFIX).items()
        assert (name[:10], data) == ("a.conflict", b"ours")


@trio_test
async def test_an_upload_that_had_arrived_before_the_crash_is_no_conflict(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    base = store.place(PREFIX + "a", b"base")
    await crash_with(tmp_path / "s", store, base)
    store.place(PREFIX + "a", b"ours")
    async with open_house(tmp_path / "s", store) as house:
        await house.writeback.drain()
        assert store.below(PREFIX) == {"a": b"ours"}
        assert house.writeback.uploader.conflicts.count == 0


@trio_test
async def test_after_a_failed_try_what_others_changed_meanwhile_stays(tmp_path: Path) -> None:
    store = FakeStore()
    base = store.place(PREFIX + "a", b"base")

    def change_after_the_first(store: FakeStore, request: Request) -> None:
        if request.operation == "PutObject":
            store.unhook()
            store.place(PREFIX + "a", b"theirs")
            raise AccessDenied("not now")

    async with open_house(tmp_path / "s", store) as house:
        store.hook(change_after_the_first)
        with pytest.raises(AccessDenied):
            await house.writeback.publish(await staged_with(house, "a", b"ours", base))
        await house.writeback.drain()
        assert store.below(PREFIX)["a"] == b"theirs"
        assert sorted(store.below(PREFIX).values()) == [b"ours", b"theirs"]


@trio_test
async def test_a_file_that_is_written_again_after_an_upload_without_an_answer_is_no_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writebacks, "RETRY_FIRST_S", 60.0)  # no try between the two writes
    store = FakeStore()
    base = store.place(PREFIX + "a", b"old")
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        staged = await staged_with(house, "a", b"first", base)
        store.fail(2, QuotaExceeded("the answer was lost"), after=True)  # of the put, after a HEAD
        with pytest.raises(QuotaExceeded):
            await house.writeback.publish(staged)
        assert store.below(PREFIX) == {"a": b"first"}
        await house.staging.truncate(staged, 0)
        await house.staging.write(staged, 0, b"second")
        await house.staging.promise(staged, Promise.CLOSED, durable=False)
    async with open_house(tmp_path / "s", store) as house:  # and it is known after a crash, too
        await house.writeback.drain()
        assert store.below(PREFIX) == {"a": b"second"}
        assert house.writeback.uploader.conflicts.count == 0


@trio_test
async def test_torn_bytes_that_a_registry_took_are_no_conflict(tmp_path: Path) -> None:
    """Written to while it was sent, to a registry that does not look at Content-MD5."""
    store = FakeStore()
    base = store.place(PREFIX + "a", b"base")

    def take_what_changes(store: FakeStore, request: Request) -> None:
        if request.operation == "PutObject":
            store.unhook()
            trio.from_thread.run(house.staging.write, staged, 1, b"xx")
            torn = store.place(PREFIX + "a", b"data, torn")
            raise WrongBytes("others than were sent", torn.id.etag)

    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_with(house, "a", b"data", base)
        store.hook(take_what_changes)
        await house.writeback.publish(staged)
        assert store.below(PREFIX) == {"a": b"dxxa"}


@trio_test
async def test_a_file_that_is_removed_while_it_waits_is_never_uploaded(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store) as house:
        staged = await staged_with(house, "a", b"data")
        store.is_down = True
        with pytest.raises(RegistryUnavailable):
            await house.writeback.publish(staged)
        await house.staging.discard(staged)
        store.is_down = False
        await house.writeback.drain()
        assert store.below(PREFIX) == {}
        assert list(house.layout.staged.iterdir()) == []
