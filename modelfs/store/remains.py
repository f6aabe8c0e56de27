"""What daemons left in the store: staged files of each node, freezes that nobody works on.

Blocking, for a thread or a process of its own. It reads and changes nothing, unlike a daemon's
start. Whether a daemon is at work is told by its lock: one that is tried is free again at once.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelfs.errors import InvalidName
from modelfs.names import VersionId, parse_model
from modelfs.store.layout import Layout, names_in
from modelfs.store.stagedfile import Promise
from modelfs.store.stagedfolder import is_bytes, sidecar_of


@dataclass(frozen=True, slots=True)
class Staged:
    """A staged file as its sidecar tells it: whose it is, and what was promised of it."""

    path: Path
    name: str
    promise: Promise | None
    size: int
    changed_ns: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A freeze under way or failed; `error` is why it cannot be finished."""

    version: VersionId
    is_worked_on: bool
    error: str | None
    begun_ns: int


def hosts(layout: Layout) -> list[str]:
    """Return the nodes that have a part of the store."""
    return sorted(names_in(layout.root / "staged"))


def staged_files(layout: Layout) -> list[Staged]:
    """Return the staged files of the layout's node; what has no good sidecar has no promise."""
    found = []
    for name in names_in(layout.staged):
        path = layout.staged / name
        if not is_bytes(path):
            continue
        try:
            stat = path.stat()
        except FileNotFoundError:  # it was uploaded just now
            continue
        described = _described(path)
        found.append(Staged(path, *described, stat.st_size, stat.st_mtime_ns))
    return found


def _described(path: Path) -> tuple[str, Promise | None]:
    try:
        content = json.loads(sidecar_of(path).read_bytes())
        return f"{content['model']}/main/{content['path']}", Promise(content["promise"])
    except (OSError, ValueError, KeyError, TypeError):
        return str(path), None


def has_daemon(layout: Layout) -> bool:
    """Tell whether a daemon of the layout's node has the store open."""
    return _is_locked(layout.cache / "lock")


def pending_freezes(layout: Layout) -> Iterator[Pending]:
    """Yield the freezes of all nodes that are not ready."""
    for folder in sorted(layout.pending_root.glob("*/*/[!.]*")):
        try:
            model = parse_model(f"{folder.parent.parent.name}/{folder.parent.name}")
            begun_ns = (folder / "manifest.json").stat().st_mtime_ns
        except (InvalidName, OSError):  # not ours, or over just now
            continue
        failure = folder / "failed"
        error = failure.read_text(errors="replace") if failure.exists() else None
        version = VersionId(model, folder.name)
        yield Pending(version, _is_locked(folder / "lock"), error, begun_ns)


def _is_locked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
