"""What lies in `pending/`: claims, locks, finished files. Blocking work, for threads.

freeze.py draws the folder. Nothing here is remembered between calls.
"""

import errno
import fcntl
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from modelfs.errors import AlreadyExists, ModelfsError
from modelfs.names import VersionId, parse_model
from modelfs.registry.objects import ObjectId
from modelfs.store import publishing, versions
from modelfs.store.confirming import Expected, Hashes, Unconfirmed
from modelfs.store.hashing import hashes
from modelfs.store.layout import (
    Layout,
    close_fd,
    copy_durably,
    names_in,
    sync_folder,
    synced,
    write_durably,
)
from modelfs.store.manifest import Entry, Manifest, folders_of
from modelfs.tables import NamespaceConfig

log = logging.getLogger(__name__)

Unchanged = Mapping[ObjectId, tuple[Entry, Path]]
"""The files of ready versions that hold objects of a manifest, with their entries there."""


def claim(layout: Layout, manifest: Manifest, needed_bytes: int) -> int:
    """Make the pending folder of a new freeze and return its locked file.

    `needed_bytes` is what it will fetch: other freezes leave that much space.

    Exclusive over all nodes: the folder is made whole under another name and renamed, and
    a rename onto a folder that is not empty fails. Raises AlreadyExists, NoSpace.
    """
    version = manifest.id
    pending = layout.pending(version)
    made = _make_claim(pending.parent)
    lock_fd = os.open(made / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (made / "needed").write_text(str(needed_bytes))
        write_durably(made / "manifest.json", manifest.to_json())
        versions.check_unused(layout, version)
        with synced(pending.parent):
            try:
                made.rename(pending)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise AlreadyExists(f"{version} exists") from None
        _check_still_unused(layout, version)
    except BaseException:
        close_fd(lock_fd)
        _remove_claim(made)
        raise
    return lock_fd


def _make_claim(model: Path) -> Path:
    """Make a new folder in a model's, which goes when its last freeze is over: perhaps just now."""
    while True:
        model.mkdir(parents=True, exist_ok=True)
        made = model / f".made-{uuid.uuid4().hex}"
        with suppress(FileNotFoundError):
            made.mkdir()
            return made


def _check_still_unused(layout: Layout, version: VersionId) -> None:
    """Look again after the claim: another node may have become ready in between."""
    if layout.version(version).exists() or layout.retired(version).exists():
        _remove_claim(layout.pending(version))
        raise AlreadyExists(f"{version} exists")


def _remove_claim(folder: Path) -> None:
    """Remove a claim; the node that won may just be removing it as a freeze that is over."""
    for name in ("manifest.json", "needed", "lock"):
        (folder / name).unlink(missing_ok=True)
    with suppress(FileNotFoundError), synced(folder.parent):
        folder.rmdir()


def reserved_bytes(layout: Layout) -> int:
    """Return how many bytes the freezes under way, on all nodes, have yet to write."""
    reserved = 0
    for path in layout.pending_root.glob("*/*/[!.]*/needed"):
        folder = path.parent
        if (folder / "failed").exists():
            continue
        try:
            reserved += max(0, int(path.read_text()) - _written_bytes(folder))
        except (OSError, ValueError):
            continue  # it ended just now
    return reserved


def _written_bytes(folder: Path) -> int:
    """Return how many bytes a freeze has written: a sparse file's blocks do not tell on CephFS."""
    files, partial = folder / "files", folder / "partial"
    found = [os.stat(os.path.join(w, name)) for w, _, names in os.walk(files) for name in names]
    coming = sum(durable_bytes(partial / name) for name in names_in(partial) if name.isdigit())
    return coming + sum(file.st_size for file in found if file.st_nlink == 1)


def open_coming(path: Path, open_now: Callable[[], None]) -> int:
    """Open (and make) the file in which parts arrive; return how many bytes it holds durably."""
    path.parent.mkdir(exist_ok=True)  # a reader may be faster than the freeze
    try:
        open_now()
    except PermissionError:  # sealed, but not renamed: a crash, or a disk that refused
        path.chmod(0o600)
        open_now()
    return durable_bytes(path)


def record_durable(path: Path, fd: int, count: int) -> None:
    """Make the first `count` bytes of a coming file outlive a crash, and say so beside it."""
    os.fdatasync(fd)
    write_durably(_mark(path), b"%d" % count)


def durable_bytes(path: Path) -> int:
    """Return how many bytes at the beginning of a coming file outlive a crash."""
    try:
        return int(_mark(path).read_bytes())
    except (FileNotFoundError, ValueError):
        return 0


def forget_durable(path: Path) -> None:
    """Believe nothing of a coming file any more: its bytes were wrong."""
    _mark(path).unlink(missing_ok=True)


def _mark(path: Path) -> Path:
    return path.with_suffix(".durable")


def holds(layout: Layout, version: VersionId, lock_fd: int) -> bool:
    """Tell whether a freeze's lock file is still locked by us; raises StoreError.

    A store that was gone for a while has forgotten its locks, and its descriptors are dead.
    """
    layout.check_there()
    try:
        if not _is_lock_of(lock_fd, layout.pending(version)):
            return False
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no change where it is held
    except OSError as error:
        log.warning("the lock of the freeze of %s is lost: %s", version, error.strerror)
        return False
    return True


def take_over(layout: Layout, version: VersionId) -> int | None:
    """Return the locked file of a pending freeze that nobody works on, else None."""
    try:
        lock_fd = os.open(layout.pending(version) / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_lock_of(lock_fd, layout.pending(version)):  # else it ended just now
            return lock_fd
    except BlockingIOError:
        pass
    except BaseException:
        close_fd(lock_fd)
        raise
    close_fd(lock_fd)
    return None


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
            sha256 = _recorded(path, "sha256") or hashes(path).sha256
            confirmed = _recorded(path, "confirmed")
            done.append(
                replace(entry, mtime_ns=found.st_mtime_ns, sha256=sha256, confirmed=confirmed)
            )
        else:
            path.unlink()
    return done


def unchanged_files(layout: Layout, manifest: Manifest) -> Unchanged:
    """Return the files of ready versions that hold objects of the manifest.

    The versions are this model's, then its source's; the newest first, and no more than are
    needed.
    """
    models = [manifest.id.model]
    if manifest.source is not None:
        models.append(parse_model(manifest.source))
    earlier_versions = (v for model in models for v in versions.newest_first(layout, model))
    wanted = {entry.object.id: entry for entry in manifest.files}
    found: dict[ObjectId, tuple[Entry, Path]] = {}
    for version in earlier_versions:
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


def _recorded(path: Path, name: str) -> str | None:
    try:
        return os.getxattr(path, f"user.modelfs.{name}").decode()
    except OSError:
        return None


def set_attribute(file: Path | int, name: str, value: str) -> None:
    """Set `user.modelfs.NAME`; a file system without user attributes goes without."""
    try:
        os.setxattr(file, f"user.modelfs.{name}", value.encode())
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSPC, errno.E2BIG):
            raise


@dataclass(frozen=True, slots=True)
class Come:
    """A file whose bytes have come: where it lies, where it goes, what is known of it.

    `fd` is by what its bytes were written, None where nobody wrote any. `found` are its hashes,
    None where it is not hashed yet; `believed` are the SHA-256 of bytes that came before.
    """

    entry: Entry
    source: Path
    target: Path
    expected: Expected
    is_linked: bool = False
    fd: int | None = None
    found: Hashes | None = None
    believed: Set[str] = frozenset()


def finish(come: Come) -> Entry:
    """Hash, check, seal and sync a file, and give it its name below `files/`; in one go.

    Bytes that no part size explains are believed when the same have come twice. Raises
    WrongBytes, and Unconfirmed where they may be wrong, or cut in odd parts.
    """
    entry = come.entry
    found = come.found or hashes(come.source, come.expected)
    confirmed = come.expected.confirmed_by(found)
    if confirmed is None and come.expected.cuts:
        if found.sha256 not in come.believed:
            why = f"{entry.key} has the ETag {entry.etag} by no likely part size"
            raise Unconfirmed(why, found.sha256)
        log.info(
            "%s cannot be compared with its ETag %s, whose part size is not known: "
            "the same bytes came twice and are taken",
            *(entry.key, entry.etag),
        )
    entry = replace(entry, sha256=found.sha256, confirmed=confirmed)
    put_in_place(come.source, come.target, entry, come.is_linked, come.fd)
    return entry


def put_in_place(
    source: Path, target: Path, entry: Entry, is_linked: bool, fd: int | None = None
) -> None:
    """Seal a checked file, then give it its name; while it is open: see write_durably.

    What was written is synced by `fd`: an error of writing shows at the descriptor that wrote.
    """
    with open_to_read(source) if fd is None else nullcontext(fd) as opened:
        seal_file(opened, entry)
        if is_linked:
            link_or_copy(source, target)
        else:
            source.rename(target)


def seal_file(fd: int, entry: Entry) -> None:
    """Give a checked file its times, attribute and mode, and make it durable."""
    set_attribute(fd, "sha256", entry.sha256 or "")
    if entry.confirmed is not None:
        set_attribute(fd, "confirmed", entry.confirmed)
    os.utime(fd, ns=(entry.time_ns, entry.time_ns))
    os.fchmod(fd, 0o444)
    os.fsync(fd)


@contextmanager
def open_to_read(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        close_fd(fd)


def seal_folders(
    files: Path, manifest: Manifest, namespace: NamespaceConfig = publishing.THE_DAEMONS
) -> None:
    """Make the folders durable and read-only; the version's own one when it is published."""
    set_attribute(files, "state", "ready")
    set_attribute(files, "digest", manifest.digest or "")
    set_attribute(files, "progress", f"{manifest.size}/{manifest.size}")
    for folder, _, _ in os.walk(files, topdown=False):
        if Path(folder) != files:
            publishing.seal_folder(Path(folder), namespace)
    sync_folder(files)
