"""Reads of files that are on this node's disk: at once from memory, else by a thread.

A hop to a thread costs more than the read of what is in memory, and a read of what is not
would stop the event loop: RWF_NOWAIT tells the two apart (EAGAIN; EOPNOTSUPP on file systems
without it, as ceph-fuse). Owned by the trio thread.
"""

import errno
import os

import trio

from modelfs.concurrency import Threads
from modelfs.store.readahead import NEAR_BYTES

Buffer = bytes | memoryview

BUFFER_BYTES = 1 << 20  # the kernel asks for no more at once
BUFFERS_KEPT = 8
SMALL_BYTES = 128 << 10
LOOKS = 8  # for a small piece that the disk is bringing, before a thread waits for it
AHEAD_BYTES = 32 << 20  # how far the disk is asked to read ahead of a sequential reader
AHEAD_STEP_BYTES = 8 << 20


class LocalReads:
    """Reads, by threads of `disk` where it must be.

    What it returns is a view of a buffer that is used again: it holds until the caller's next
    await. A FUSE handler has answered the kernel by then, and a fresh buffer for each answer
    would cost more than the copy into it.
    """

    def __init__(self, disk: Threads) -> None:
        self._disk = disk
        self._buffers: list[memoryview] = []
        self._can_look = True  # whether the disk's file system knows RWF_NOWAIT

    async def read(self, fd: int, offset: int, size: int, run: "Run | None" = None) -> memoryview:
        """Return `size` bytes at `offset`, fewer at the end of the file; raises OSError.

        `run` is what one reader has read before.
        """
        buffer = self._buffers.pop() if self._buffers else memoryview(bytearray(BUFFER_BYTES))
        wanted = buffer[:size] if size <= BUFFER_BYTES else memoryview(bytearray(size))
        if run is not None and run.wants_ahead(offset, size):
            count = await self._disk.run(_read_ahead, fd, wanted, offset, *run.ahead())
        elif (count := self._read_now(fd, wanted, offset)) < size:
            if run is not None:
                run.is_cold = True
            count = await self._read_from_disk(fd, wanted, offset)
        if len(self._buffers) < BUFFERS_KEPT:
            self._buffers.append(buffer)
        return wanted[:count]

    async def _read_from_disk(self, fd: int, wanted: memoryview, offset: int) -> int:
        """Read what is not in memory; a small piece is often there before a thread would be.

        The read that was refused has had the kernel begin to bring it.
        """
        if len(wanted) <= SMALL_BYTES and self._can_look:
            for _ in range(LOOKS):
                await trio.lowlevel.checkpoint()
                if (count := self._read_now(fd, wanted, offset)) == len(wanted):
                    return count
        return await self._disk.run(os.preadv, fd, [wanted], offset)

    def _read_now(self, fd: int, buffer: memoryview, offset: int) -> int:
        try:
            return os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        except OSError as error:
            self._can_look = error.errno == errno.EAGAIN
            return 0


class Run:
    """What one reader of a file has read in sequence, and how far the disk was told of it.

    While everything is in memory nobody is told: `is_cold` is set by the first read that had
    to wait for the disk.
    """

    __slots__ = ("_next", "_told", "is_cold", "is_sequential")

    def __init__(self) -> None:
        self.is_cold = False
        self.is_sequential = False
        self._next = 0
        self._told = 0

    def wants_ahead(self, offset: int, size: int) -> bool:
        """Note a read; tell whether the disk should be told now of what comes next."""
        self.is_sequential = abs(offset - self._next) <= NEAR_BYTES
        if not self.is_sequential:
            self._told = 0
        self._next = offset + size
        return (
            self.is_cold
            and self.is_sequential
            and self._told < self._next + AHEAD_BYTES - AHEAD_STEP_BYTES
        )

    def ahead(self) -> tuple[int, int]:
        """Return offset and length of what the disk is to be told of, and take it as told."""
        start = max(self._told, self._next)
        self._told = self._next + AHEAD_BYTES
        return start, self._told - start


def _read_ahead(fd: int, buffer: memoryview, offset: int, start: int, length: int) -> int:
    os.posix_fadvise(fd, start, length, os.POSIX_FADV_WILLNEED)
    return os.preadv(fd, [buffer], offset)
