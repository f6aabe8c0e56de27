"""What daemons left in the store and nobody takes care of: staged files, pending freezes."""

import time
from dataclasses import replace
from functools import partial

from modelfs.doctor.outcome import Outcome, ok, warning
from modelfs.doctor.running import Steps
from modelfs.store import remains
from modelfs.store.layout import Layout
from modelfs.store.remains import Staged
from modelfs.store.stagedfile import Promise
from modelfs.wording import age_text, count_text, size_text

DEAD_AFTER_S = 3600.0  # a node that is just being restarted is not dead
NAMED_MAX = 3
_NOT_SENT = (Promise.OPEN, Promise.CLOSED, Promise.ASIDE)
_ADVICE = "run as the user whose daemon mounts; where it does not answer, look after its disk"


def examine(layout: Layout, registry: str, step: Steps) -> None:
    """Look for what waits in the store; another node's part is looked at too."""
    if not layout.models.is_dir():
        return
    step("staged", partial(_staged_here, layout, registry), _ADVICE)
    step("other nodes", partial(_staged_elsewhere, layout), _ADVICE)
    step("freezes", partial(_freezes, layout, registry), _ADVICE)


def _named(names: list[str]) -> str:
    more = len(names) - NAMED_MAX
    return ", ".join(names[:NAMED_MAX]) + (f" and {more:,} more" if more > 0 else "")


def _sum(files: list[Staged]) -> str:
    return f"{count_text(len(files), 'file')}, {size_text(sum(file.size for file in files))}"


def _staged_here(layout: Layout, registry: str) -> list[Outcome]:
    """What waits for its upload is in status.json too, with why; here is what no daemon sends."""
    files = remains.staged_files(layout)
    outcomes = []
    aside = [f for f in files if f.promise is Promise.ASIDE]
    if aside:
        outcomes.append(
            warning(
                "staged",
                f"put aside after a crash, never closed: {_sum(aside)} ("
                f"{_named([f'{f.name} in {f.path}' for f in aside])})",
                "keep what is worth it (cp it into main/), then remove it and its .json",
            )
        )
    waiting = [f for f in files if f.promise in (Promise.CLOSED, Promise.OPEN)]
    if waiting and not remains.has_daemon(layout):
        outcomes.append(
            warning(
                "staged",
                f"{_sum(waiting)} of this node that no daemon uploads "
                f"({_named([f.name for f in waiting])})",
                f"modelfs mount {registry} sends what was closed",
            )
        )
    kept = sum(f.size for f in files)
    return outcomes or [
        ok(
            "staged",
            f"{count_text(len(files), 'file')} of this node, {size_text(kept)}; none is forgotten",
        )
    ]


def _staged_elsewhere(layout: Layout) -> list[Outcome]:
    others = [host for host in remains.hosts(layout) if host != layout.host]
    outcomes = [o for host in others if (o := _of_host(replace(layout, host=host))) is not None]
    return outcomes or [
        ok("other nodes", f"{count_text(len(others), 'other node')} in the store; none left files")
    ]


def _of_host(layout: Layout) -> Outcome | None:
    """Return a warning where a node has staged files, is not at work, and has been so for long."""
    files = [f for f in remains.staged_files(layout) if f.promise in _NOT_SENT]
    if not files:
        return None
    age_ns = time.time_ns() - max(file.changed_ns for file in files)
    if age_ns < DEAD_AFTER_S * 1e9 or remains.has_daemon(layout):
        return None
    return warning(
        "other nodes",
        f"{layout.host} left {_sum(files)} that are not in the registry, the last of them "
        f"{age_text(age_ns)} ago ({_named([f.name for f in files])})",
        f"mount there again, which uploads them; where {layout.host} is gone for good, save what "
        f"is worth it from {layout.staged} and remove that folder",
    )


def _freezes(layout: Layout, registry: str) -> list[Outcome]:
    pending = list(remains.pending_freezes(layout))
    outcomes = [
        warning(
            "freezes",
            f"{freeze.version} failed: {' '.join((freeze.error or '').split())}",
            f"modelfs rm {freeze.version} clears it, and the name may be used again",
        )
        for freeze in pending
        if freeze.error is not None
    ]
    outcomes += [
        warning(
            "freezes",
            f"{freeze.version} is pending since {age_text(time.time_ns() - freeze.begun_ns)}, "
            "and nobody works on it",
            f"modelfs mount {registry}, here or on another node, goes on with it; "
            f"modelfs rm {freeze.version} gives it up",
        )
        for freeze in pending
        if freeze.error is None and not freeze.is_worked_on
    ]
    working = sum(freeze.is_worked_on for freeze in pending)
    return outcomes or [ok("freezes", f"{count_text(working, 'freeze')} under way, none is left")]
