"""Whose main/ a model has: the marker's word, the store's memory, and who may read."""

from pathlib import Path

import pytest
import trio

from modelfs.errors import Forbidden, InvalidName, NotEmpty, NotFound, StoreError
from modelfs.names import ModelId
from modelfs.store import sources
from modelfs.store.freeze import State
from modelfs.store.health import StoreHealth
from modelfs.store.sources import Caller
from modelfs.tables import NamespaceConfig
from tests.fake_store import FakeStore
from tests.trio_tests import LLAMA, PREFIX, ROOT, House, open_house, trio_test, until, version

LOCAL = ModelId("team-b", "llama")
MARKER = "models/team-b/llama/"


def registry(source: str | None = None) -> FakeStore:
    """acme/llama with a file, and the marker of team-b/llama."""
    store = FakeStore()
    store.place(PREFIX, b"")
    store.place(PREFIX + "a", b"a")
    store.place(MARKER, b"", {} if source is None else {"source": source})
    return store


async def found(house: House) -> ModelId | None:
    return await house.library.sources.find(LOCAL)


def remembered(house: House) -> bool:
    return (house.layout.model(LOCAL) / "main").is_symlink()


@trio_test
async def test_a_source_is_learned_from_the_marker_and_remembered(tmp_path: Path) -> None:
    store = registry("acme/llama")
    async with open_house(tmp_path / "s", store) as house:
        assert await found(house) == LLAMA
        assert remembered(house)
        store.place(MARKER, b"", {})
        assert await found(house) is None
        assert not remembered(house)


@trio_test
async def test_what_the_store_remembers_is_answered_while_the_registry_is_down_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ASK_LIMIT_S", 0.05)
    store = registry("acme/llama")
    async with open_house(tmp_path / "s", store) as house:
        assert await found(house) == LLAMA
        gate = store.hold("HeadObject")
        assert await found(house) == LLAMA
        assert gate.waiting
        gate.open()
        store.is_down = True
        assert await found(house) == LLAMA
        assert await house.library.sources.find(LLAMA) is None
        store.is_down = False


@trio_test
async def test_an_answer_of_before_a_change_does_not_undo_it(tmp_path: Path) -> None:
    store = registry()
    async with open_house(tmp_path / "s", store) as house:
        old = store.head(MARKER)
        gate = store.hold("HeadObject", MARKER)
        store.head = lambda key: (store._begin("HeadObject", key), old)[1]  # type: ignore[method-assign]
        answers: list[ModelId | None] = []

        async def ask() -> None:
            answers.append(await found(house))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: gate.waiting)
            del store.head
            store.unhook()
            await house.library.sources.set(LOCAL, "acme/llama", ROOT)
            gate.open()
        assert answers == [LLAMA]
        assert remembered(house)
        assert await found(house) == LLAMA


@trio_test
async def test_a_source_is_not_remembered_on_the_wrong_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_away(health: StoreHealth) -> None:
        raise StoreError("the store is away")

    store = registry("acme/llama")
    async with open_house(tmp_path / "s", store) as house:
        with monkeypatch.context() as patch:
            patch.setattr(StoreHealth, "check_now", is_away)
            assert await found(house) == LLAMA
            with pytest.raises(StoreError):
                await house.library.sources.set(LOCAL, "", ROOT)
        assert not remembered(house)
        assert store.head(MARKER).metadata == {"source": "acme/llama"}
        assert await found(house) == LLAMA
        assert remembered(house)


@trio_test
async def test_a_freeze_believes_the_marker_and_not_an_old_memory(tmp_path: Path) -> None:
    store = registry("acme/llama")
    store.place("models/acme/base/b", b"b")
    async with open_house(tmp_path / "s", store) as house:
        assert await found(house) == LLAMA
        store.place(MARKER, b"", {"source": "acme/base"})  # by a node with another store
        view = await house.freeze("v1", LOCAL)
        assert (view.state, view.manifest.source) == (State.READY, "acme/base")
        assert house.plain("v1", LOCAL) == {"b": b"b"}


@trio_test
async def test_chains_of_sources_are_refused(tmp_path: Path) -> None:
    store = registry("acme/llama")
    store.place("models/team-c/llama/", b"", {"source": "team-b/llama"})
    further = ModelId("team-c", "llama")
    async with open_house(tmp_path / "s", store) as house:
        with pytest.raises(InvalidName, match="acme/llama"):
            await house.library.freezes.begin(version("v1", further), ROOT)
        store.place("models/team-d/llama/", b"")
        with pytest.raises(InvalidName, match="it is acme/llama's"):
            await house.library.sources.set(ModelId("team-d", "llama"), "team-b/llama", ROOT)


@trio_test
async def test_hidden_keys_of_a_model_s_own_are_files_too(tmp_path: Path) -> None:
    store = registry()
    store.place(MARKER + "a//b", b"x")
    async with open_house(tmp_path / "s", store) as house:
        with pytest.raises(NotEmpty):
            await house.library.sources.set(LOCAL, "acme/llama", ROOT)


@trio_test
async def test_a_freeze_whose_source_is_gone_says_so(tmp_path: Path) -> None:
    store = registry("acme/nothing")
    async with open_house(tmp_path / "s", store) as house:
        with pytest.raises(NotFound, match="acme/nothing, the source of team-b/llama, is gone"):
            await house.library.freezes.begin(version("v1", LOCAL), ROOT)


@trio_test
async def test_the_daemon_reads_a_source_for_those_alone_who_may(tmp_path: Path) -> None:
    store = registry("acme/llama")
    closed = {"acme": NamespaceConfig(uid=1000, gid=2001, mode=0o750)}
    async with open_house(tmp_path / "s", store) as house:
        house.library.sources._namespace_of = lambda name: closed.get(name, NamespaceConfig())
        for caller in (Caller(1001, 1001), Caller(1001, 1001, lambda: {2002})):
            with pytest.raises(Forbidden):
                await house.library.freezes.begin(version("v1", LOCAL), caller)
            with pytest.raises(Forbidden):
                await house.library.sources.set(LOCAL, "acme/llama", caller)
        await house.library.freezes.begin(version("v1", LOCAL), Caller(1001, 1001, lambda: {2001}))
        assert (await house.ended("v1", LOCAL)).manifest.uid == 1001


@pytest.mark.parametrize(
    ("caller", "mode", "may"),
    [
        (Caller(0, 0), 0o000, True),
        (Caller(7, 1), 0o500, True),
        (Caller(7, 1), 0o400, False),
        (Caller(7, 8), 0o077, False),  # the owner's bits are his alone
        (Caller(1, 8), 0o050, True),
        (Caller(1, 8), 0o705, False),
        (Caller(1, 1, lambda: {8}), 0o050, True),
        (Caller(1, 1, lambda: {9}), 0o770, False),
        (Caller(1, 1), 0o005, True),
        (Caller(1, 1), 0o001, False),
    ],
)
def test_rights_are_those_of_a_disk(caller: Caller, mode: int, may: bool) -> None:
    assert caller.may_read(7, 8, mode) is may


@trio_test
async def test_models_with_files_are_not_asked_and_empty_ones_once(tmp_path: Path) -> None:
    store = registry()
    async with open_house(tmp_path / "s", store, ttl_s=1000) as house:
        for _ in range(3):
            assert await house.library.sources.find(LLAMA) is None
        assert store.requests() == {"ListObjectsV2": 1}
        for _ in range(3):
            assert await found(house) is None
        assert store.requests() == {"ListObjectsV2": 2, "HeadObject": 1}
