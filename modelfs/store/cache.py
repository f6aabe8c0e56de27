"""This node's evictable cache: sparse files and their sidecars.

On disk (sidecar.py): `cache/HOST/ab/NAME.RANDOM` holds an object's bytes, `NAME.json` says
of which object (key and ETag) and which parts are whole. The index is rebuilt from the
sidecars at start. What is evicted whole gets a new file when it comes again, so that a
removal never meets a reader. Owned by the trio thread.

A file that is complete may be linked into a version: it is `sealed` from then on, which
means that its bytes are never changed, only its name in the cache is taken away.
"""

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from modelfs.concurrency import Background, Threads
from modelfs.errors import Busy, StoreError
from modelfs.registry.objects import ObjectId, ObjectInfo
from modelfs.store import sidecar
from modelfs.store.cachedfile import CachedFile
from modelfs.store.flights import Flight
from modelfs.store.parts import PartFile
from modelfs.store.room import Room, victims_of
from modelfs.store.saving import Saver

log = logging.getLogger(__name__)

SIDECARS_MAX = 200_000  # files known, those without bytes (kept for their mtime) included
TRIM_PAUSE_S = 0.5  # until what was pinned when room was made may be read to its end


@dataclass(frozen=True)
class CacheStatistics:
    """What status.json shows of the cache; sizes in bytes."""

    files: int
    bytes: int
    max_bytes: int
    hits: int
    misses: int
    evicted_bytes: int
    wrong_files: int


class Cache:
    """See the module.

    INVARIANT: `used_bytes` is the sum of the files' present bytes; a file that is open or
    has a flight is never removed, and a part that is pinned is never evicted, but for a file
    that is only being checked: that loses its name, and the check goes on without.
    """

    def __init__(
        self,
        folder: Path,
        disk: Threads,
        background: Background,
        *,
        part_size: int,
        max_bytes: int,
        min_free: Callable[[int], int],
        on_wrong_bytes: Callable[[ObjectId], None],
    ) -> None:
        self._folder = folder
        self._disk = disk
        self._background = background
        self._part_size = part_size
        self.max_bytes = max_bytes
        self._room = Room(folder, disk, min_free)
        self._on_wrong_bytes = on_wrong_bytes
        self._files: OrderedDict[ObjectId, CachedFile] = OrderedDict()
        self._saver = Saver(folder, disk, background, self._is_current)
        self._is_trimming = False
        self.used_bytes = 0
        self._hits = self._misses = self._evicted = self._wrong = 0

    def statistics(self) -> CacheStatistics:
        counts = (self._hits, self._misses, self._evicted, self._wrong)
        return CacheStatistics(len(self._files), self.used_bytes, self.max_bytes, *counts)

    def set_limits(self, max_bytes: int, min_free: Callable[[int], int]) -> None:
        """Take other limits from now on; what is too much now goes soon."""
        self.max_bytes = max_bytes
        self._room.set_min_free(min_free)
        self._trim_soon()

    def check_invariants(self) -> None:
        """For tests."""
        assert self.used_bytes == sum(f.present_bytes for f in self._files.values())
        for file in self._files.values():
            assert not set(file.present) & set(file.flights), file.path
            assert not file.is_sealed or file.is_complete, file.path
            assert file.fd < 0 or file.users > 0, file.path
            assert file.fd >= 0 or not file.users or file.flights, file.path  # it is just made

    # ---------------------------------------------------------------- files

    async def open(self, info: ObjectInfo) -> CachedFile:
        """Return the file of an object, open; the caller gives it back with `close`."""
        file = self.known_file(info)
        self._files.move_to_end(info.id)
        file.users += 1
        try:
            if file.fd < 0:
                async with file.opening:
                    if file.fd < 0:
                        await self._disk.run(file.open_now)
        except FileNotFoundError:
            file.leave()
            if self._files.get(info.id) is file:
                self._remove(file)
            if not file.present:
                raise StoreError(
                    f"the cache {self._folder} is gone: is its disk mounted?"
                ) from None
            return await self.open(info)  # someone emptied the cache's folder
        except BaseException:
            file.leave()
            raise
        if info.size and not file.present:
            self._misses += 1
        else:
            self._hits += 1
        return file

    def known_file(self, info: ObjectInfo) -> CachedFile:
        """Return the file of an object as it is, which may have no bytes and not be open."""
        file = self._files.get(info.id)
        if file is None:
            file = self._files[info.id] = self._new_file(info)
        return file

    def _new_file(self, info: ObjectInfo) -> CachedFile:
        return CachedFile(sidecar.new_path(self._folder, info.id), info, self._part_size, self)

    def close(self, file: CachedFile) -> None:
        file.leave()

    def cached_bytes(self, object_id: ObjectId) -> int:
        file = self._files.get(object_id)
        return file.present_bytes if file else 0

    def recorded_mtime_ns(self, object_id: ObjectId) -> int | None:
        """Return the mtime in the object's metadata where this node has learned it."""
        file = self._files.get(object_id)
        return file.info.mtime_ns if file else None

    def complete_file(self, object_id: ObjectId) -> CachedFile | None:
        """Return the file of an object where all of its bytes are here."""
        file = self._files.get(object_id)
        return file if file is not None and file.is_complete and file.info.size else None

    def seal(self, file: CachedFile) -> None:
        """Promise that the bytes of a complete file never change: it is about to be linked."""
        assert file.is_complete
        file.is_sealed = True

    async def adopt(self, path: Path, info: ObjectInfo) -> None:
        """Take a complete file of this disk (a staged one that was uploaded) into the cache."""
        self.forget(info.id)
        file = self._new_file(info)
        await self._disk.run(sidecar.move, path, file.path)
        if info.id in self._files:  # open under the same id: the same bytes
            await self._disk.run(sidecar.remove, file.path)
            return
        for index in range(file.part_count):
            file.add(index)
        file.is_checked = True
        self._insert(file)
        await self.make_room()

    def rename(self, old: ObjectId, new: ObjectInfo) -> None:
        """Keep the bytes of an object that was copied to another key inside the registry."""
        file = self._files.get(old)
        if file is None or new.id in self._files:
            return
        del self._files[old]
        file.info = new
        self._files[new.id] = file
        self._remove_files(sidecar.path_of(self._folder, old))
        self._saver.save_soon(file)

    def learn(self, info: ObjectInfo) -> None:
        """Remember the mtime recorded in an object's metadata, its bytes cached or not."""
        file = self._files.get(info.id)
        if file is None:
            self._insert(self._new_file(info))
        elif file.info.mtime_ns != info.mtime_ns:
            file.info = replace(file.info, mtime_ns=info.mtime_ns)
            self._saver.save_soon(file)

    def forget(self, object_id: ObjectId) -> None:
        """Drop an object that is no longer in the registry, unless it is open."""
        file = self._files.get(object_id)
        if file is not None and not file.users:
            self._remove(file)
            self._remove_files(sidecar.path_of(self._folder, object_id), file.path)

    async def evict(self, object_id: ObjectId) -> None:
        """Drop an object's bytes; raises Busy where the file is open, or its parts are coming."""
        file = self._files.get(object_id)
        if file is None or not (file.present or file.users):
            return
        if not file.is_idle:
            raise Busy(f"{object_id.key} is open, or its bytes are just coming")
        await self._drop_whole(file)
        self._room.measure_anew()

    # ------------------------------------------------- PartOwner, eviction

    @asynccontextmanager
    async def room(self, count: int) -> AsyncIterator[None]:
        """Hold room for `count` bytes while they come."""
        with self._room.held(count):
            await self.make_room()
            yield

    async def make_room(self, count: int = 0) -> None:
        """Evict until what comes, and `count` bytes more, fit into `max_size` and `min_free`."""
        while True:
            excess = self._excess(await self._room.free_bytes())
            victims = victims_of(self._files.values(), excess + count)  # least recently used first
            if not victims:
                return
            await self._evict(victims)

    def _trim_soon(self) -> None:
        if self.used_bytes > self.max_bytes and not self._is_trimming:
            self._is_trimming = True
            self._background.start_soon(self._trim, name="trim the cache")

    async def _trim(self) -> None:
        """Evict what was pinned while room was made for what came, when nobody reads it more."""
        try:
            while self.used_bytes > self.max_bytes:
                await trio.sleep(TRIM_PAUSE_S)
                await self.make_room()
        except OSError as error:  # the next part that comes begins anew
            log.warning("the cache %s: %s", self._folder, error)
        finally:
            self._is_trimming = False

    async def limit_exceeded(self) -> str | None:
        """Return which limit is exceeded still when all that may be evicted is gone, if any."""
        await self.make_room()
        if self.used_bytes > self.max_bytes:
            return f"max_size, {self.max_bytes:,} bytes"
        return "min_free" if await self._room.free_bytes() < 0 else None

    def _excess(self, free: int) -> int:
        """Return by how many bytes what is here and what comes are too much; negative: too few."""
        coming = self._room.coming_bytes
        return max(self.used_bytes + coming - self.max_bytes, coming - free)

    async def _evict(self, victims: list[tuple[CachedFile, list[int]]]) -> None:
        for file, chosen in victims:  # chosen before others were waited for, so look again
            if not self._is_current(file):
                continue
            if file.is_idle:
                await self._drop_whole(file)
            elif not file.is_sealed:
                parts = [p for p in chosen if p in file.present and p not in file.pins]
                self._drop_parts(file, parts)
                await self._punch(file, parts)
        self._room.measure_anew()

    async def _drop_whole(self, file: CachedFile) -> None:
        """Drop a file; who checks it just now goes on with what has no name any more."""
        self._evicted += file.present_bytes
        self._remove(file)
        emptied = self._new_file(file.info)  # known still, for its mtime
        self._insert(emptied)
        self._files.move_to_end(emptied.info.id, last=False)
        await self._disk.run(sidecar.remove, file.path)

    def _drop_parts(self, file: CachedFile, parts: list[int]) -> None:
        for index in parts:
            file.drop(index)
            self.used_bytes -= file.length_of(index)
            self._evicted += file.length_of(index)
        file.is_checked = False
        file.is_sealed = False

    async def _punch(self, file: CachedFile, parts: list[int]) -> None:
        """Give the space of parts of an open file back; nobody fetches them meanwhile.

        The sidecar forgets them first: a crash in between must not leave holes that it names.
        """
        flights = {index: Flight(file, index) for index in parts}
        for flight in flights.values():
            flight.is_started = True
        file.flights.update(flights)
        file.users += 1
        try:
            await self._saver.save(file)
            for index in parts:
                offset = index * file.part_size
                await self._disk.run(sidecar.punch, file.fd, offset, file.length_of(index))
        finally:
            for index, flight in flights.items():
                del file.flights[index]
                flight.land()
            file.leave()

    def part_arrived(self, file: PartFile, index: int, info: ObjectInfo) -> None:
        assert isinstance(file, CachedFile)
        self.used_bytes += file.length_of(index)
        self._trim_soon()
        self._room.took(file.length_of(index))
        file.learn(info)
        self._saver.save_soon(file)
        if file.is_complete and file.info.md5 and not file.is_checked:
            file.is_checked = file.is_being_checked = True
            file.users += 1
            self._background.start_soon(self._check, file, name=f"check {file.info.id.key}")

    async def _check(self, file: CachedFile) -> None:
        """Hash a file that has become complete; throw its bytes away where they are wrong."""
        try:
            if not file.is_complete:  # a part was evicted again already
                file.is_checked = False
                return
            with file.pinned(range(file.part_count)):
                found = await self._disk.run(sidecar.md5_of, file.fd, file.info.size)
            if found != file.info.md5:
                await self.throw_away(file)
        finally:
            file.is_being_checked = False
            file.leave()

    async def throw_away(self, file: CachedFile) -> None:
        """Let a complete file, whose bytes are wrong, begin anew: who has it open fetches again.

        It gets another file on the disk: versions may be links to this one.
        """
        old = file.path
        file.users += 1
        try:
            async with file.opening:
                fresh = self._new_file(file.info)
                fresh.users += 1
                await self._disk.run(fresh.open_now)
                if not self._is_current(file) or not file.is_complete:
                    fresh.leave()  # it was evicted, or thrown away by another, meanwhile
                    self._remove_files(fresh.path)
                    return
                self._wrong += 1
                log.error("wrong bytes of %s in the cache: thrown away", file.info.id.key)
                self._drop_parts(file, list(file.present))
                file.path = fresh.path
                file.replace_fd(fresh.fd)
            self._on_wrong_bytes(file.info.id)
            await self._saver.save(file)
            self._remove_files(old)
        finally:
            file.leave()

    # ------------------------------------------------------- what is on disk

    async def save_all(self) -> None:
        """Write the sidecars that wait: the daemon ends."""
        await self._saver.save_all(list(self._files.values()))

    async def load(self) -> None:
        """Rebuild the index from the sidecars, the most recently used last."""
        for saved, is_shared in await self._disk.run(sidecar.load, self._folder):
            file = CachedFile(saved.path, saved.info, saved.part_size, self)
            for index in saved.present:
                file.add(index)
            file.is_sealed = is_shared and file.is_complete
            file.is_checked = file.is_complete
            self._files[saved.info.id] = file
            self.used_bytes += file.present_bytes
        while len(self._files) > SIDECARS_MAX:
            self.forget(next(iter(self._files)))
        await self.make_room()

    def _insert(self, file: CachedFile) -> None:
        self._files[file.info.id] = file
        self.used_bytes += file.present_bytes
        self._saver.save_soon(file)

    def _is_current(self, file: CachedFile) -> bool:
        return self._files.get(file.info.id) is file

    def _remove(self, file: CachedFile) -> None:
        del self._files[file.info.id]
        self.used_bytes -= file.present_bytes

    def _remove_files(self, *paths: Path) -> None:
        self._background.start_soon(self._disk.run, sidecar.remove, *paths, name="remove")
