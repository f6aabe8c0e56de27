"""From keys to folders: what a listing of a model looks like as a tree. Pure.

Keys are never trusted: what could not be a file below `main/` goes into `hidden` with
its reason and is nowhere else.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from modelfs.errors import InvalidName
from modelfs.names import relative_path
from modelfs.registry.objects import ObjectInfo

CHANGES_KEPT_S = 600.0  # longer than any listing takes


@dataclass(slots=True)
class Folder:
    """The files and folders of one folder, by name.

    `has_marker` tells that the key `path/` exists. `listed_at` is when the request that
    this comes from was begun (monotonic seconds). `changed_ns` is when its names were seen to
    have changed (time since the epoch), 0 where they were not.
    """

    files: dict[str, ObjectInfo] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    has_marker: bool = False
    listed_at: float = 0.0
    changed_ns: int = 0

    @property
    def is_empty(self) -> bool:
        return not self.files and not self.folders

    def has(self, name: str) -> bool:
        return name in self.files or name in self.folders

    def follow(self, earlier: "Folder") -> None:
        """Take the place of an earlier listing: what has other names has changed by now."""
        is_same = self.files.keys() == earlier.files.keys() and self.folders == earlier.folders
        self.changed_ns = earlier.changed_ns if is_same else time.time_ns()


@dataclass(slots=True)
class Listing:
    """The folders below one prefix that have been listed, by path ('' is the prefix itself).

    `is_whole` tells that every folder is here: a path that is not here does not exist.

    INVARIANT: a name is never both a file and a folder of its folder; each folder that is
    named in a whole listing is in `folders`.
    """

    prefix: str
    is_whole: bool = True
    folders: dict[str, Folder] = field(default_factory=dict)
    hidden: dict[str, str] = field(default_factory=dict)

    @property
    def key_count(self) -> int:
        return 1 + sum(1 + len(f.files) for f in self.folders.values())

    @property
    def exists(self) -> bool:
        """Tell whether the prefix has its marker or any key at all."""
        top = self.folders.get("")
        return top is not None and (top.has_marker or not top.is_empty or bool(self.hidden))

    def add(self, info: ObjectInfo) -> None:
        """Take in one key: a marker where it ends in a slash, else a file."""
        try:
            path = relative_path(info.id.key, self.prefix)
        except InvalidName as error:
            self.hide(info.id.key, str(error))
            return
        if not path or path.endswith("/"):
            self.add_folder(path.removesuffix("/")).has_marker = True
            return
        parent, _, name = path.rpartition("/")
        folder = self.add_folder(parent)
        if name in folder.folders:
            self.hide(info.id.key, "both a file and a folder")
        else:
            folder.files[name] = info

    def add_folder(self, path: str) -> Folder:
        """Make the folder at `path`, and those above it; a file of that name is hidden."""
        folder = self.folders.get(path)
        if folder is None:
            top = self.folders.get("")
            known_at = top.listed_at if top is not None and self.is_whole else 0.0
            folder = self.folders[path] = Folder(listed_at=known_at)
            if path:
                parent, _, name = path.rpartition("/")
                above = self.add_folder(parent)
                above.folders.add(name)
                if (clash := above.files.pop(name, None)) is not None:
                    self.hide(clash.id.key, "both a file and a folder")
        return folder

    def remove(self, path: str) -> None:
        """Forget the file `path`, or the folder where `path` ends in a slash."""
        bare = path.removesuffix("/")
        parent, _, name = bare.rpartition("/")
        above = self.folders.get(parent)
        if path.endswith("/"):
            for below in [p for p in self.folders if p == bare or p.startswith(path)]:
                del self.folders[below]
            if above is not None and bare:
                above.folders.discard(name)
        elif above is not None:
            above.files.pop(name, None)

    def hide(self, key: str, reason: str) -> None:
        self.hidden[key] = reason

    def walk(self) -> Iterable[tuple[str, ObjectInfo]]:
        """Yield every file with its path below the prefix."""
        for folder_path, folder in self.folders.items():
            for name, info in folder.files.items():
                yield (f"{folder_path}/{name}" if folder_path else name), info


@dataclass(slots=True)
class Changes:
    """What this mount did to keys, so that a listing that was begun before does not undo it."""

    _by_path: dict[str, tuple[float, ObjectInfo | None]] = field(default_factory=dict)

    def note(self, path: str, info: ObjectInfo | None) -> None:
        """Remember that `path` now holds `info`, or nothing (None)."""
        now = time.monotonic()
        self._by_path.pop(path, None)
        self._by_path[path] = (now, info)
        while (oldest := next(iter(self._by_path.items())))[1][0] < now - CHANGES_KEPT_S:
            del self._by_path[oldest[0]]

    def since(self, started_at: float) -> Iterable[tuple[str, ObjectInfo | None]]:
        """Yield what changed at or after `started_at`, in its order."""
        for path, (at, info) in self._by_path.items():
            if at >= started_at:
                yield path, info

    def apply(self, listing: Listing, started_at: float, folder: str | None = None) -> None:
        """Bring a listing that was begun at `started_at` up to date.

        With `folder`, only what lies directly in that folder.
        """
        for path, info in self.since(started_at):
            if folder is not None and path.removesuffix("/").rpartition("/")[0] != folder:
                continue
            if info is None:
                listing.remove(path)
            else:
                listing.add(info)
