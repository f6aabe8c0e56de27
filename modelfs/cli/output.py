"""How a command speaks: data on stdout, what is wrong on stderr, colours on a terminal only."""

import contextlib
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from modelfs import logs
from modelfs.wording import NOTHING
from modelfs.wording import count_text as count_text
from modelfs.wording import size_text as size_text

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

_COLOURS = {
    "ok": "green",
    "warning": "yellow",
    "ready": "green",
    "downloading": "yellow",
    "failed": "red",
    "reachable": "green",
    "unreachable": "red",
    "damaged": "red",
    "no answer": "red",
}


def is_terminal() -> bool:
    """Tell whether a person looks at stdout."""
    return sys.stdout.isatty()


def complain(text: str) -> None:
    """Print what is wrong to stderr, each line of it marked as ours; as an error in the journal."""
    mark = "<3>" if logs.is_journal() else ""
    for line in text.splitlines() or [""]:
        click.echo(f"{mark}modelfs: {printable(line)}", err=True)


def say(text: str) -> None:
    """Print one line to stdout."""
    click.echo(printable(text))


def byte_progress(*columns: "ProgressColumn") -> "Progress":
    """Return a bar on stderr for bytes, with more columns at its end; gone when it is done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        *columns,
        console=Console(stderr=True),
        transient=True,
    )


def end_progress(progress: "Progress") -> None:
    """Take a bar away, also one that ^C met while rich was just showing it."""
    with contextlib.suppress(IndexError):  # of rich: nothing was shown yet
        progress.stop()


def print_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=True))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their columns' names: boxes and colours on a terminal, else plain."""
    cells = [[printable(cell) or NOTHING for cell in row] for row in rows]
    if is_terminal():
        _print_rich(columns, cells)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in (columns, *cells):
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _print_rich(columns: Sequence[str], cells: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in cells:
        table.add_row(*(Text(cell, style=_colour(cell)) for cell in row))
    Console().print(table)


def _colour(cell: str) -> str:
    return next((colour for word, colour in _COLOURS.items() if cell.startswith(word)), "")


def printable(text: str) -> str:
    """Replace what a terminal would obey or cannot show: names come from the registry."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def time_text(time_ns: int | None) -> str:
    """Return a point of time for a person, in the local zone."""
    if not time_ns:
        return NOTHING
    return datetime.fromtimestamp(time_ns / 1e9).strftime("%Y-%m-%d %H:%M")


def share_text(done: int, total: int) -> str:
    """Return `43%`; 100% is said of what is whole only."""
    if total <= 0 or done >= total:
        return "100%"
    return f"{int(done * 100 / total)}%"
