"""Follow a version that is downloading: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Self

import click

from modelfs.cli.output import byte_progress, end_progress, share_text, size_text
from modelfs.cli.tree import UNKNOWN, Version
from modelfs.errors import ModelfsError

if TYPE_CHECKING:
    from rich.progress import TaskID

FIRST_PAUSE_S = 0.02
LAST_PAUSE_S = 0.5
LINE_EVERY_S = 5.0
UNKNOWN_MAX_S = 5.0


class Follower(AbstractContextManager["Follower"]):
    """Somebody who is shown how far a version is, on stderr; a context, so that it can end."""

    @staticmethod
    def make(title: str) -> "Follower":
        """Return a bar where stderr is a terminal, else lines."""
        return Bar(title) if sys.stderr.isatty() else Lines(title)

    @abstractmethod
    def show(self, version: Version) -> None:
        """Show where the version is now."""


class Lines(Follower):
    """A line every few seconds, and one for each new reason to wait."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._reason: str | None = None
        self._shown_at = self._started = time.monotonic()
        self._first_bytes: int | None = None

    def show(self, version: Version) -> None:
        now, done = time.monotonic(), version.done_bytes or 0
        if self._first_bytes is None:
            self._first_bytes = done
        is_news = version.error is not None and version.error != self._reason
        self._reason = version.error
        if version.is_settled or not (is_news or now - self._shown_at >= LINE_EVERY_S):
            return
        self._shown_at = now
        line = f"{self._title}: {self._how_far(version, done - self._first_bytes, now)}"
        click.echo(f"{line}; waits: {version.error}" if version.error else line, err=True)

    def _how_far(self, version: Version, gained: int, now: float) -> str:
        done, total = version.done_bytes, version.total_bytes
        if done is None or total is None:
            return version.state
        rate = gained / (now - self._started)
        left = f", {int((total - done) / rate)} s to go" if rate > 0 else ""
        share = share_text(done, total)
        return f"{size_text(done)} of {size_text(total)}, {share}, {size_text(int(rate))}/s{left}"

    def __exit__(self, *_: object) -> None:
        pass


class Bar(Follower):
    """A progress bar: bytes, rate, the time that is left."""

    def __init__(self, title: str) -> None:
        from rich.progress import TextColumn

        self._progress = byte_progress(
            TextColumn("{task.fields[reason]}", markup=False, style="yellow")
        )
        self._task: TaskID = self._progress.add_task(title, total=None, reason="")

    def show(self, version: Version) -> None:
        self._progress.update(
            self._task,
            completed=version.done_bytes or 0,
            total=version.total_bytes,
            reason=f"waits: {version.error}" if version.error else "",
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        end_progress(self._progress)


def follow(look: Callable[[], Version], shown: Follower, timeout_s: float | None) -> Version:
    """Show a version until it is ready or failed, or `timeout_s` is over; return its last state."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    known_at = time.monotonic()
    while True:
        version = look()
        shown.show(version)
        if version.state != UNKNOWN:
            known_at = time.monotonic()
        elif time.monotonic() - known_at > UNKNOWN_MAX_S:
            raise ModelfsError(f"{version.name} shows no state (user.modelfs.state): see the log")
        if version.is_settled:
            return version
        if deadline is not None:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return version
            pause_s = min(pause_s, left_s)
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, LAST_PAUSE_S)
