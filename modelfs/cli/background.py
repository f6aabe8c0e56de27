"""Start the daemon detached from the terminal, and say whether the mount came up."""

import os
import select
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from modelfs.errors import MountError

START_LIMIT_S = 60.0
END_LIMIT_S = 10.0
READY = b"ok"
SYSTEM_LOGS = Path("/var/log/modelfs")


@dataclass(frozen=True, slots=True)
class Started:
    """A daemon whose mount answers."""

    pid: int
    log_file: Path


def start(command: Sequence[str], registry: str, log_file: Path | None) -> Started:
    """Run `command` with --ready-fd in a session of its own until it says that it is ready.

    Raises MountError with the daemon's own line where it fails.
    """
    path = (log_file or default_log_file(registry)).absolute()
    reading, writing = os.pipe()
    try:
        with _open_log(path) as log:
            begin = log.seek(0, os.SEEK_END)
            child = subprocess.Popen(
                [*command, "--ready-fd", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[writing],
                start_new_session=True,
            )
        os.close(writing)
        writing = -1
        _wait_until_ready(child, reading, path, begin)
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    child.returncode = 0  # it goes on without us: Popen need not warn
    return Started(child.pid, path)


def default_log_file(registry: str) -> Path:
    """Return where the daemon of `registry` logs: the system's place, or the user's."""
    if os.geteuid() == 0:
        return SYSTEM_LOGS / f"{registry}.log"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "modelfs" / f"{registry}.log"


def _open_log(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("ab")
    except OSError as error:
        raise MountError(
            f"cannot write the log {path}: {error.strerror}; name another with --log-file"
        ) from None


def _wait_until_ready(child: subprocess.Popen[bytes], reading: int, log: Path, begin: int) -> None:
    try:
        said = _read_line(reading, START_LIMIT_S)
        if said is not None and said.startswith(READY):
            return
        if said is None:
            raise MountError(f"the mount does not answer after {START_LIMIT_S:g} s: see {log}")
        child.wait(timeout=END_LIMIT_S)
        raise MountError(f"{_reason(log, begin)} (log {log})")
    except BaseException:
        _end(child)
        raise


def _read_line(reading: int, limit_s: float) -> bytes | None:
    """Return what came up to a newline or the end; None where neither came in time."""
    deadline, said = time.monotonic() + limit_s, b""
    while b"\n" not in said:
        if not select.select([reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        more = os.read(reading, 64)
        if not more:
            break
        said += more
    return said


def _end(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=END_LIMIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.returncode = -9  # left behind where it cannot be killed


def _reason(log: Path, begin: int) -> str:
    """Return the line in which the daemon said why it ended."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode(errors="replace").splitlines()
    said = [line.removeprefix("modelfs: ") for line in lines if line.startswith("modelfs: ")]
    last = [line for line in lines if line.strip()][-1:]
    return (said or last or ["the daemon ended without a word"])[-1].strip()
