"""Which registries are mounted where, from the kernel's list; which one a command means."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelfs import mountinfo
from modelfs.errors import ModelfsError

LINKS_MAX = 40  # as many symlinks as the kernel follows


@dataclass(frozen=True, slots=True)
class Mount:
    """A registry, and the folder that shows it."""

    registry: str
    path: Path


def mounted_folders() -> list[Path]:
    """Return every folder that something is mounted on."""
    return [mounted.path for mounted in mountinfo.mounted()]


def find() -> list[Mount]:
    """Return the mounts of registries; of those on one folder the one on top."""
    found: dict[Path, Mount] = {}
    for mounted in mountinfo.mounted():
        found.pop(mounted.path, None)
        if mounted.is_ours:
            found[mounted.path] = Mount(mounted.registry, mounted.path)
    return list(found.values())


def choose(registry: str | None) -> Mount:
    """Return the mount of `registry`; without a name the one of the current folder, or the only.

    Raises ModelfsError with what is mounted.
    """
    mounts = find()
    if registry is not None:
        for mount in mounts:
            if mount.registry == registry:
                return mount
        raise ModelfsError(f"registry {registry!r} is not mounted here; {_what_is(mounts)}")
    here = holding(_current_folder(), mounts)
    if here is not None:
        return here
    if not mounts:
        raise ModelfsError("no registry is mounted here: modelfs mount REGISTRY [MOUNTPOINT]")
    if len({mount.registry for mount in mounts}) > 1:
        raise ModelfsError(f"which registry? Say -r NAME; {_what_is(mounts)}")
    return mounts[0]


def _what_is(mounts: Sequence[Mount]) -> str:
    if not mounts:
        return "none is: modelfs mount REGISTRY [MOUNTPOINT]"
    return "mounted: " + ", ".join(f"{mount.registry} at {mount.path}" for mount in mounts)


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


def holding(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """Return the mount that an absolute path lies in, by its letters: nothing is looked up."""
    inside = [mount for mount in mounts if Path(path).is_relative_to(mount.path)]
    return max(inside, key=lambda mount: len(mount.path.parts), default=None)


def at(mountpoint: str) -> Mount:
    """Return the mount on a folder that a user named, through symlinks, or raise ModelfsError.

    The folder itself is never looked at: behind it may be a daemon that does not answer.
    """
    mounts = {mount.path: mount for mount in find()}
    path = os.path.abspath(mountpoint)
    for _ in range(LINKS_MAX):
        parent, name = os.path.split(path)
        for known in (path, os.path.join(os.path.realpath(parent), name)):
            if Path(known) in mounts:
                return mounts[Path(known)]
        try:
            path = os.path.normpath(os.path.join(parent, os.readlink(path)))
        except OSError:  # not a symlink
            break
    raise ModelfsError(f"{mountpoint} is no mount of modelfs; {_what_is(list(mounts.values()))}")
