"""Hashing: a finished file, and one whose parts are just coming.

A Following feeds the hashes of a coming file with what has come from its beginning on, from
the page cache, so that little is left to hash when the last part lands. It is as good as a
pass over the whole file afterwards while no part that it has read is fetched again: who drops
parts begins another one. Owned by the trio thread; the hashing is done by threads.
"""

import os
from functools import partial
from pathlib import Path

import trio

from modelfs.concurrency import Threads, side_by_side, thread_buffer
from modelfs.store.confirming import Expected, Hasher, Hashes, Hashing
from modelfs.store.parts import PartFile

STEP_BYTES = 32 << 20  # at most, of one file, before its thread takes another's


class Following:
    """The hashes of a file whose parts arrive. See the module."""

    def __init__(self, file: PartFile, threads: Threads) -> None:
        self._file = file
        self._threads = threads
        self._arrived = trio.Event()
        self._is_answered = False

    def part_arrived(self, is_answer: bool) -> None:
        self._is_answered |= is_answer
        self._arrived.set()
        self._arrived = trio.Event()

    async def begun(self) -> None:
        """Return when the registry has said what the object is, or all is here.

        Its answer tells more than the listing: whether the ETag is an MD5, or of how many parts.
        """
        while not (self._is_answered or self._file.is_complete):
            await self._arrived.wait()

    async def hashes(self, expected: Expected, is_alone: bool) -> Hashes:
        """Return the hashes of the whole file when all of it has come.

        One that is alone has several threads; many files have one each, that reads it once.
        """
        hashing = Hashing(expected)
        works = [partial(self._feed, one) for one in (hashing.hashers if is_alone else [hashing])]
        await side_by_side(works, len(works))
        return hashing.hashes()

    async def _feed(self, hasher: Hasher | Hashing) -> None:
        file, at = self._file, 0
        while at < file.info.size:
            end = self._here_until(at)
            if end == at:
                await self._arrived.wait()
            else:
                await self._threads.run(update_from, hasher, file.fd, at, end)
                at = end

    def _here_until(self, at: int) -> int:
        """Return up to where the bytes from the beginning of a part on are here, a step at most."""
        file, end = self._file, at
        while end < file.info.size and end - at < STEP_BYTES:
            index = end // file.part_size
            if index not in file.present:
                break
            end += file.length_of(index)
        return end


def update_from(hasher: Hasher | Hashing, fd: int, start: int, end: int) -> None:
    """Feed a hash with bytes [start, end) of a file; blocking."""
    buffer, at = thread_buffer(), start
    while at < end:
        count = os.preadv(fd, [buffer[: end - at]], at)
        if not count:
            raise OSError(f"the file ends at {at}, before {end}")
        hasher.update(buffer[:count])
        at += count


def hashes(path: Path, expected: Expected | None = None) -> Hashes:
    """Return the SHA-256 of a file, and what is to be compared with what is expected of it."""
    hashing = Hashing(expected)
    with path.open("rb", buffering=0) as file:
        update_from(hashing, file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return hashing.hashes()
