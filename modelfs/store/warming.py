"""Files of main/ brought whole into the cache because someone asked for it: `modelfs warm`.

Few files at a time and few parts of each, less urgent than readers; the others wait in
order. A file that is being warmed is pinned, so no part comes twice, and together these
files are never more than the cache holds. Where the cache is over a limit although all else
has gone, the warm gives way. Owned by the trio thread; nothing outlives the daemon.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import trio
from cachetools import LRUCache

from modelfs.concurrency import Background, side_by_side
from modelfs.errors import Busy, ModelfsError, NoSpace, NotFound, Stale
from modelfs.registry.objects import ObjectId, ObjectInfo
from modelfs.store.cache import Cache
from modelfs.store.cachedfile import CachedFile
from modelfs.store.parts import Fetcher, Urgency

log = logging.getLogger(__name__)

FILES_AT_ONCE = 8
PARTS_AT_ONCE = 16  # of one file, so that reads of other files find their turn
WAITING_MAX = 100_000
ERRORS_MAX = 10_000  # files whose last warm failed, and why
PATIENCE_S = 5.0  # for a limit that is exceeded: a disk may free late what was evicted
PATIENCE_PAUSE_S = 0.5

WAITING, UNDER_WAY = "waiting", "under way"


@dataclass(frozen=True)
class WarmStatistics:
    """What status.json shows of warms; `missing_bytes` are of those waiting and under way."""

    files_waiting: int
    files_under_way: int
    missing_bytes: int
    files_done: int
    files_failed: int


class Warmer:
    """See the module.

    INVARIANT: a file is waiting or under way, never both; those under way fit into the
    cache's `max_size` together.
    """

    def __init__(self, cache: Cache, fetcher: Fetcher, background: Background) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._background = background
        self._waiting: dict[ObjectId, ObjectInfo] = {}
        self._under_way: dict[ObjectId, ObjectInfo] = {}
        self._errors: LRUCache[ObjectId, str] = LRUCache(ERRORS_MAX)
        self._done = self._failed = 0

    def start(self, info: ObjectInfo) -> None:
        """Begin to bring an object's bytes, or have it wait for its turn.

        Raises NoSpace where it can never fit, Busy where too many wait.
        """
        if info.size > self._cache.max_bytes:
            raise NoSpace(
                f"the cache (max_size, {self._cache.max_bytes:,} bytes) is too small for "
                f"{info.id.key} of {info.size:,} bytes"
            )
        self._errors.pop(info.id, None)
        if self.state(info.id) is not None or self._is_here(info):
            return
        if len(self._waiting) >= WAITING_MAX:
            raise Busy(f"{WAITING_MAX:,} files wait to be warmed already")
        self._waiting[info.id] = info
        self._begin_next()

    def state(self, object_id: ObjectId) -> str | None:
        """Return whether an object waits or is under way; None where it is neither."""
        if object_id in self._under_way:
            return UNDER_WAY
        return WAITING if object_id in self._waiting else None

    def error(self, object_id: ObjectId) -> str | None:
        """Return why the last warm of an object failed, where it did and its bytes are not here."""
        if object_id in self._errors and self._cache.complete_file(object_id) is not None:
            del self._errors[object_id]
        return self._errors.get(object_id)

    def statistics(self) -> WarmStatistics:
        return WarmStatistics(
            len(self._waiting),
            len(self._under_way),
            sum(
                info.size - self._cache.cached_bytes(info.id)
                for infos in (self._waiting, self._under_way)
                for info in infos.values()
            ),
            self._done,
            self._failed,
        )

    def check_invariants(self) -> None:
        """For tests."""
        assert not self._waiting.keys() & self._under_way.keys()
        assert self._pinned_bytes <= self._cache.max_bytes

    def _is_here(self, info: ObjectInfo) -> bool:
        return self._cache.cached_bytes(info.id) == info.size

    @property
    def _pinned_bytes(self) -> int:
        return sum(info.size for info in self._under_way.values())

    def _begin_next(self) -> None:
        while self._waiting and len(self._under_way) < FILES_AT_ONCE:
            info = next(iter(self._waiting.values()))
            if self._pinned_bytes + info.size > self._cache.max_bytes:
                return
            self._under_way[info.id] = self._waiting.pop(info.id)
            self._background.start_soon(self._warm, info, name=f"warm {info.id.key}")

    async def _warm(self, info: ObjectInfo) -> None:
        try:
            await self._bring(info)
            self._done += 1
        except (Stale, NotFound):
            self._fail(info, "it was changed in the registry by someone else")
        except ModelfsError as error:
            self._fail(info, str(error))
        except OSError as error:
            self._fail(info, f"the cache's disk: {error.strerror}")
        except Exception:
            log.exception("the warm of %s failed by a bug", info.id.key)
            self._fail(info, "a bug of modelfs, see the log")
        del self._under_way[info.id]
        self._begin_next()

    def _fail(self, info: ObjectInfo, reason: str) -> None:
        log.warning("%s is not warmed: %s", info.id.key, reason)
        self._errors[info.id] = reason
        self._failed += 1

    async def _bring(self, info: ObjectInfo) -> None:
        file = await self._cache.open(info)
        try:
            parts = range(file.part_count)
            with file.pinned(parts):
                work = partial(self._bring_parts, file, iter(parts))
                await side_by_side([work] * PARTS_AT_ONCE, PARTS_AT_ONCE)
        finally:
            self._cache.close(file)

    async def _bring_parts(self, file: CachedFile, parts: Iterator[int]) -> None:
        """Bring parts, each of which one of several tasks takes from `parts`."""
        for index in parts:
            if index not in file.present:
                await self._wait_for_room(file)
                await self._fetcher.bring(file, [index], Urgency.WARM)

    async def _wait_for_room(self, file: CachedFile) -> None:
        until = trio.current_time() + PATIENCE_S
        while limit := await self._cache.limit_exceeded():
            if trio.current_time() >= until:
                raise NoSpace(
                    f"the cache ({limit}) is too small for {file.info.id.key} beside what is in use"
                )
            await trio.sleep(PATIENCE_PAUSE_S)
