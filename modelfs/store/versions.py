"""Versions and aliases as they lie in the store: blocking work, for threads.

The store is shared by nodes, so nothing here is remembered between calls; names appear
and vanish by rename alone, and an exclusive create or rename decides between two nodes.
"""

import errno
import json
import logging
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from modelfs.errors import AlreadyExists, Busy, InvalidName, NotFound
from modelfs.names import LATEST, ModelId, VersionId, is_version_name
from modelfs.store.layout import Layout, copy_durably, remove_tree, sync_folder, write_durably
from modelfs.store.manifest import Manifest, from_json

log = logging.getLogger(__name__)

CLAIM_MAX_S = 3600.0  # a claim is made within seconds
ALIAS_LOG_MAX = 10 << 20  # bytes; the older half is dropped when it is longer


@dataclass(frozen=True, slots=True)
class ModelShelf:
    """What the store holds of a model: ready and pending versions, aliases with targets."""

    ready: frozenset[str]
    pending: frozenset[str]
    aliases: dict[str, str]

    @property
    def is_empty(self) -> bool:
        return not (self.ready or self.pending or self.aliases)


def namespaces(layout: Layout) -> set[str]:
    """Return the namespaces that have a folder in the store."""
    return {*_names(layout.models), *_names(layout.pending_root)}


def models(layout: Layout, namespace: str) -> set[str]:
    """Return the models of a namespace that have a version in the store."""
    found = {*_names(layout.models / namespace), *_names(layout.pending_root / namespace)}
    return {m for m in found if not shelf(layout, ModelId(namespace, m)).is_empty}


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
    ready, aliases = set(), {}
    for entry in _scan(layout.model(model)):
        if entry.is_symlink():
            with suppress(FileNotFoundError):  # renamed since the folder was read
                aliases[entry.name] = os.readlink(entry.path)
        elif is_version_name(entry.name) and entry.is_dir():
            ready.add(entry.name)
    pending = {n for n in _names(layout.pending_model(model)) if is_version_name(n)} - ready
    return ModelShelf(frozenset(ready), frozenset(pending), aliases)


def served(layout: Layout) -> list[VersionId]:
    """Return the ready versions that aliases point at."""
    found = []
    for namespace in namespaces(layout):
        for name in models(layout, namespace):
            model = ModelId(namespace, name)
            here = shelf(layout, model)
            found += [VersionId(model, v) for v in {*here.aliases.values()} & here.ready]
    return found


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


def check_unused(layout: Layout, version: VersionId) -> None:
    """Raise AlreadyExists where a version of that name exists or was ever ready."""
    if layout.retired(version).exists():
        raise AlreadyExists(f"{version} was used before: a version name is never used twice")
    if layout.version(version).exists() or layout.pending(version).exists():
        raise AlreadyExists(f"{version} exists")


def publish(layout: Layout, manifest: Manifest, files: Path) -> None:
    """Move a complete, synced, read-only folder into `models/`, its manifest beside it first."""
    version = manifest.id
    layout.manifests(version.model).mkdir(parents=True, exist_ok=True)
    write_durably(layout.checksums(version), manifest.to_checksums())
    write_durably(layout.manifest(version), manifest.to_json())
    target = layout.version(version)
    target.parent.mkdir(parents=True, exist_ok=True)
    files.chmod(0o755)  # to move a folder, its owner must be allowed to write in it
    try:
        files.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_across(files, target)
    target.chmod(0o555)
    sync_folder(target.parent)


def _move_across(files: Path, target: Path) -> None:
    """Move a folder into another quota's realm: copied under a hidden name, then renamed."""
    copied = target.with_name(f".removed-{target.name}-{uuid.uuid4().hex}")  # if it is left
    for folder, _, names in os.walk(files):
        into = copied / os.path.relpath(folder, files)
        into.mkdir()
        for name in names:
            copy_durably(Path(folder, name), into / name)
    for folder, _, _ in os.walk(copied, topdown=False):
        shutil.copystat(files / os.path.relpath(folder, copied), folder)
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
    target.chmod(0o755)
    target.rename(target.with_name(f".removed-{version.version}-{uuid.uuid4().hex}"))
    sync_folder(target.parent)
    manifest.unlink(missing_ok=True)
    layout.checksums(version).unlink(missing_ok=True)
    follow_latest(layout, version.model)


def forget_empty(layout: Layout, namespace: str) -> None:
    """Remove the folders that models which are gone have left: a namespace is named by them."""
    for above in (layout.models / namespace, layout.pending_root / namespace):
        for folder in (*(above / name for name in _names(above)), above):
            with suppress(OSError):
                folder.rmdir()


def finish_publish(layout: Layout, version: VersionId) -> None:
    """Do what is left when a version is in `models/`; again at a start, whatever a crash left."""
    layout.version(version).chmod(0o555)
    follow_latest(layout, version.model, version.version)
    discard_pending(layout, version)


def sweep(layout: Layout, model: ModelId) -> None:
    """Remove the bytes of removed versions and of given up freezes of a model."""
    for folder in (layout.model(model), layout.pending_model(model)):
        for path in folder.glob(".removed-*"):
            remove_tree(path)


def sweep_all(layout: Layout) -> None:
    """Remove what earlier daemons had begun to remove, and claims that were never finished."""
    for namespace in namespaces(layout):
        names = {*_names(layout.models / namespace), *_names(layout.pending_root / namespace)}
        for name in names:
            model = ModelId(namespace, name)
            sweep(layout, model)
            for path in layout.pending_model(model).glob(".made-*"):
                if time.time() - path.stat().st_mtime > CLAIM_MAX_S:
                    remove_tree(path)


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
    temporary.symlink_to(target)
    temporary.replace(link)
    sync_folder(link.parent)


def make_alias(layout: Layout, model: ModelId, alias: str, target: str, uid: int) -> None:
    """Make a new alias; raises AlreadyExists, and InvalidName where no version is ready."""
    version = VersionId(model, target.removesuffix("/"))
    if not is_version_name(version.version) or not layout.version(version).is_dir():
        raise InvalidName(f"an alias of {model} points at a ready version of it, not at {target}")
    link = layout.model(model) / alias
    try:
        link.symlink_to(version.version)
    except FileExistsError:
        raise AlreadyExists(f"the alias {alias} exists") from None
    sync_folder(link.parent)
    _log_alias(layout, model, alias, None, version.version, uid)


def rename_alias(layout: Layout, model: ModelId, old: str, new: str, uid: int) -> None:
    """Rename an alias over another or a free name, atomically, as `ln -sfn` does."""
    source, target = layout.model(model) / old, layout.model(model) / new
    before = os.readlink(target) if target.is_symlink() else None
    try:
        points_at = os.readlink(source)
        source.rename(target)
    except FileNotFoundError:
        raise NotFound(f"there is no alias {old}") from None
    sync_folder(target.parent)
    _log_alias(layout, model, old, points_at, None, uid)
    _log_alias(layout, model, new, before, points_at, uid)


def remove_alias(layout: Layout, model: ModelId, alias: str, uid: int) -> None:
    """Remove an alias; raises NotFound."""
    link = layout.model(model) / alias
    try:
        before = os.readlink(link)
        link.unlink()
    except OSError:
        raise NotFound(f"there is no alias {alias}") from None
    sync_folder(link.parent)
    _log_alias(layout, model, alias, before, None, uid)


def _log_alias(
    layout: Layout, model: ModelId, alias: str, before: str | None, after: str | None, uid: int
) -> None:
    change = {"time_ns": time.time_ns(), "uid": uid, "alias": alias, "from": before, "to": after}
    path = layout.alias_log(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(change) + "\n")
    if path.stat().st_size > ALIAS_LOG_MAX:
        lines = path.read_bytes().splitlines(keepends=True)
        write_durably(path, b"".join(lines[len(lines) // 2 :]))


def discard_pending(layout: Layout, version: VersionId) -> None:
    """Remove a freeze that is over or failed; its name may be used again."""
    pending = layout.pending(version)
    trash = pending.with_name(f".removed-{version.version}-{uuid.uuid4().hex}")
    try:
        pending.rename(trash)
    except FileNotFoundError:
        return
    remove_tree(trash)
