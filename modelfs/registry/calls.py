"""Requests to a registry: in which threads, how often tried, and whether it answers at all.

Async: every request runs in a thread of one of three pools (small requests, data in, data
out). Owned by the trio thread.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from modelfs.concurrency import Background, SingleFlight, Threads
from modelfs.errors import RegistryUnavailable
from modelfs.registry.objects import ObjectStore

log = logging.getLogger(__name__)

T = TypeVar("T")

TRIES = 3  # of one request, while the probe says that the registry answers
RETRY_PAUSE_S = 0.3  # before the second try; doubled before the third
PROBE_INTERVAL_S = 2.0
SMALL_REQUESTS = 16  # threads for requests without data


@dataclass(frozen=True)
class Reachability:
    """Whether the registry answers: since when (epoch ns), and why not."""

    reachable: bool
    since_ns: int
    error: str | None


class Calls:
    """See the module.

    INVARIANT: while `reachability.reachable` is false, no request is sent but the probe's.
    """

    def __init__(self, store: ObjectStore, background: Background, parallel_requests: int) -> None:
        self.store = store
        self.reachability = Reachability(True, time.time_ns(), None)
        self.retries = 0
        self._small = Threads(SMALL_REQUESTS)
        self._data = Threads(parallel_requests)
        self._upload = Threads(parallel_requests)
        self._probe_threads = Threads(2)
        self._probes: SingleFlight[str, None] = SingleFlight(background)
        self._suspect = trio.Event()
        self._answers = trio.Event()
        self._answers.set()

    async def call(self, request: Callable[..., T], *args: object) -> T:
        """Make a small request: bounded tries, and none while the registry is down."""
        return await self._call(self._small, request, *args)

    async def call_data(self, request: Callable[..., T], *args: object) -> T:
        """Make a request that moves data, in the other pool of threads."""
        return await self._call(self._data, request, *args)

    async def call_data_at_once(self, count: int, request: Callable[[int], T]) -> T:
        """Have a thread of that pool make several requests side by side.

        It is told how many: `count`, or as many as there may be at all. They count as many threads.
        """
        count = min(count, self._data.limit)
        return await self._call(self._data, request, count, places=count)

    async def call_upload(self, request: Callable[..., T], *args: object) -> T:
        """Make a request that sends data, in a pool that no reader takes threads from."""
        return await self._call(self._upload, request, *args)

    async def _call(
        self, threads: Threads, request: Callable[..., T], *args: object, places: int = 1
    ) -> T:
        pause_s = RETRY_PAUSE_S
        for last in (*[False] * (TRIES - 1), True):
            self.check_reachable()
            try:
                return await threads.run_or_leave(request, *args, places=places)
            except RegistryUnavailable as error:
                if last or not await self._still_answers():
                    raise
                self.retries += 1
                log.info("trying again: %s", error)
            except trio.Cancelled:
                self._suspect.set()
                raise
            await trio.sleep(pause_s)
            pause_s *= 2
        raise AssertionError("unreachable")

    async def delete_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Delete objects, a thousand a request; returns key -> reason of what failed."""
        failed: dict[str, str] = {}
        for start in range(0, len(keys), 1000):
            batch = keys[start : start + 1000]
            failed.update(await self.call(self.store.delete_many, batch))
        return failed

    def check_reachable(self) -> None:
        """Raise RegistryUnavailable at once while the probe says that the registry is down."""
        if not self.reachability.reachable:
            raise RegistryUnavailable(self.reachability.error or "the registry is down")

    async def wait_reachable(self) -> None:
        """Wait until the registry answers."""
        await self._answers.wait()

    async def probe(self) -> None:
        """Ask whether the registry answers, and note it; raises RegistryError."""
        try:
            await self._probe_threads.run_or_leave(self.store.probe)
        except RegistryUnavailable as error:
            self._note(False, str(error))
            raise
        self._note(True, None)

    async def _still_answers(self) -> bool:
        try:
            await self._probes.do("probe", self.probe)
        except RegistryUnavailable:
            return False
        return True

    def _note(self, reachable: bool, error: str | None) -> None:
        if reachable != self.reachability.reachable:
            self.reachability = Reachability(reachable, time.time_ns(), error)
            if reachable:
                log.warning("the registry answers again")
                self._answers.set()
            else:
                log.error("the registry does not answer: %s", error)
                self._answers = trio.Event()
                self._suspect.set()

    async def watch(self) -> None:
        """Probe while the registry is suspected to be down; runs for ever."""
        while True:
            await self._suspect.wait()
            self._suspect = trio.Event()
            try:
                await self.probe()
            except RegistryUnavailable:
                await trio.sleep(PROBE_INTERVAL_S)
                self._suspect.set()
            except Exception as error:
                log.error("the registry refuses: %s", error)
                self._note(True, None)
