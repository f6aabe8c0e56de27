"""One freeze: from the pinned manifest to a ready version.

On disk, below `pending/NS/MODEL/VERSION/`:

    manifest.json   what was listed at mkdir; never changed
    needed          how many bytes of that must be fetched
    lock            held (flock) by the daemon that works on it
    failed          why it cannot be finished, where that is so
    partial/        files that are coming, by their number in the manifest
    files/          finished files: whole, checked, synced, read-only

`files/` is renamed into `models/` when every entry is there. A restart goes on with what
`files/` holds. Owned by the trio thread; hashing, linking and syncing run in threads.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

import trio

from modelfs.concurrency import Threads
from modelfs.errors import (
    AlreadyExists,
    ModelfsError,
    NotFound,
    RegistryUnavailable,
    Stale,
    WrongBytes,
)
from modelfs.names import VersionId
from modelfs.registry.objects import ObjectId, ObjectInfo
from modelfs.registry.registry import Registry
from modelfs.store import versions
from modelfs.store.cache import Cache, CachedFile
from modelfs.store.layout import Layout, copy_durably, sync_folder, write_durably
from modelfs.store.manifest import Entry, Manifest, folders_of
from modelfs.store.parts import Fetcher, PartFile, Urgency

log = logging.getLogger(__name__)

PARALLEL_FILES = 8
PARTS_QUEUED = 16  # of one file, so that reads of other files find their turn
WRONG_BYTES_TRIES = 3
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0
HASH_BYTES = 1 << 20


class State(StrEnum):
    """How far a version is."""

    DOWNLOADING = "downloading"
    READY = "ready"
    FAILED = "failed"


class Freeze:
    """A freeze that this daemon works on.

    INVARIANT: an entry in `done` has its file below `files/`, whole and synced; nothing
    of it is below `models/` before all are done.
    """

    def __init__(
        self,
        manifest: Manifest,
        layout: Layout,
        lock_fd: int,
        *,
        registry: Registry,
        fetcher: Fetcher,
        cache: Cache,
        disk: Threads,
        part_size: int,
    ) -> None:
        self.manifest = manifest
        self.state = State.DOWNLOADING
        self.error: str | None = None
        self.done: dict[str, Entry] = {}
        self.fetched_bytes = 0
        self.scope = trio.CancelScope()
        self.over = trio.Event()
        self._layout = layout
        self._folder = layout.pending(manifest.id)
        self._lock_fd = lock_fd
        self._registry = registry
        self._fetcher = fetcher
        self._cache = cache
        self._disk = disk
        self._part_size = part_size
        self._coming: dict[str, PartFile] = {}
        self._wrong: Counter[str] = Counter()
        self._numbers = {e.path: n for n, e in enumerate(manifest.files)}

    @property
    def done_bytes(self) -> int:
        """Bytes that are here."""
        coming = sum(f.present_bytes for p, f in self._coming.items() if p not in self.done)
        return coming + sum(e.size for e in self.done.values())

    # -------------------------------------------------------------- running

    async def run(self, when_ready: Callable[[Manifest], None]) -> None:
        """Go on until the version is ready or has failed, however long that takes."""
        try:
            with self.scope:
                await self._run(when_ready)
        finally:
            os.close(self._lock_fd)
            self.over.set()

    async def _run(self, when_ready: Callable[[Manifest], None]) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            try:
                await self._bring_all()
                await self._publish(when_ready)
            except (Stale, NotFound, WrongBytes) as error:
                await self.fail(str(error))
            except ModelfsError as error:  # the registry is down, or refuses: that may pass
                self._wait_because(str(error))
            except OSError as error:
                self._wait_because(f"the store: {error.strerror} ({error.filename})")
            if self.state is not State.DOWNLOADING:
                return
            await trio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_MAX_S)
            await self._registry.wait_reachable()

    def _wait_because(self, reason: str) -> None:
        if reason != self.error:
            log.warning("the freeze of %s waits: %s", self.manifest.id, reason)
        self.error = reason

    async def fail(self, reason: str) -> None:
        """End the freeze for good; its folder says why, to every node."""
        self.state, self.error = State.FAILED, reason
        log.error("the freeze of %s failed: %s", self.manifest.id, reason)
        await self._disk.run(write_durably, self._folder / "failed", reason.encode())

    async def _bring_all(self) -> None:
        await self._disk.run(_make_folders, self._folder, self.manifest)
        for entry in await self._disk.run(_finished, self._folder / "files", self.manifest.files):
            self.done[entry.path] = entry
        local = await self._disk.run(unchanged_files, self._layout, self.manifest)
        limiter = trio.CapacityLimiter(PARALLEL_FILES)
        errors: list[Exception] = []

        async def bring(entry: Entry) -> None:
            async with limiter:
                try:
                    await self._bring(entry, local.get(entry.object.id))
                except (ModelfsError, OSError) as error:
                    errors.append(error)
                    nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for entry in self.manifest.files:
                if entry.path not in self.done:
                    nursery.start_soon(bring, entry)
        if errors:
            raise errors[0]

    async def _bring(self, entry: Entry, twin: tuple[Entry, Path] | None) -> None:
        """Bring one file below `files/`: a link to what is here already, or fetched."""
        target = self._folder / "files" / entry.path
        cached = self._cache.complete_file(entry.object.id)
        if twin is not None:
            found, source = twin
            await self._disk.run(link_or_copy, source, target)
            self.done[entry.path] = replace(
                entry, mtime_ns=found.time_ns, md5=found.md5, sha256=found.sha256
            )
        elif cached is not None and await self._link_cached(entry, cached, target):
            pass
        elif entry.size == 0:
            source = self._partial(entry)
            await self._disk.run(source.write_bytes, b"")
            await self._finish(entry, source, target, entry.object)
        else:
            await self._fetch(entry, target)

    async def _link_cached(self, entry: Entry, cached: CachedFile, target: Path) -> bool:
        """Link a complete file of the cache; False where it is wrong, or evicted just now."""
        self._cache.seal(cached)
        try:
            await self._finish(entry, cached.path, target, cached.info, is_linked=True)
        except (WrongBytes, FileNotFoundError) as error:
            log.warning("%s is fetched, not linked from the cache: %s", entry.key, error)
            return False
        return True

    async def _fetch(self, entry: Entry, target: Path) -> None:
        file = await self.open_coming(entry)
        try:
            for start in range(0, file.part_count, PARTS_QUEUED):
                parts = range(start, min(start + PARTS_QUEUED, file.part_count))
                await self._fetcher.bring(file, parts, Urgency.FREEZE)
            try:
                await self._finish(entry, file.path, target, file.info)
            except WrongBytes as error:
                for index in list(file.present):
                    file.drop(index)
                self._wrong[entry.path] += 1
                if self._wrong[entry.path] >= WRONG_BYTES_TRIES:
                    raise
                log.error("%s: fetched again", error)
                raise RegistryUnavailable(str(error)) from error
        except (Stale, NotFound):
            raise Stale(f"{entry.key} changed or vanished after it was listed") from None
        finally:
            file.leave()

    async def _finish(
        self, entry: Entry, source: Path, target: Path, info: ObjectInfo, is_linked: bool = False
    ) -> None:
        sha256, md5 = await self._disk.run(_hashes, source, info.md5 is not None)
        if info.md5 is not None and md5 != info.md5:
            raise WrongBytes(f"{entry.key} arrived with MD5 {md5} instead of {info.md5}")
        entry = replace(entry, mtime_ns=info.mtime_ns, md5=info.md5, sha256=sha256)
        await self._disk.run(_put_in_place, source, target, entry, is_linked)
        self.done[entry.path] = entry

    async def _publish(self, when_ready: Callable[[Manifest], None]) -> None:
        files = [self.done[entry.path] for entry in self.manifest.files]
        manifest = self.manifest.completed(files, time.time_ns())
        await self._disk.run(_seal_folders, self._folder / "files", manifest, self._layout)
        await self._disk.run(versions.publish, self._layout, manifest, self._folder / "files")
        self.state, self.error, self.manifest = State.READY, None, manifest
        log.info("%s is ready: %d files, %d bytes", manifest.id, len(files), manifest.size)
        when_ready(manifest)
        await self._disk.run(versions.finish_publish, self._layout, manifest.id)

    # -------------------------------------------- reads of what is coming

    def _partial(self, entry: Entry) -> Path:
        return self._folder / "partial" / str(self._numbers[entry.path])

    async def open_coming(self, entry: Entry) -> PartFile:
        """Return the file in which an entry's parts arrive; give it back with `leave`."""
        file = self._coming.get(entry.path)
        if file is None:
            file = PartFile(self._partial(entry), entry.object, self._part_size, self)
            self._coming[entry.path] = file
        file.users += 1
        if file.fd < 0:
            try:
                file.path.parent.mkdir(exist_ok=True)  # a reader may be faster than the freeze
                file.open_now()
            except OSError:
                file.leave()
                raise
        return file

    async def make_room(self, count: int) -> None:
        """As PartOwner: the space was compared at mkdir; a full disk says so itself."""

    def part_arrived(self, file: PartFile, index: int, info: ObjectInfo) -> None:
        self.fetched_bytes += file.length_of(index)
        file.info = replace(file.info, mtime_ns=info.mtime_ns, md5=info.md5)


# ------------------------------------------------------- on the disk, in threads


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


def _make_folders(folder: Path, manifest: Manifest) -> None:
    (folder / "partial").mkdir(exist_ok=True)
    for path in ("", *sorted({*manifest.folders, *folders_of(e.path for e in manifest.files)})):
        made = folder / "files" / path
        made.mkdir(parents=True, exist_ok=True)
        made.chmod(0o755)


def _finished(files: Path, entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries whose file is in place, with the SHA-256 that it had."""
    done = []
    for entry in entries:
        path = files / entry.path
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if found.st_size == entry.size:
            sha256 = _recorded_sha256(path) or _hashes(path, False)[0]
            done.append(replace(entry, mtime_ns=found.st_mtime_ns, sha256=sha256))
        else:
            path.unlink()
    return done


def unchanged_files(layout: Layout, manifest: Manifest) -> Mapping[ObjectId, tuple[Entry, Path]]:
    """Return the files of ready versions of this model that hold objects of the manifest."""
    wanted = {entry.object.id: entry for entry in manifest.files}
    found: dict[ObjectId, tuple[Entry, Path]] = {}
    model = manifest.id.model
    for name in versions.shelf(layout, model).ready:
        version = VersionId(model, name)
        try:
            earlier = versions.read_manifest(layout, version)
        except ModelfsError as error:
            log.warning("%s", error)
            continue
        for entry in earlier.files:
            match = wanted.get(entry.object.id)
            if match is None or match.size != entry.size or not entry.sha256:
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


def _hashes(path: Path, with_md5: bool) -> tuple[str, str | None]:
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


def _put_in_place(source: Path, target: Path, entry: Entry, is_linked: bool) -> None:
    """Seal a checked file, then give it its name."""
    seal_file(source, entry)
    if is_linked:
        link_or_copy(source, target)
    else:
        source.rename(target)


def _seal_folders(files: Path, manifest: Manifest, layout: Layout) -> None:
    """Make the folders durable and read-only, the version's own last."""
    set_attribute(files, "state", State.READY)
    set_attribute(files, "digest", manifest.digest or "")
    set_attribute(files, "progress", f"{manifest.size}/{manifest.size}")
    set_attribute(files, "path", str(layout.version(manifest.id)))
    for folder, _, _ in os.walk(files, topdown=False):
        sync_folder(Path(folder))
        if Path(folder) != files:
            os.chmod(folder, 0o555)
