"""Versions and aliases as they lie in the store: blocking work, for threads.

The store is shared by nodes, so nothing here is remembered between calls; names appear
and vanish by rename alone, and an exclusive create or rename decides between two nodes.
"""

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from modelfs.config import NamespaceConfig
from modelfs.errors import AlreadyExists, Busy, InvalidName, NotFound
from modelfs.names import LATEST, MAIN, ModelId, VersionId, is_plain_name, is_version_name
from modelfs.store.layout import (
    Layout,
    copy_durably,
    remove_tree,
    sync_folder,
    synced,
    write_durably,
)
from modelfs.store.manifest import Manifest, from_json

log = logging.getLogger(__name__)

CLAIM_MAX_S = 3600.0  # a claim is made within seconds, a file gets its name as fast
ALIAS_LOG_MAX = 10 << 20  # bytes; the older half is dropped when it is longer
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")  # of write_durably, and of `latest`

# The names under which `ln -sfn` of coreutils, and `modelfs alias`, make a link before they
# rename it to the alias.
_PASSING = re.compile(r"Cu[A-Za-z0-9]{6}|tmp-[0-9a-f]{12}")
THE_DAEMONS = NamespaceConfig()  # of whom the configuration says nothing


@dataclass(frozen=True, slots=True)
class ModelShelf:
    """What the store holds of a model: ready and pending versions, aliases with targets.

    `source` is the model whose main/ it has, None where it has its own.
    """

    ready: frozenset[str]
    pending: frozenset[str]
    aliases: dict[str, str]
    source: ModelId | None = None

    @property
    def has_versions(self) -> bool:
        return bool(self.ready or self.pending or self.aliases)

    @property
    def chosen(self) -> frozenset[str]:
        """The ready versions that aliases of people point at."""
        return self.ready & {v for alias, v in self.aliases.items() if alias != LATEST}

    @property
    def latest(self) -> str | None:
        """The ready version that `latest` points at."""
        found = self.aliases.get(LATEST)
        return found if found in self.ready else None

    @property
    def is_empty(self) -> bool:
        return not self.has_versions and self.source is None


def namespaces(layout: Layout) -> set[str]:
    """Return the namespaces that have a folder in the store; raises StoreError."""
    found = {*_names(layout.models), *_names(layout.pending_root)}
    if not found:
        layout.check_there()
    return found


def has_namespace(layout: Layout, namespace: str) -> bool:
    """Tell whether a namespace has a folder in the store; raises StoreError."""
    if (layout.models / namespace).exists() or (layout.pending_root / namespace).exists():
        return True
    layout.check_there()
    return False


def models(layout: Layout, namespace: str, known: Set[str] = frozenset()) -> set[str]:
    """Return the models of a namespace that have a version, or a source, in the store.

    Those of `known`, which are there whatever the store has of them, are not looked at.
    """
    folders = _model_folders(layout, namespace)
    if not folders:
        layout.check_there()
    found = (ModelId(namespace, name) for name in folders - known)
    return {model.name for model in found if not shelf(layout, model).is_empty}


def all_models(layout: Layout) -> list[ModelId]:
    """Return every model that has a folder in the store, perhaps an empty one."""
    return [
        ModelId(namespace, name)
        for namespace in sorted(namespaces(layout))
        for name in sorted(_model_folders(layout, namespace))
    ]


def _model_folders(layout: Layout, namespace: str) -> set[str]:
    return {*_names(layout.models / namespace), *_names(layout.pending_root / namespace)}


def make_namespace(layout: Layout, namespace: str, uid: int, gid: int, mode: int) -> None:
    """Make a namespace's folders in the store, with its owner and mode; -1 leaves an id.

    Who may not pass them reads no version, manifest or unfinished file of it. A daemon that
    is not root may not give them away: they stay its own then.
    """
    for root in (layout.models, layout.pending_root, layout.manifests_root, layout.retired_root):
        folder = root / namespace
        folder.mkdir(parents=True, exist_ok=True)
        found = folder.stat()
        if uid not in (-1, found.st_uid) or gid not in (-1, found.st_gid):
            try:
                os.chown(folder, uid, gid)
            except PermissionError as error:
                log.warning("%s cannot get its namespace's owner: %s", folder, error.strerror)
        if stat.S_IMODE(found.st_mode) != mode:
            folder.chmod(mode)


def shelf(layout: Layout, model: ModelId) -> ModelShelf:
    """Return what the store holds of one model."""
    ready, links = set(), {}
    for entry in _scan(layout.model(model)):
        if entry.is_symlink():
            with suppress(FileNotFoundError):  # renamed since the folder was read
                links[entry.name] = os.readlink(entry.path)
        elif is_version_name(entry.name) and entry.is_dir():
            ready.add(entry.name)
    pending = {n for n in _names(layout.pending_model(model)) if is_version_name(n)} - ready
    source = _linked_model(links.pop(MAIN, ""))
    if not (ready or pending or links or source):
        layout.check_there()  # else a disk that is gone would be a model without versions
    return ModelShelf(frozenset(ready), frozenset(pending), links, source)


def main_link(source: ModelId) -> str:
    """Return where `main` of a model points whose source is another one, in store and tree."""
    return f"../../{source}/{MAIN}"


def _linked_model(target: str) -> ModelId | None:
    """Return the model that a `main` points at; None where it is no link as we make it."""
    names = target.split("/")
    source = ModelId(*names[2:4]) if len(names) == 5 else None
    if source is None or target != main_link(source):
        return None
    return source if is_plain_name(source.namespace) and is_plain_name(source.name) else None


def set_source(
    layout: Layout, model: ModelId, source: ModelId | None, namespace: NamespaceConfig
) -> None:
    """Remember whose main/ a model of that namespace has; None forgets it."""
    link = layout.model(model) / MAIN
    if source is not None:
        make_namespace(layout, model.namespace, *namespace.ids, namespace.mode)
        link.parent.mkdir(exist_ok=True)
        _replace_link(link, main_link(source))
    elif link.is_symlink():
        link.unlink(missing_ok=True)
        sync_folder(link.parent)


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from [e for e in entries if not e.name.startswith(".")]
    except FileNotFoundError:
        return


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in _scan(folder)}


def read_manifest(layout: Layout, version: VersionId) -> Manifest:
    """Return the manifest of a ready version; raises NotFound."""
    path = layout.manifest(version)
    try:
        return from_json(path.read_bytes(), path)
    except FileNotFoundError:
        raise NotFound(f"{version} has no manifest") from None


def damage(layout: Layout, version: VersionId) -> str | None:
    """Return what `modelfs verify` could not put right of a version; None where that is nothing."""
    try:
        reason = layout.damage(version).read_text(errors="replace")
    except OSError:
        return None
    return None if layout.retired(version).exists() else reason


def damaged(layout: Layout) -> dict[VersionId, str]:
    """Return the versions of which something could not be put right, and what."""
    found = {}
    for path in sorted(layout.quarantine.glob("*/*/.*.error")):
        name = path.name.removeprefix(".").removesuffix(".error")
        version = VersionId(ModelId(*path.parts[-3:-1]), name)
        if (reason := damage(layout, version)) is not None:
            found[version] = reason
    return found


def check_unused(layout: Layout, version: VersionId) -> None:
    """Raise AlreadyExists where a version of that name exists or was ever ready."""
    if layout.retired(version).exists():
        raise AlreadyExists(f"{version} was used before: a version name is never used twice")
    if layout.version(version).exists() or layout.pending(version).exists():
        raise AlreadyExists(f"{version} exists")


def seal_folder(folder: Path, namespace: NamespaceConfig) -> None:
    """Make a folder of a version read-only and durable, with its namespace's owner and mode.

    A daemon that is not root may not give it away: it stays its own then.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(PermissionError):
            os.chown(fd, *namespace.ids)
        os.chmod(fd, namespace.mode & 0o555)
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(
    layout: Layout, manifest: Manifest, files: Path, namespace: NamespaceConfig = THE_DAEMONS
) -> None:
    """Move a complete, synced, read-only folder into `models/`, its manifest beside it first."""
    version = manifest.id
    layout.manifests(version.model).mkdir(parents=True, exist_ok=True)
    write_durably(layout.checksums(version), manifest.to_checksums())
    write_durably(layout.manifest(version), manifest.to_json())
    target = layout.version(version)
    target.parent.mkdir(parents=True, exist_ok=True)
    seal_folder(files, namespace)
    with synced(target.parent):
        try:
            files.rename(target)
        except PermissionError:  # who is not root must be allowed to write in what he moves
            files.chmod(0o755)
            files.rename(target)
            seal_folder(target, namespace)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            _move_across(files, target)


def _move_across(files: Path, target: Path) -> None:
    """Move a folder into another quota's realm: copied under a hidden name, then renamed."""
    copied = target.with_name(f".removed-{target.name}-{uuid.uuid4().hex}")  # if it is left
    for folder, _, names in os.walk(files):
        into = copied / os.path.relpath(folder, files)
        into.mkdir()
        for name in names:
            copy_durably(Path(folder, name), into / name)
    for folder, _, _ in os.walk(copied, topdown=False):
        original = files / os.path.relpath(folder, copied)
        found = original.stat()
        with suppress(PermissionError):
            os.chown(folder, found.st_uid, found.st_gid)
        shutil.copystat(original, folder)
        sync_folder(Path(folder))
    copied.rename(target)


def retire(layout: Layout, version: VersionId) -> None:
    """Delete a ready version: its name is used up, its manifest goes with the name.

    Raises Busy while an alias of a user points at it. The bytes go by `sweep`.
    """
    found = shelf(layout, version.model)
    pointing = sorted(
        a for a, target in found.aliases.items() if target == version.version and a != LATEST
    )
    if pointing:
        raise Busy(f"{version} is what the alias {', '.join(pointing)} points at")
    target = layout.version(version)
    if not target.is_dir():
        raise NotFound(f"there is no version {version}")
    retired = layout.retired(version)
    retired.parent.mkdir(parents=True, exist_ok=True)
    manifest = layout.manifest(version)
    write_durably(retired, manifest.read_bytes() if manifest.exists() else b"{}\n")
    with synced(target.parent):
        target.chmod(0o755)
        target.rename(target.with_name(f".removed-{version.version}-{uuid.uuid4().hex}"))
    with synced(manifest.parent):
        manifest.unlink(missing_ok=True)
        layout.checksums(version).unlink(missing_ok=True)
    follow_latest(layout, version.model)


def forget_empty(layout: Layout, namespace: str) -> None:
    """Remove the folders that models which are gone have left: a namespace is named by them."""
    for above in (layout.models / namespace, layout.pending_root / namespace):
        for folder in (*(above / name for name in _names(above)), above):
            with suppress(OSError):
                folder.rmdir()


def finish_publish(
    layout: Layout, version: VersionId, namespace: NamespaceConfig = THE_DAEMONS
) -> None:
    """Do what is left when a version is in `models/`; again at a start, whatever a crash left."""
    follow_latest(layout, version.model, version.version)
    folder = layout.version(version)
    if folder.stat().st_mode & 0o222:  # opened by who is not root, to move it
        seal_folder(folder, namespace)
    discard_pending(layout, version)


def sweep(layout: Layout, model: ModelId) -> None:
    """Remove the bytes of removed versions and of given up freezes of a model."""
    for folder in (layout.model(model), layout.pending_model(model)):
        if left := _left_in(folder, ".removed-"):
            with synced(folder):
                for path in left:
                    remove_tree(path)


def sweep_claims(layout: Layout, model: ModelId) -> None:
    """Remove the claims of a model, and the files beside its versions, that were never finished."""
    before = time.time() - CLAIM_MAX_S
    for path in _left_in(layout.pending_model(model), ".made-"):
        if path.stat().st_mtime < before:
            remove_tree(path)
    retired = layout.retired_root / model.namespace / model.name
    for folder in (layout.model(model), layout.manifests(model), retired):
        for path in _left_in(folder, "."):
            if _TEMPORARY.fullmatch(path.name) and path.lstat().st_mtime < before:
                path.unlink(missing_ok=True)
    _drop_pending_folder(layout, model)


def _left_in(folder: Path, beginning: str) -> list[Path]:
    try:
        return [folder / name for name in os.listdir(folder) if name.startswith(beginning)]
    except FileNotFoundError:
        return []


def newest_first(layout: Layout, model: ModelId) -> list[VersionId]:
    """Return the ready versions, by when their manifests were written."""

    def written_ns(version: VersionId) -> int:
        try:
            return layout.manifest(version).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    ready = [VersionId(model, name) for name in shelf(layout, model).ready]
    return sorted(ready, key=written_ns, reverse=True)


def follow_latest(layout: Layout, model: ModelId, became: str | None = None) -> str | None:
    """Let `latest` point at the version that became ready last; return its name.

    With `became`, the version that has just become ready, only that one and the one that
    `latest` points at are compared.
    """
    here = shelf(layout, model)
    compared = here.ready & {became, here.aliases.get(LATEST)} if became else here.ready
    newest: tuple[int, str] | None = None
    for name in compared or here.ready:
        ready_ns = read_manifest(layout, VersionId(model, name)).ready_ns or 0
        newest = max(newest or (0, ""), (ready_ns, name))
    link = layout.model(model) / LATEST
    if newest is None:
        link.unlink(missing_ok=True)
        return None
    _replace_link(link, newest[1])
    return newest[1]


def _replace_link(link: Path, target: str) -> None:
    if link.is_symlink() and os.readlink(link) == target:
        return
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex}")
    with synced(link.parent):
        temporary.symlink_to(target)
        temporary.replace(link)


def make_alias(layout: Layout, model: ModelId, alias: str, target: str, uid: int) -> None:
    """Make a new alias; raises AlreadyExists, and InvalidName where no version is ready."""
    version = VersionId(model, target.removesuffix("/"))
    if not is_version_name(version.version) or not layout.version(version).is_dir():
        raise InvalidName(f"an alias of {model} points at a ready version of it, not at {target}")
    link = layout.model(model) / alias
    with synced(link.parent):
        try:
            link.symlink_to(version.version)
        except FileExistsError:
            raise AlreadyExists(f"the alias {alias} exists") from None
    _log_alias(layout, model, alias, None, version.version, uid)


def rename_alias(layout: Layout, model: ModelId, old: str, new: str, uid: int) -> None:
    """Rename an alias over another or a free name, atomically, as `ln -sfn` does."""
    source, target = layout.model(model) / old, layout.model(model) / new
    before = os.readlink(target) if target.is_symlink() else None
    try:
        points_at = os.readlink(source)
        with synced(target.parent):
            source.rename(target)
    except FileNotFoundError:
        raise NotFound(f"there is no alias {old}") from None
    _log_alias(layout, model, old, points_at, None, uid)
    _log_alias(layout, model, new, before, points_at, uid)


def remove_alias(layout: Layout, model: ModelId, alias: str, uid: int) -> None:
    """Remove an alias; raises NotFound."""
    link = layout.model(model) / alias
    try:
        before = os.readlink(link)
        with synced(link.parent):
            link.unlink()
    except OSError:
        raise NotFound(f"there is no alias {alias}") from None
    _log_alias(layout, model, alias, before, None, uid)


def _log_alias(
    layout: Layout, model: ModelId, alias: str, before: str | None, after: str | None, uid: int
) -> None:
    """Add a change to the model's log, also while other nodes do; not those of passing names."""
    if _PASSING.fullmatch(alias):
        return
    change = {"time_ns": time.time_ns(), "uid": uid, "alias": alias, "from": before, "to": after}
    path = layout.alias_log(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path), path.open("a") as file:  # opened after the lock: at the end as it is now
        file.write(json.dumps(change) + "\n")
        file.flush()
        os.fsync(file.fileno())
        if file.tell() > ALIAS_LOG_MAX:
            lines = path.read_bytes().splitlines(keepends=True)
            write_durably(path, b"".join(lines[len(lines) // 2 :]))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file that may be replaced by rename, against other nodes too (flock)."""
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield
                return


def discard_pending(layout: Layout, version: VersionId) -> None:
    """Remove a freeze that is over or failed; its name may be used again."""
    pending = layout.pending(version)
    trash = pending.with_name(f".removed-{version.version}-{uuid.uuid4().hex}")
    try:
        with synced(pending.parent):
            pending.rename(trash)
        with synced(trash.parent):
            remove_tree(trash)
    except FileNotFoundError:
        return
    _drop_pending_folder(layout, version.model)


def _drop_pending_folder(layout: Layout, model: ModelId) -> None:
    """Remove a model's folder in `pending/`, which all nodes look through, where it is empty."""
    folder = layout.pending_model(model)
    with suppress(OSError), synced(folder.parent):
        folder.rmdir()
