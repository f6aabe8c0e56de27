"""The one bridge to threads, and what several tasks share.

Everything here is touched by the trio thread alone, but for `Progress`, whose two fields
are written by working threads (each write is atomic under CPython, and a lost update
only makes a stall be noticed a moment later).
"""

import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Generic, TypeVar

import trio

from modelfs.errors import ModelfsError, RegistryUnavailable

log = logging.getLogger(__name__)

BUFFER_BYTES = 1 << 20

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Threads:
    """A bounded number of threads for one kind of work (registry, disk).

    Work that hangs in one kind never takes a thread from another.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._limiter = trio.CapacityLimiter(limit)
        self._taking_several = trio.Lock()

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Run `function` in a thread; a cancelled caller still waits for its end."""
        return await trio.to_thread.run_sync(partial(function, *args), limiter=self._limiter)

    async def run_or_leave(self, function: Callable[..., T], *args: object, places: int = 1) -> T:
        """Run `function` in a thread; a cancelled caller leaves it to end by itself.

        Only for work that owns what it touches: nobody closes a file under it. `places` is as how
        many threads it counts, `limit` at most: it does as much at once.
        """
        work = partial(function, *args)
        if places == 1:
            return await trio.to_thread.run_sync(
                work, limiter=self._limiter, abandon_on_cancel=True
            )
        async with self._several(places):
            own = trio.CapacityLimiter(1)
            return await trio.to_thread.run_sync(work, limiter=own, abandon_on_cancel=True)

    @asynccontextmanager
    async def _several(self, places: int) -> AsyncIterator[None]:
        """Hold several places.

        One caller at a time collects them: two that have some would wait for each other for ever.
        """
        taken: list[object] = []
        try:
            async with self._taking_several:
                for _ in range(places):
                    place = object()
                    await self._limiter.acquire_on_behalf_of(place)
                    taken.append(place)
            yield
        finally:
            for place in taken:
                self._limiter.release_on_behalf_of(place)


def call_soon(token: trio.lowlevel.TrioToken, work: Callable[..., object], *args: object) -> None:
    """Have the trio thread call `work`, from a thread that may have outlived it."""
    with suppress(trio.RunFinishedError):
        token.run_sync_soon(work, *args)


def thread_buffer() -> memoryview:
    """Return this thread's buffer of BUFFER_BYTES; a fresh one costs more than filling it."""
    if _own.buffer is None:
        _own.buffer = memoryview(bytearray(BUFFER_BYTES))
    return _own.buffer


class _Own(threading.local):
    buffer: memoryview | None = None


_own = _Own()


class Background:
    """Work that belongs to the daemon. What goes wrong in it is logged and ends it alone."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.failures = 0

    def start_soon(
        self, function: Callable[..., Awaitable[object]], *args: object, name: str
    ) -> None:
        self._nursery.start_soon(self._run, function, args, name, name=name)

    async def _run(
        self, function: Callable[..., Awaitable[object]], args: tuple[object, ...], name: str
    ) -> None:
        try:
            await function(*args)
        except Exception:
            self.failures += 1
            log.exception("a background task failed: %s", name)


class Progress:
    """How many bytes have moved, and when the last one did (monotonic seconds)."""

    __slots__ = ("at", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        self.at = time.monotonic()

    def __call__(self, count: int) -> None:
        self.bytes += count
        self.at = time.monotonic()


async def wait_while_moving(done: trio.Event, progress: Progress, limit_s: float) -> None:
    """Wait for `done`; raise RegistryUnavailable when no byte has moved for `limit_s`."""
    started = time.monotonic()
    while True:
        left_s = max(progress.at, started) + limit_s - time.monotonic()
        if left_s <= 0:
            raise RegistryUnavailable(f"the registry sent nothing for {limit_s:.0f} s")
        with trio.move_on_after(left_s):
            await done.wait()
            return


async def side_by_side(works: Iterable[Callable[[], Awaitable[None]]], limit: int) -> None:
    """Run all, `limit` at once; the first error ends the others and is raised as it is."""
    limiter = trio.CapacityLimiter(limit)
    first: list[Exception] = []

    async def run(work: Callable[[], Awaitable[None]]) -> None:
        async with limiter:
            try:
                await work()
            except (ModelfsError, OSError) as error:
                first.append(error)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for work in works:
            nursery.start_soon(run, work)
    if first:
        raise first[0]


class _Flight(Generic[T]):
    def __init__(self) -> None:
        self.done = trio.Event()
        self.value: T | None = None
        self.error: Exception | None = None


class SingleFlight(Generic[K, T]):
    """The same work asked for by several callers at once is done once.

    It belongs to the daemon: a caller that gives up does not end it for others.
    """

    def __init__(self, background: Background) -> None:
        self._background = background
        self._flights: dict[K, _Flight[T]] = {}

    async def do(self, key: K, work: Callable[[], Awaitable[T]]) -> T:
        """Return what `work` returns (or raise what it raises), begun by us or by another."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            self._background.start_soon(self._fly, key, flight, work, name=f"single-flight {key!r}")
        await flight.done.wait()
        if flight.error is not None:
            raise flight.error
        return flight.value  # type: ignore[return-value]  # set where there is no error

    async def _fly(self, key: K, flight: _Flight[T], work: Callable[[], Awaitable[T]]) -> None:
        try:
            flight.value = await work()
        except Exception as error:
            flight.error = error
        finally:
            del self._flights[key]
            flight.done.set()
