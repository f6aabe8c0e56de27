"""What comes into `models/` and goes: versions published, sealed, retired, swept. Blocking.

Names appear and vanish by rename alone, and whoever makes or removes one syncs its folder at
once: other nodes look at it. Also the folders of namespaces, with their owners and modes.
"""

import errno
import logging
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from modelfs.errors import Busy, NotFound
from modelfs.names import LATEST, MAIN, ModelId, VersionId
from modelfs.store.aliases import follow_latest, replace_link
from modelfs.store.layout import (
    Layout,
    copy_durably,
    names_in,
    remove_tree,
    sync_folder,
    synced,
    write_durably,
)
from modelfs.store.manifest import Manifest
from modelfs.store.versions import main_link, shelf
from modelfs.tables import NamespaceConfig

log = logging.getLogger(__name__)

CLAIM_MAX_S = 3600.0  # a claim is made within seconds, a file gets its name as fast
WRITERS = 0o222
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")  # of write_durably, and of `latest`
THE_DAEMONS = NamespaceConfig()  # of whom the configuration says nothing


def make_namespace(layout: Layout, name: str, namespace: NamespaceConfig) -> None:
    """Make a namespace's folders in the store, with its owner and mode.

    Who may not pass them reads no version, manifest or unfinished file of it. Nobody but the
    daemon may write in them: a version is not renamed away under its readers. A daemon that is
    not root may not give them away: they stay its own then.
    """
    uid, gid = namespace.ids  # -1 leaves what it is
    for root in (layout.models, layout.pending_root, layout.manifests_root, layout.retired_root):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        found = folder.stat()
        if uid not in (-1, found.st_uid) or gid not in (-1, found.st_gid):
            try:
                os.chown(folder, uid, gid)
            except PermissionError as error:
                log.warning("%s cannot get its namespace's owner: %s", folder, error.strerror)
        mode = namespace.mode & ~WRITERS
        if folder.stat().st_uid == os.geteuid():  # who is root may write whatever the mode
            mode |= 0o200
        if stat.S_IMODE(found.st_mode) != mode:
            folder.chmod(mode)


def own_namespaces(
    layout: Layout, names: Iterable[str], namespace_of: Callable[[str], NamespaceConfig]
) -> None:
    """Give namespaces that are in the store what the configuration says of them now.

    A namespace that was closed must not stay open until its next freeze.
    """
    for name in names:
        try:
            if (layout.models / name).exists():
                make_namespace(layout, name, namespace_of(name))
        except OSError as error:
            log.warning("the namespace %s keeps its owner and mode: %s", name, error)


def set_source(
    layout: Layout, model: ModelId, source: ModelId | None, namespace: NamespaceConfig
) -> None:
    """Remember whose main/ a model of that namespace has; None forgets it."""
    link = layout.model(model) / MAIN
    if source is not None:
        make_namespace(layout, model.namespace, namespace)
        link.parent.mkdir(exist_ok=True)
        replace_link(link, main_link(source))
    elif link.is_symlink():
        link.unlink(missing_ok=True)
        sync_folder(link.parent)


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


def finish_publish(
    layout: Layout, version: VersionId, namespace: NamespaceConfig = THE_DAEMONS
) -> None:
    """Do what is left when a version is in `models/`; again at a start, whatever a crash left."""
    follow_latest(layout, version.model, version.version)
    folder = layout.version(version)
    if folder.stat().st_mode & 0o222:  # opened by who is not root, to move it
        seal_folder(folder, namespace)
    discard_pending(layout, version)


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


def forget_empty(layout: Layout, namespace: str) -> None:
    """Remove the folders that models which are gone have left: a namespace is named by them."""
    for above in (layout.models / namespace, layout.pending_root / namespace):
        for folder in (*(above / name for name in names_in(above)), above):
            with suppress(OSError):
                folder.rmdir()


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
    return [folder / name for name in names_in(folder) if name.startswith(beginning)]
