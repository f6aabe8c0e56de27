"""What is brought before it is asked for: parts ahead of a reader, tensors, shards, small files.

Three ways to know what comes next, each bounded, counted, and less urgent than what somebody
waits for:

* a reader that goes on where it was: a window ahead of it (readahead.py);
* a file of tensors (formats.py), as soon as something behind its header is read: the rest of
  the tensor that is being read, then the file in its order, then the beginning of the next
  shard; an index of shards: the first part of each;
* small files that are opened one after the other in a folder, or beside a configuration: the
  next ones, side by side.

Owned by the trio thread; what it begins belongs to the daemon.
"""

import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from weakref import WeakSet, WeakValueDictionary

from cachetools import LRUCache

from modelfs.concurrency import Background, Threads
from modelfs.errors import ModelfsError
from modelfs.registry.listing import Folder
from modelfs.registry.objects import ObjectId, ObjectInfo
from modelfs.registry.registry import Registry
from modelfs.store import formats
from modelfs.store.cache import Cache
from modelfs.store.cachedfile import CachedFile
from modelfs.store.openings import Openings
from modelfs.store.parts import Fetcher, Urgency
from modelfs.store.readahead import ReadAhead
from modelfs.store.smallfiles import SmallFiles

log = logging.getLogger(__name__)

SWEEP_START_BYTES = 64 << 20  # of a file of tensors, before much of it was read
SWEEP_FACTOR = 4  # bytes brought for each byte that was read of it
PAST_HEADER_BYTES = 1 << 20  # the kernel reads on behind a header by itself, up to this
SHARDS_AHEAD = 8  # whose first parts an index brings
INDEX_MAX_BYTES = 64 << 20
ORDERS_MAX = 10_000  # shards whose following one is remembered
SMALL_BYTES = 1 << 20  # a file that is brought whole beside others
SMALL_AHEAD_BYTES = 16 << 20  # of small files at once
FOLDERS_MAX = 1_000  # whose openings are remembered

Beside = Callable[[], Folder]  # what the registry holds in a file's folder
Work = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class PrefetchStatistics:
    """What status.json shows: what was brought before it was asked for, and why."""

    parts_ahead: int
    tensor_parts: int
    shards: int
    small_files: int


class _Tensors:
    """A file of tensors that is open: where they lie, and how far it was brought."""

    def __init__(self, file: CachedFile) -> None:
        self.file = file
        self.tensors: formats.Tensors | None = None
        self.read_bytes = 0
        self.brought_bytes = 0
        self.next_part = 0
        self.is_swept = False


class Look:
    """What one open file's reader has read, and what follows from it."""

    def __init__(
        self, prefetcher: "Prefetcher", file: CachedFile, name: str, beside: Beside
    ) -> None:
        self._prefetcher = prefetcher
        self._file = file
        self._name = name
        self._beside = beside
        self._tensors = prefetcher.tensors_of(file, name)
        self._window = ReadAhead(
            *(file.part_size, file.info.size, prefetcher.window_of(file)),
            is_eager=self._tensors is None,  # of a header nothing more is wanted
        )

    def after(self, offset: int, size: int) -> None:
        """Note a read, and begin to bring what comes next."""
        prefetcher = self._prefetcher
        self._window.window_bytes = prefetcher.window_of(self._file)
        prefetcher.bring_parts(self._file, self._window.after(offset, size))
        if self._tensors is not None:
            prefetcher.bring_tensors(self._tensors, offset, size, self._name, self._beside)


class Prefetcher:
    """See the module. `window_bytes` 0 switches all of it off, `knows_formats` the last two."""

    def __init__(
        self,
        cache: Cache,
        fetcher: Fetcher,
        registry: Registry,
        background: Background,
        disk: Threads,
        *,
        window_bytes: int,
        knows_formats: bool,
    ) -> None:
        self.set_window(window_bytes, knows_formats)
        self._cache = cache
        self._fetcher = fetcher
        self._small = SmallFiles(cache, fetcher, registry, background)
        self._background = background
        self._disk = disk
        self._known: WeakValueDictionary[ObjectId, _Tensors] = WeakValueDictionary()
        self._following: LRUCache[str, str] = LRUCache(ORDERS_MAX)  # by key
        self._indexes: LRUCache[ObjectId, None] = LRUCache(FOLDERS_MAX)  # that were read
        self._openings: LRUCache[str, Openings] = LRUCache(FOLDERS_MAX)  # by the folder's key
        self._looks: WeakSet[Look] = WeakSet()  # of files that are being read
        self._parts_ahead = self._tensor_parts = self._shards = self._small_files = 0

    def set_window(self, window_bytes: int, knows_formats: bool) -> None:
        """Bring so much ahead from now on; files that are open keep what they know of tensors."""
        self.window_bytes = window_bytes
        self._knows_formats = knows_formats and window_bytes > 0

    def statistics(self) -> PrefetchStatistics:
        return PrefetchStatistics(
            self._parts_ahead, self._tensor_parts, self._shards, self._small_files
        )

    def look(self, file: CachedFile, name: str, beside: Beside) -> Look:
        """Return what notes the reads of a file that has just been opened."""
        made = Look(self, file, name, beside)
        self._looks.add(made)
        return made

    def window_of(self, file: CachedFile) -> int:
        """Return how far ahead of one reader may be brought: all together fit into the cache.

        What is brought and evicted before it is read would come twice.
        """
        share = self._cache.max_bytes // 2 // max(1, len(self._looks))
        return min(self.window_bytes, share // file.part_size * file.part_size)

    def bring_parts(self, file: CachedFile, parts: Iterable[int]) -> int:
        """Begin to bring what is missing of these parts; return how many that were."""
        missing = [p for p in parts if p not in file.present and p not in file.flights]
        if missing:
            self._parts_ahead += len(missing)
            self._fetcher.start(file, missing, Urgency.AHEAD)
        return len(missing)

    # --------------------------------------------------------------- tensors

    def tensors_of(self, file: CachedFile, name: str) -> _Tensors | None:
        """Return what is known of a file of tensors; None where its name tells of none."""
        if not self._knows_formats or not formats.has_tensors(name):
            return None
        found = self._known.get(file.info.id)
        if found is None or found.file is not file:
            found = self._known[file.info.id] = _Tensors(file)
            file.users += 1  # until its header is read
            self._background.start_soon(self._learn, found, name, name=f"header of {name}")
        return found

    async def _learn(self, found: _Tensors, name: str) -> None:
        """Read a header, as it comes; a file that has none is read like any other."""
        file, size = found.file, 0
        try:
            while found.tensors is None:
                size = min(max(size, file.part_size), file.info.size)
                await self._fetcher.bring(file, file.parts_of(0, size), Urgency.AHEAD)
                try:
                    head = await self._disk.run(os.pread, file.fd, size, 0)
                    of = (formats.tensors_of, name, head, file.info.size)
                    found.tensors = await self._disk.run(*of)
                except formats.Incomplete as error:
                    if error.size > file.info.size:
                        return
                    size = error.size
        except (formats.NotKnown, ModelfsError, OSError) as error:
            log.debug("%s is not read by its tensors: %s", name, error)
        finally:
            file.leave()

    def bring_tensors(
        self, known: _Tensors, offset: int, size: int, name: str, beside: Beside
    ) -> None:
        """After a read in a file of tensors: bring the rest of this one, then those after it."""
        known.read_bytes += size
        file, tensors = known.file, known.tensors
        if tensors is None or offset < tensors.starts[0] + PAST_HEADER_BYTES:
            return
        _, end = tensors.extent(offset)
        ahead = min(end, offset + size + self.window_of(file)) - (offset + size)
        if ahead > 0:
            self._tensor_parts += self.bring_parts(file, file.parts_of(offset + size, ahead))
        if file.info.size <= self._cache.max_bytes // 2:
            self._sweep(known)
            if known.next_part == file.part_count and not known.is_swept:
                known.is_swept = True
                self._bring_next_shard(file, name, beside)

    def _sweep(self, known: _Tensors) -> None:
        """Bring the file in its order: a window of it at a time, and more the more was read."""
        file = known.file
        allowed = SWEEP_START_BYTES + SWEEP_FACTOR * known.read_bytes
        places = self.window_of(file) // file.part_size - len(file.flights)
        parts: list[int] = []
        while len(parts) < places and known.next_part < file.part_count:
            if known.brought_bytes >= allowed:
                break
            if known.next_part not in file.present and known.next_part not in file.flights:
                parts.append(known.next_part)
                known.brought_bytes += file.length_of(known.next_part)
            known.next_part += 1
        self._tensor_parts += self.bring_parts(file, parts)

    # ---------------------------------------------------------------- shards

    def _bring_next_shard(self, file: CachedFile, name: str, beside: Beside) -> None:
        key = self._following.get(file.info.id.key)
        following = key.rpartition("/")[2] if key else formats.next_shard(name)
        info = beside().files.get(following) if following else None
        if info is not None:
            self._start("next shard", self._bring_shards, [info], SWEEP_START_BYTES)

    async def _learn_shards(self, index: ObjectInfo, beside: Beside) -> None:
        file = await self._cache.open(index)
        try:
            await self._fetcher.bring(file, range(file.part_count), Urgency.AHEAD)
            self._indexes[index.id] = None
            content = await self._disk.run(os.pread, file.fd, index.size, 0)
            names = await self._disk.run(formats.shards_of, content)
        except formats.NotKnown as error:
            log.debug("%s: %s", index.id.key, error)
            return
        finally:
            self._cache.close(file)
        files = beside().files
        shards = [files[name] for name in names if name in files]
        for shard, following in pairwise(shards):
            self._following[shard.id.key] = following.id.key
        await self._bring_shards(shards[:SHARDS_AHEAD], 1)

    async def _bring_shards(self, shards: list[ObjectInfo], size: int) -> None:
        self._shards += await self._bring_beginnings(shards, size)

    async def _bring_beginnings(self, infos: list[ObjectInfo], size: int) -> int:
        """Begin to bring the first `size` bytes of each; return of how many any were missing."""
        brought = 0
        for info in infos:
            if info.size:
                file = await self._cache.open(info)
                brought += self.bring_parts(file, file.parts_of(0, min(size, info.size))) > 0
                self._cache.close(file)
        return brought

    # ----------------------------------------------------------- small files

    def opened(self, info: ObjectInfo, name: str, beside: Beside) -> None:
        """Note that a file was opened, and begin to bring the small ones that come next."""
        if not self._knows_formats:
            return
        self.let_go(info)
        is_index = name.endswith(formats.INDEX_SUFFIX) and info.size <= INDEX_MAX_BYTES
        if is_index and info.id not in self._indexes:
            self._start("index of shards", self._learn_shards, info, beside)
        if info.size > SMALL_BYTES:
            return
        folder = beside()
        where = info.id.key.removesuffix(name)
        openings = self._openings.get(where)
        if openings is None:
            openings = self._openings[where] = Openings()
        infos, room = [], SMALL_AHEAD_BYTES
        for other in openings.after(name, folder):
            found = folder.files.get(other)
            if found is None or found.size > SMALL_BYTES or found is info:
                continue
            if found.size and not self._cache.cached_bytes(found.id):
                room -= found.size
                if room < 0:
                    openings.stop_before(other)
                    break
                infos.append(found)
        one_part = [info for info in infos if self._cache.known_file(info).part_count == 1]
        self._small_files += self._small.bring(one_part)
        if len(one_part) < len(infos):  # as where `part_size` is small
            others = [info for info in infos if info not in one_part]
            self._start("small files", self._bring_whole, others)

    async def _bring_whole(self, infos: list[ObjectInfo]) -> None:
        self._small_files += await self._bring_beginnings(infos, SMALL_BYTES)

    def let_go(self, info: ObjectInfo) -> None:
        """Hold a small file that came early no longer: it is in use, or not wanted any more."""
        self._small.let_go(self._cache.known_file(info))

    def _start(self, name: str, work: Work, *args: object) -> None:
        self._background.start_soon(self._quietly, work, *args, name=name)

    async def _quietly(self, work: Work, *args: object) -> None:
        """What is brought early may fail: who asks for it will be told."""
        try:
            await work(*args)
        except (ModelfsError, OSError) as error:
            log.debug("nothing is brought ahead: %s", error)
