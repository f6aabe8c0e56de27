"""A file, what it should hold, and all that can be done with it: see tests/mount/fsx.py."""

import ctypes
import errno
import itertools
import mmap
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PAGE = mmap.PAGESIZE
HANDLES_MAX, MAPS_MAX = 4, 2
PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE

Operation = tuple[str, *tuple[int, ...]]

MODES = {
    "read": os.O_RDONLY,
    "write": os.O_WRONLY,
    "both": os.O_RDWR,
    "append": os.O_RDWR | os.O_APPEND,
    "direct": os.O_RDWR | os.O_DIRECT,
    "sync": os.O_RDWR | os.O_DSYNC,
    "cut": os.O_RDWR | os.O_TRUNC,
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Difference(Exception):
    """The file is not what it should be."""


@dataclass(frozen=True)
class Handle:
    """An open descriptor."""

    fd: int
    flags: int

    @property
    def reads(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY

    @property
    def writes(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def is_direct(self) -> bool:
        return bool(self.flags & os.O_DIRECT)

    def read(self, offset: int, length: int) -> bytes:
        if not self.is_direct:
            return os.pread(self.fd, length, offset)
        with mmap.mmap(-1, length) as buffer:  # which lies as O_DIRECT wants it
            return buffer[: os.preadv(self.fd, [buffer], offset)]

    def write(self, offset: int, data: bytes) -> int:
        if not self.is_direct:
            return os.pwrite(self.fd, data, offset)
        with mmap.mmap(-1, len(data)) as buffer:
            buffer[:] = data
            return os.pwritev(self.fd, [buffer], offset)


@dataclass(frozen=True)
class Map:
    """A shared mapping of the file from `start` on."""

    view: mmap.mmap
    start: int
    writes: bool


def fallocate(fd: int, mode: int, offset: int, length: int) -> int:
    """Return the errno of fallocate(2), 0 where it succeeds."""
    return ctypes.get_errno() if _libc.fallocate(fd, mode, offset, length) else 0


def bytes_of(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


class File:
    """A file, and in `data` what it should hold.

    `check_elsewhere` sees, while nothing is open, that what lies behind the file has these bytes;
    `remount` has the file system forget all that it knows.
    """

    def __init__(
        self,
        path: Path,
        check_elsewhere: Callable[[Path, bytes], None] = lambda path, data: None,
        remount: Callable[[], None] = lambda: None,
    ) -> None:
        self.first = self.path = path
        self.data = bytearray()
        self.handles: list[Handle] = []
        self.maps: list[Map] = []
        self._check_elsewhere = check_elsewhere
        self._remount = remount
        path.write_bytes(b"")

    # ------------------------------------------------------------- what is open

    def do(self, operation: Operation) -> None:
        """Do an operation; one that finds nothing to work on does nothing. Raises Difference."""
        name, *numbers = operation
        getattr(self, f"do_{name}")(*numbers)
        size = os.stat(self.path).st_size
        if size != len(self.data):
            raise Difference(f"stat says {size} bytes, not {len(self.data)}")

    def _handle(self, number: int, what: Callable[[Handle], bool]) -> Handle | None:
        fitting = [handle for handle in self.handles if what(handle)]
        return fitting[number % len(fitting)] if fitting else None

    def _reader(self, number: int) -> Handle | None:
        return self._handle(number, lambda handle: handle.reads)

    def _writer(self, number: int) -> Handle | None:
        return self._handle(number, lambda handle: handle.writes)

    def do_open(self, mode: int) -> None:
        if len(self.handles) == HANDLES_MAX:
            self.do_close(0)
        flags = list(MODES.values())[mode % len(MODES)]
        self.handles.append(Handle(os.open(self.path, flags), flags))
        if flags & os.O_TRUNC:
            self.data.clear()

    def do_dup(self, number: int) -> None:
        if self.handles and len(self.handles) < HANDLES_MAX:
            handle = self.handles[number % len(self.handles)]
            self.handles.append(Handle(os.dup(handle.fd), handle.flags))

    def do_close(self, number: int) -> None:
        if self.handles:
            os.close(self.handles.pop(number % len(self.handles)).fd)

    def do_close_all(self) -> None:
        while self.maps:
            self.do_unmap(0)
        while self.handles:
            self.do_close(0)

    # ------------------------------------------------------------ read and write

    def do_read(self, number: int, offset: int, length: int) -> None:
        if handle := self._reader(number):
            offset, length = _aligned(handle, offset, length)
            self._compare("read", offset, handle.read(offset, length), length)

    def _compare(self, what: str, offset: int, found: bytes, length: int) -> None:
        wanted = bytes(self.data[offset : offset + length])
        if found != wanted:
            pairs = itertools.zip_longest(wanted, found)
            at = next(n for n, (one, other) in enumerate(pairs) if one != other)
            raise Difference(
                f"{what} of {length} bytes at {offset}: {len(found)} bytes, not {len(wanted)}; at "
                f"{offset + at} {found[at : at + 16].hex(' ')}, not {wanted[at : at + 16].hex(' ')}"
            )

    def do_write(self, number: int, offset: int, length: int, seed: int) -> None:
        if handle := self._writer(number):
            offset, length = _aligned(handle, offset, length)
            data = bytes_of(seed, length)
            if (written := handle.write(offset, data)) != length:
                raise Difference(f"{written} bytes of {length} were written")
            # On Linux O_APPEND holds for pwrite, too.
            self._put(len(self.data) if handle.flags & os.O_APPEND else offset, data)

    def _put(self, offset: int, data: bytes) -> None:
        self._extend(offset)
        self.data[offset : offset + len(data)] = data

    def _extend(self, size: int) -> None:
        self.data.extend(bytes(max(0, size - len(self.data))))

    def do_copy(self, number: int, source: int, target: int, length: int) -> None:
        """copy_file_range(2) inside of the file; what overlaps is EINVAL everywhere."""
        handle = self._handle(number, lambda h: h.reads and h.writes)
        if handle is None or handle.flags & (os.O_APPEND | os.O_DIRECT):
            return
        length = min(length, len(self.data) - source, abs(target - source))
        while length > 0:
            count = os.copy_file_range(handle.fd, handle.fd, length, source, target)
            if count <= 0:
                raise Difference(f"copy_file_range copied {count} of {length} bytes at {source}")
            self._put(target, bytes(self.data[source : source + count]))
            source, target, length = source + count, target + count, length - count

    # -------------------------------------------------------------------- sizes

    def do_cut(self, number: int, size: int) -> None:
        """ftruncate(2), or truncate(2) where nothing is open to write."""
        handle = self._writer(number)
        os.truncate(handle.fd if handle else self.path, size)
        self._cut(size)

    def do_cut_by_name(self, size: int) -> None:
        os.truncate(self.path, size)
        self._cut(size)

    def _cut(self, size: int) -> None:
        del self.data[size:]
        self._extend(size)

    def do_allocate(self, number: int, offset: int, length: int) -> None:
        """posix_fallocate(3), which libc does by writes where the file system has none."""
        handle = self._handle(number, lambda h: h.reads and h.writes)
        if handle is not None and not handle.flags & os.O_APPEND:
            os.posix_fallocate(handle.fd, offset, length)
            self._extend(offset + length)

    def do_punch(self, number: int, offset: int, length: int) -> None:
        """Punch a hole, where the file system can; else it says so and changes nothing."""
        if handle := self._writer(number):
            refused = fallocate(handle.fd, PUNCH, offset, length)
            if refused == 0:
                end = min(offset + length, len(self.data))
                self.data[offset:end] = bytes(max(0, end - offset))
            elif refused != errno.EOPNOTSUPP:
                raise Difference(f"fallocate failed with {errno.errorcode[refused]}")

    def do_seek(self, number: int, offset: int) -> None:
        """Look for data and a hole: what is said to be a hole must be zeros."""
        if handle := self._reader(number):
            try:
                data = os.lseek(handle.fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = max(len(self.data), offset)
            if any(self.data[offset:data]):
                raise Difference(f"SEEK_DATA from {offset} leaves out data before {data}")
            if offset < len(self.data):
                hole = os.lseek(handle.fd, offset, os.SEEK_HOLE)
                if not offset <= hole <= len(self.data):
                    raise Difference(f"SEEK_HOLE from {offset} is {hole} of {len(self.data)}")

    # ----------------------------------------------------------------- mappings

    def do_map(self, number: int, offset: int, length: int) -> None:
        """Map a range of what there is, and keep the mapping, also beyond its descriptor."""
        handle = self._handle(number, lambda h: h.reads and not h.is_direct)
        start = offset // PAGE * PAGE
        length = min(length, len(self.data) - start)
        if handle is None or length <= 0:
            return
        if len(self.maps) == MAPS_MAX:
            self.do_unmap(0)
        access = mmap.PROT_READ | (mmap.PROT_WRITE if handle.writes else 0)
        view = mmap.mmap(handle.fd, length, mmap.MAP_SHARED, access, offset=start)
        self.maps.append(Map(view, start, handle.writes))

    def do_unmap(self, number: int) -> None:
        if self.maps:
            self.maps.pop(number % len(self.maps)).view.close()

    def _mapped(self, number: int, offset: int, length: int) -> tuple[Map, int, int] | None:
        """Return a mapping, and of a range in it what the file has still: else it is SIGBUS."""
        if not self.maps:
            return None
        found = self.maps[number % len(self.maps)]
        start = found.start + offset % len(found.view)
        end = min(start + length, found.start + len(found.view), len(self.data))
        return (found, start, end) if start < end else None

    def do_peek(self, number: int, offset: int, length: int) -> None:
        if found := self._mapped(number, offset, length):
            of, start, end = found
            seen = of.view[start - of.start : end - of.start]
            self._compare("a mapped read", start, seen, end - start)

    def do_poke(self, number: int, offset: int, length: int, seed: int) -> None:
        if (found := self._mapped(number, offset, length)) and found[0].writes:
            of, start, end = found
            data = bytes_of(seed, end - start)
            of.view[start - of.start : end - of.start] = data
            self.data[start:end] = data

    def do_flush(self, number: int) -> None:
        if self.maps:
            self.maps[number % len(self.maps)].view.flush()

    # ------------------------------------------------------ disk, name, all of it

    def do_sync(self, number: int) -> None:
        if handle := self._handle(number, lambda handle: True):
            os.fsync(handle.fd)

    def do_datasync(self, number: int) -> None:
        if handle := self._handle(number, lambda handle: True):
            os.fdatasync(handle.fd)

    def do_forget(self, number: int) -> None:
        """Let the kernel drop the file's clean pages."""
        if handle := self._handle(number, lambda handle: True):
            os.posix_fadvise(handle.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def do_rename(self, number: int) -> None:
        """Give the file another name, of odd numbers one that another file has."""
        target = self.first.with_name(f"{self.first.name}.{number // 2}")
        if target == self.path:
            target = self.first
        if number % 2:
            target.write_bytes(b"in the way")
        os.rename(self.path, target)
        self.path = target

    def do_check(self) -> None:
        """Close everything and compare all bytes, here and behind."""
        self.do_close_all()
        self._compare("all of it", 0, self.path.read_bytes(), len(self.data))
        self._check_elsewhere(self.path, bytes(self.data))

    def do_remount(self) -> None:
        self.do_check()
        self._remount()
        self._compare("all of it, mounted anew", 0, self.path.read_bytes(), len(self.data))


def _aligned(handle: Handle, offset: int, length: int) -> tuple[int, int]:
    """Return a range that O_DIRECT can do, near a given one."""
    if not handle.is_direct:
        return offset, length
    return offset // PAGE * PAGE, -(-length // PAGE) * PAGE
