"""Show how many bytes have moved: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Self

import click

from modelfs.cli.output import byte_progress, end_progress, share_text, size_text

if TYPE_CHECKING:
    from rich.progress import TaskID

LINE_EVERY_S = 30.0


class ByteBar(AbstractContextManager["ByteBar"]):
    """Somebody who is shown, on stderr, how far something long is; a context, so that it ends."""

    @staticmethod
    def make(title: str) -> "ByteBar":
        """Return a bar where stderr is a terminal, else lines."""
        return _Bar(title) if sys.stderr.isatty() else _Lines(title)

    @abstractmethod
    def begin(self, total: int) -> None:
        """Say how many bytes there are in all."""

    @abstractmethod
    def moved(self, count: int) -> None:
        """Say that so many bytes have moved."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Step aside while something else is printed."""
        yield


class _Lines(ByteBar):
    def __init__(self, title: str) -> None:
        self._title = title
        self._done = self._total = 0
        self._shown_at = self._started = time.monotonic()

    def begin(self, total: int) -> None:
        self._total = total

    def moved(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._shown_at < LINE_EVERY_S:
            return
        self._shown_at = now
        rate = self._done / (now - self._started)
        share = share_text(self._done, self._total)
        left = max(0, self._total - self._done)
        click.echo(
            f"{self._title}: {size_text(self._done)} of {size_text(self._total)}, {share}, "
            f"{size_text(int(rate))}/s, {int(left / rate)} s to go",
            err=True,
        )

    def __exit__(self, *_: object) -> None:
        pass


class _Bar(ByteBar):
    def __init__(self, title: str) -> None:
        self._progress = byte_progress()
        self._task: TaskID = self._progress.add_task(title, total=None)

    def begin(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def moved(self, count: int) -> None:
        self._progress.advance(self._task, count)

    @contextmanager
    def aside(self) -> Iterator[None]:
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        end_progress(self._progress)
