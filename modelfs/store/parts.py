"""An object's bytes in a sparse file, brought a part at a time: PartFile and Fetcher.

The cache and the freezes both keep PartFiles; one Fetcher brings the parts of all of
them, a bounded number at once, the most urgent first, each part once however many want
it. A part is fetched by a task of the daemon's nursery, so a reader that gives up ends
nothing. Owned by the trio thread; bodies are written by threads of the registry's pool.
"""

import heapq
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from modelfs.concurrency import Background, Progress, Threads, wait_while_moving
from modelfs.errors import ModelfsError, StoreError
from modelfs.registry.objects import ObjectInfo
from modelfs.registry.registry import Registry
from modelfs.store.layout import close_fd


class Urgency(IntEnum):
    """Who waits for a part; the lower goes first."""

    DEMAND = 0
    AHEAD = 1
    FREEZE = 2


class PartOwner(Protocol):
    """Whose PartFile it is: makes room before a part comes, and is told when it came."""

    def room(self, count: int) -> AbstractAsyncContextManager[None]:
        """Hold room for `count` bytes while they are fetched and written."""

    def part_arrived(self, file: "PartFile", index: int, info: ObjectInfo) -> None:
        """Take note of a part, and of what the registry said of the object."""


class Flight:
    """A part on its way in (or, while it is evicted, on its way out)."""

    __slots__ = ("done", "error", "file", "index", "is_started")

    def __init__(self, file: "PartFile", index: int) -> None:
        self.file = file
        self.index = index
        self.done = trio.Event()
        self.error: ModelfsError | None = None
        self.is_started = False


class PartFile:
    """See the module.

    INVARIANT: a part in `present` (least recently used first) is wholly in the file; a
    part is never both in `present` and in `flights`; `fd` is open while `users` > 0.
    """

    def __init__(self, path: Path, info: ObjectInfo, part_size: int, owner: PartOwner) -> None:
        self.path = path
        self.info = info
        self.part_size = part_size
        self.owner = owner
        self.opening = trio.Lock()
        self.fd = -1
        self.users = 0
        self.present: dict[int, None] = {}
        self.present_bytes = 0
        self.flights: dict[int, Flight] = {}
        self.pins: Counter[int] = Counter()

    @property
    def part_count(self) -> int:
        return -(-self.info.size // self.part_size)

    @property
    def is_complete(self) -> bool:
        return len(self.present) == self.part_count

    def length_of(self, index: int) -> int:
        return min(self.part_size, self.info.size - index * self.part_size)

    def parts_of(self, offset: int, size: int) -> range:
        """Return the parts that bytes [offset, offset + size) lie in; size > 0."""
        return range(offset // self.part_size, (offset + size - 1) // self.part_size + 1)

    def add(self, index: int) -> None:
        if index not in self.present:
            self.present[index] = None
            self.present_bytes += self.length_of(index)

    def drop(self, index: int) -> None:
        del self.present[index]
        self.present_bytes -= self.length_of(index)

    def touch(self, parts: Iterable[int]) -> None:
        """Make these parts the most recently used ones."""
        for index in parts:
            if index in self.present:
                del self.present[index]
                self.present[index] = None

    @contextmanager
    def pinned(self, parts: Sequence[int]) -> Iterator[None]:
        """Keep these parts, here or on their way, from being evicted."""
        self.pins.update(parts)
        try:
            yield
        finally:
            for index in parts:
                self.pins[index] -= 1
                if not self.pins[index]:
                    del self.pins[index]

    @property
    def open_flags(self) -> int:
        return os.O_RDWR | os.O_CREAT

    def open_now(self) -> None:
        """Open (and make) the file; blocking, for a thread. `users` counts who needs it."""
        fd = os.open(self.path, self.open_flags | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size != self.info.size:
                os.ftruncate(fd, self.info.size)
        except BaseException:
            close_fd(fd)
            raise
        self.fd = fd

    def leave(self) -> None:
        """One user less; the last one closes the file."""
        self.users -= 1
        if self.users == 0 and self.fd >= 0:
            close_fd(self.fd)
            self.fd = -1


class Fetcher:
    """Brings parts. See the module.

    INVARIANT: no flight waits in the queue while a place is free.
    """

    def __init__(
        self, registry: Registry, background: Background, disk: Threads, parallel: int
    ) -> None:
        self._registry = registry
        self._background = background
        self._disk = disk
        self._free = parallel
        self._queue: list[tuple[int, int, Flight]] = []
        self._order = itertools.count()
        self.progress = Progress()
        self.fetched_parts = 0

    def start(self, file: PartFile, parts: Iterable[int], urgency: Urgency) -> list[Flight]:
        """Begin to bring what is missing of `parts`; the caller is a user of the file."""
        flights = []
        for index in parts:
            if index in file.present:
                continue
            flight = file.flights.get(index)
            if flight is None:
                flight = file.flights[index] = Flight(file, index)
                file.users += 1
            flights.append(flight)
            if not flight.is_started:
                heapq.heappush(self._queue, (urgency, next(self._order), flight))
        self._pump()
        return flights

    async def bring(self, file: PartFile, parts: Sequence[int], urgency: Urgency) -> None:
        """Return when all of `parts` are in the file; raises what the fetch raised.

        Raises RegistryUnavailable when no byte of any fetch moved for the time limit.
        """
        with file.pinned(parts):  # what came is not evicted for what else is waited for
            while flights := self.start(file, parts, urgency):
                for flight in flights:
                    await wait_while_moving(flight.done, self.progress, self._registry.timeout_s)
                    if flight.error is not None:
                        raise flight.error

    def _pump(self) -> None:
        while self._free and self._queue:
            flight = heapq.heappop(self._queue)[2]
            if not flight.is_started:  # else it stood in the queue twice
                flight.is_started = True
                self._free -= 1
                self._background.start_soon(self._fetch, flight, name=f"part of {flight.file.path}")

    async def _fetch(self, flight: Flight) -> None:
        file, index = flight.file, flight.index
        try:
            offset, length = index * file.part_size, file.length_of(index)
            get = partial(self._registry.store.get_range, version_id=file.info.version_id)
            where = (file.info.id, offset, length, file.fd, offset)
            async with file.owner.room(length):
                info = await self._registry.call_data(get, *where, self.progress)
            file.add(index)
            self.fetched_parts += 1
            file.owner.part_arrived(file, index, info)
        except ModelfsError as error:
            flight.error = error
        except OSError as error:
            flight.error = StoreError(f"{file.path}: {error.strerror}")
        except Exception:
            flight.error = ModelfsError(f"{file.info.id.key}: a bug of modelfs, see the log")
            raise
        finally:
            self._free += 1
            del file.flights[index]
            flight.done.set()
            file.leave()
            self._pump()

    async def read(self, file: PartFile, offset: int, size: int) -> bytes | bytearray:
        """Return bytes [offset, offset + size) of the object, fewer at its end."""
        size = min(size, file.info.size - offset)
        if size <= 0:
            return b""
        parts = file.parts_of(offset, size)
        if any(index not in file.present for index in parts):
            await self.bring(file, parts, Urgency.DEMAND)
        file.touch(parts)
        with file.pinned(parts):
            return await read_at(self._disk, file.fd, offset, size)


async def read_at(disk: Threads, fd: int, offset: int, size: int) -> bytes | bytearray:
    """Return `size` bytes of a local file: at once from memory, else by a thread.

    A hop to a thread costs more than the read of a page that is in memory; RWF_NOWAIT
    tells the two apart (EAGAIN; EOPNOTSUPP on file systems without it, as ceph-fuse).
    """
    buffer = bytearray(size)
    try:
        if os.preadv(fd, [buffer], offset, os.RWF_NOWAIT) == size:
            return buffer
    except OSError:
        pass
    return await disk.run(os.pread, fd, size, offset)
