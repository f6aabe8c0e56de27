"""Whether the store's disk is there and answers.

A CephFS whose MDS or OSDs are down reports no error: whoever asks waits until it is back.
One that was unmounted, or whose ceph-fuse died, answers with errors, or shows the folder
below its mount point, where nothing of ours may be made. So a small file is written and
synced now and then: a read may be answered from memory.

Owned by the trio thread. The probe has a thread of its own, which a disk that hangs keeps.
"""

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from modelfs.concurrency import Threads
from modelfs.errors import StoreError
from modelfs.store.layout import Layout, free_bytes

log = logging.getLogger(__name__)

INTERVAL_S = 5.0
AWAY_INTERVAL_S = 1.0
ANSWER_LIMIT_S = 10.0  # CephFS takes a second or two when an OSD goes in good order


@dataclass(frozen=True)
class StoreState:
    """The store as it was last seen: since when (epoch ns), why it is away, its space in bytes."""

    since_ns: int
    error: str | None
    free_bytes: int
    total_bytes: int


class StoreHealth:
    """See the module. `check_disk` raises StoreError where the store is on the wrong disk."""

    def __init__(self, layout: Layout, check_disk: Callable[[], None] = lambda: None) -> None:
        self.state = StoreState(time.time_ns(), None, 0, 0)
        self._layout = layout
        self._check_disk = check_disk
        self._thread = Threads(1)

    def check(self) -> None:
        """Raise StoreError at once while the store is away."""
        if self.state.error is not None:
            raise StoreError(self.state.error)

    def check_there(self) -> None:
        """Raise StoreError where the store is away, as far as one stat tells; for a thread."""
        self.check()
        self._layout.check_there()

    def check_now(self) -> None:
        """Raise StoreError where something would be made on the wrong disk; for a thread."""
        self.check_there()
        self._check_disk()

    async def watch(self, on_return: Callable[[], None] = lambda: None) -> None:
        """Ask now and then; runs for ever. `on_return` runs in a thread when the store is back."""
        while True:
            was_away = self.state.error is not None
            await self.ask()
            is_away = self.state.error is not None
            if was_away and not is_away:
                await self._thread.run_or_leave(on_return)
            await trio.sleep(AWAY_INTERVAL_S if is_away else INTERVAL_S)

    async def ask(self) -> None:
        """Ask whether the store answers, and note it."""
        error: str | None = (
            f"the store {self._layout.root} does not answer (no write for "
            f"{ANSWER_LIMIT_S:.0f} s): it goes on when its disk does"
        )
        space = (self.state.free_bytes, self.state.total_bytes)
        with trio.move_on_after(ANSWER_LIMIT_S):
            try:
                space = await self._thread.run_or_leave(self._probe)
                error = None
            except StoreError as refusal:
                error = str(refusal)
            except OSError as refusal:
                error = f"the store {self._layout.root} cannot be used: {refusal.strerror}"
        self._note(error, *space)

    def _probe(self) -> tuple[int, int]:
        self._check_disk()
        self._layout.check_there()
        fd = os.open(self._layout.cache / "alive", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, f"{time.time_ns()}\n".encode(), 0)
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # full, and there
                raise
        finally:
            os.close(fd)
        return free_bytes(self._layout.models)

    def _note(self, error: str | None, free: int, total: int) -> None:
        since_ns = self.state.since_ns
        if (error is None) != (self.state.error is None):
            since_ns = time.time_ns()
            if error is None:
                log.warning("the store answers again")
            else:
                log.error("%s", error)
        self.state = StoreState(since_ns, error, free, total)
