"""Aliases as they lie in the store, `latest` among them: made, moved, logged. Blocking.

An alias is a symlink beside the versions; nodes that change one at once are decided by rename.
"""

import fcntl
import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelfs.errors import AlreadyExists, InvalidName, NotFound
from modelfs.names import LATEST, ModelId, VersionId, is_version_name
from modelfs.store.layout import Layout, synced, write_durably
from modelfs.store.versions import read_manifest, shelf

ALIAS_LOG_MAX = 10 << 20  # bytes; the older half is dropped when it is longer

# The names under which `ln -sfn` of coreutils, and `modelfs alias`, make a link before they
# rename it to the alias.
_PASSING = re.compile(r"Cu[A-Za-z0-9]{6}|tmp-[0-9a-f]{12}")


def follow_latest(layout: Layout, model: ModelId, became: str | None = None) -> str | None:
    """Let `latest` point at the version that became ready last; return its name.

    With `became`, the version that has just become ready, only that one and the one that
    `latest` points at are compared.
    """
    here = shelf(layout, model)
    compared = here.ready & {became, here.aliases.get(LATEST)} if became else here.ready
    newest: tuple[int, str] | None = None
    for name in compared or here.ready:
        ready_ns = read_manifest(layout, VersionId(model, name)).ready_ns or 0
        newest = max(newest or (0, ""), (ready_ns, name))
    link = layout.model(model) / LATEST
    if newest is None:
        link.unlink(missing_ok=True)
        return None
    replace_link(link, newest[1])
    return newest[1]


def replace_link(link: Path, target: str) -> None:
    """Let a symlink point at `target`, made or moved in one step."""
    if link.is_symlink() and os.readlink(link) == target:
        return
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex}")
    with synced(link.parent):
        temporary.symlink_to(target)
        temporary.replace(link)


def make_alias(layout: Layout, model: ModelId, alias: str, target: str, uid: int) -> None:
    """Make a new alias; raises AlreadyExists, and InvalidName where no version is ready."""
    version = VersionId(model, target.removesuffix("/"))
    if not is_version_name(version.version) or not layout.version(version).is_dir():
        raise InvalidName(f"an alias of {model} points at a ready version of it, not at {target}")
    link = layout.model(model) / alias
    with synced(link.parent):
        try:
            link.symlink_to(version.version)
        except FileExistsError:
            raise AlreadyExists(f"the alias {alias} exists") from None
    _log_alias(layout, model, alias, None, version.version, uid)


def rename_alias(layout: Layout, model: ModelId, old: str, new: str, uid: int) -> None:
    """Rename an alias over another or a free name, atomically, as `ln -sfn` does."""
    source, target = layout.model(model) / old, layout.model(model) / new
    before = os.readlink(target) if target.is_symlink() else None
    try:
        points_at = os.readlink(source)
        with synced(target.parent):
            source.rename(target)
    except FileNotFoundError:
        raise NotFound(f"there is no alias {old}") from None
    _log_alias(layout, model, old, points_at, None, uid)
    _log_alias(layout, model, new, before, points_at, uid)


def remove_alias(layout: Layout, model: ModelId, alias: str, uid: int) -> None:
    """Remove an alias; raises NotFound."""
    link = layout.model(model) / alias
    try:
        before = os.readlink(link)
        with synced(link.parent):
            link.unlink()
    except OSError:
        raise NotFound(f"there is no alias {alias}") from None
    _log_alias(layout, model, alias, before, None, uid)


def _log_alias(
    layout: Layout, model: ModelId, alias: str, before: str | None, after: str | None, uid: int
) -> None:
    """Add a change to the model's log, also while other nodes do; not those of passing names."""
    if _PASSING.fullmatch(alias):
        return
    change = {"time_ns": time.time_ns(), "uid": uid, "alias": alias, "from": before, "to": after}
    path = layout.alias_log(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path), path.open("a") as file:  # opened after the lock: at the end as it is now
        file.write(json.dumps(change) + "\n")
        file.flush()
        os.fsync(file.fileno())
        if file.tell() > ALIAS_LOG_MAX:
            lines = path.read_bytes().splitlines(keepends=True)
            write_durably(path, b"".join(lines[len(lines) // 2 :]))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file that may be replaced by rename, against other nodes too (flock)."""
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield
                return
