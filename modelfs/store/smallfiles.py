"""Small files brought before they are opened: many by one thread, each held open for a while.

A thousand small files cost less in bytes than in handing the interpreter's lock between threads,
so one thread has several requests under way, makes and checks the files as their bytes come, and
the reader finds them open. Owned by the trio thread.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import closing

import trio

from modelfs.concurrency import Background, call_soon
from modelfs.errors import ModelfsError, RegistryUnavailable, StoreError
from modelfs.registry.bodies import write_at
from modelfs.registry.objects import ObjectInfo
from modelfs.registry.registry import Registry
from modelfs.store.cache import Cache
from modelfs.store.cachedfile import CachedFile
from modelfs.store.flights import Flight
from modelfs.store.layout import close_fd
from modelfs.store.parts import Fetcher, PartFile

FILES_A_THREAD = 32
REQUESTS_AT_ONCE = 8  # of one thread
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
                work = _Work(self._registry, flights, self._fetcher, self._arrived)
                await self._registry.call_data_at_once(REQUESTS_AT_ONCE, work)
        except ModelfsError as failure:
            error = failure
        except OSError as failure:
            error = _told(failure)
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
    """What one thread does: fetch, make and hash each file; after a failed try those that lack."""

    def __init__(
        self,
        registry: Registry,
        flights: list[Flight],
        fetcher: Fetcher,
        arrived: Callable[[Flight, ObjectInfo, int, bool], None],
    ) -> None:
        self._get_whole = registry.store.get_whole
        self._left = list(flights)
        self._progress = fetcher.progress
        self._arrived = arrived
        self._give_up = fetcher.give_up
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self, at_once: int) -> None:
        while self._left:
            try:
                self._bring(at_once)
            except RegistryUnavailable:
                raise
            except (ModelfsError, OSError) as error:  # of one file, which is no matter of others
                failed = self._left.pop(0)
                call_soon(self._token, self._give_up, failed, _told(error))

    def _bring(self, at_once: int) -> None:
        infos = [flight.file.info for flight in self._left]
        with closing(self._get_whole(infos, at_once, self._progress)) as found:
            for info, content in found:
                flight = self._left[0]
                fd = flight.file.new_fd(is_to_fill=True)
                try:
                    write_at(fd, content, 0)
                except BaseException:
                    close_fd(fd)
                    raise
                digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
                flight.came = flight.length
                del self._left[0]
                call_soon(self._token, self._arrived, flight, info, fd, digest == info.md5)


def _told(error: ModelfsError | OSError) -> ModelfsError:
    if isinstance(error, OSError):
        return StoreError(f"{error.filename}: {error.strerror}")
    return error
