"""Parts on their way: a Flight for each, and the request that brings adjacent ones.

A flight is waited for by tasks of the trio thread, and moved by the thread that writes its bytes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from modelfs.concurrency import Progress, call_soon
from modelfs.errors import ModelfsError
from modelfs.registry.objects import ObjectInfo
from modelfs.registry.registry import Registry

if TYPE_CHECKING:
    from modelfs.store.parts import PartFile


class Flight:
    """A part on its way in (or, while it is evicted, on its way out).

    `came` is how many of its bytes are in the file, from its beginning on; a working thread
    counts them.
    """

    __slots__ = ("_awaited", "_token", "came", "done", "error", "file", "index", "is_started")

    def __init__(self, file: "PartFile", index: int) -> None:
        self.file = file
        self.index = index
        self.done = trio.Event()
        self.error: ModelfsError | None = None
        self.is_started = False
        self.came = 0
        self._awaited: tuple[int, trio.Event] | None = None
        self._token = trio.lowlevel.current_trio_token()

    @property
    def offset(self) -> int:
        return self.index * self.file.part_size

    @property
    def length(self) -> int:
        return self.file.length_of(self.index)

    def event_of(self, count: int) -> trio.Event:
        """Return what is set when `count` bytes have come, or fewer, or the flight is over."""
        if self.done.is_set():
            return self.done
        if self._awaited is None:
            self._awaited = (count, trio.Event())
        else:
            self._awaited = (min(count, self._awaited[0]), self._awaited[1])
        event = self._awaited[1]
        if self.came >= count:  # they came since the caller has looked, and nobody was to be woken
            self._wake()
        return event

    def move(self, count: int) -> None:
        """Count bytes that came, in the thread that has written them."""
        self.came += count
        awaited = self._awaited
        if awaited is not None and self.came >= awaited[0]:
            call_soon(self._token, self._wake)

    def _wake(self) -> None:
        if self._awaited is not None:
            self._awaited[1].set()
            self._awaited = None

    def land(self) -> None:
        """The part is here, or will not come."""
        self.done.set()
        self._wake()


def with_next(flight: Flight, most: int) -> list[Flight]:
    """Return a flight and those of the parts after it that wait too, at most so many in all."""
    found = [flight]
    while len(found) < most:
        following = flight.file.flights.get(found[-1].index + 1)
        if following is None or following.is_started:
            break
        found.append(following)
    return found


class Get:
    """The request for adjacent parts, run in a thread; after a failed try for the rest alone."""

    def __init__(
        self,
        registry: Registry,
        flights: list[Flight],
        progress: Progress,
        arrived: Callable[[Flight], None],
    ) -> None:
        self._get_range = registry.store.get_range
        self._flights = flights
        self._info = flights[0].file.info
        self._fd = flights[0].file.fd
        self._progress = progress
        self._arrived = arrived
        self._token = trio.lowlevel.current_trio_token()
        self._coming = 0  # which of the flights gets the next byte

    def __call__(self) -> ObjectInfo:
        coming, last = self._flights[self._coming], self._flights[-1]
        if last.came == last.length:  # all had come when it failed
            last.came = 0
        offset = coming.offset + coming.came
        length = last.offset + last.length - offset
        where = (offset, length, self._fd, offset)
        version_id = self._info.version_id
        return self._get_range(self._info.id, *where, self._count, version_id=version_id)

    def _count(self, count: int) -> None:
        self._progress(count)
        while count:
            flight = self._flights[self._coming]
            moved = min(count, flight.length - flight.came)
            flight.move(moved)
            count -= moved
            if flight is self._flights[-1]:
                return
            if flight.came == flight.length:
                self._coming += 1
                call_soon(self._token, self._arrived, flight)
