"""End a daemon and its mount: ask, wait a bounded time, show what it waits for."""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from modelfs.cli import mounts
from modelfs.cli.mounts import Mount
from modelfs.cli.output import count_text, size_text
from modelfs.cli.probe import DaemonGone, DaemonSilent, read_status, take_away
from modelfs.errors import ModelfsError

LOOK_EVERY_S = 1.0
LOOK_LIMIT_S = 2.0


def unmount(mount: Mount, timeout_s: float) -> None:
    """Unmount when what waits is uploaded; raise ModelfsError where that is not in time.

    The daemon is asked by SIGTERM. Where it is gone, the mount is taken away.
    """
    try:
        status = read_status(mount)
    except DaemonGone:
        take_away(mount)
        return
    except DaemonSilent as error:
        raise ModelfsError(
            f"{error}; where its daemon must go, kill it (pgrep -af 'modelfs mount'), then "
            f"modelfs umount {mount.path} again"
        ) from error
    with process_of(status.get("pid"), mount) as process:
        if process is not None:
            signal.pidfd_send_signal(process, signal.SIGTERM)
            _wait_for_end(process, mount, timeout_s)
    if mount in mounts.find():
        take_away(mount)


@contextlib.contextmanager
def process_of(pid: Any, mount: Mount) -> Iterator[int | None]:
    """Hold the daemon by a descriptor that cannot come to mean another; None: it is gone.

    Raises ModelfsError where the process is no daemon of this node, or another user's.
    """
    if not isinstance(pid, int) or pid <= 1:
        raise ModelfsError(f"the status of {mount.registry} names no process: see its log")
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        if b"modelfs" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            raise ModelfsError(
                f"process {pid} is no daemon of modelfs: {mount.registry} was mounted in another "
                "container or by another host; do this there"
            )
        yield process
    except PermissionError:
        raise ModelfsError(
            f"{mount.registry} was mounted by another user: do this as they, or as root"
        ) from None
    finally:
        os.close(process)


def _wait_for_end(process: int, mount: Mount, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    line = WaitLine()
    waiting = ""
    while not select.select(
        [process], [], [], min(LOOK_EVERY_S, max(0.0, deadline - time.monotonic()))
    )[0]:
        with contextlib.suppress(DaemonGone, DaemonSilent):
            waiting = _what_waits(read_status(mount, LOOK_LIMIT_S))
        line.show(f"{mount.registry}: {waiting or 'the daemon is stopping'}")
        if time.monotonic() >= deadline:
            line.end()
            raise ModelfsError(_late(mount, waiting, timeout_s))
    line.end()


def _what_waits(status: dict[str, Any]) -> str:
    uploads = [upload for upload in status.get("uploads") or [] if upload.get("state") != "aside"]
    if not uploads:
        return ""
    size = size_text(sum(upload.get("bytes") or 0 for upload in uploads))
    error = next((f"; {upload['error']}" for upload in uploads if upload.get("error")), "")
    return f"{count_text(len(uploads), 'upload')} ({size}) under way{error}"


def _late(mount: Mount, waiting: str, timeout_s: float) -> str:
    why = waiting or "files in it may be open"
    return (
        f"{mount.path} is not unmounted after {timeout_s:g} s: {why}; the daemon was told to end "
        "and goes on: modelfs umount waits again (--timeout), and nothing written is lost"
    )


class WaitLine:
    """One line on stderr: rewritten on a terminal, else printed where it changes."""

    def __init__(self) -> None:
        self._last = ""
        self._is_terminal = sys.stderr.isatty()

    def show(self, text: str) -> None:
        if text != self._last:
            self._last = text
            click.echo(
                f"\r\x1b[K{text}" if self._is_terminal else text, err=True, nl=not self._is_terminal
            )

    def end(self) -> None:
        if self._last and self._is_terminal:
            click.echo("\r\x1b[K", err=True, nl=False)
