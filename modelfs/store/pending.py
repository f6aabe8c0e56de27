"""What lies in `pending/`: claims, locks, finished files. Blocking work, for threads.

freeze.py draws the folder. Nothing here is remembered between calls.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from modelfs.errors import AlreadyExists, ModelfsError
from modelfs.names import VersionId
from modelfs.registry.objects import ObjectId
from modelfs.store import versions
from modelfs.store.layout import Layout, copy_durably, sync_folder, write_durably
from modelfs.store.manifest import Entry, Manifest, folders_of

log = logging.getLogger(__name__)

HASH_BYTES = 1 << 20


def claim(layout: Layout, manifest: Manifest, needed_bytes: int) -> int:
    """Make the pending folder of a new freeze and return its locked file.

    `needed_bytes` is what it will fetch: other freezes leave that much space.

    Exclusive over all nodes: the folder is made whole under another name and renamed, and
    a rename onto a folder that is not empty fails. Raises AlreadyExists, NoSpace.
    """
    version = manifest.id
    pending = layout.pending(version)
    pending.parent.mkdir(parents=True, exist_ok=True)
    made = pending.with_name(f".made-{uuid.uuid4().hex}")
    made.mkdir()
    lock_fd = os.open(made / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (made / "needed").write_text(str(needed_bytes))
        write_durably(made / "manifest.json", manifest.to_json())
        versions.check_unused(layout, version)
        try:
            made.rename(pending)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise AlreadyExists(f"{version} exists") from None
        sync_folder(pending.parent)
        _check_still_unused(layout, version)
    except BaseException:
        os.close(lock_fd)
        _remove_claim(made)
        raise
    return lock_fd


def _check_still_unused(layout: Layout, version: VersionId) -> None:
    """Look again after the claim: another node may have become ready in between."""
    if layout.version(version).exists() or layout.retired(version).exists():
        _remove_claim(layout.pending(version))
        raise AlreadyExists(f"{version} exists")


def _remove_claim(folder: Path) -> None:
    for name in ("manifest.json", "needed", "lock"):
        (folder / name).unlink(missing_ok=True)
    if folder.exists():
        folder.rmdir()


def reserved_bytes(layout: Layout) -> int:
    """Return how many bytes the freezes under way, on all nodes, have yet to write."""
    reserved = 0
    for path in layout.pending_root.glob("*/*/*/needed"):
        folder = path.parent
        if folder.name.startswith(".") or (folder / "failed").exists():
            continue
        try:
            found = [os.stat(os.path.join(w, n)) for w, _, names in os.walk(folder) for n in names]
            here = sum(file.st_blocks * 512 for file in found if file.st_nlink == 1)
            reserved += max(0, int(path.read_text()) - here)
        except (OSError, ValueError):
            continue  # it ended just now
    return reserved


def take_over(layout: Layout, version: VersionId) -> int | None:
    """Return the locked file of a pending freeze that nobody works on, else None."""
    try:
        lock_fd = os.open(layout.pending(version) / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock_fd)
        return None
    if not _is_lock_of(lock_fd, layout.pending(version)):  # it ended just now
        os.close(lock_fd)
        return None
    shutil.rmtree(layout.pending(version) / "partial", ignore_errors=True)  # parts unknown
    return lock_fd


def _is_lock_of(lock_fd: int, pending: Path) -> bool:
    """Tell whether a pending folder still is the one whose lock file was opened."""
    try:
        return os.path.samestat(os.fstat(lock_fd), os.stat(pending / "lock"))
    except FileNotFoundError:
        return False


def make_folders(folder: Path, manifest: Manifest) -> None:
    (folder / "partial").mkdir(exist_ok=True)
    for path in ("", *sorted({*manifest.folders, *folders_of(e.path for e in manifest.files)})):
        made = folder / "files" / path
        made.mkdir(parents=True, exist_ok=True)
        made.chmod(0o755)


def finished(files: Path, entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries whose file is in place, with the SHA-256 that it had."""
    done = []
    for entry in entries:
        path = files / entry.path
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if found.st_size == entry.size:
            sha256 = _recorded_sha256(path) or hashes(path, False)[0]
            done.append(replace(entry, mtime_ns=found.st_mtime_ns, sha256=sha256))
        else:
            path.unlink()
    return done


def unchanged_files(layout: Layout, manifest: Manifest) -> Mapping[ObjectId, tuple[Entry, Path]]:
    """Return the files of ready versions of this model that hold objects of the manifest.

    The newest versions are asked first, and no more than are needed.
    """
    wanted = {entry.object.id: entry for entry in manifest.files}
    found: dict[ObjectId, tuple[Entry, Path]] = {}
    for version in versions.newest_first(layout, manifest.id.model):
        if len(found) == len(wanted):
            break
        try:
            earlier = versions.read_manifest(layout, version)
        except ModelfsError as error:
            log.warning("%s", error)
            continue
        for entry in earlier.files:
            match = wanted.get(entry.object.id)
            if match is None or match.size != entry.size or not entry.sha256:
                continue
            if entry.object.id in found:
                continue
            path = layout.version(version) / entry.path
            if path.is_file():  # else it is in quarantine
                found[entry.object.id] = (entry, path)
    return found


def link_or_copy(source: Path, target: Path) -> None:
    """Link a finished file, or copy it where links end: at a quota's realm, at a full inode."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EMLINK):
            raise
        copy_durably(source, target)


def hashes(path: Path, with_md5: bool) -> tuple[str, str | None]:
    sha256 = hashlib.sha256()
    md5 = hashlib.md5(usedforsecurity=False) if with_md5 else None
    buffer = bytearray(HASH_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            data = memoryview(buffer)[:count]
            sha256.update(data)
            if md5 is not None:
                md5.update(data)
    return sha256.hexdigest(), md5.hexdigest() if md5 is not None else None


def _recorded_sha256(path: Path) -> str | None:
    try:
        return os.getxattr(path, "user.modelfs.sha256").decode()
    except OSError:
        return None


def set_attribute(path: Path, name: str, value: str) -> None:
    """Set `user.modelfs.NAME`; a file system without user attributes goes without."""
    try:
        os.setxattr(path, f"user.modelfs.{name}", value.encode())
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSPC, errno.E2BIG):
            raise


def seal_file(path: Path, entry: Entry) -> None:
    """Give a checked file its times, attribute and mode, and make it durable."""
    set_attribute(path, "sha256", entry.sha256 or "")
    os.utime(path, ns=(entry.time_ns, entry.time_ns))
    os.chmod(path, 0o444)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def put_in_place(source: Path, target: Path, entry: Entry, is_linked: bool) -> None:
    """Seal a checked file, then give it its name."""
    seal_file(source, entry)
    if is_linked:
        link_or_copy(source, target)
    else:
        source.rename(target)


def seal_folders(files: Path, manifest: Manifest) -> None:
    """Make the folders durable and read-only, the version's own last."""
    set_attribute(files, "state", "ready")
    set_attribute(files, "digest", manifest.digest or "")
    set_attribute(files, "progress", f"{manifest.size}/{manifest.size}")
    for folder, _, _ in os.walk(files, topdown=False):
        sync_folder(Path(folder))
        if Path(folder) != files:
            os.chmod(folder, 0o555)
