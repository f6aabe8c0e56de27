"""Models and their listings: age, single flight, what happens while the registry is down."""

from pathlib import Path

import pytest
import trio

from modelfs.errors import AccessDenied, AlreadyExists, NotFound, RegistryUnavailable
from modelfs.names import ModelId
from modelfs.registry import calls
from modelfs.registry import registry as registries
from tests.fake_store import FakeStore, unavailable
from tests.trio_tests import LLAMA, PREFIX, House, open_house, trio_test, until

LONG_S = 1000.0


def model(store: FakeStore, *paths: str) -> FakeStore:
    store.place(PREFIX, b"")
    for path in paths:
        store.place(PREFIX + path, path.encode(errors="surrogateescape"))
    return store


async def names(house: House, path: str = "") -> list[str]:
    folder = await house.registry.folder(LLAMA, path)
    return sorted([*folder.files, *(f"{name}/" for name in folder.folders)])


@trio_test
async def test_one_listing_answers_for_a_whole_model(tmp_path: Path) -> None:
    store = model(FakeStore(), "a", "b/c", "b/d/e")
    async with open_house(tmp_path / "s", store, ttl_s=LONG_S) as house:
        assert await names(house) == ["a", "b/"]
        assert await names(house, "b/d") == ["e"]
        with pytest.raises(NotFound):
            await names(house, "nothing")
        assert store.requests() == {"ListObjectsV2": 1}


@trio_test
async def test_the_way_to_a_model_costs_its_namespace_s_listing_and_absent_ones_one(
    tmp_path: Path,
) -> None:
    store = model(FakeStore(), "a")
    async with open_house(tmp_path / "s", store, ttl_s=LONG_S) as house:
        assert await house.registry.has_namespace("acme")
        assert await house.registry.models("acme") == {"llama"}
        assert store.requests() == {"ListObjectsV2": 1}
        for number in range(20):
            assert not await house.registry.has_namespace(f"absent-{number}")
        assert store.requests() == {"ListObjectsV2": 3}  # of the first one, and of all
        assert await house.registry.has_namespace("acme")
        await house.registry.create_namespace("absent-0")
        assert await house.registry.has_namespace("absent-0")
        assert store.requests() == {"ListObjectsV2": 3, "PutObject": 1}


@trio_test
async def test_what_others_change_is_seen_when_the_listing_has_expired(tmp_path: Path) -> None:
    store = model(FakeStore(), "a")
    async with open_house(tmp_path / "s", store, ttl_s=0.05) as house:
        assert await names(house) == ["a"]
        store.place(PREFIX + "b", b"")
        assert await names(house) == ["a"]
        await trio.sleep(0.06)
        assert await names(house) == ["a", "b"]


@trio_test
async def test_what_this_mount_does_is_seen_at_once(tmp_path: Path) -> None:
    store = model(FakeStore(), "a")
    async with open_house(tmp_path / "s", store, ttl_s=LONG_S) as house:
        await names(house)
        house.registry.note_put(LLAMA, "new/file", store.place(PREFIX + "new/file", b""))
        house.registry.note_removed(LLAMA, "a")
        assert await names(house) == ["new/"]
        assert await names(house, "new") == ["file"]
        assert store.requests() == {"ListObjectsV2": 1}


@trio_test
async def test_a_listing_under_way_does_not_undo_what_this_mount_does(tmp_path: Path) -> None:
    store = model(FakeStore(), "a")
    async with open_house(tmp_path / "s", store) as house:
        old_page = store.list_page(PREFIX, by_folder=False)
        gate = store.hold("ListObjectsV2")
        store.list_page = lambda prefix, **_: (store._begin("ListObjectsV2", prefix), old_page)[1]  # type: ignore[method-assign, assignment]
        found: list[list[str]] = []

        async def look() -> None:
            found.append(await names(house))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await until(lambda: gate.waiting)
            house.registry.note_removed(LLAMA, "a")
            house.registry.note_put(LLAMA, "b", store.place(PREFIX + "b", b""))
            gate.open()
        assert found == [["b"]]


@trio_test
async def test_many_who_look_at_once_make_one_listing(tmp_path: Path) -> None:
    store = model(FakeStore(), "a")
    async with open_house(tmp_path / "s", store) as house:
        gate = store.hold("ListObjectsV2")
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(names, house)
            await until(lambda: gate.waiting)
            gate.open()
        assert store.requests() == {"ListObjectsV2": 1}


@trio_test
async def test_a_model_of_many_keys_is_listed_folder_by_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registries, "WHOLE_PAGES", 1)
    store = model(FakeStore(), *(f"many/{n:05d}" for n in range(2100)), "top", "sub/x", "sub/y/z")
    async with open_house(tmp_path / "s", store, ttl_s=LONG_S) as house:
        assert await names(house) == ["many/", "sub/", "top"]
        before = store.requests()["ListObjectsV2"]
        assert await names(house, "sub") == ["x", "y/"]
        assert await names(house, "sub") == ["x", "y/"]
        assert store.requests()["ListObjectsV2"] == before + 1
        assert len(await names(house, "many")) == 2100
        assert store.requests()["ListObjectsV2"] == before + 4
        with pytest.raises(NotFound):
            await names(house, "sub/nothing")
        house.registry.note_put(LLAMA, "sub/mine", store.place(PREFIX + "sub/mine", b""))
        assert await names(house, "sub") == ["mine", "x", "y/"]
        assert len(list((await house.registry.list_afresh(LLAMA)).walk())) == 2104


@trio_test
async def test_names_of_namespaces_and_models_come_from_markers_and_keys(tmp_path: Path) -> None:
    store = FakeStore()
    for key in ("acme/llama/", "acme/bert/w", "team/", ".odd/m/x", "team-b/m/x/y/z", "stray"):
        store.place(f"models/{key}", b"")
    async with open_house(tmp_path / "s", store) as house:
        assert await house.registry.namespaces() == {"acme", "team", "team-b"}
        assert await house.registry.models("acme") == {"llama", "bert"}
        assert await house.registry.models("team") == set()
        with pytest.raises(NotFound):
            await house.registry.models("nobody")
        assert not await house.registry.has_model(ModelId("nobody", "x"))
        with pytest.raises(NotFound):
            await house.registry.list_afresh(ModelId("acme", "nothing"))


@trio_test
async def test_models_are_made_described_and_removed(tmp_path: Path) -> None:
    store = FakeStore()
    async with open_house(tmp_path / "s", store, ttl_s=LONG_S) as house:
        registry = house.registry
        await registry.create_namespace("acme")
        with pytest.raises(AlreadyExists):
            await registry.create_namespace("acme")
        await registry.create_model(LLAMA, {"description": "one"})
        with pytest.raises(AlreadyExists):
            await registry.create_model(LLAMA, {})
        assert await registry.description(LLAMA) == {"description": "one"}
        assert await registry.models("acme") == {"llama"}
        assert await names(house) == []
        await registry.remove_model(LLAMA)
        assert await registry.models("acme") == set()
        await registry.remove_namespace("acme")
        assert await registry.namespaces() == set()
        assert store.objects == {}


@trio_test
async def test_hidden_keys_are_named_until_they_are_gone(tmp_path: Path) -> None:
    store = model(FakeStore(), "a", "b//c", "bad\udcff")
    async with open_house(tmp_path / "s", store) as house:
        assert await names(house) == ["a"]
        assert sorted(house.registry.hidden_keys(), key=repr) == [
            PREFIX + "b//c",
            PREFIX + "bad\udcff",
        ]
        store.take(PREFIX + "b//c")
        store.take(PREFIX + "bad\udcff")
        await names(house)
        assert house.registry.hidden_keys() == {}


# ----------------------------------------------------------------- being down


@trio_test
async def test_a_request_that_fails_in_passing_is_tried_again(tmp_path: Path) -> None:
    store = model(FakeStore(), "a")
    async with open_house(tmp_path / "s", store) as house:
        store.fail(1, unavailable())
        store.fail(3, unavailable())  # the second is the probe
        assert await names(house) == ["a"]
        assert store.requests() == {"ListObjectsV2": 3, "HeadBucket": 2}
        assert house.registry.reachability.reachable


@trio_test
async def test_tries_are_bounded_while_the_probe_is_answered(tmp_path: Path) -> None:
    store = model(FakeStore(), "a")
    async with open_house(tmp_path / "s", store) as house:

        def refuse(store: FakeStore, request: object) -> None:
            if request.operation == "ListObjectsV2":  # type: ignore[attr-defined]
                raise unavailable()

        store.hook(refuse)
        with pytest.raises(RegistryUnavailable):
            await names(house)
        assert store.requests()["ListObjectsV2"] == calls.TRIES
        assert house.registry.reachability.reachable


@trio_test
async def test_an_error_that_does_not_pass_is_raised_at_once(tmp_path: Path) -> None:
    store = model(FakeStore(), "a")
    async with open_house(tmp_path / "s", store) as house:
        store.fail(1, AccessDenied("no"))
        with pytest.raises(AccessDenied):
            await names(house)
        assert store.requests() == {"ListObjectsV2": 1}


@trio_test
async def test_what_was_listed_stays_while_the_registry_is_down(tmp_path: Path) -> None:
    store = model(FakeStore(), "a", "sub/x")
    async with open_house(tmp_path / "s", store) as house:
        await names(house)
        await house.registry.namespaces()
        store.is_down = True
        assert await names(house) == ["a", "sub/"]
        assert not house.registry.reachability.reachable
        assert house.registry.reachability.error
        assert await names(house, "sub") == ["x"]
        assert await house.registry.namespaces() == {"acme"}
        with pytest.raises(NotFound):
            await names(house, "nothing")
        with pytest.raises(RegistryUnavailable):
            await house.registry.list_afresh(LLAMA)
        with pytest.raises(RegistryUnavailable):
            await house.registry.folder(ModelId("acme", "never-seen"), "")


@trio_test
async def test_while_it_is_down_only_the_probe_asks_and_it_finds_its_return(
    tmp_path: Path,
) -> None:
    store = model(FakeStore(), "a")
    async with open_house(tmp_path / "s", store) as house:
        store.is_down = True
        with pytest.raises(RegistryUnavailable):
            await names(house)
        asked = store.requests()["ListObjectsV2"]
        for _ in range(5):
            with pytest.raises(RegistryUnavailable):
                await names(house)
        probes = store.requests()["HeadBucket"]
        await until(lambda: store.requests()["HeadBucket"] > probes + 1)
        assert store.requests()["ListObjectsV2"] == asked
        store.is_down = False
        await house.registry.wait_reachable()
        assert house.registry.reachability.reachable
        assert house.registry.reachability.error is None
        assert await names(house) == ["a"]


@trio_test
async def test_deletes_go_a_thousand_at_a_time(tmp_path: Path) -> None:
    store = model(FakeStore(), *(str(n) for n in range(2500)))
    async with open_house(tmp_path / "s", store) as house:
        assert await house.registry.delete_many([k for k in store.objects if k != PREFIX]) == {}
        assert store.requests() == {"DeleteObjects": 3}
        assert list(store.objects) == [PREFIX]
