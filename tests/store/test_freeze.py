"""Freezes: from mkdir to ready, or failed with a reason; never partial under models/."""

import errno
import hashlib
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from modelfs.errors import (
    AccessDenied,
    AlreadyExists,
    Busy,
    InvalidName,
    ModelfsError,
    NoData,
    NoSpace,
    NotFound,
    RegistryUnavailable,
    VersionFailed,
)
from modelfs.names import ModelId
from modelfs.store import freeze as freezing
from modelfs.store import freezes, pending, publishing, versions
from modelfs.store.freeze import State
from modelfs.store.layout import Layout
from modelfs.store.manifest import Manifest
from modelfs.store.sources import Caller
from tests.fake_store import FakeStore, Request, unavailable
from tests.trio_tests import LLAMA, PART, PREFIX, ROOT, open_house, trio_test, until, version


def data_of(name: str, parts: float) -> bytes:
    return random.Random(name).randbytes(int(parts * PART))


FILES = {
    "config.json": b"{}",
    "empty": b"",
    "weights/one": data_of("one", 2.5),
    "weights/two": data_of("two", 1),
}


def model(files: dict[str, bytes] | None = None) -> FakeStore:
    store = FakeStore()
    store.place(PREFIX, b"")
    store.place(PREFIX + "hollow/", b"")
    for path, data in (FILES if files is None else files).items():
        store.place(PREFIX + path, data)
    return store


def assert_sealed(layout: Layout, name: str) -> None:
    """Assert that a version's plain folder is read-only, with its attributes and manifest."""
    folder = layout.version(version(name))
    manifest = versions.read_manifest(layout, version(name))
    assert folder.stat().st_mode & 0o777 == 0o555
    assert manifest.ready_ns
    assert manifest.digest
    assert {e.path for e in manifest.files} == {
        str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()
    }
    for entry in manifest.files:
        path = folder / entry.path
        assert entry.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.stat().st_mode & 0o777 == 0o444
        assert path.stat().st_mtime_ns == entry.time_ns
    for path in folder.rglob("*/"):
        if path.is_dir():
            assert path.stat().st_mode & 0o777 == 0o555


@trio_test
async def test_a_version_holds_the_model_as_it_was_at_mkdir(tmp_path: Path) -> None:
    store = model()
    store.place(PREFIX + "config.json", b"{}", {"mtime": "1234.5"})
    async with open_house(tmp_path / "s", store) as house:
        view = await house.freeze("v1")
        assert (view.state, view.error) == (State.READY, None)
        assert view.done_bytes == view.manifest.size == sum(map(len, FILES.values()))
        assert house.plain("v1") == FILES
        assert_sealed(house.layout, "v1")
        folder = house.layout.version(version("v1"))
        assert (folder / "hollow").is_dir()
        assert (folder / "config.json").stat().st_mtime_ns == 1234_500_000_000
        assert os.getxattr(folder, "user.modelfs.state") == b"ready"
        assert os.getxattr(folder, "user.modelfs.digest").decode() == view.manifest.digest
        assert (await house.library.shelves.of(LLAMA)).aliases == {"latest": "v1"}
        assert not house.layout.pending(version("v1")).exists()
        assert store.requests() == {"ListObjectsV2": 1, "GetObject": 5}


@trio_test
async def test_a_freeze_begins_with_one_listing_and_is_there_at_once(tmp_path: Path) -> None:
    store = model()
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        await house.library.freezes.begin(version("v1"), Caller(1000, 1000))
        assert {r.operation for r in store.sent} <= {"ListObjectsV2", "GetObject"}
        assert store.requests()["ListObjectsV2"] == 1
        view = await house.library.view(version("v1"))
        assert view.state is State.DOWNLOADING
        assert view.manifest.uid == 1000
        assert sorted(view.folders["weights"].files) == ["one", "two"]
        assert (await house.library.shelves.of(LLAMA)).pending == {"v1"}
        assert not house.layout.version(version("v1")).exists()
        gate.open()
        assert (await house.ended("v1")).state is State.READY


@trio_test
async def test_what_cannot_be_frozen_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = model()
    store.place("models/acme/hollow/", b"")
    async with open_house(tmp_path / "s", store) as house:
        library = house.library

        async def refused(error: type[ModelfsError], name: str, of: ModelId = LLAMA) -> None:
            with pytest.raises(error):
                await library.freezes.begin(version(name, of), ROOT)

        await refused(InvalidName, "weights")
        await refused(NotFound, "v1", ModelId("acme", "nothing"))
        await refused(NoData, "v1", ModelId("acme", "hollow"))
        staged = await house.staging.create(LLAMA, "new", None)
        await refused(Busy, "v1")
        await house.staging.discard(staged)
        store.place(PREFIX + "a//b", b"")
        await refused(InvalidName, "v1")
        store.take(PREFIX + "a//b")
        with monkeypatch.context() as patch:
            patch.setattr(freezes, "free_bytes", lambda _: (PART, 100 * PART))
            await refused(NoSpace, "v1")
        store.is_down = True
        await refused(RegistryUnavailable, "v1")
        store.is_down = False
        await house.registry.wait_reachable()
        assert list(house.layout.pending_root.rglob("*.json")) == []
        await house.freeze("v1")
        await refused(AlreadyExists, "v1")


@trio_test
async def test_a_read_of_what_is_coming_is_served_first_and_right(tmp_path: Path) -> None:
    big = data_of("big", 40)
    store = model({"big": big, "small": b"s"})
    async with open_house(tmp_path / "s", store, parallel=1) as house:
        gate = store.hold("GetObject")
        await house.library.freezes.begin(version("v1"), ROOT)
        await until(lambda: gate.waiting)
        view = await house.library.view(version("v1"))
        file = await house.library.open(version("v1"), view.folders[""].files["big"])
        answers: list[bytes] = []

        async def read() -> None:
            answers.append(bytes(await file.read(39 * PART + 5, 100)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await until(
                lambda: 39 in house.library.freezes._under_way[version("v1")]._coming["big"].flights
            )
            gate.open()
        assert answers == [big[39 * PART + 5 :][:100]]
        assert 39 * PART in [r.offset for r in store.sent if r.operation == "GetObject"][:4]
        with pytest.raises(Busy):
            await house.library.remove(version("v1"))
        assert (await house.ended("v1")).state is State.READY
        assert await file.read(0, len(big)) == big  # the open file goes on
        file.close()
        gets = store.requests()["GetObject"]
        view = await house.library.view(version("v1"))
        file = await house.library.open(version("v1"), view.folders[""].files["big"])
        assert await file.read(7, 9) == big[7:16]
        file.close()
        assert store.requests()["GetObject"] == gets == 41
        await house.library.remove(version("v1"))


@trio_test
async def test_a_shelf_that_was_read_before_a_change_is_not_remembered_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(tmp_path / "s", model()) as house:
        await house.freeze("v1")
        real, has_read, may_end = versions.shelf, threading.Event(), threading.Event()

        def slowly(layout: Layout, model: ModelId) -> versions.ModelShelf:
            found = real(layout, model)
            has_read.set()
            may_end.wait(10)
            return found

        house.library.shelves.changed(LLAMA)
        async with trio.open_nursery() as nursery:
            monkeypatch.setattr(versions, "shelf", slowly)
            nursery.start_soon(house.library.shelves.of, LLAMA)
            await until(has_read.is_set)
            monkeypatch.undo()
            await house.library.make_alias(LLAMA, "production", "v1", 0)
            may_end.set()
        assert (await house.library.shelves.of(LLAMA)).aliases["production"] == "v1"


@trio_test
async def test_a_file_can_be_opened_in_the_moment_of_mkdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = model()
    real, may_begin = pending.make_folders, threading.Event()

    def make_folders(folder: Path, manifest: Manifest) -> None:
        may_begin.wait(10)
        real(folder, manifest)

    monkeypatch.setattr(pending, "make_folders", make_folders)
    async with open_house(tmp_path / "s", store) as house:
        await house.library.freezes.begin(version("v1"), ROOT)
        view = await house.library.view(version("v1"))
        file = await house.library.open(version("v1"), view.folders["weights"].files["one"])
        assert await file.read(PART, 10) == FILES["weights/one"][PART : PART + 10]
        may_begin.set()
        file.close()
        assert (await house.ended("v1")).state is State.READY
        assert house.plain("v1") == FILES


@trio_test
async def test_unchanged_files_are_links_to_the_earlier_version(tmp_path: Path) -> None:
    store = model()
    async with open_house(tmp_path / "s", store) as house:
        await house.freeze("v1")
        gets = store.requests()["GetObject"]
        store.place(PREFIX + "config.json", b'{"new": 1}')
        store.place(PREFIX + "weights/two", FILES["weights/two"])  # put anew, the same bytes
        await house.freeze("v2")
        assert store.requests()["GetObject"] == gets + 1
        first, second = (house.layout.version(version(name)) for name in ("v1", "v2"))
        for path in ("weights/one", "weights/two"):
            assert (first / path).samefile(second / path)
        assert not (first / "config.json").samefile(second / "config.json")
        assert house.plain("v1") == FILES
        assert house.plain("v2") == {**FILES, "config.json": b'{"new": 1}'}
        await house.library.remove(version("v1"))
        assert house.plain("v2")["weights/one"] == FILES["weights/one"]
        await house.freeze("v3")
        assert store.requests()["GetObject"] == gets + 1
        assert_sealed(house.layout, "v3")


@trio_test
async def test_what_is_complete_in_the_cache_is_linked_with_no_get(tmp_path: Path) -> None:
    files = {path: data for path, data in FILES.items() if data}
    store = model(files)
    async with open_house(tmp_path / "s", store) as house:
        for path in files:
            await house.read(PREFIX + path)
        gets = store.requests()["GetObject"]
        await house.freeze("v1")
        assert store.requests()["GetObject"] == gets
        cached = house.cache.complete_file(store._info(PREFIX + "weights/one").id)
        assert cached is not None
        assert cached.is_sealed
        assert cached.path.samefile(house.layout.version(version("v1")) / "weights/one")
        house.cache.max_bytes = 0
        await house.cache.make_room(1)  # the cache's names go, the version's bytes stay
        await until(lambda: not cached.path.exists())
        assert house.plain("v1") == files
        assert_sealed(house.layout, "v1")


@trio_test
async def test_wrong_bytes_in_the_cache_are_fetched_and_not_linked(tmp_path: Path) -> None:
    store = model({"a": data_of("a", 2)})
    async with open_house(tmp_path / "s", store) as house:
        await house.read(PREFIX + "a")
        file = house.cache.complete_file(store._info(PREFIX + "a").id)
        assert file is not None
        await until(lambda: file.users == 0)
        with file.path.open("r+b") as rotten:
            rotten.write(b"rot")
        view = await house.freeze("v1")
        assert view.state is State.READY
        assert house.plain("v1") == {"a": data_of("a", 2)}


# --------------------------------------------------------------- what fails


@trio_test
async def test_wrong_bytes_are_fetched_again_and_three_times_are_a_failure(
    tmp_path: Path,
) -> None:
    for times in range(1, 4):
        store = model({"a": b"data", "b": b"good"})
        async with open_house(tmp_path / str(times), store) as house:
            store.flip(PREFIX + "a", times)
            view = await house.freeze("v1")
            if times < 3:
                assert view.state is State.READY
                assert house.plain("v1") == {"a": b"data", "b": b"good"}
            else:
                assert view.state is State.FAILED
                assert PREFIX + "a" in str(view.error)
                assert "MD5" in str(view.error)
                assert not house.layout.version(version("v1")).exists()


def overwrite(store: FakeStore) -> None:
    store.place(PREFIX + "weights/one", b"other")


def delete(store: FakeStore) -> None:
    store.take(PREFIX + "weights/one")


@pytest.mark.parametrize("change", [overwrite, delete])
@pytest.mark.parametrize("at_get", [1, 3])
@trio_test
async def test_an_object_that_changes_in_mid_freeze_fails_it_with_the_file_and_reason(
    tmp_path: Path, change: Callable[[FakeStore], None], at_get: int
) -> None:
    store = model({"weights/one": FILES["weights/one"]})
    gets: list[Request] = []

    def hook(store: FakeStore, request: Request) -> None:
        gets.append(request)
        if request.operation == "GetObject" and len(gets) == 1 + at_get:
            change(store)

    async with open_house(tmp_path / "s", store, parallel=1) as house:
        store.hook(hook)
        view = await house.freeze("v1")
        assert view.state is State.FAILED
        assert f"{PREFIX}weights/one changed or vanished" in str(view.error)
        assert not house.layout.version(version("v1")).exists()
        with pytest.raises(VersionFailed, match="vanished"):
            await house.library.open(version("v1"), view.manifest.files[0])
        with pytest.raises(AlreadyExists):
            await house.library.freezes.begin(version("v1"), ROOT)
        store.unhook()
        store.place(PREFIX + "weights/one", b"third")
    async with open_house(tmp_path / "s", store) as house:  # failed it stays over a restart
        view = await house.library.view(version("v1"))
        assert view.state is State.FAILED
        assert "vanished" in str(view.error)
        await house.library.remove(version("v1"))
        with pytest.raises(NotFound):
            await house.library.view(version("v1"))
        assert (await house.freeze("v1")).state is State.READY
        assert house.plain("v1") == {"weights/one": b"third"}


@trio_test
async def test_a_freeze_waits_for_a_registry_that_is_down_and_says_why(tmp_path: Path) -> None:
    store = model()
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        await house.library.freezes.begin(version("v1"), ROOT)
        await until(lambda: gate.waiting)
        store.is_down = True
        gate.open()
        freeze = house.library.freezes._under_way[version("v1")]
        await until(lambda: freeze.error)
        view = await house.library.view(version("v1"))
        assert (view.state, view.error) == (State.DOWNLOADING, "the fake registry is down")
        await until(lambda: not house.registry.reachability.reachable)
        store.is_down = False
        view = await house.ended("v1")
        assert (view.state, view.error) == (State.READY, None)
        assert house.plain("v1") == FILES


@pytest.mark.parametrize(
    "error", [unavailable(), AccessDenied("a person can mend it"), OSError(5, "I/O error", "x")]
)
@trio_test
async def test_wherever_a_request_fails_once_the_version_is_ready_in_the_end(
    tmp_path: Path, error: Exception
) -> None:
    for number in range(1, 40):
        store = model()
        store.fail(number, error)
        async with open_house(tmp_path / str(number), store) as house:
            try:
                await house.library.freezes.begin(version("v1"), ROOT)
            except (ModelfsError, OSError):
                assert number == 1
                assert not list(house.layout.pending_root.rglob("manifest.json"))
                await house.library.freezes.begin(version("v1"), ROOT)
            view = await house.ended("v1")
            assert view.state is State.READY, view.error
            assert house.plain("v1") == FILES
            assert_sealed(house.layout, "v1")
        if len(store.sent) < number:
            assert number > 6
            return
    raise AssertionError("it made more requests than were expected")


@trio_test
async def test_a_freeze_is_given_up_by_rmdir_wherever_it_is(tmp_path: Path) -> None:
    for number in range(1, 30):
        store = model()
        async with open_house(tmp_path / str(number), store) as house:
            await house.library.freezes.begin(version("v1"), ROOT)
            for _ in range(number * 3):
                await trio.lowlevel.checkpoint()
            if number % 3 == 0:
                await trio.sleep(number / 1000)
            await house.library.remove(version("v1"))
            assert not house.layout.version(version("v1")).exists()
            with pytest.raises(NotFound):
                await house.library.view(version("v1"))
            assert list(house.library.freezes) == []
            if not house.layout.retired(version("v1")).exists():
                assert (await house.freeze("v1")).state is State.READY
                assert house.plain("v1") == FILES


@trio_test
async def test_a_version_that_becomes_ready_while_it_is_removed_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = model()
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("GetObject")
        await house.library.freezes.begin(version("v1"), ROOT)
        real = versions.shelf

        def shelf(layout: Layout, model: ModelId) -> versions.ModelShelf:
            found = real(layout, model)
            if found.pending:
                monkeypatch.undo()
                gate.open()
                end = house.library.freezes._under_way[version("v1")]
                while end.state is not State.READY:
                    os.sched_yield()
            return found

        await until(lambda: gate.waiting)
        monkeypatch.setattr(versions, "shelf", shelf)
        await house.library.remove(version("v1"))
        assert not house.layout.version(version("v1")).exists()


@trio_test
async def test_a_version_that_has_just_become_ready_is_removed_after_its_freeze_s_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, follow = threading.Event(), publishing.follow_latest

    def held(*args: Any) -> None:
        assert gate.wait(5)
        follow(*args)

    monkeypatch.setattr(publishing, "follow_latest", held)
    async with open_house(tmp_path / "s", model()) as house:
        await house.library.freezes.begin(version("v1"), ROOT)
        (freeze,) = house.library.freezes
        await until(lambda: freeze.state is State.READY)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house.library.remove, version("v1"))
            await trio.sleep(0.02)
            assert house.layout.version(version("v1")).exists()
            gate.set()
        assert not house.layout.version(version("v1")).exists()
        assert list(house.library.freezes) == []
    assert "waits" not in caplog.text


@trio_test
async def test_a_version_that_was_removed_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = model()
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "discard_pending", lambda *_: None)  # it died just before
        async with open_house(tmp_path / "s", store) as house:
            await house.freeze("v1")
            assert house.layout.pending(version("v1")).exists()
    async with open_house(tmp_path / "s", store, watches=False) as house:
        await house.library.remove(version("v1"))
    async with open_house(tmp_path / "s", store) as house:
        assert list(house.library.freezes) == []
        with pytest.raises(NotFound):
            await house.library.view(version("v1"))


# ------------------------------------------------------------------ restarts


@trio_test
async def test_a_freeze_whose_last_step_the_disk_refuses_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    store = model()
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "discard_pending", lambda *_: None)  # it died just before
        async with open_house(tmp_path / "s", store) as house:
            await house.freeze("v1")
    async with open_house(tmp_path / "s", store, watches=False) as house:
        with monkeypatch.context() as patch:
            patch.setattr(publishing, "follow_latest", refuse)
            with pytest.raises(OSError, match="full"):
                await house.library.freezes.resume()
        assert house.layout.pending(version("v1")).exists()
        await house.library.freezes.resume()
        assert not house.layout.pending(version("v1")).exists()
        assert (await house.library.view(version("v1"))).state is State.READY


class Killed(BaseException):
    """The end of the process: nothing catches it."""


STEPS = [
    (freezing, "write_durably"),
    (pending, "make_folders"),
    (pending, "unchanged_files"),
    (pending, "hashes"),
    (pending, "seal_file"),
    (pending, "put_in_place"),
    (pending, "seal_folders"),
    (publishing, "publish"),
    (publishing, "write_durably"),
    (publishing, "follow_latest"),
    (publishing, "discard_pending"),
    (os, "rename"),
    (os, "chmod"),
    (os, "link"),
]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("module", "name"), STEPS, ids=[name for _, name in STEPS])
@trio_test
async def test_a_daemon_that_dies_at_any_step_leaves_what_another_finishes(
    tmp_path: Path, module: object, name: str, after: bool
) -> None:
    for number in range(1, 60):
        folder = tmp_path / str(number)
        store = model()
        async with open_house(folder, store) as house:  # so that there is something to link
            await house.freeze("v0")
        store.place(PREFIX + "config.json", b"new")
        files = {**FILES, "config.json": b"new"}
        with pytest.MonkeyPatch.context() as patch:
            counted = die_at(patch, module, name, number, after)
            try:
                async with open_house(folder, store, is_crash=True) as house:
                    await house.library.freezes.begin(version("v1"), ROOT)
                    freeze = house.library.freezes._under_way[version("v1")]
                    await freeze.over.wait()
            except BaseException as error:
                if not find(error):
                    raise
        layout = Layout(folder, "node-a")
        if layout.version(version("v1")).exists():
            assert house.plain("v1") == files
        async with open_house(folder, store, host="node-b") as house:
            shelf = versions.shelf(layout, LLAMA)
            if "v1" not in shelf.ready | shelf.pending:  # mkdir never came back
                await house.library.freezes.begin(version("v1"), ROOT)
            view = await house.ended("v1")
            assert view.state is State.READY, view.error
            assert house.plain("v1") == files
            assert_sealed(layout, "v1")
            assert (await house.library.shelves.of(LLAMA)).aliases["latest"] == "v1"
            assert not layout.pending(version("v1")).exists()
            assert house.plain("v0") == FILES
        if len(counted) < number:
            return
    raise AssertionError("there were more steps than were expected")


def die_at(
    patch: pytest.MonkeyPatch, module: object, name: str, number: int, after: bool
) -> list[int]:
    """Let the process die at the `number`-th call of a function."""
    real, counted = getattr(module, name), []

    def step(*args: object, **kwargs: object) -> object:
        counted.append(1)
        if len(counted) == number and not after:
            raise Killed
        found = real(*args, **kwargs)
        if len(counted) == number:
            raise Killed
        return found

    patch.setattr(module, name, step)
    return counted


def find(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(find(inner) for inner in error.exceptions)
    return isinstance(error, Killed)


@trio_test
async def test_a_restart_fetches_only_the_files_that_were_not_finished(tmp_path: Path) -> None:
    store = model()
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        gate = store.hold("GetObject", PREFIX + "weights/two")
        await house.library.freezes.begin(version("v1"), ROOT)
        freeze = house.library.freezes._under_way[version("v1")]
        await until(lambda: len(freeze.done) == 3 and gate.waiting)
    gate.open()
    sent = len(store.sent)
    async with open_house(tmp_path / "s", store) as house:
        assert (await house.ended("v1")).state is State.READY
        assert [r.key for r in store.sent[sent:]] == [PREFIX + "weights/two"]
        assert house.plain("v1") == FILES


@trio_test
async def test_a_node_leaves_the_freeze_of_a_living_one_alone_and_reads_from_it(
    tmp_path: Path,
) -> None:
    store, other = model(), model()
    async with open_house(tmp_path / "s", store) as here:
        gate = store.hold("GetObject")
        await here.library.freezes.begin(version("v1"), ROOT)
        async with open_house(tmp_path / "s", other, host="node-b") as there:
            await there.library.freezes.resume()
            assert list(there.library.freezes) == []
            view = await there.library.view(version("v1"))
            assert view.state is State.DOWNLOADING
            entry = view.folders["weights"].files["one"]
            file = await there.library.open(version("v1"), entry)
            assert await file.read(5, 100) == FILES["weights/one"][5:105]
            file.close()
            with pytest.raises(AlreadyExists):
                await there.library.freezes.begin(version("v1"), ROOT)
            gate.open()
            await here.ended("v1")
            assert (await there.ended("v1")).state is State.READY
            view = await there.library.view(version("v1"))
            file = await there.library.open(version("v1"), view.folders["weights"].files["one"])
            gets = other.requests()["GetObject"]
            assert await file.read(0, 3 * PART) == FILES["weights/one"]
            file.close()
            assert other.requests()["GetObject"] == gets


@trio_test
async def test_a_freeze_that_another_node_works_on_is_not_taken_away_from_it(
    tmp_path: Path,
) -> None:
    store = model()
    async with open_house(tmp_path / "s", store) as here:
        gate = store.hold("GetObject")
        await here.library.freezes.begin(version("v1"), ROOT)
        async with open_house(tmp_path / "s", model(), host="node-b") as there:
            with pytest.raises(Busy, match="another node"):
                await there.library.remove(version("v1"))
            gate.open()
            assert (await here.ended("v1")).state is State.READY
            assert here.plain("v1") == FILES


@trio_test
async def test_what_failed_here_may_be_cleared_and_frozen_by_another_node(
    tmp_path: Path,
) -> None:
    store, other = model({"a": b"data"}), model({"a": b"better"})
    store.flip(PREFIX + "a", 3)
    async with open_house(tmp_path / "s", store) as here:
        assert (await here.freeze("v1")).state is State.FAILED
        await here.library.freezes._under_way[version("v1")].over.wait()
        async with open_house(tmp_path / "s", other, host="node-b", is_crash=True) as there:
            assert (await there.library.view(version("v1"))).state is State.FAILED
            await there.library.remove(version("v1"))
            here.library.shelves.changed(LLAMA)
            with pytest.raises(NotFound):
                await here.library.view(version("v1"))
            gate = other.hold("GetObject")
            await there.library.freezes.begin(version("v1"), ROOT)
            here.library.shelves.changed(LLAMA)
            view = await here.library.view(version("v1"))
            assert (view.state, view.error) == (State.DOWNLOADING, None)
            with pytest.raises(Busy):
                await here.library.remove(version("v1"))
        gate.open()
        store.place(PREFIX + "a", b"better")
        await here.library.freezes.resume()  # the other node has died
        assert (await here.ended("v1")).state is State.READY
        assert here.plain("v1") == {"a": b"better"}


@trio_test
async def test_a_bug_fails_the_freeze_with_a_reason_and_rmdir_clears_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(tmp_path / "s", model()) as house:
        with monkeypatch.context() as patch:
            patch.setattr(pending, "hashes", lambda *_: 1 / 0)
            view = await house.freeze("v1")
        assert (view.state, view.error) == (State.FAILED, "a bug of modelfs: see the log")
        await house.library.remove(version("v1"))
        assert (await house.freeze("v1")).state is State.READY


@trio_test
async def test_a_multipart_object_is_frozen_too(tmp_path: Path) -> None:
    store = model({})
    store.place(PREFIX + "big", data_of("big", 3), part_size=PART)
    async with open_house(tmp_path / "s", store) as house:
        assert (await house.freeze("v1")).state is State.READY
        assert house.plain("v1") == {"big": data_of("big", 3)}
        assert_sealed(house.layout, "v1")
        assert house.fetcher.fetched_parts == 3
