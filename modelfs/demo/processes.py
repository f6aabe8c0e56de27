"""What the demo starts, and ends: servers, commands; nothing of it can hold the demo for good."""

import os
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

from modelfs import mountinfo
from modelfs.children import leave, run_bounded

END_LIMIT_S = 15.0
LOG_TAIL_LINES = 20


class Server:
    """A process that the demo started, in a session of its own: ^C reaches the demo alone."""

    def __init__(self, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, command: list[str], pass_fd: int | None = None) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.log.parent,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=() if pass_fd is None else (pass_fd,),
                start_new_session=True,
            )

    def stop(self) -> None:
        """End it: asked first, then killed; a second call does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        for end in (process.terminate, process.kill):
            end()
            try:
                process.wait(END_LIMIT_S)
                return
            except subprocess.TimeoutExpired:
                continue

    def wait(self) -> int | None:
        """Return the exit status; None where it runs on."""
        if self._process is None:
            return None
        try:
            return self._process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            return None

    def log_tail(self) -> str:
        if not self.log.exists():
            return "(nothing)"
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:]) or "(nothing)"


def run_shell(
    command: str, folder: Path, environment: Mapping[str, str], limit_s: float
) -> tuple[int | None, str]:
    """Run a command as a user's shell does; its status is None where its time is over."""
    process = subprocess.Popen(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except BaseException as error:
        if process.returncode is None:  # else its number may be another's by now
            os.killpg(process.pid, signal.SIGKILL)
        leave(process)
        if isinstance(error, subprocess.TimeoutExpired):
            return None, ""
        raise
    return process.returncode, output.decode(errors="replace")


def detach(path: Path) -> None:
    """Unmount a folder lazily, and do not wait for it longer than a while."""
    run_bounded(["fusermount3", "-uz", str(path)], END_LIMIT_S)


def mounted_below(folder: Path) -> list[Path]:
    """Return what is mounted below a folder, the innermost first."""
    paths = [mounted.path for mounted in reversed(mountinfo.mounted())]
    return [path for path in paths if path.is_relative_to(folder)]
