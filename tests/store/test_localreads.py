"""Reads of the node's disk: by no thread what is in memory, told ahead what is read in sequence.

The page cache is this test's own: what is in memory is what it says, and no file system matters.
"""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from modelfs.concurrency import T, Threads
from modelfs.store import localreads
from modelfs.store.localreads import (
    AHEAD_BYTES,
    AHEAD_STEP_BYTES,
    BUFFER_BYTES,
    BUFFERS_KEPT,
    LocalReads,
    Run,
)
from tests.trio_tests import trio_test

MIB = 1 << 20
SIZE = 100 * MIB
SEED = bytes(range(251))


class CountedThreads(Threads):
    """Threads that count what they run."""

    def __init__(self) -> None:
        super().__init__(4)
        self.runs = 0

    async def run(self, function: Callable[..., T], *args: object) -> T:
        self.runs += 1
        return await super().run(function, *args)


class Disk:
    """A sparse file of 100 MiB: which of its bytes are in memory, and what the disk was told."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT)
        os.ftruncate(self.fd, SIZE)
        self.in_memory = 0  # from the beginning on
        self.refusal = errno.EAGAIN
        self.told: list[tuple[int, int]] = []
        self.threads = CountedThreads()
        self.reads = LocalReads(self.threads)
        self._preadv = os.preadv
        monkeypatch.setattr(os, "preadv", self._read)
        monkeypatch.setattr(os, "posix_fadvise", self._tell)

    def _read(self, fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if not flags:
            return self._preadv(fd, buffers, offset)
        assert flags == os.RWF_NOWAIT
        if self.refusal != errno.EAGAIN or offset >= self.in_memory:
            raise OSError(self.refusal, os.strerror(self.refusal))
        here = [buffer[: self.in_memory - offset] for buffer in buffers]
        return self._preadv(fd, here, offset)

    def _tell(self, fd: int, offset: int, length: int, advice: int) -> None:
        assert (fd, advice) == (self.fd, os.POSIX_FADV_WILLNEED)
        self.told.append((offset, length))


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(tmp_path / "file", monkeypatch)
    yield disk
    os.close(disk.fd)


@trio_test
async def test_what_is_in_memory_is_read_without_a_thread(disk: Disk) -> None:
    os.pwrite(disk.fd, SEED, 5 * MIB)
    disk.in_memory = 6 * MIB
    run = Run()
    assert bytes(await disk.reads.read(disk.fd, 5 * MIB, len(SEED), run)) == SEED
    for offset in range(0, 6 * MIB, MIB):
        assert len(await disk.reads.read(disk.fd, offset, MIB, run)) == MIB
    assert (disk.threads.runs, disk.told) == (0, [])


@trio_test
async def test_what_is_not_or_only_begins_to_be_in_memory_is_read_whole_by_a_thread(
    disk: Disk,
) -> None:
    os.pwrite(disk.fd, SEED, 5 * MIB)
    for in_memory in (0, 5 * MIB, 5 * MIB + 100):
        disk.in_memory, disk.threads.runs = in_memory, 0
        assert bytes(await disk.reads.read(disk.fd, 5 * MIB, len(SEED), Run())) == SEED
        assert disk.threads.runs == 1


@trio_test
async def test_a_file_system_that_cannot_tell_what_is_in_memory_is_read_by_threads(
    disk: Disk,
) -> None:
    disk.refusal = errno.EOPNOTSUPP
    os.pwrite(disk.fd, SEED, 7)
    for size in (1, len(SEED)):
        assert bytes(await disk.reads.read(disk.fd, 7, size, Run())) == SEED[:size]
    assert bytes(await disk.reads.read(disk.fd, 7, 3)) == SEED[:3]
    assert disk.threads.runs == 3


@trio_test
async def test_at_the_end_of_the_file_there_are_fewer_bytes_and_behind_it_none(disk: Disk) -> None:
    os.pwrite(disk.fd, SEED, SIZE - len(SEED))
    for disk.in_memory in (0, SIZE):
        assert bytes(await disk.reads.read(disk.fd, SIZE - len(SEED), MIB)) == SEED
        assert bytes(await disk.reads.read(disk.fd, SIZE + 5, MIB)) == b""


@trio_test
async def test_the_disk_is_told_ahead_of_a_sequential_reader_each_byte_once_and_not_too_far(
    disk: Disk,
) -> None:
    run, steps = Run(), 60
    for step in range(steps):
        before = len(disk.told)
        await disk.reads.read(disk.fd, step * MIB, MIB, run)
        for offset, length in disk.told[before:]:
            assert offset >= (step + 1) * MIB
            assert offset + length <= (step + 1) * MIB + AHEAD_BYTES
    ends = [offset + length for offset, length in disk.told]
    assert [offset for offset, _ in disk.told[1:]] == ends[:-1]  # nothing twice, nothing left out
    assert ends[-1] >= steps * MIB + AHEAD_BYTES - AHEAD_STEP_BYTES
    assert len(disk.told) <= steps * MIB // AHEAD_STEP_BYTES + 1
    assert disk.threads.runs == steps


@trio_test
async def test_reads_that_swap_their_places_are_told_ahead_like_others(disk: Disk) -> None:
    run = Run()
    for step in (1, 0, 3, 2, 5, 4, 7, 6):
        await disk.reads.read(disk.fd, step * MIB, MIB, run)
    assert len(disk.told) == 1


@trio_test
async def test_a_random_reader_has_the_disk_told_nothing(disk: Disk) -> None:
    run = Run()
    for place in (50, 3, 90, 20, 70, 11, 60):
        await disk.reads.read(disk.fd, place * MIB, 4096, run)
    assert disk.told == []


@trio_test
async def test_after_a_jump_a_sequential_reader_is_told_ahead_from_there(disk: Disk) -> None:
    run = Run()
    for place in (0, 1, 2, 80, 81, 82):
        await disk.reads.read(disk.fd, place * MIB, MIB, run)
    assert [offset for offset, _ in disk.told] == [2 * MIB, 82 * MIB]


@trio_test
async def test_buffers_are_used_again_and_few_are_kept(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(size: int) -> bytearray:
        made.append(size)
        return bytearray(size)

    monkeypatch.setattr(localreads, "bytearray", make, raising=False)
    disk.in_memory = SIZE
    for offset in range(0, 50 * MIB, MIB):
        await disk.reads.read(disk.fd, offset, MIB)
    assert made == [BUFFER_BYTES]
    disk.in_memory = 0
    for _ in range(3):
        async with trio.open_nursery() as nursery:
            for place in range(30):
                nursery.start_soon(disk.reads.read, disk.fd, place * MIB, MIB)
    assert len(made) <= 30 + 2 * (30 - BUFFERS_KEPT)
    assert len(disk.reads._buffers) == BUFFERS_KEPT
    kept = len(made)
    assert len(await disk.reads.read(disk.fd, 0, 3 * MIB)) == 3 * MIB  # larger than a buffer
    assert made[kept:] == [3 * MIB]


@trio_test
async def test_answers_that_are_under_way_at_once_never_share_a_buffer(disk: Disk) -> None:
    for place in range(20):
        os.pwrite(disk.fd, bytes([place]) * 1000, place * MIB)

    async def read(place: int) -> None:
        for size in (1000, 10, 500):
            found = await disk.reads.read(disk.fd, place * MIB, size)
            assert bytes(found) == bytes([place]) * size

    async with trio.open_nursery() as nursery:
        for place in range(20):
            nursery.start_soon(read, place)


@trio_test
async def test_a_disk_that_fails_is_an_error(disk: Disk) -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        await disk.reads.read(1 << 20, 0, 10)
