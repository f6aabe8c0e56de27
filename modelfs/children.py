"""Commands that may hang, run within a time limit: what cannot be killed is left behind."""

import os
import signal
import subprocess


def run_bounded(command: list[str], limit_s: float) -> tuple[int | None, str, str]:
    """Run a command; its status is None where it did not end in time and was left behind.

    What waits for a mount that hangs cannot always be killed, so it is not waited for.
    """
    child = subprocess.Popen(
        command,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        leave(child)
        return None, "", ""
    return child.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def leave(child: subprocess.Popen[bytes]) -> None:
    """Kill a child; one that cannot end, as it waits for a mount that hangs, is forgotten."""
    child.kill()
    for pipe in (child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()
    try:
        child.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        child.returncode = -signal.SIGKILL  # init reaps it, and Popen need not warn
