"""What goes wrong, in one line each, and how a person is told."""

from __future__ import annotations

import sys

FAILED, USAGE, REFUSED, NO_ANSWER, INTERRUPTED = 1, 2, 3, 4, 130


class Trouble(Exception):
    """What went wrong, in one line."""

    status = FAILED


class Misuse(Trouble):
    status = USAGE


class Fatal(Trouble):
    """No other file can do better."""


class Refused(Fatal):
    status = REFUSED


class NoAnswer(Fatal):
    status = NO_ANSWER


class Stopped(Exception):
    """The run is over; what was begun is left as it is."""


def shown(text: str) -> str:
    """Return a name as one line that a terminal does not obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def size_text(size: float) -> str:
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def files_text(count: int) -> str:
    return f"{count:,} file" if count == 1 else f"{count:,} files"


def note(text: str) -> None:
    print(f"upload.py: {text}", file=sys.stderr, flush=True)
