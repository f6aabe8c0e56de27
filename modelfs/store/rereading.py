"""Read files again for their hashes: at a bounded pace, the page cache left as it was.

What a model server has in memory stays there, and what this read brings goes again: a disk
is verified while it serves. What is in memory is hashed from there. Blocking.
"""

import ctypes
import hashlib
import mmap
import os
import stat
import time
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

from modelfs.errors import StoreError

BLOCK_BYTES = 4 << 20  # a read; also an object's size on CephFS
PAGE_BYTES = mmap.PAGESIZE
_MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int),
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)


class Pace:
    """At most so many bytes a second, over any time; None is no limit."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._due = 0.0

    def keep(self, count: int) -> None:
        """Wait as long as `count` more bytes must take."""
        if self._bytes_per_s is None:
            return
        now = time.monotonic()
        self._due = max(self._due, now) + count / self._bytes_per_s
        time.sleep(self._due - now)


def sha256_of(path: Path, pace: Pace, progress: Callable[[int], None]) -> str:
    """Return the hex SHA-256 of a plain file; raises OSError, StoreError where it is none."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"{path} is no plain file")
        return _sha256_of(fd, _resident(fd, found.st_size), pace, progress)
    finally:
        os.close(fd)


def _sha256_of(fd: int, resident: bytes, pace: Pace, progress: Callable[[int], None]) -> str:
    digest, buffer, offset = hashlib.sha256(), bytearray(BLOCK_BYTES), 0
    while count := os.preadv(fd, [buffer], offset):
        digest.update(memoryview(buffer)[:count])
        _drop(fd, offset, count, resident)
        offset += count
        progress(count)
        pace.keep(count)
    return digest.hexdigest()


def _resident(fd: int, size: int) -> bytes:
    """Return a byte a page, odd where it is in memory (mincore(2)); zeros if nobody knows."""
    if not size:
        return b""
    pages = ctypes.create_string_buffer(-(-size // PAGE_BYTES))
    address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        return pages.raw
    try:
        if _libc.mincore(address, size, pages):
            return bytes(len(pages))
        return pages.raw
    finally:
        _libc.munmap(address, size)


def _drop(fd: int, offset: int, count: int, resident: bytes) -> None:
    """Let the kernel forget the pages of a block that were not in memory before."""
    first, last = offset // PAGE_BYTES, -(-(offset + count) // PAGE_BYTES)
    page = first
    for was_here, run in groupby(resident[first:last], lambda flags: flags & 1):
        length = sum(1 for _ in run)
        if not was_here:
            os.posix_fadvise(fd, page * PAGE_BYTES, length * PAGE_BYTES, os.POSIX_FADV_DONTNEED)
        page += length
