"""When the time of a file of main/ moves, and which times it can have: as on a disk."""

import ctypes
import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount import twins as fixtures
from tests.mount.twins import Twins, result

pytestmark = pytest.mark.mount

moto_shared, twins = fixtures.moto_shared, fixtures.twins

OLD_NS = 10**18
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)
Moment = tuple[int, int]  # seconds, nanoseconds


def utimensat(path: Path, atime: Moment, mtime: Moment) -> None:
    times = (ctypes.c_long * 4)(*atime, *mtime)
    if _libc.utimensat(-100, os.fsencode(path), times, 0):  # -100: AT_FDCWD
        raise OSError(ctypes.get_errno(), "utimensat")


def with_fd(flags: int, *steps: Callable[[int], object]) -> Callable[[Path], None]:
    def step(path: Path) -> None:
        fd = os.open(path, flags)
        try:
            for do in steps:
                do(fd)
        finally:
            os.close(fd)

    return step


def set_old(fd: int) -> None:
    os.utime(fd, ns=(OLD_NS, OLD_NS))


def map_and_write(fd: int) -> None:
    with mmap.mmap(fd, 10) as view:
        view[0:1] = b"x"


CASES: dict[str, Callable[[Path], object]] = {
    "open and close": with_fd(os.O_RDWR),
    "read": with_fd(os.O_RDWR, lambda fd: os.read(fd, 10)),
    "write": with_fd(os.O_RDWR, lambda fd: os.write(fd, b"x")),
    "write nothing": with_fd(os.O_RDWR, lambda fd: os.write(fd, b"")),
    "write the same": with_fd(os.O_RDWR, lambda fd: os.write(fd, b"0123456789")),
    "mmap": with_fd(os.O_RDWR, map_and_write),
    "fsync": with_fd(os.O_RDWR, os.fsync),
    "truncate": lambda path: os.truncate(path, 3),
    "truncate to the same": lambda path: os.truncate(path, 10),
    "ftruncate to the same": with_fd(os.O_RDWR, lambda fd: os.ftruncate(fd, 10)),
    "O_TRUNC": with_fd(os.O_RDWR | os.O_TRUNC),
    "O_TRUNC, and set": with_fd(os.O_RDWR | os.O_TRUNC, set_old),
    "O_TRUNC, twice": lambda path: [with_fd(os.O_RDWR | os.O_TRUNC, set_old)(path) for _ in "12"],
    "set, then write": with_fd(os.O_RDWR, set_old, lambda fd: os.write(fd, b"x")),
    "write, then set": with_fd(os.O_RDWR, lambda fd: os.write(fd, b"x"), set_old),
    "rename": lambda path: os.rename(path, path.with_name("renamed")),
    "chmod": lambda path: path.chmod(0o644),
    "now": lambda path: utimensat(path, (0, UTIME_NOW), (0, UTIME_NOW)),
    "omit both": lambda path: utimensat(path, (0, UTIME_OMIT), (0, UTIME_OMIT)),
    "omit mtime": lambda path: utimensat(path, (7, 7), (0, UTIME_OMIT)),
    "omit atime": lambda path: utimensat(path, (0, UTIME_OMIT), (7, 7)),
    "no nanoseconds": lambda path: utimensat(path, (0, UTIME_OMIT), (7, 10**9)),
    "O_TRUNC of nothing": lambda path: [
        with_fd(os.O_RDWR | os.O_TRUNC, *steps)(path) for steps in ([set_old], [])
    ],
}


def test_the_time_of_a_file_moves_when_it_moves_on_a_disk(twins: Twins) -> None:
    def step(folder: Path) -> object:
        found = {}
        for name, do in CASES.items():
            path = folder / name
            path.write_bytes(b"0123456789")
            os.utime(path, ns=(OLD_NS, OLD_NS))
            answer = result(do, path)
            if not path.exists():
                path = path.with_name("renamed")
            mtime_ns = path.stat().st_mtime_ns
            is_now = mtime_ns > OLD_NS * 1.5
            found[name] = (answer if isinstance(answer, str) else "", is_now or mtime_ns)
        return sorted(found.items())

    said = twins.same(step)
    assert ("no nanoseconds", ("EINVAL", OLD_NS)) in said  # type: ignore[operator]


def test_times_before_1970_and_far_away_are_kept_to_the_nanosecond(twins: Twins) -> None:
    times_ns = (-1, -(10**9), -(5 * 10**17) - 3, 0, 1, 123_456_789_123_456_789, 2**32 * 10**9 + 7)

    def step(folder: Path) -> object:
        found = []
        for name, mtime_ns in enumerate(times_ns):
            path = folder / str(name)
            path.write_bytes(b"x")
            os.utime(path, ns=(mtime_ns, mtime_ns))
            found.append(path.stat().st_mtime_ns)
        return found

    assert twins.same(step) == list(times_ns)


def test_the_time_of_a_file_that_was_unlinked_while_open_can_be_set(twins: Twins) -> None:
    def step(folder: Path) -> object:
        (folder / "clean").write_bytes(b"x")
        reader = os.open(folder / "clean", os.O_RDONLY)
        writer = os.open(folder / "new", os.O_CREAT | os.O_RDWR)
        os.write(writer, b"y")
        seen = []
        for name, fd in (("clean", reader), ("new", writer)):
            os.unlink(folder / name)
            set_old(fd)
            seen.append(os.fstat(fd).st_mtime_ns)
            os.close(fd)
        return seen

    assert twins.same(step) == [OLD_NS, OLD_NS]


def test_a_time_of_a_folder_succeeds_and_changes_nothing(twins: Twins) -> None:
    folder = twins.mount.main / "d"
    folder.mkdir()
    before = folder.stat().st_mtime_ns
    os.utime(folder, ns=(OLD_NS, OLD_NS))
    assert folder.stat().st_mtime_ns == before
