"""Small files brought before they are opened: several by one thread, each held open for a while.

A thousand small files cost less in bytes than in handing work between threads, so one thread
makes, fetches and checks a handful of them one after the other, and the reader finds them open.
Owned by the trio thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import trio

from modelfs.concurrency import Background, call_soon
from modelfs.errors import ModelfsError, StoreError
from modelfs.registry.objects import ObjectInfo
from modelfs.registry.registry import Registry
from modelfs.store import sidecar
from modelfs.store.cache import Cache
from modelfs.store.cachedfile import CachedFile
from modelfs.store.flights import Flight
from modelfs.store.layout import close_fd
from modelfs.store.parts import Fetcher, PartFile

FILES_A_THREAD = 4
HELD_FILES = 128  # that came and were not opened yet
HELD_BYTES = 16 << 20
HELD_S = 30.0


class SmallFiles:
    """See the module.

    INVARIANT: a file in `held` is complete and has this as a user.
    """

    def __init__(
        self, cache: Cache, fetcher: Fetcher, registry: Registry, background: Background
    ) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._registry = registry
        self._background = background
        self._held: OrderedDict[PartFile, None] = OrderedDict()
        self._held_bytes = 0

    def bring(self, infos: Sequence[ObjectInfo]) -> int:
        """Begin to bring whole files of one part each; return how many were not on their way."""
        flights = []
        for info in infos:
            file = self._cache.known_file(info)
            assert file.part_count == 1, file.path
            if not file.present and not file.flights:
                flight = file.flights[0] = Flight(file, 0)
                flight.is_started = True
                file.users += 1
                flights.append(flight)
        for start in range(0, len(flights), FILES_A_THREAD):
            some = flights[start : start + FILES_A_THREAD]
            self._background.start_soon(self._bring, some, name="small files")
        return len(flights)

    async def _bring(self, flights: list[Flight]) -> None:
        error: ModelfsError | None = None
        try:
            async with self._cache.room(sum(flight.length for flight in flights)):
                work = _Work(self._registry, flights, self._fetcher.progress, self._arrived)
                await self._registry.call_data(work)
        except ModelfsError as failure:
            error = failure
        except OSError as failure:
            error = StoreError(f"{failure.filename}: {failure.strerror}")
        finally:
            for flight in flights:
                self._fetcher.give_up(flight, error)
        await trio.sleep(HELD_S)
        for flight in flights:
            self.let_go(flight.file)

    def _arrived(self, flight: Flight, info: ObjectInfo, fd: int, is_right: bool) -> None:
        """Take a file that a thread has made, opened and hashed."""
        file = flight.file
        assert isinstance(file, CachedFile)
        if flight.done.is_set() or file.fd >= 0:  # given up, or a reader was faster to open it
            close_fd(fd)
        else:
            file.fd = fd
        file.is_checked = is_right
        self._hold(file)
        self._fetcher.arrived_early(flight, info)

    def _hold(self, file: CachedFile) -> None:
        if file.fd < 0:
            return
        file.users += 1
        self._held[file] = None
        self._held_bytes += file.info.size
        while len(self._held) > HELD_FILES or self._held_bytes > HELD_BYTES:
            self.let_go(next(iter(self._held)))

    def let_go(self, file: PartFile) -> None:
        """Somebody has opened the file, or it is to be closed."""
        if file in self._held:
            del self._held[file]
            self._held_bytes -= file.info.size
            file.leave()


class _Work:
    """What one thread does: each file made, fetched, hashed; after a failed try the rest alone."""

    def __init__(
        self,
        registry: Registry,
        flights: list[Flight],
        progress: Callable[[int], None],
        arrived: Callable[[Flight, ObjectInfo, int, bool], None],
    ) -> None:
        self._get_range = registry.store.get_range
        self._left = list(flights)
        self._progress = progress
        self._arrived = arrived
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self) -> None:
        while self._left:
            flight = self._left[0]
            file, size = flight.file, flight.length
            fd = file.new_fd()
            try:
                where = (0, size, fd, 0, self._progress)
                info = self._get_range(file.info.id, *where, version_id=file.info.version_id)
                digest = sidecar.md5_of(fd, size)
            except BaseException:
                close_fd(fd)
                raise
            flight.came = size
            del self._left[0]
            call_soon(self._token, self._arrived, flight, info, fd, digest == info.md5)
