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
from modelfs.registry.objects import ObjectInfo
from modelfs.registry.registry import Registry
from modelfs.store import pending, versions
from modelfs.store.cache import Cache, CachedFile
from modelfs.store.layout import Layout, write_durably
from modelfs.store.manifest import Entry, Manifest
from modelfs.store.parts import Fetcher, PartFile, Urgency

log = logging.getLogger(__name__)

PARALLEL_FILES = 8
PARTS_QUEUED = 16  # of one file, so that reads of other files find their turn
WRONG_BYTES_TRIES = 3
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0


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
        await self._disk.run(pending.make_folders, self._folder, self.manifest)
        for entry in await self._disk.run(
            pending.finished, self._folder / "files", self.manifest.files
        ):
            self.done[entry.path] = entry
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
        sha256, md5 = await self._disk.run(pending.hashes, source, info.md5 is not None)
        if info.md5 is not None and md5 != info.md5:
            raise WrongBytes(f"{entry.key} arrived with MD5 {md5} instead of {info.md5}")
        entry = replace(entry, mtime_ns=info.mtime_ns, md5=info.md5, sha256=sha256)
        await self._disk.run(pending.put_in_place, source, target, entry, is_linked)
        self.done[entry.path] = entry

    async def _publish(self, when_ready: Callable[[Manifest], None]) -> None:
        files = [self.done[entry.path] for entry in self.manifest.files]
        manifest = self.manifest.completed(files, time.time_ns())
        await self._disk.run(pending.seal_folders, self._folder / "files", manifest)
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

    def room(self, count: int) -> AbstractAsyncContextManager[None]:
        """As PartOwner: the space was compared at mkdir; a full disk says so itself."""
        return nullcontext()

    def part_arrived(self, file: PartFile, index: int, info: ObjectInfo) -> None:
        file.info = replace(file.info, mtime_ns=info.mtime_ns, md5=info.md5)
