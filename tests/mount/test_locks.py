"""Locks on files of main/ between processes of one node: had and let go as on a disk."""

import errno
import fcntl
import os
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mount import twins as fixtures
from tests.mount.twins import Twins

pytestmark = pytest.mark.mount

moto_shared, twins = fixtures.moto_shared, fixtures.twins

LIMIT_S = 20

# Another process: says whether it has the lock, keeps it, waits for a line, and ends.
TAKER = """
import fcntl, sys
call, kind, start, path = sys.argv[1:]
kind = sum(getattr(fcntl, name) for name in kind.split("+"))
file = open(path, "r+b")
try:
    if call == "flock":
        fcntl.flock(file, kind)
    else:
        fcntl.lockf(file, kind, 10, int(start))
    print("taken", flush=True)
    sys.stdin.readline()
except BlockingIOError:
    print("refused", flush=True)
"""


@contextmanager
def other(path: Path, call: str, kind: str, start: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Run a process that takes a lock, until the block ends."""
    command = [sys.executable, "-c", TAKER, call, kind, str(start), str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


def answer(path: Path, call: str, kind: str, start: int = 0) -> str:
    """Return whether another process gets a lock, without waiting."""
    with other(path, call, f"{kind}+LOCK_NB", start) as process:
        return line_of(process)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def said_something(*processes: subprocess.Popen[str]) -> set[subprocess.Popen[str]]:
    """Wait until one of several processes says something; return those that did."""
    ready, _, _ = select.select([process.stdout for process in processes], [], [], LIMIT_S)
    assert ready, "nobody has the lock"
    return {process for process in processes if process.stdout in ready}


CALLS = ("flock", "lockf")


@pytest.mark.parametrize("call", CALLS)
def test_locks_exclude_and_share_as_on_a_disk(twins: Twins, call: str) -> None:
    def step(folder: Path) -> object:
        path = folder / "lock"
        path.write_bytes(bytes(100))
        seen = []
        for mine in (fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN):
            with path.open("r+b") as file:
                if call == "flock":
                    fcntl.flock(file, mine)
                else:
                    fcntl.lockf(file, mine, 10, 0)
                seen += [answer(path, call, kind) for kind in ("LOCK_SH", "LOCK_EX")]
                seen.append(answer(path, call, "LOCK_EX", 50))
        return seen

    said = twins.same(step)
    assert said[:5] == ["taken", "refused", said[2], "refused", "refused"]  # type: ignore[index]


def test_a_lock_is_let_go_when_its_file_is_closed(twins: Twins) -> None:
    """A flock with its last descriptor, an fcntl lock with any of the process's."""

    def step(folder: Path) -> object:
        path = folder / "lock"
        path.write_bytes(b"x")
        seen = []
        for call in CALLS:
            file = path.open("r+b", buffering=0)
            (fcntl.flock if call == "flock" else fcntl.lockf)(file, fcntl.LOCK_EX)
            file.write(b"written while it is locked")
            second = os.dup(file.fileno())
            stranger = path.open("rb")
            seen.append(answer(path, call, "LOCK_EX"))
            stranger.close()
            seen.append(answer(path, call, "LOCK_EX"))
            file.close()
            seen.append(answer(path, call, "LOCK_EX"))
            os.close(second)
            seen.append(answer(path, call, "LOCK_EX"))
        return seen

    flock = ["refused", "refused", "refused", "taken"]
    assert twins.same(step) == [*flock, "refused", "taken", "taken", "taken"]


@pytest.mark.parametrize("call", CALLS)
def test_who_waits_for_a_lock_gets_it_when_its_holder_is_killed(twins: Twins, call: str) -> None:
    def step(folder: Path) -> object:
        path = folder / "lock"
        path.write_bytes(b"x")
        with other(path, call, "LOCK_EX") as one, other(path, call, "LOCK_EX") as two:
            (winner,) = said_something(one, two)
            (loser,) = {one, two} - {winner}
            winner.kill()
            said_something(loser)
            return line_of(winner), line_of(loser)

    assert twins.same(step) == ("taken", "taken")


def test_a_lock_holds_while_its_file_is_uploaded_and_renamed(twins: Twins) -> None:
    def step(folder: Path) -> object:
        path = folder / "lock"
        path.write_bytes(b"x")
        seen = []
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            path.write_bytes(b"written by another descriptor")
            seen.append(answer(path, "flock", "LOCK_EX"))
            os.rename(path, folder / "renamed")
            seen.append(answer(folder / "renamed", "flock", "LOCK_EX"))
            path.write_bytes(b"another file")
            seen.append(answer(path, "flock", "LOCK_EX"))
        return [*seen, answer(folder / "renamed", "flock", "LOCK_EX")]

    assert twins.same(step) == ["refused", "refused", "taken", "taken"]


def test_locks_of_open_files_exclude_each_other_in_one_process(twins: Twins) -> None:
    """What SQLite and others use: F_OFD_SETLK."""

    def take(fd: int, start: int) -> str:
        wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, 10, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "taken"

    def step(folder: Path) -> object:
        path = folder / "lock"
        path.write_bytes(bytes(100))
        with path.open("r+b") as one, path.open("r+b") as two:
            return take(one.fileno(), 0), take(two.fileno(), 5), take(two.fileno(), 10)

    assert twins.same(step) == ("taken", "EAGAIN", "taken")
