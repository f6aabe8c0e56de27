"""A real terminal of 80 columns that nobody sits at: tmux, and what is on its screen."""

import os
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

COLUMNS, LINES = 80, 24


def why_no_tmux() -> str | None:
    """Return why there is no terminal here, or None."""
    return None if shutil.which("tmux") else "tmux is not installed"


class Terminal:
    """Runs one command, and then waits; a server of its own, so that no other session is met."""

    def __init__(
        self, folder: Path, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        self._socket = folder / f"tmux-{uuid.uuid4().hex[:8]}"
        line = f"trap : INT; {shlex.join(command)}; echo the end: $?; exec sleep 1000"
        self._tmux(
            *("-f", "/dev/null", "new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES)),
            *("sh", "-c", line),
            environment={**os.environ, **(environment or {}), "LC_ALL": "C.UTF-8"},
        )

    def _tmux(self, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            ["tmux", "-u", "-S", str(self._socket), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
            env=environment,
        )
        return done.stdout

    def screen(self, *, history: bool = False) -> str:
        """Return what is on the screen, or also what has left it at its top."""
        return self._tmux("capture-pane", "-p", *(["-S", "-"] if history else []))

    def press(self, key: str) -> None:
        self._tmux("send-keys", key)

    def close(self) -> None:
        subprocess.run(
            ["tmux", "-S", str(self._socket), "kill-server"], capture_output=True, check=False
        )
