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
from modelfs.config import NamespaceConfig
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
from modelfs.store.cache import Cache, CachedFile
from modelfs.store.confirming import expected_of
from modelfs.store.layout import Layout, close_fd, write_durably
from modelfs.store.manifest import Entry, Manifest, as_tree
from modelfs.store.parts import Fetcher, PartFile, Urgency

log = logging.getLogger(__name__)

PARALLEL_FILES = 8
PARTS_QUEUED = 16  # of one file, so that reads of other files find their turn
WRONG_BYTES_TRIES = 3
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 30.0


class _Unconfirmed(WrongBytes):
    """Bytes that may be right: what the registry says of them does not tell."""

    def __init__(self, text: str, sha256: str) -> None:
        super().__init__(text)
        self.sha256 = sha256


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
        self._coming: dict[str, PartFile] = {}
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
            await self._finish(entry, source, target, entry.object)
        else:
            await self._fetch(entry, target)

    async def _link_cached(self, entry: Entry, cached: CachedFile, target: Path) -> bool:
        """Link a complete file of the cache; False where it is wrong, or evicted just now."""
        self._cache.seal(cached)
        try:
            await self._finish(entry, cached.path, target, cached.info, is_linked=True)
        except FileNotFoundError:
            return False
        except _Unconfirmed as error:
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
                await self._bring_parts(file)
                try:
                    await self._finish(entry, file.path, target, file.info)
                except _Unconfirmed as error:  # nothing is known to be wrong: at once again
                    if self._wrong[entry.path]:
                        raise
                    log.debug("%s: fetched once more, to compare", error)
                    await self._drop_all(file)
                    await self._bring_parts(file)
                    await self._finish(entry, file.path, target, file.info)
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
        _drop_from(file, 0)

    async def _bring_parts(self, file: PartFile) -> None:
        """Bring every part of a file, and make them durable.

        Where the disk refuses (a full one may say so at fsync alone, and lose what it had
        taken), what was not durable before is fetched again.
        """
        durable_parts = 0
        try:
            for start in range(0, file.part_count, PARTS_QUEUED):
                parts = range(start, min(start + PARTS_QUEUED, file.part_count))
                await self._fetcher.bring(file, parts, Urgency.FREEZE)
                if parts.stop < file.part_count:
                    count = parts.stop * file.part_size
                    await self._disk.run(pending.record_durable, file.path, file.fd, count)
                    durable_parts = parts.stop
            await self._disk.run(os.fsync, file.fd)  # a write's error shows at its own descriptor
        except OSError:
            _drop_from(file, durable_parts)
            raise

    async def _finish(
        self, entry: Entry, source: Path, target: Path, info: ObjectInfo, is_linked: bool = False
    ) -> None:
        expected = expected_of(info, await self._kept_checksum(entry, info))
        found = await self._disk.run(pending.hashes, source, expected)
        confirmed = expected.confirmed_by(found)
        if confirmed is None and expected.part_sizes:
            self._check_came_before(entry, found.sha256)
        entry = replace(
            entry,
            mtime_ns=info.mtime_ns,
            md5=info.md5,
            sha256=found.sha256,
            confirmed=confirmed,
        )
        await self._disk.run(pending.put_in_place, source, target, entry, is_linked)
        self.done[entry.path] = entry
        cached, sha256 = self._doubted.pop(entry.path, (None, ""))
        if cached is not None and sha256 != found.sha256:
            await self._cache.throw_away(cached)

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

    def _check_came_before(self, entry: Entry, sha256: str) -> None:
        """Believe bytes that no part size explains when the same have come twice.

        Raises _Unconfirmed the first time: they may be wrong, or cut in odd parts.
        """
        came = self._came.setdefault(entry.path, set())
        if sha256 not in came:
            came.add(sha256)
            why = f"{entry.key} has the ETag {entry.etag} by no likely part size"
            raise _Unconfirmed(why, sha256)
        log.info(
            "%s cannot be compared with its ETag %s, whose part size is not known: "
            "the same bytes came twice and are taken",
            *(entry.key, entry.etag),
        )

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
        file.info = replace(
            file.info, mtime_ns=info.mtime_ns, md5=info.md5, etag_parts=info.etag_parts
        )


def _drop_from(file: PartFile, first: int) -> None:
    """Forget the parts from number `first` on: they are fetched again."""
    for index in [index for index in file.present if index >= first]:
        file.drop(index)
