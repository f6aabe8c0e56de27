"""A folder of ext4 and main/ under the same random operations: hypothesis drives both.

What each operation returns, or the errno that it fails with, must be the same, and at the end the
trees and the bucket; what is known to differ stands in DIFFERENCES. The suite does a few runs,
always the same; MODELFS_TREES=2000 does that many others. (tests/mount/test_tree_model.py drives
the tree without a mount, with freezes, foreign changes and restarts.)
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.mount import twins as fixtures
from tests.mount.twins import Twins, result
from tests.mounting import Mount

pytestmark = pytest.mark.mount

moto_shared = fixtures.moto_shared

RUNS = int(os.environ.get("MODELFS_TREES", 0))
STEPS = 40
OPEN_MAX = 6
RECENT_NS = 1_600_000_000 * 10**9  # times after this are of now, and not compared

# What main/ says where a disk says yes: there are no such things in a registry.
DIFFERENCES = {
    "link": "EPERM",
    "symlink": "EPERM",
    "mkfifo": "EPERM",
    "exchange": "EINVAL",
    "a name that is no UTF-8": "EINVAL",
    "a file without a name": "ENOTSUP",
}

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)

PATHS = ("a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "f", "f/a")
ODD_PATHS = ("", ".", "d/..", "d/", "a/", "d/.", "d/../a", "new/", "ü" * 127 + "x", "y" * 256)
there = st.runner().flatmap(lambda trees: st.sampled_from(trees.existing() or ["a"]))
paths = st.one_of(there, there, there, st.sampled_from(PATHS), st.sampled_from(ODD_PATHS))
new_paths = st.one_of(there, *[st.sampled_from(PATHS)] * 3, st.sampled_from(ODD_PATHS))
slots = st.integers(0, OPEN_MAX - 1)
seeds = st.integers(0, 12)
sizes = st.sampled_from([0, 1, 5, 4095, 4096, 70_000, 150_000])
offsets = st.sampled_from([0, 3, 4096, 5000, 131_072, 200_000])
times_ns = st.sampled_from([1_000_000_000 * 10**9 + 123_456_789, 1_234_567_890 * 10**9, 10**9])
flags = st.builds(
    lambda access, others: access | sum(set(others)),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]),
    st.lists(
        st.sampled_from(
            [
                *(os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND),
                *(os.O_DIRECTORY, os.O_NOFOLLOW, os.O_DSYNC),
            ]
        ),
        max_size=3,
    ),
)


def data_of(seed: int) -> bytes:
    chance = random.Random(seed)
    return chance.randbytes(chance.choice([0, 1, 1000, 70_000, 150_000]))


@dataclass
class Side:
    """One of the two folders, with what is open there."""

    folder: Path
    fds: list[int] = field(default_factory=list)

    def __getitem__(self, path: str) -> str:
        return f"{self.folder}/{path}"

    def close_all(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def seen(found: os.stat_result) -> tuple[object, ...]:
    """Return of a stat what a folder of main/ shares with one of a disk, and a file with a file."""
    if stat.S_ISDIR(found.st_mode):
        return ("folder",)
    mtime_ns = found.st_mtime_ns if found.st_mtime_ns < RECENT_NS else "now"
    mode = stat.filemode(found.st_mode)
    return mode, found.st_size, found.st_nlink, mtime_ns


def rename_with(flag: int, old: str, new: str) -> None:
    """renameat2(2)."""
    here = -100  # AT_FDCWD
    if _libc.renameat2(here, os.fsencode(old), here, os.fsencode(new), flag):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Trees(RuleBasedStateMachine):
    """See the module."""

    twins: Twins

    def __init__(self) -> None:
        super().__init__()
        self.twins = self.make_twins()
        self.disk, self.mounted = map(Side, self.twins.folders)
        self.sides = (self.disk, self.mounted)

    @staticmethod
    def make_twins() -> Twins:
        raise NotImplementedError

    @initialize(seed=seeds)
    def begin(self, seed: int) -> None:
        self.mkdir("d")
        self.mkdir("d/e")
        self.mkdir("f")
        self.write_file("a", seed)
        self.write_file("d/a", seed + 1)

    def existing(self) -> list[str]:
        """Return the paths that there are."""
        return sorted(
            str(path.relative_to(self.disk.folder)) for path in self.disk.folder.rglob("*")
        )

    def same(self, step: Callable[[Side], object]) -> object:
        """Do a step on both sides; what it returns, or its errno, must be the same."""
        on_disk, on_mount = (_result(step, side) for side in self.sides)
        assert on_mount == on_disk, f"on the mount {_short(on_mount)}, on ext4 {_short(on_disk)}"
        return on_disk

    def refused(
        self, what: str, step: Callable[[Side], object], undo: Callable[[Side], object]
    ) -> None:
        """Do a step that a disk can do and main/ cannot; where neither can, their errnos agree."""
        on_disk, on_mount = (_result(step, side) for side in self.sides)
        if isinstance(on_disk, str) and on_disk in errno.errorcode.values():
            assert on_mount == on_disk, f"on the mount {on_mount}, on ext4 {on_disk}"
        else:
            undo(self.disk)
            assert on_mount == DIFFERENCES[what]

    # ------------------------------------------------------------ what is open

    @rule(path=st.one_of(paths, new_paths), flags=flags)
    def open(self, path: str, flags: int) -> None:
        if len(self.disk.fds) == OPEN_MAX:
            self.close(0)

        def step(side: Side) -> object:
            side.fds.append(os.open(side[path], flags, 0o644))
            return "open"

        with self.nothing_half_open():
            self.same(step)

    @contextlib.contextmanager
    def nothing_half_open(self) -> Iterator[None]:
        try:
            yield
        finally:
            count = min(len(side.fds) for side in self.sides)
            for side in self.sides:
                for fd in side.fds[count:]:
                    os.close(fd)
                del side.fds[count:]

    def with_fd(self, slot: int, step: Callable[[int], object]) -> None:
        if self.disk.fds:
            number = slot % len(self.disk.fds)
            self.same(lambda side: step(side.fds[number]))

    @rule(slot=slots)
    def close(self, slot: int) -> None:
        if self.disk.fds:
            number = slot % len(self.disk.fds)
            self.same(lambda side: os.close(side.fds.pop(number)))

    @rule(slot=slots)
    def dup(self, slot: int) -> None:
        if self.disk.fds and len(self.disk.fds) < OPEN_MAX:
            number = slot % len(self.disk.fds)
            self.same(lambda side: side.fds.append(os.dup(side.fds[number])))

    @rule(slot=slots, seed=seeds)
    def write(self, slot: int, seed: int) -> None:
        self.with_fd(slot, lambda fd: (os.write(fd, data_of(seed)), os.lseek(fd, 0, os.SEEK_CUR)))

    @rule(slot=slots, seed=seeds, offset=offsets)
    def pwrite(self, slot: int, seed: int, offset: int) -> None:
        self.with_fd(slot, lambda fd: os.pwrite(fd, data_of(seed), offset))

    @rule(slot=slots, size=sizes)
    def read(self, slot: int, size: int) -> None:
        self.with_fd(slot, lambda fd: os.read(fd, size))

    @rule(slot=slots, size=sizes, offset=offsets)
    def pread(self, slot: int, size: int, offset: int) -> None:
        self.with_fd(slot, lambda fd: os.pread(fd, size, offset))

    @rule(slot=slots, offset=offsets, whence=st.sampled_from([os.SEEK_SET, os.SEEK_END]))
    def seek(self, slot: int, offset: int, whence: int) -> None:
        def step(fd: int) -> object:
            is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)  # whose offsets are each one's own
            return None if is_folder else os.lseek(fd, offset, whence)

        self.with_fd(slot, step)

    @rule(slot=slots, size=sizes)
    def ftruncate(self, slot: int, size: int) -> None:
        self.with_fd(slot, lambda fd: os.ftruncate(fd, size))

    @rule(slot=slots)
    def fsync(self, slot: int) -> None:
        self.with_fd(slot, os.fsync)

    @rule(slot=slots, time_ns=times_ns)
    def futimens(self, slot: int, time_ns: int) -> None:
        self.with_fd(slot, lambda fd: os.utime(fd, ns=(time_ns, time_ns)))

    @rule(slot=slots, look=st.sampled_from(["stat", "list", "flags"]))
    def look_at_open(self, slot: int, look: str) -> None:
        def step(fd: int) -> object:
            if look == "stat":
                return seen(os.fstat(fd))
            if look == "list":
                return sorted(os.listdir(fd))
            return fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND

        self.with_fd(slot, step)

    @rule(slot=slots, path=st.sampled_from(PATHS))
    def mkdir_at(self, slot: int, path: str) -> None:
        self.with_fd(slot, lambda fd: os.mkdir(path, dir_fd=fd))

    # ------------------------------------------------------------------- files

    @rule(path=new_paths, seed=seeds)
    def write_file(self, path: str, seed: int) -> None:
        self.same(lambda side: Path(side[path]).write_bytes(data_of(seed)))

    @rule(path=paths, size=sizes)
    def truncate(self, path: str, size: int) -> None:
        self.same(lambda side: os.truncate(side[path], size))

    @rule(path=paths)
    def unlink(self, path: str) -> None:
        self.same(lambda side: os.unlink(side[path]))

    @rule(path=paths, time_ns=times_ns)
    def utime(self, path: str, time_ns: int) -> None:
        self.same(lambda side: os.utime(side[path], ns=(time_ns, time_ns)))

    # ----------------------------------------------------------- names, folders

    @rule(path=new_paths)
    def mkdir(self, path: str) -> None:
        self.same(lambda side: os.mkdir(side[path]))

    @rule(path=paths)
    def rmdir(self, path: str) -> None:
        if path:  # main/ itself is no folder like others
            self.same(lambda side: os.rmdir(side[path]))

    @rule(old=paths, new=new_paths)
    def rename(self, old: str, new: str) -> None:
        self.same(lambda side: os.rename(side[old], side[new]))

    @rule(old=there, new=there)
    def rename_to_what_is_there(self, old: str, new: str) -> None:
        self.same(lambda side: os.rename(side[old], side[new]))

    @rule(old=paths, new=new_paths)
    def rename_to_nothing(self, old: str, new: str) -> None:
        self.same(lambda side: rename_with(RENAME_NOREPLACE, side[old], side[new]))

    @rule(path=paths, look=st.sampled_from(["stat", "list", "readlink", "read"]))
    def look(self, path: str, look: str) -> None:
        def step(side: Side) -> object:
            if look == "stat":
                return seen(os.lstat(side[path]))
            if look == "list":
                return sorted(os.listdir(side[path]))
            if look == "readlink":
                return os.readlink(side[path])
            return Path(side[path]).read_bytes()

        self.same(step)

    @rule(path=paths, mode=st.sampled_from([0o644, 0o755]))
    def chmod(self, path: str, mode: int) -> None:
        """It changes nothing, as docs/SEMANTICS.md says; so the disk is only asked for the name."""
        on_disk = _result(lambda side: os.stat(side[path]), self.disk)
        on_mount = _result(lambda side: os.chmod(side[path], mode), self.mounted)
        assert on_mount == (on_disk if isinstance(on_disk, str) else None)

    # ------------------------------------------------------- what a disk has more

    @rule(old=paths, new=new_paths)
    def link(self, old: str, new: str) -> None:
        self.refused(
            "link",
            lambda side: os.link(side[old], side[new]),
            lambda side: os.unlink(side[new]),
        )

    @rule(what=st.sampled_from(["symlink", "mkfifo", "a file without a name"]), path=new_paths)
    def make_what_is_no_file(self, what: str, path: str) -> None:
        def step(side: Side) -> object:
            if what == "symlink":
                return os.symlink("a", side[path])
            if what == "mkfifo":
                return os.mkfifo(side[path])
            return os.close(os.open(side[path], os.O_TMPFILE | os.O_RDWR))

        has_name = what != "a file without a name"
        self.refused(what, step, lambda side: os.unlink(side[path]) if has_name else None)

    @rule(old=paths, new=new_paths)
    def exchange(self, old: str, new: str) -> None:
        def step(side: Side) -> object:
            return rename_with(RENAME_EXCHANGE, side[old], side[new])

        plain_old, plain_new = os.path.normpath(old), os.path.normpath(new)

        def undo(side: Side) -> object:  # what ended in a slash may be a file now
            return rename_with(RENAME_EXCHANGE, side[plain_old], side[plain_new])

        if plain_old == plain_new:  # of which the kernel says 0 by itself
            self.same(step)
        else:
            self.refused("exchange", step, undo)

    @rule(path=st.sampled_from(["d/", "", "a/", "absent/"]), is_folder=st.booleans())
    def no_utf8(self, path: str, is_folder: bool) -> None:
        name = path + "\udcff"
        if is_folder:
            make, undo = os.mkdir, os.rmdir
        else:
            make, undo = (lambda p: os.close(os.open(p, os.O_CREAT | os.O_WRONLY))), os.unlink
        self.refused(
            "a name that is no UTF-8", lambda side: make(side[name]), lambda side: undo(side[name])
        )

    def teardown(self) -> None:
        for side in self.sides:
            side.close_all()
        self.twins.check()


def _result(step: Callable[[Side], object], side: Side) -> object:
    return result(lambda _: step(side), side.folder)


def _short(value: object) -> str:
    said = repr(value)
    return said if len(said) < 200 else f"{said[:200]}... ({len(said)})"


def test_a_tree_in_random_use_is_that_of_a_disk(moto_shared: Mount, tmp_path: Path) -> None:
    numbers = iter(range(10**9))

    class Here(Trees):
        @staticmethod
        def make_twins() -> Twins:
            return Twins(tmp_path / f"plain-{next(numbers)}", moto_shared)

    run_state_machine_as_test(
        Here,
        settings=settings(
            max_examples=RUNS or 15,
            stateful_step_count=STEPS,
            derandomize=not RUNS,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
