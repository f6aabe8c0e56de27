"""Staged files, and what a restart finds of them."""

import json
import logging
from pathlib import Path

import pytest

from modelfs.store.stagedfile import Promise, StagedFile
from tests.fake_store import FakeStore
from tests.trio_tests import LLAMA, PREFIX, House, open_house, trio_test, until


async def staged_with(house: House, name: str, data: bytes) -> StagedFile:
    staged = await house.staging.create(LLAMA, name, None)
    await house.staging.write(staged, 0, data)
    return staged


@trio_test
async def test_a_staged_file_is_written_read_and_cut_anywhere(tmp_path: Path) -> None:
    async with open_house(tmp_path / "s", FakeStore()) as house:
        staging = house.staging
        staged = await staged_with(house, "a/b", b"0123456789")
        await staging.write(staged, 20, b"end")
        assert await staging.read(staged, 0, 100) == b"0123456789" + bytes(10) + b"end"
        assert await staging.read(staged, 23, 1) == b""
        await staging.truncate(staged, 5)
        await staging.truncate(staged, 7)
        assert await staging.read(staged, 3, 9) == b"34\0\0"
        assert staging.get(LLAMA, "a/b") is staged
        assert staging.in_folder(LLAMA, "a") == {"b": staged}
        assert staging.in_folder(LLAMA, "") == {}
        assert staging.below(LLAMA, "") == [staged]
        await staging.discard(staged)
        assert list(staging) == []
        assert list(house.layout.staged.iterdir()) == []


@trio_test
async def test_a_staged_file_begins_with_the_bytes_of_its_object(tmp_path: Path) -> None:
    store, data = FakeStore(), bytes(range(256)) * 1000
    info = store.place(PREFIX + "a", data)
    async with open_house(tmp_path / "s", store) as house:
        await house.read(PREFIX + "a")
        source = await house.cache.open(info)
        staged = await house.staging.create(LLAMA, "a", info, source, 200_000)
        house.cache.close(source)
        assert await house.staging.read(staged, 0, len(data)) == data[:200_000]
        assert staged.base_etag == info.id.etag


@trio_test
async def test_a_file_that_was_removed_is_readable_for_whoever_has_it_open(
    tmp_path: Path,
) -> None:
    async with open_house(tmp_path / "s", FakeStore()) as house:
        staged = await staged_with(house, "a", b"data")
        staged.users += 1
        await house.staging.discard(staged)
        assert house.staging.get(LLAMA, "a") is None
        assert not staged.is_dirty
        assert await house.staging.read(staged, 0, 9) == b"data"
        staged.users -= 1
        await house.writeback.settle(staged)
        assert list(house.layout.staged.iterdir()) == []


@pytest.mark.parametrize("promise", list(Promise))
@trio_test
async def test_a_restart_does_what_was_promised(
    tmp_path: Path, promise: Promise, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        staged = await staged_with(house, "dir/a", b"data")
        await house.staging.promise(staged, promise, durable=False)
    async with open_house(tmp_path / "s", store) as house:
        await house.writeback.drain()
        is_uploaded = promise is Promise.CLOSED
        assert store.below(PREFIX) == ({"dir/a": b"data"} if is_uploaded else {})
        is_aside = promise in (Promise.OPEN, Promise.ASIDE)
        assert [s.name for s in house.staging.aside] == (["dir/a"] if is_aside else [])
        assert [s.path.read_bytes() for s in house.staging.aside] == [b"data"] * is_aside
        is_local = promise is Promise.LOCAL
        await until(lambda: [s.name for s in house.staging] == ["dir/a"] * is_local)
        assert len(list(house.layout.staged.iterdir())) == 2 * (is_aside or is_local)
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        async with open_house(tmp_path / "s", store) as house:
            assert len(house.staging.aside) == is_aside
    told = [record.getMessage() for record in caplog.records]
    assert told == ["files kept aside: 1 (`modelfs status` lists them)"] * is_aside


@trio_test
async def test_what_is_written_after_an_fsync_goes_with_it(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        staged = await staged_with(house, "a", b"data")
        await house.staging.promise(staged, Promise.CLOSED, durable=True)
        await house.staging.write(staged, 4, b" and more")
    async with open_house(tmp_path / "s", store) as house:
        await house.writeback.drain()
        assert store.below(PREFIX) == {"a": b"data and more"}


@trio_test
async def test_the_promise_is_taken_back_when_a_file_that_is_up_is_written_again(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        staged = await staged_with(house, "a", b"good")
        staged.users += 1
        await house.writeback.publish(staged)
        await house.staging.truncate(staged, 0)
    async with open_house(tmp_path / "s", store) as house:
        await house.writeback.drain()
        assert store.below(PREFIX) == {"a": b"good"}
        assert [s.size for s in house.staging.aside] == [0]


@trio_test
async def test_of_two_files_of_one_path_one_is_put_aside(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        for data in (b"one", b"two"):
            staged = await staged_with(house, "a", data)
            await house.staging.promise(staged, Promise.CLOSED, durable=True)
    async with open_house(tmp_path / "s", store) as house:
        await house.writeback.drain()
        (aside,) = house.staging.aside
        assert {store.below(PREFIX)["a"], aside.path.read_bytes()} == {b"one", b"two"}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"model": "acme"}'])
@trio_test
async def test_a_damaged_record_is_left_alone_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: bytes
) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        staged = await staged_with(house, "a", b"data")
    staged.path.with_suffix(".json").write_bytes(damage)
    with caplog.at_level(logging.ERROR):
        async with open_house(tmp_path / "s", store) as house:
            assert list(house.staging) == []
    assert "damaged" in caplog.text
    assert staged.path.read_bytes() == b"data"


@trio_test
async def test_bytes_without_a_record_were_promised_to_nobody_and_go(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        staged = await staged_with(house, "a", b"data")
        staged.users += 1
        await house.staging.discard(staged)  # removed while it is open, then the power goes
        assert staged.path.exists()
        staged.path.with_suffix(".new").write_bytes(b"{")  # a record that was half made
    async with open_house(tmp_path / "s", store) as house:
        assert list(house.layout.staged.iterdir()) == []


@trio_test
async def test_a_record_whose_bytes_went_into_the_cache_is_forgotten(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        staged = await staged_with(house, "a", b"data")
    staged.path.unlink()
    async with open_house(tmp_path / "s", store) as house:
        assert list(house.layout.staged.iterdir()) == []


@trio_test
async def test_a_record_says_which_file_of_which_model_it_is(tmp_path: Path) -> None:
    async with open_house(tmp_path / "s", FakeStore()) as house:
        staged = await staged_with(house, "dir/日本語", b"data")
        staged.mtime_ns = 5
        await house.staging.promise(staged, Promise.CLOSED, durable=True)
        assert json.loads(staged.path.with_suffix(".json").read_bytes()) == {
            "model": "acme/llama",
            "path": "dir/日本語",
            "base_etag": None,
            "mtime_ns": 5,
            "promise": "closed",
            "sent_etags": [],
            "upload": None,
            "replaces": None,
        }
