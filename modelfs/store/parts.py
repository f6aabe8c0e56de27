"""An object's bytes in a sparse file, brought a part at a time: PartFile and Fetcher.

The cache and the freezes both keep PartFiles; one Fetcher brings the parts of all of
them, a bounded number of requests at once, the most urgent first, each part once however many
want it. What nobody waits for comes by fewer, larger requests. A part is fetched by a task of
the daemon's nursery, so a reader that gives up ends nothing. Owned by the trio thread; bodies
are written by threads of the registry's pool.
"""

import heapq
import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Protocol

import trio

from modelfs.concurrency import Background, Progress, Threads, wait_while_moving
from modelfs.errors import ModelfsError, StoreError
from modelfs.registry.objects import ObjectInfo
from modelfs.registry.registry import Registry
from modelfs.store.flights import Flight, Get, with_next
from modelfs.store.layout import close_fd
from modelfs.store.localreads import Buffer, LocalReads, Run

log = logging.getLogger(__name__)

REQUEST_PARTS = 2  # adjacent parts that one request brings, where nobody waits for them yet


class Urgency(IntEnum):
    """Who waits for a part; the lower goes first."""

    DEMAND = 0
    AHEAD = 1
    WARM = 2
    FREEZE = 3


class PartOwner(Protocol):
    """Whose PartFile it is: makes room before a part comes, and is told when it came."""

    def room(self, count: int) -> AbstractAsyncContextManager[None]:
        """Hold room for `count` bytes while they are fetched and written."""

    def part_arrived(self, file: "PartFile", index: int, info: ObjectInfo) -> None:
        """Take note of a part, and of what the registry said of the object."""


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
        self.fd = self.new_fd()

    def new_fd(self, *, is_to_fill: bool = False) -> int:
        """Return a descriptor of the file, which is made where it is missing; blocking.

        It has its size, but for one `is_to_fill`: all of that is written at once.
        """
        fd = os.open(self.path, self.open_flags | os.O_CLOEXEC, 0o600)
        try:
            if not is_to_fill and os.fstat(fd).st_size != self.info.size:
                os.ftruncate(fd, self.info.size)
        except BaseException:
            close_fd(fd)
            raise
        return fd

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
        self,
        registry: Registry,
        background: Background,
        disk: Threads,
        parallel: int,
        *,
        request_parts: int = REQUEST_PARTS,
    ) -> None:
        self._request_parts = request_parts
        self._registry = registry
        self._background = background
        self._reads = LocalReads(disk)
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
                    await self._wait(flight, flight.done)

    async def _wait(self, flight: Flight, event: trio.Event) -> None:
        await wait_while_moving(event, self.progress, self._registry.timeout_s)
        if flight.error is not None:
            raise flight.error

    async def _bring_bytes(self, file: PartFile, parts: range, end: int) -> None:
        """Return when the bytes of `parts` before `end` are in the file.

        Of a part that is just coming the beginning is enough.
        """
        while flights := self.start(file, parts, Urgency.DEMAND):
            for flight in flights:
                count = end - flight.offset
                if count >= flight.length:
                    await self._wait(flight, flight.done)
                elif flight.came < count:
                    await self._wait(flight, flight.event_of(count))
            if all(flight.came >= end - flight.offset for flight in flights):
                return

    def _pump(self) -> None:
        while self._free and self._queue:
            urgency, _, flight = heapq.heappop(self._queue)
            if not flight.is_started:  # else it stood in the queue twice, or came with another
                most = 1 if urgency is Urgency.DEMAND else self._request_parts
                flights = with_next(flight, most)
                for started in flights:
                    started.is_started = True
                self._free -= 1
                name = f"parts of {flight.file.path}"
                self._background.start_soon(self._fetch, flights, name=name)

    async def _fetch(self, flights: list[Flight]) -> None:
        """Bring adjacent parts of one file by one request."""
        file, last = flights[0].file, flights[-1]
        error: ModelfsError | None = None
        try:
            async with file.owner.room(sum(flight.length for flight in flights)):
                get = Get(self._registry, flights, self.progress, self.arrived_early)
                info = await self._registry.call_data(get)
            self._arrived(last, info)
        except ModelfsError as failure:
            error = failure
        except OSError as failure:
            error = StoreError(f"{file.path}: {failure.strerror}")
        except Exception:
            error = ModelfsError(f"{file.info.id.key}: a bug of modelfs, see the log")
            raise
        finally:
            self._free += 1
            for flight in flights:
                self.give_up(flight, error)
            self._pump()

    def _arrived(self, flight: Flight, info: ObjectInfo | None = None) -> None:
        """Take note of a part; of the last one of a request after the others, with its answer."""
        file = flight.file
        if not flight.done.is_set():  # else the request was given up meanwhile
            file.add(flight.index)
            self.fetched_parts += 1
            file.owner.part_arrived(file, flight.index, info or file.info)
            self._end(flight)

    def arrived_early(self, flight: Flight, info: ObjectInfo | None = None) -> None:
        """Take note of a part whose thread goes on; a bug there must not end the event loop."""
        try:
            self._arrived(flight, info)
        except Exception:
            log.exception("a part of %s", flight.file.info.id.key)
            flight.error = ModelfsError(f"{flight.file.info.id.key}: a bug of modelfs, see the log")
            self._end(flight)

    def give_up(self, flight: Flight, error: ModelfsError | None) -> None:
        """End a flight that has not arrived; who waits for it is told why."""
        if not flight.done.is_set():
            flight.error = error
            self._end(flight)

    def _end(self, flight: Flight) -> None:
        del flight.file.flights[flight.index]
        flight.land()
        flight.file.leave()

    def begin(self, file: PartFile, offset: int, size: int) -> None:
        """Begin to bring what is missing for a read that follows at once; of a file in use."""
        if size > 0 and offset < file.info.size:
            self.start(file, file.parts_of(offset, size), Urgency.DEMAND)

    async def read(self, file: PartFile, offset: int, size: int, run: Run | None = None) -> Buffer:
        """Return bytes [offset, offset + size) of the object, fewer at its end.

        They hold until the caller's next await. `run` is what one reader has read before.
        """
        size = min(size, file.info.size - offset)
        if size <= 0:
            return b""
        parts = file.parts_of(offset, size)
        with file.pinned(parts):
            if any(index not in file.present for index in parts):
                await self._bring_bytes(file, parts, offset + size)
            file.touch(parts)
            return await self._reads.read(file.fd, offset, size, run)
