"""What is mounted where: the kernel's list, /proc/self/mountinfo (proc(5)). Quick to load."""

import re
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
FILESYSTEM = "fuse.modelfs"
SOURCE = "modelfs:"  # before a registry's name, where the kernel tells what is mounted

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of /proc/self/mountinfo."""

    device: str
    path: Path
    filesystem: str
    source: str
    is_whole: bool = True  # False: a bind mount of a part of it

    @property
    def registry(self) -> str:
        """The name of the registry that a mount of ours shows."""
        return self.source.removeprefix(SOURCE)

    @property
    def is_ours(self) -> bool:
        """Whether a daemon of modelfs made it."""
        return self.filesystem == FILESYSTEM and self.is_whole


def mounted() -> list[Mounted]:
    """Return what is mounted, in its order: a later one covers an earlier one."""
    found = []
    for line in MOUNTINFO.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        _, _, device, root, path, *_ = map(_unescaped, before.split(" "))
        filesystem, source, *_ = map(_unescaped, after.split(" "))
        found.append(Mounted(device, Path(path), filesystem, source, root == "/"))
    return found


def _unescaped(field: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def at(path: Path) -> Mounted | None:
    """Return what is mounted exactly at `path`."""
    return next((m for m in reversed(mounted()) if m.path == path), None)


def under(path: Path) -> Mounted:
    """Return the mount that `path` lies on."""
    candidates = [m for m in mounted() if path == m.path or m.path in path.parents]
    return max(reversed(candidates), key=lambda m: len(m.path.parts))
