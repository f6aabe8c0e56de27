"""What a status says, in words: a line for each thing that waits, is under way or is wrong."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from modelfs.cli.output import count_text, share_text, size_text
from modelfs.wording import NOTHING, age_text

LISTED_MAX = 20  # uploads, hidden keys... of a person's table; --json has all

GOOD, BUSY, BAD, PLAIN = "green", "yellow", "red", ""


@dataclass(frozen=True, slots=True)
class Line:
    """`kind` says what of, `text` what; `style` is its colour on a terminal."""

    kind: str
    text: str
    style: str = PLAIN


def problems(answer: dict[str, Any], listed_max: int = LISTED_MAX) -> Iterator[Line]:
    """Yield what a person has to know: what waits, what is wrong. Freezes are `freeze_line`'s."""
    if error := (answer.get("store") or {}).get("error"):
        yield Line("store", str(error), BAD)
    yield from _first(map(_upload, answer.get("uploads") or []), "uploads", listed_max)
    yield from _first(map(_conflict, answer.get("conflicts") or []), "conflicts", listed_max)
    failed = (answer.get("versions") or {}).get("failed") or {}
    yield from _first(
        (Line("failed", f"{version}: {why}", BAD) for version, why in failed.items()),
        "failed versions",
        listed_max,
    )
    yield from _first(map(_damage, answer.get("damaged") or []), "damaged versions", listed_max)
    yield from _first(
        (
            Line("hidden key", f"{key.get('key')}: {key.get('reason')}", BUSY)
            for key in answer.get("hidden_keys") or []
        ),
        "hidden keys",
        listed_max,
    )
    counters = answer.get("counters") or {}
    if bugs := (counters.get("bugs") or 0) + (counters.get("failed_tasks") or 0):
        yield Line("bugs", f"{count_text(bugs, 'error')} that nobody expected: see the log", BAD)


def _first(lines: Iterable[Line], what: str, most: int) -> Iterator[Line]:
    left = 0
    for number, line in enumerate(lines):
        if number < most:
            yield line
        else:
            left += 1
    if left:
        yield Line("...", f"and {left:,} more {what}: modelfs status --json")


def _upload(upload: dict[str, Any]) -> Line:
    error = f": {upload['error']}" if upload.get("error") else ""
    state, since = str(upload.get("state")), _since(upload.get("since_ns"))
    style = {"waiting": BUSY, "aside": BAD}.get(state, PLAIN)
    kind = "aside" if state == "aside" else "upload"
    words = "kept aside" if state == "aside" else f"{state}{since}"
    return Line(
        kind, f"{upload.get('path')} ({size_text(upload.get('bytes'))}) {words}{error}", style
    )


def _conflict(conflict: dict[str, Any]) -> Line:
    kept = conflict.get("kept_as")
    since = _since(conflict.get("time_ns"))
    text = f"{conflict.get('path')} was changed by someone else{since} ago: ours is kept as {kept}"
    return Line("conflict", text, BUSY)


def _damage(damaged: dict[str, Any]) -> Line:
    version = damaged.get("version")
    text = f"{version}: {damaged.get('error')}; modelfs verify {version} tries again"
    return Line("damaged", text, BAD)


def freeze_line(freeze: dict[str, Any]) -> Line:
    """Return how far a freeze is, and why it does not go on."""
    done, total = freeze.get("done_bytes") or 0, freeze.get("total_bytes") or 0
    error = f": {freeze['error']}" if freeze.get("error") else ""
    text = f"{freeze.get('state')} {share_text(done, total)} of {size_text(total)}{error}"
    return Line("freeze", f"{freeze.get('version')} {text}", BUSY if error else PLAIN)


def _since(time_ns: int | None) -> str:
    return f" {since_text(time_ns)}" if time_ns else ""


def since_text(time_ns: int | None, now_ns: int | None = None) -> str:
    """Return how long ago a point of time is: `3 minutes`."""
    return age_text((now_ns or time.time_ns()) - time_ns) if time_ns else NOTHING
