"""The bytes of one file of a freeze: fetched, and hashed and made durable while they come.

Owned by the trio thread.
"""

import os
from collections.abc import Awaitable, Callable
from functools import partial

from modelfs.concurrency import Threads, side_by_side
from modelfs.registry.objects import ObjectInfo
from modelfs.store import pending
from modelfs.store.confirming import Expected, Hashes
from modelfs.store.hashing import Following
from modelfs.store.parts import Fetcher, PartFile, Urgency

PARTS_AT_ONCE = 8  # of one file; as many are queued behind them
PARTS_RECORDED = 16  # how many come before what is durable is written down

Expect = Callable[[ObjectInfo], Awaitable[Expected]]


class Bringing:
    """One try to bring all of a file, whose bytes are not dropped meanwhile."""

    def __init__(self, file: PartFile, fetcher: Fetcher, disk: Threads, hashing: Threads) -> None:
        self.file = file
        self._fetcher = fetcher
        self._disk = disk
        self._following = Following(file, hashing)
        self._durable_parts = 0
        self._hashed: tuple[Expected, Hashes] | None = None

    def part_arrived(self, is_answer: bool) -> None:
        """Take note of a part; is_answer where the registry has said what the object is."""
        self._following.part_arrived(is_answer)

    async def bring(self, expect: Expect, is_alone: bool) -> tuple[Expected, Hashes | None]:
        """Bring every part; return what is expected of the file, and its hashes.

        A file of one part is not hashed: whoever finishes it does that in one go.
        """
        if self.file.part_count == 1:
            await self._fetcher.bring(self.file, range(1), Urgency.FREEZE)
            return await expect(self.file.info), None
        await side_by_side([partial(self._hash, expect, is_alone), self._bring_parts], 2)
        assert self._hashed is not None
        return self._hashed

    async def drop_lost(self) -> None:
        """Forget what is not durable, after the disk has refused.

        A full one may say so at fsync alone, and lose what it had taken, also of a part that
        is just coming.
        """
        for flight in list(self.file.flights.values()):
            await flight.done.wait()
        drop_from(self.file, self._durable_parts)

    async def _hash(self, expect: Expect, is_alone: bool) -> None:
        await self._following.begun()
        expected = await expect(self.file.info)
        self._hashed = expected, await self._following.hashes(expected, is_alone)

    async def _bring_parts(self) -> None:
        """Bring every part; what has come is synced while the next are on their way."""
        file, recorded = self.file, 0
        for start in range(0, file.part_count, PARTS_AT_ONCE):
            parts = range(start, min(start + PARTS_AT_ONCE, file.part_count))
            ahead = range(parts.stop, min(parts.stop + PARTS_AT_ONCE, file.part_count))
            works = [partial(self._bring_batch, parts, ahead)]
            if start - recorded >= PARTS_RECORDED:
                works.append(partial(self._record_durable, start))
                recorded = start
            await side_by_side(works, len(works))
        await self._disk.run(os.fdatasync, file.fd)

    async def _bring_batch(self, parts: range, ahead: range) -> None:
        self._fetcher.start(self.file, [*parts, *ahead], Urgency.FREEZE)
        await self._fetcher.bring(self.file, parts, Urgency.FREEZE)

    async def _record_durable(self, parts: int) -> None:
        file = self.file
        count = parts * file.part_size
        await self._disk.run(pending.record_durable, file.path, file.fd, count)
        self._durable_parts = parts


def drop_from(file: PartFile, first: int) -> None:
    """Forget the parts from number `first` on: they are fetched again."""
    for index in [index for index in file.present if index >= first]:
        file.drop(index)
