"""Versions and aliases as they lie in the store."""

import errno
import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelfs.errors import AlreadyExists, Busy, InvalidName, ModelfsError, NotFound, StoreError
from modelfs.names import ModelId
from modelfs.store import aliases, publishing, versions
from modelfs.store import pending as freezing
from modelfs.store.layout import Layout, remove_tree
from modelfs.store.manifest import Manifest
from modelfs.tables import NamespaceConfig
from tests.store.test_manifest import entry, manifest
from tests.trio_tests import LLAMA, version


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "store", "node-a")
    layout.make()
    return layout


def make(layout: Layout, name: str, ready_ns: int = 1) -> Manifest:
    """Make a version as a freeze does."""
    made = replace(manifest(entry("a", b"data"), version=name), ready_ns=ready_ns)
    os.close(freezing.claim(layout, made, 4))
    files = layout.pending(made.id) / "files"
    files.mkdir()
    (files / "a").write_bytes(b"data")
    (files / "a").chmod(0o444)
    publishing.publish(layout, made, files)
    aliases.follow_latest(layout, LLAMA)
    publishing.discard_pending(layout, made.id)
    return made


def test_a_version_that_becomes_ready_while_its_model_is_looked_at_is_seen(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(layout, "v1")
    ready, coming = layout.version(made.id), layout.pending(made.id)
    ready.parent.chmod(0o755)
    coming.parent.mkdir(parents=True, exist_ok=True)
    ready.rename(coming)
    looked_at = list[Path]()

    def then_published(look: Callable[[Path], Iterable[Any]]) -> Callable[[Path], list[Any]]:
        def wrapped(folder: Path) -> list[Any]:
            found = list(look(folder))
            looked_at.append(folder)
            if len(looked_at) == 1:
                coming.rename(ready)  # between the two looks
            return found

        return wrapped

    for look in ("_scan", "_names"):
        monkeypatch.setattr(versions, look, then_published(getattr(versions, look)))
    shelf = versions.shelf(layout, LLAMA)
    assert (len(looked_at), shelf.ready, shelf.pending) == (2, {"v1"}, frozenset())


def aliases_of(layout: Layout) -> dict[str, str]:
    return versions.shelf(layout, LLAMA).aliases


def log_of(layout: Layout) -> list[tuple[str, str | None, str | None]]:
    lines = map(json.loads, layout.alias_log(LLAMA).read_text().splitlines())
    return [(line["alias"], line["from"], line["to"]) for line in lines]


def test_a_version_is_plain_and_read_only_with_its_manifest_beside_it(layout: Layout) -> None:
    made = make(layout, "v1")
    folder = layout.version(made.id)
    assert (folder / "a").read_bytes() == b"data"
    assert folder.stat().st_mode & 0o777 == 0o555
    assert versions.read_manifest(layout, made.id) == made
    assert layout.checksums(made.id).read_bytes() == made.to_checksums()
    found = versions.shelf(layout, LLAMA)
    assert (found.ready, found.pending, found.aliases) == ({"v1"}, set(), {"latest": "v1"})
    assert versions.namespaces(layout) == {"acme"}
    assert versions.models(layout, "acme") == {"llama"}
    assert versions.models(layout, "nobody") == set()


def test_who_may_not_move_a_sealed_folder_opens_it_for_that_moment(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, sealed = os.rename, []

    def as_plain_user(source: Path, target: Path) -> None:
        if not os.stat(source).st_mode & stat.S_IWUSR:
            sealed.append(source)
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", as_plain_user)
    made = make(layout, "v1")
    assert sealed == [layout.pending(made.id) / "files"]
    assert stat.S_IMODE(layout.version(made.id).stat().st_mode) == 0o555


def test_latest_is_what_became_ready_last_and_falls_back(layout: Layout) -> None:
    make(layout, "v1", 100)
    make(layout, "v3", 300)
    make(layout, "v2", 200)
    assert aliases_of(layout) == {"latest": "v3"}
    publishing.retire(layout, version("v3"))
    assert aliases_of(layout) == {"latest": "v2"}
    publishing.retire(layout, version("v2"))
    publishing.retire(layout, version("v1"))
    assert aliases_of(layout) == {}
    assert versions.models(layout, "acme") == set()


def test_a_name_that_was_used_is_never_used_again(layout: Layout) -> None:
    made = make(layout, "v1")
    with pytest.raises(AlreadyExists):
        versions.check_unused(layout, made.id)
    with pytest.raises(AlreadyExists):
        freezing.claim(layout, made, 4)
    publishing.retire(layout, made.id)
    with pytest.raises(AlreadyExists, match="used before"):
        versions.check_unused(layout, made.id)
    with pytest.raises(AlreadyExists):
        freezing.claim(layout, made, 4)
    with pytest.raises(NotFound):
        publishing.retire(layout, made.id)


def test_what_was_removed_is_swept(layout: Layout) -> None:
    made = make(layout, "v1")
    publishing.retire(layout, made.id)
    assert not layout.version(made.id).exists()
    publishing.sweep(layout, LLAMA)
    assert not layout.pending_model(LLAMA).exists()
    assert not layout.manifest(made.id).exists()
    assert json.loads(layout.retired(made.id).read_bytes())["version"] == "v1"


def test_what_was_begun_an_hour_ago_and_never_finished_is_swept(layout: Layout) -> None:
    made = make(layout, "v1")
    claim = layout.pending_model(LLAMA) / ".made-0123456789abcdef0123456789abcdef"
    claim.mkdir(parents=True)
    (claim / "lock").touch()
    unnamed = [
        path.with_name(f".{path.name}.0123456789abcdef0123456789abcdef")
        for path in (layout.manifest(made.id), layout.alias_log(LLAMA), layout.retired(made.id))
    ]
    layout.retired(made.id).parent.mkdir(parents=True)
    for path in unnamed:
        path.touch()
    unnamed.append(layout.model(LLAMA) / ".latest.0123456789abcdef0123456789abcdef")
    unnamed[-1].symlink_to("v1")
    left = {claim, *unnamed}
    publishing.sweep_claims(layout, LLAMA)
    assert {path for path in left if path.is_symlink() or path.exists()} == left
    for path in left:
        os.utime(path, (0, time.time() - publishing.CLAIM_MAX_S - 1), follow_symlinks=False)
    publishing.sweep_claims(layout, LLAMA)
    assert {path for path in left if path.is_symlink() or path.exists()} == set()
    assert versions.read_manifest(layout, made.id) == made
    assert aliases_of(layout) == {"latest": "v1"}


def test_a_version_that_an_alias_points_at_stays(layout: Layout) -> None:
    make(layout, "v1")
    aliases.make_alias(layout, LLAMA, "production", "v1", 0)
    with pytest.raises(Busy, match="production"):
        publishing.retire(layout, version("v1"))
    aliases.remove_alias(layout, LLAMA, "production", 0)
    publishing.retire(layout, version("v1"))


@pytest.mark.parametrize("target", ["v2", "main", "../llama/v1", "v1/a", "/v1", "", "latest", "."])
def test_an_alias_points_at_a_ready_version_alone(layout: Layout, target: str) -> None:
    make(layout, "v1")
    os.close(freezing.claim(layout, manifest(entry("a"), version="v9"), 0))
    for wrong in (target, "v9"):
        with pytest.raises(InvalidName):
            aliases.make_alias(layout, LLAMA, "production", wrong, 0)


def test_every_change_of_an_alias_is_in_the_log(layout: Layout) -> None:
    make(layout, "v1", 1)
    make(layout, "v2", 2)
    aliases.make_alias(layout, LLAMA, "production", "v1/", 7)
    with pytest.raises(AlreadyExists):
        aliases.make_alias(layout, LLAMA, "production", "v2", 7)
    aliases.make_alias(layout, LLAMA, "new", "v2", 7)
    aliases.rename_alias(layout, LLAMA, "new", "production", 7)
    assert aliases_of(layout) == {"latest": "v2", "production": "v2"}
    aliases.remove_alias(layout, LLAMA, "production", 7)
    with pytest.raises(NotFound):
        aliases.remove_alias(layout, LLAMA, "production", 7)
    with pytest.raises(NotFound):
        aliases.rename_alias(layout, LLAMA, "production", "new", 7)
    state: dict[str, str | None] = {}
    for alias, before, after in log_of(layout):
        assert state.get(alias) == before
        state[alias] = after
    assert set(state.values()) == {None}
    assert ("production", "v1", "v2") in log_of(layout)


def test_a_shelf_that_is_read_while_an_alias_is_moved_is_whole(layout: Layout) -> None:
    make(layout, "v1")
    aliases.make_alias(layout, LLAMA, "production", "v1", 0)
    ended = threading.Event()

    def move() -> None:
        for number in range(100):  # as ln -sfn does
            aliases.make_alias(layout, LLAMA, f"new{number}", "v1", 0)
            aliases.rename_alias(layout, LLAMA, f"new{number}", "production", 0)
        ended.set()

    mover = threading.Thread(target=move)
    mover.start()
    while not ended.is_set():
        assert aliases_of(layout).items() >= {("production", "v1"), ("latest", "v1")}
    mover.join()


def test_the_log_of_aliases_is_bounded(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aliases, "ALIAS_LOG_MAX", 2000)
    make(layout, "v1")
    for number in range(60):
        aliases.make_alias(layout, LLAMA, f"a{number}", "v1", 0)
    assert layout.alias_log(LLAMA).stat().st_size <= 2000
    assert log_of(layout)[-1] == ("a59", None, "v1")


def test_of_many_who_claim_a_name_one_gets_it(layout: Layout) -> None:
    for round_number in range(10):
        wanted = manifest(entry("a"), version=f"v{round_number}")
        got: list[int] = []
        refused: list[ModelfsError] = []
        start = threading.Barrier(8)

        def claim(wanted: Manifest = wanted, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                got.append(freezing.claim(layout, wanted, 0))  # noqa: B023
            except AlreadyExists as error:
                refused.append(error)  # noqa: B023

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(got), len(refused)) == (1, 7)
        assert freezing.take_over(layout, wanted.id) is None  # somebody works on it
        os.close(got[0])
        taken = freezing.take_over(layout, wanted.id)
        assert taken is not None
        os.close(taken)
    assert {p.name[0] for p in layout.pending_model(LLAMA).iterdir()} == {"v"}


def test_a_lock_of_a_pending_folder_that_was_made_anew_is_not_taken_for_the_new_one(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = manifest(entry("a"), version="v1")
    os.close(freezing.claim(layout, old, 0))
    held: list[int] = []
    flock = freezing.fcntl.flock

    def too_late(fd: int, operation: int) -> None:
        monkeypatch.undo()
        publishing.discard_pending(layout, old.id)  # rmdir, and another node freezes it anew
        held.append(freezing.claim(layout, old, 0))
        flock(fd, operation)

    monkeypatch.setattr(freezing.fcntl, "flock", too_late)
    assert freezing.take_over(layout, old.id) is None
    os.close(held[0])


SOURCE = ModelId("team-b", "base")


def test_a_source_is_remembered_as_a_link_and_forgotten(layout: Layout) -> None:
    link = layout.model(LLAMA) / "main"
    publishing.set_source(layout, LLAMA, SOURCE, NamespaceConfig(mode=0o750))
    assert os.readlink(link) == "../../team-b/base/main"
    found = versions.shelf(layout, LLAMA)
    assert (found.source, found.aliases, found.has_versions) == (SOURCE, {}, False)
    assert versions.models(layout, "acme") == {"llama"}
    assert stat.S_IMODE((layout.models / "acme").stat().st_mode) == 0o750
    make(layout, "v1")
    assert versions.shelf(layout, LLAMA).aliases == {"latest": "v1"}
    with pytest.raises(InvalidName):
        aliases.make_alias(layout, LLAMA, "production", "main", 0)
    publishing.set_source(layout, LLAMA, ModelId("team-b", "other"), NamespaceConfig())
    assert versions.shelf(layout, LLAMA).source == ModelId("team-b", "other")
    for _ in range(2):
        publishing.set_source(layout, LLAMA, None, NamespaceConfig())
        assert versions.shelf(layout, LLAMA).source is None


@pytest.mark.parametrize(
    "target",
    [
        *("v1", "../base/main", "../../team-b/base", "../../team-b/base/main/", "/main"),
        *("../../../base/main", "../../../../main", "../../.hidden/base/main", "../.././b/main"),
    ],
)
def test_a_main_that_is_no_link_of_ours_is_no_source(layout: Layout, target: str) -> None:
    layout.model(LLAMA).mkdir(parents=True)
    (layout.model(LLAMA) / "main").symlink_to(target)
    found = versions.shelf(layout, LLAMA)
    assert (found.source, found.aliases) == (None, {})
    publishing.set_source(layout, LLAMA, SOURCE, NamespaceConfig())
    assert versions.shelf(layout, LLAMA).source == SOURCE


def test_what_a_crash_left_gets_its_namespace_s_owner_and_mode(layout: Layout) -> None:
    made = make(layout, "v1")
    folder = layout.version(made.id)
    folder.chmod(0o755)  # as it is moved
    group = os.getgid() if os.getuid() else 2001
    publishing.finish_publish(layout, made.id, NamespaceConfig(gid=group, mode=0o770))
    assert (folder.stat().st_gid, stat.S_IMODE(folder.stat().st_mode)) == (group, 0o550)


def test_who_may_not_give_folders_away_keeps_them(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make(layout, "v1")

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(os, "chown", refuse)
    publishing.seal_folder(layout.version(made.id), NamespaceConfig(uid=4711, mode=0o700))
    found = layout.version(made.id).stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.getuid(), 0o500)


def test_folders_that_move_into_another_quota_s_realm_keep_owner_and_mode(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = os.getgid() if os.getuid() else 2001
    namespace = NamespaceConfig(gid=group, mode=0o770)
    made = replace(manifest(entry("in/a", b"data"), folders=("in",)), ready_ns=1)
    os.close(freezing.claim(layout, made, 4))
    pending = layout.pending(made.id)
    freezing.make_folders(pending, made)
    (pending / "files/in/a").write_bytes(b"data")
    freezing.seal_folders(pending / "files", made, namespace)
    rename = Path.rename

    def to_another_realm(path: Path, target: Path) -> Path:
        if path.name == "files":
            raise OSError(errno.EXDEV, "another realm")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", to_another_realm)
    publishing.publish(layout, made, pending / "files", namespace)
    for folder in (layout.version(made.id), layout.version(made.id) / "in"):
        assert (folder.stat().st_gid, stat.S_IMODE(folder.stat().st_mode)) == (group, 0o550)
    assert (layout.version(made.id) / "in/a").read_bytes() == b"data"


def test_files_of_the_source_s_versions_are_the_same_files(layout: Layout) -> None:
    made = make(layout, "v1")
    local = replace(made, namespace="team-b", ready_ns=None)
    assert freezing.unchanged_files(layout, local) == {}
    [(_, path)] = freezing.unchanged_files(layout, replace(local, source="acme/llama")).values()
    assert path == layout.version(made.id) / "a"


def test_a_version_without_its_manifest_is_not_found(layout: Layout) -> None:
    made = make(layout, "v1")
    layout.manifest(made.id).write_bytes(b"{")
    with pytest.raises(StoreError, match="damaged"):
        versions.read_manifest(layout, made.id)
    layout.manifest(made.id).unlink()
    with pytest.raises(NotFound):
        versions.read_manifest(layout, made.id)


def test_a_store_of_another_format_is_refused(layout: Layout) -> None:
    (layout.root / "format").write_text("99\n")
    with pytest.raises(StoreError, match="format 99"):
        layout.make()


def test_a_tree_of_read_only_files_can_be_removed_and_removed_again(tmp_path: Path) -> None:
    folder = tmp_path / "tree" / "inner"
    folder.mkdir(parents=True)
    (folder / "a").write_text("x")
    (folder / "link").symlink_to("/nowhere")
    (folder / "a").chmod(0o444)
    folder.chmod(0o555)
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    remove_tree(tmp_path / "tree")
