"""Room for what comes into the cache: what the disk has free, and what goes for it.

Owned by the trio thread.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelfs.concurrency import Threads
from modelfs.store import layout
from modelfs.store.cachedfile import CachedFile

FREE_SPACE_AGE_S = 1.0


class Room:
    """The space that is free beyond `min_free`, measured seldom, and what is on its way into it.

    INVARIANT: `coming_bytes` is the sum of what is held.
    """

    def __init__(self, folder: Path, disk: Threads, min_free: Callable[[int], int]) -> None:
        self._folder = folder
        self._disk = disk
        self._min_free = min_free
        self._measured_at = 0.0
        self._free_bytes = 0
        self.coming_bytes = 0

    def set_min_free(self, min_free: Callable[[int], int]) -> None:
        """Leave that much of a disk of so many bytes free from now on."""
        self._min_free = min_free
        self.measure_anew()

    @contextmanager
    def held(self, count: int) -> Iterator[None]:
        """Count `count` bytes as coming."""
        self.coming_bytes += count
        try:
            yield
        finally:
            self.coming_bytes -= count

    def took(self, count: int) -> None:
        """Note that `count` bytes of it are used, until it is measured anew."""
        self._free_bytes -= count

    def measure_anew(self) -> None:
        """Believe no longer what was measured."""
        self._measured_at = 0.0

    async def free_bytes(self) -> int:
        """Return how much is free; negative where that is less than is to be left."""
        now = time.monotonic()
        if now - self._measured_at > FREE_SPACE_AGE_S:
            free, total = await self._disk.run(layout.free_bytes, self._folder)
            self._measured_at, self._free_bytes = now, free - self._min_free(total)
        return self._free_bytes


def victims_of(files: Iterable[CachedFile], count: int) -> list[tuple[CachedFile, list[int]]]:
    """Choose parts of at least `count` bytes, of the first files first; pinned ones stay."""
    victims = []
    for file in files:
        if count <= 0:
            break
        is_idle = file.is_idle
        if not file.present or (file.is_sealed and not is_idle):
            continue
        parts = []
        for index in file.present:
            if count <= 0 and not is_idle:
                break
            if is_idle or index not in file.pins:
                parts.append(index)
                count -= file.length_of(index)
        if parts:
            victims.append((file, parts))
    return victims
