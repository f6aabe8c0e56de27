"""Uploads in parts that nobody goes on with."""

import time
from pathlib import Path

import pytest
import trio

from modelfs.errors import AccessDenied, RegistryUnavailable
from modelfs.store import leftuploads, uploads
from modelfs.store.stagedfile import BegunUpload, StagedFile
from tests.fake_store import FakeStore
from tests.trio_tests import LLAMA, PREFIX, House, open_house, trio_test, until


async def begun(house: House) -> StagedFile:
    """Return a file whose upload has begun."""
    staged = await house.staging.create(LLAMA, "a", None)
    await house.staging.write(staged, 0, b"data")
    await house.writeback.uploader._begun(staged)
    return staged


def is_on_record(house: House) -> bool:
    """Tell whether a start would look for an upload."""
    return (house.layout.staged / "uploads.left").exists()


@trio_test
async def test_an_upload_in_parts_that_was_left_is_aborted_however_many_restarts_it_takes(
    tmp_path: Path,
) -> None:
    """Killed again before the registry could be asked to abort it."""
    store = FakeStore()
    async with open_house(tmp_path, store, is_crash=True) as house:
        await begun(house)
        assert store.uploads_open == 1
    for _ in range(2):
        store.is_down = True
        async with open_house(tmp_path, store, is_crash=True) as house:
            assert [staged.name for staged in house.staging.aside] == ["a"]
    store.is_down = False
    async with open_house(tmp_path, store, is_crash=True) as house:
        assert store.uploads_open == 1
        await house.writeback.uploader.sweep()
        assert store.uploads_open == 0
        assert house.writeback.uploader.unfinished == []


@trio_test
async def test_an_upload_whose_request_arrives_late_is_aborted_when_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was on its way when its daemon was killed, and the next one looked before it arrived."""
    monkeypatch.setattr(uploads, "SWEEP_INTERVAL_S", 0.01)
    store = FakeStore()
    async with open_house(tmp_path, store, is_crash=True) as house:
        staged = await house.staging.create(LLAMA, "a", None)
        store.fail(1, AccessDenied("killed"))
        with pytest.raises(AccessDenied):
            await house.writeback.uploader._begun(staged)
    async with open_house(tmp_path, store, is_crash=True) as house:
        house.background.start_soon(house.writeback.uploader.keep_sweeping, name="sweep")
        await until(lambda: store.requests().get("ListMultipartUploads", 0) > 2)
        store.start_upload(PREFIX + "a", {})
        await until(lambda: store.uploads_open == 0)
        assert is_on_record(house)
        monkeypatch.setattr(leftuploads, "LATE_NS", 0)
        await until(lambda: not is_on_record(house))


@trio_test
async def test_an_upload_that_cannot_be_aborted_now_is_aborted_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftuploads, "LATE_NS", 0)
    store = FakeStore()
    async with open_house(tmp_path, store) as house:
        staged, uploader = await begun(house), house.writeback.uploader
        store.is_down = True
        await uploader._abandon(staged)
        with pytest.raises(RegistryUnavailable):
            await uploader._begun(staged)
        assert store.uploads_open == 1
        store.is_down = False
        await house.registry.wait_reachable()
        await uploader.sweep()
        assert store.uploads_open == 0
        assert not is_on_record(house)


@trio_test
async def test_an_upload_of_this_daemon_is_not_taken_for_one_that_was_left(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path, store) as house:
        await house.staging.left_uploads.add(BegunUpload(PREFIX + "a", None, time.time_ns()))
        gate = store.hold("CreateMultipartUpload")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(begun, house)
            await until(lambda: gate.waiting)
            store.unhook()
            store.start_upload(PREFIX + "a", {})  # as if its answer were on its way
            await house.writeback.uploader.sweep()
            assert store.uploads_open == 1
            assert house.writeback.uploader.unfinished == []
            gate.open()
        await house.writeback.uploader.sweep()
        assert store.uploads_open == 1, "but that other one was nobody's"
        (staged,) = house.staging
        await house.writeback.uploader._abandon(staged)
        assert store.uploads_open == 0


@trio_test
async def test_uploads_on_record_have_a_bound_and_a_damaged_record_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(leftuploads, "LEFT_MAX", 3)
    store = FakeStore()
    async with open_house(tmp_path, store, is_crash=True) as house:
        for number in range(5):
            await house.staging.left_uploads.add(BegunUpload(PREFIX + "a", str(number), 5))
            await house.staging.left_uploads.add(BegunUpload(PREFIX + "a", str(number), 6))
        record = house.layout.staged / "uploads.left"
        assert [line.split(",")[1] for line in record.read_text().split("], [")] == [
            ' "2"',
            ' "3"',
            ' "4"',
        ]
    record.write_bytes(b"[5")
    async with open_house(tmp_path, store, is_crash=True) as house:
        assert "is damaged" in caplog.text
        assert house.staging.aside == []
        await house.staging.left_uploads.add(BegunUpload(PREFIX + "a", "7", 5))
    async with open_house(tmp_path, store) as house:
        assert is_on_record(house)
