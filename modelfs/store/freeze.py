"""One freeze: from the pinned manifest to a ready version.

On disk, below `pending/NS/MODEL/VERSION/`:

    manifest.json   what was listed at mkdir; never changed
    needed          how many bytes of that must be fetched
    lock            held (flock) by the daemon that works on it
    failed          why it cannot be finished, where that is so
    partial/        files that are coming, by their number in the manifest; NUMBER.durable
                    says how many bytes at the beginning outlive a crash
    files/          finished files: whole, checked, synced, read-only

`files/` is renamed into `models/` when every entry is there. A restart goes on with what
`files/` and `partial/` hold. Owned by the trio thread; hashing, linking and syncing run in threads.
"""

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path

import trio

from modelfs.concurrency import Threads, side_by_side
from modelfs.errors import (
    ModelfsError,
    NotFound,
    RegistryUnavailable,
    Stale,
    WrongBytes,
)
from modelfs.registry.objects import Checksum, ObjectInfo
from modelfs.registry.registry import Registry
from modelfs.store import pending, publishing, versions
from modelfs.store.bringing import Bringing, drop_from
from modelfs.store.cache import Cache
from modelfs.store.cachedfile import CachedFile
from modelfs.store.confirming import Expected, Unconfirmed, expected_of
from modelfs.store.layout import Layout, close_fd, write_durably
from modelfs.store.manifest import Entry, Manifest, as_tree
from modelfs.store.parts import Fetcher, PartFile
from modelfs.store.pending import Come
from modelfs.tables import NamespaceConfig

log = logging.getLogger(__name__)

PARALLEL_FILES = 16  # most of them small, and waiting for the disk
HASHING_THREADS = max(2, len(os.sched_getaffinity(0)))
WRONG_BYTES_TRIES = 3
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0


class FreezeThreads:
    """Threads of all freezes of a daemon, apart from others: a read waits for none of them."""

    def __init__(self) -> None:
        self.hashing = Threads(HASHING_THREADS)
        self.finishing = Threads(PARALLEL_FILES)


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
        threads: FreezeThreads,
        part_size: int,
        namespace: NamespaceConfig,
        unchanged: pending.Unchanged | None = None,
    ) -> None:
        self.manifest = manifest
        self.folders = as_tree(manifest)  # once: it is asked for by every lookup in it
        self.state = State.DOWNLOADING
        self.error: str | None = None
        self.done: dict[str, Entry] = {}
        self.is_ours = True
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
        self._namespace = namespace
        self._unchanged = unchanged  # as mkdir has found them, for the first try
        self._threads = threads
        self._coming: dict[str, PartFile] = {}
        self._bringing: dict[str, Bringing] = {}
        self._wrong: Counter[str] = Counter()
        self._came: dict[str, set[str]] = {}  # the SHA-256 of what nothing confirmed, by path
        self._doubted: dict[str, tuple[CachedFile, str]] = {}  # of those, what is in the cache
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
            close_fd(self._lock_fd)
            self.over.set()

    async def _run(self, when_ready: Callable[[Manifest], None]) -> None:
        pause_s = RETRY_FIRST_S
        while True:
            try:
                if not await self._hold():
                    return
                try:
                    if await self._disk.run(self._layout.version(self.manifest.id).is_dir):
                        of = (self._layout, self.manifest.id)
                        manifest = await self._disk.run(versions.read_manifest, *of)
                    else:
                        await self._bring_all()
                        manifest = await self._publish()
                    await self._become_ready(manifest, when_ready)
                except (Stale, NotFound, WrongBytes) as error:
                    await self.fail(str(error))
            except ModelfsError as error:  # the registry is down, or refuses: that may pass
                self._wait_because(str(error))
            except OSError as error:
                where = f" ({error.filename})" if error.filename else ""
                self._wait_because(f"the store: {error.strerror}{where}")
            if self.state is not State.DOWNLOADING:
                return
            await trio.sleep(pause_s)
            pause_s = min(pause_s * 2, RETRY_MAX_S)
            await self._registry.wait_reachable()

    async def _hold(self) -> bool:
        """See that the lock is ours still; else another node goes on, or has ended the freeze."""
        layout, version = self._layout, self.manifest.id
        if await self._disk.run(pending.holds, layout, version, self._lock_fd):
            return True
        close_fd(self._lock_fd)
        self._lock_fd = -1  # if what follows fails, too
        taken = await self._disk.run(pending.take_over, layout, version)
        if taken is None:
            log.warning("the freeze of %s is another node's now", version)
            self.is_ours = False
            return False
        self._lock_fd = taken
        return True

    def _wait_because(self, reason: str) -> None:
        if reason != self.error:
            log.warning("the freeze of %s waits: %s", self.manifest.id, reason)
        self.error = reason

    async def fail(self, reason: str) -> None:
        """End the freeze for good; its folder says why, to every node."""
        log.error("the freeze of %s failed: %s", self.manifest.id, reason)
        await self._disk.run(write_durably, self._folder / "failed", reason.encode())
        self.state, self.error = State.FAILED, reason

    async def _bring_all(self) -> None:
        await self._disk.run(pending.make_folders, self._folder, self.manifest)
        for entry in await self._disk.run(
            pending.finished, self._folder / "files", self.manifest.files
        ):
            self.done[entry.path] = entry
        local, self._unchanged = self._unchanged, None
        if local is None:
            local = await self._disk.run(pending.unchanged_files, self._layout, self.manifest)
        works = [
            partial(self._bring, entry, local.get(entry.object.id))
            for entry in self.manifest.files
            if entry.path not in self.done
        ]
        await side_by_side(works, PARALLEL_FILES)

    async def _bring(self, entry: Entry, twin: tuple[Entry, Path] | None) -> None:
        """Bring one file below `files/`: a link to what is here already, or fetched."""
        target = self._folder / "files" / entry.path
        cached = self._cache.complete_file(entry.object.id)
        if twin is not None:
            found, source = twin
            await self._disk.run(pending.link_or_copy, source, target)
            self.done[entry.path] = replace(
                entry,
                mtime_ns=found.time_ns,
                md5=found.md5,
                sha256=found.sha256,
                confirmed=found.confirmed,
            )
        elif cached is not None and await self._link_cached(entry, cached, target):
            pass
        elif entry.size == 0:
            source = self._partial(entry)
            await self._disk.run(source.write_bytes, b"")
            await self._finish(Come(entry, source, target, expected_of(entry.object)))
        else:
            await self._fetch(entry, target)

    async def _link_cached(self, entry: Entry, cached: CachedFile, target: Path) -> bool:
        """Link a complete file of the cache; False where it is wrong, or evicted just now."""
        self._cache.seal(cached)
        try:
            where = (_as_it_came(entry, cached.info), cached.path, target)
            expected = await self._expected(entry, cached.info)
            await self._finish(Come(*where, expected, is_linked=True))
        except FileNotFoundError:
            return False
        except Unconfirmed as error:
            log.info("%s: it is fetched, to compare with what is in the cache", error)
            self._doubted[entry.path] = (cached, error.sha256)
            return False
        except WrongBytes as error:
            log.error("wrong bytes in the cache: %s", error)
            await self._cache.throw_away(cached)
            return False
        return True

    async def _fetch(self, entry: Entry, target: Path) -> None:
        file = await self.open_coming(entry)
        try:
            try:
                try:
                    await self._bring_and_finish(entry, file, target)
                except Unconfirmed as error:  # nothing is known to be wrong: at once again
                    if self._wrong[entry.path]:
                        raise
                    log.debug("%s: fetched once more, to compare", error)
                    await self._drop_all(file)
                    await self._bring_and_finish(entry, file, target)
            except WrongBytes as error:
                await self._drop_all(file)
                self._wrong[entry.path] += 1
                if self._wrong[entry.path] >= WRONG_BYTES_TRIES:
                    raise
                log.error("%s: fetched again", error)
                raise RegistryUnavailable(str(error)) from error
        except (Stale, NotFound):
            raise Stale(f"{entry.key} changed or vanished after it was listed") from None
        finally:
            file.leave()

    async def _drop_all(self, file: PartFile) -> None:
        """Forget the bytes of a file, which may be wrong."""
        await self._disk.run(pending.forget_durable, file.path)
        drop_from(file, 0)

    async def _bring_and_finish(self, entry: Entry, file: PartFile, target: Path) -> None:
        bringing = Bringing(file, self._fetcher, self._disk, self._threads.hashing)
        self._bringing[entry.path] = bringing
        try:
            is_alone = len(self._bringing) == 1
            expected, found = await bringing.bring(partial(self._expected, entry), is_alone)
            came = _as_it_came(entry, file.info)
            await self._finish(Come(came, file.path, target, expected, fd=file.fd, found=found))
        except OSError:
            await bringing.drop_lost()
            raise
        finally:
            del self._bringing[entry.path]

    async def _finish(self, come: Come) -> None:
        """Put a file in place whose bytes have come; raises WrongBytes, Unconfirmed."""
        path = come.entry.path
        came = self._came.setdefault(path, set())
        try:
            entry = await self._threads.finishing.run(pending.finish, replace(come, believed=came))
        except Unconfirmed as error:
            came.add(error.sha256)
            raise
        self.done[path] = entry
        cached, sha256 = self._doubted.pop(path, (None, ""))
        if cached is not None and sha256 != entry.sha256:
            await self._cache.throw_away(cached)

    async def _expected(self, entry: Entry, info: ObjectInfo) -> Expected:
        return expected_of(info, await self._kept_checksum(entry, info))

    async def _kept_checksum(self, entry: Entry, info: ObjectInfo) -> Checksum | None:
        """Ask for the registry's own checksum of a file, where it has one and no MD5 tells."""
        if info.md5 is not None or entry.checksum is None:
            return None
        try:
            ask = self._registry.store.checksum
            return await self._registry.call(ask, entry.object.id, entry.version_id)
        except RegistryUnavailable:
            raise
        except ModelfsError as error:  # as when the object changed after its bytes had come
            log.info("%s is frozen without the registry's checksum: %s", entry.key, error)
            return None

    async def _publish(self) -> Manifest:
        files = [self.done[entry.path] for entry in self.manifest.files]
        manifest = self.manifest.completed(files, time.time_ns())
        files_folder, namespace = self._folder / "files", self._namespace
        await self._disk.run(pending.seal_folders, files_folder, manifest, namespace)
        await self._disk.run(publishing.publish, self._layout, manifest, files_folder, namespace)
        return manifest

    async def _become_ready(
        self, manifest: Manifest, when_ready: Callable[[Manifest], None]
    ) -> None:
        self.state, self.error, self.manifest = State.READY, None, manifest
        log.info("%s is ready: %d files, %d bytes", manifest.id, len(manifest.files), manifest.size)
        when_ready(manifest)
        await self._disk.run(publishing.finish_publish, self._layout, manifest.id, self._namespace)

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
        try:
            async with file.opening:
                if file.fd < 0:
                    where = (file.path, file.open_now)
                    durable = await self._disk.run(pending.open_coming, *where)
                    for index in range(durable // file.part_size):
                        file.add(index)
        except BaseException:
            file.leave()
            raise
        return file

    def room(self, count: int) -> AbstractAsyncContextManager[None]:
        """As PartOwner: the space was compared at mkdir; a full disk says so itself."""
        return nullcontext()

    def part_arrived(self, file: PartFile, index: int, info: ObjectInfo) -> None:
        is_answer = info is not file.info  # else it is of a part whose request goes on
        file.info = replace(
            file.info, mtime_ns=info.mtime_ns, md5=info.md5, etag_parts=info.etag_parts
        )
        for bringing in self._bringing.values():
            if bringing.file is file:
                bringing.part_arrived(is_answer)


def _as_it_came(entry: Entry, info: ObjectInfo) -> Entry:
    return replace(entry, mtime_ns=info.mtime_ns, md5=info.md5)
