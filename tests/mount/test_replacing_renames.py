"""A file is renamed over one whose own upload is still to come, in-process on the fake registry."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from modelfs.errors import AccessDenied, ModelfsError
from modelfs.mount import moving
from modelfs.store import stagedfolder
from modelfs.store.stagedfile import Promise, StagedFile
from tests.fake_store import FakeStore, Request
from tests.mount.test_tree_model import MAIN, Kernel
from tests.trio_tests import LLAMA, PREFIX, House, open_house, trio_test, until

BEFORE, WRITTEN, NEW = b"before", b"written and not sent yet", b"new"
REQUESTS_MAX = 30


async def file_that_waits(house: House) -> StagedFile:
    """Return a file that was closed, and that the registry does not have yet."""
    base = house.registry.known_file(LLAMA, "f")
    staged = await house.staging.create(LLAMA, "f", base)
    await house.staging.write(staged, 0, WRITTEN)
    await house.staging.promise(staged, Promise.CLOSED, durable=False)
    return staged


def filled(store: FakeStore) -> FakeStore:
    for path, data in {"": b"", "f": BEFORE, "f.new": NEW}.items():
        store.place(PREFIX + path, data)
    return store


@pytest.mark.parametrize("held", ["HeadObject", "PutObject"])
@trio_test
async def test_an_upload_that_is_under_way_never_replaces_what_is_renamed_over_it(
    tmp_path: Path, held: str
) -> None:
    store = filled(FakeStore())
    async with open_house(tmp_path / "s", store) as house:
        kernel = Kernel(house)
        await kernel.read(*MAIN)
        staged = await file_that_waits(house)
        gate = store.hold(held, PREFIX + "f")
        house.writeback.start(staged)
        await until(lambda: gate.waiting)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.rename, "f.new", "f")
            with trio.move_on_after(1.0):  # it waits for the upload: that it did not was the fault
                await until(lambda: store.requests().get("CopyObject"))
            gate.open()
        await house.writeback.drain()
        assert store.below(PREFIX) == {"f": NEW}
        assert (await kernel.read(*MAIN))[0] == {"f": NEW}
        assert house.writeback.uploader.conflicts.count == 0


@pytest.mark.parametrize("after", [False, True])
@trio_test
async def test_a_crash_anywhere_in_a_rename_over_a_file_that_waits_makes_no_conflict(
    tmp_path: Path, after: bool
) -> None:
    for number in range(1, REQUESTS_MAX):
        store, is_renamed = filled(FakeStore()), True
        async with open_house(tmp_path / str(number), store, is_crash=True) as house:
            kernel = Kernel(house)
            await kernel.read(*MAIN)
            await file_that_waits(house)
            begun = len(store.sent)
            store.fail(number, AccessDenied("it is dead by now"), after=after)
            try:
                await kernel.rename("f.new", "f")
            except ModelfsError:
                is_renamed = False
        sent = [request.operation for request in store.sent[begun:]]
        async with open_house(tmp_path / str(number), store) as house:
            await house.writeback.drain()
            found = store.below(PREFIX)
            assert house.writeback.uploader.conflicts.count == 0, sent
        if is_renamed:
            assert found == {"f": NEW}, sent
        if len(sent) < number:
            assert is_renamed
            return
        # All as before it, or the new file, once or twice: nothing that was promised is gone.
        twice = {"f": NEW, "f.new": NEW}
        assert found in ({"f": WRITTEN, "f.new": NEW}, twice, {"f": NEW}), sent
    raise AssertionError("it made more requests than were expected")


@trio_test
async def test_what_is_replaced_is_gone_durably_before_the_old_name_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, synced = filled(FakeStore()), list[set[str]]()
    monkeypatch.setattr(moving, "sync_folder", lambda path: synced.append(set(store.requests())))
    async with open_house(tmp_path / "s", store) as house:
        kernel = Kernel(house)
        await kernel.read(*MAIN)
        staged = await file_that_waits(house)
        await kernel.rename("f.new", "f")
        assert not staged.path.exists()
    assert store.below(PREFIX) == {"f": NEW}
    assert ["CopyObject" in seen and "DeleteObject" not in seen for seen in synced] == [True]


@trio_test
async def test_a_crash_anywhere_in_a_rename_of_a_file_that_waits_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is away: what is renamed, and what it replaces, are on this node alone."""
    seen: list[Path] = []
    numbers = iter(range(100))

    def watched(function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: object) -> None:
            function(*args)
            seen.append(tmp_path / f"after-{next(numbers)}")
            shutil.copytree(tmp_path / "s" / "staged", seen[-1] / "staged")

        return call

    for name in ("record", "remove"):
        monkeypatch.setattr(stagedfolder, name, watched(getattr(stagedfolder, name)))
    async with open_house(tmp_path / "s", filled(FakeStore()), is_crash=True) as house:
        kernel = Kernel(house)
        await kernel.read(*MAIN)
        await file_that_waits(house)
        staged = await house.staging.create(LLAMA, "f.tmp", None)
        await house.staging.write(staged, 0, NEW)
        await house.staging.promise(staged, Promise.CLOSED, durable=False)
        del seen[:-1]
        await kernel.rename("f.tmp", "f")
    monkeypatch.undo()
    states = []
    for folder in seen:
        store = filled(FakeStore())
        async with open_house(folder, store) as house:
            await house.writeback.drain()
            assert house.staging.aside == []
            states.append({**store.below(PREFIX), "f.new": b""})
    old = {"f": WRITTEN, "f.tmp": NEW, "f.new": b""}
    assert states[0] == old
    assert states[1:] == [{"f": NEW, "f.new": b""}] * (len(states) - 1)
    assert len(states) > 2


@pytest.mark.parametrize("base", [True, False])
@trio_test
async def test_what_others_put_while_a_file_waits_stays_where_it_is_when_that_is_renamed(
    tmp_path: Path, base: bool
) -> None:
    store = filled(FakeStore())
    if not base:
        store.take(PREFIX + "f")
    async with open_house(tmp_path / "s", store) as house:
        kernel = Kernel(house)
        await kernel.read(*MAIN)
        await file_that_waits(house)
        store.place(PREFIX + "f", b"theirs")
        await kernel.read(*MAIN)  # it is listed again: as old as a listing may be, it is not
        await kernel.rename("f", "g")
        (staged,) = house.staging
        house.writeback.start(staged)
        await house.writeback.drain()
        assert store.below(PREFIX) == {"f": b"theirs", "g": WRITTEN, "f.new": NEW}
        assert house.writeback.uploader.conflicts.count == 0


@trio_test
async def test_what_others_put_while_a_file_waits_stays_beside_it_when_its_folder_is_renamed(
    tmp_path: Path,
) -> None:
    store = FakeStore()
    for path in ("", "d/", "d/f", "d/other"):
        store.place(PREFIX + path, BEFORE if path.endswith(("f", "r")) else b"")
    async with open_house(tmp_path / "s", store) as house:
        kernel = Kernel(house)
        await kernel.read(*MAIN)
        staged = {}
        for path in ("d/f", "d/other", "d/new"):
            base = house.registry.known_file(LLAMA, path)
            staged[path] = await house.staging.create(LLAMA, path, base)
            await house.staging.write(staged[path], 0, WRITTEN)
            await house.staging.promise(staged[path], Promise.CLOSED, durable=False)
        store.place(PREFIX + "d/f", b"theirs")
        await kernel.rename("d", "e")
        for one in staged.values():
            house.writeback.start(one)
        await house.writeback.drain()
        found = store.below(PREFIX)
        (conflict,) = (path for path in found if "conflict" in path)
        assert conflict.startswith("e/f.conflict-node-a-")
        assert {path: data for path, data in found.items() if data} == {
            "e/f": b"theirs",
            conflict: WRITTEN,
            "e/other": WRITTEN,
            "e/new": WRITTEN,
        }


@trio_test
async def test_a_file_that_waits_since_before_a_restart_is_renamed_with_its_object(
    tmp_path: Path,
) -> None:
    store = filled(FakeStore())
    async with open_house(tmp_path / "s", store, is_crash=True) as house:
        await Kernel(house).read(*MAIN)
        await file_that_waits(house)

    def refuse(store: FakeStore, request: Request) -> None:
        if (request.operation, request.key) == ("PutObject", PREFIX + "f"):
            raise AccessDenied("not by this name")

    store.hook(refuse)
    async with open_house(tmp_path / "s", store) as house:
        kernel = Kernel(house)
        await kernel.read(*MAIN)
        (staged,) = house.staging
        await until(lambda: staged.error)
        await kernel.rename("f", "g")
        await house.writeback.drain()
        assert store.below(PREFIX) == {"g": WRITTEN, "f.new": NEW}
        assert (await kernel.read(*MAIN))[0] == {"g": WRITTEN, "f.new": NEW}
