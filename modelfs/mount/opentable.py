"""What the kernel has open, by the numbers that it was given, and what its requests are about.

Owned by the trio thread.
"""

import os
from collections.abc import Sequence
from typing import Any

from modelfs.mount.tree import Folder, Handle, Maker, Node, Tree

# What the first arguments of a handler are, where they are not an inode.
_BY_HANDLE = frozenset({"read", "write", "flush", "fsync", "release"})
_BY_OPEN_FOLDER = frozenset({"readdir", "releasedir", "fsyncdir"})
_IN_FOLDER = frozenset(
    {"lookup", "mkdir", "mknod", "rmdir", "unlink", "symlink", "rename", "create"}
)


class OpenFolder:
    """A folder being read: its names as they were when reading began."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._entries: list[tuple[str, Maker]] | None = None

    async def entries_from(self, start: int) -> list[tuple[str, Maker]]:
        """Return all of the names; read anew where the kernel begins at `start` 0."""
        if self._entries is None or start == 0:
            self._entries = await self.folder.entries()
        return self._entries


class OpenTable:
    """See the module. INVARIANT: a number is never used again."""

    def __init__(self) -> None:
        self._files: dict[int, tuple[Handle, Node]] = {}
        self._folders: dict[int, OpenFolder] = {}
        self._next = 1

    def add_file(self, handle: Handle, node: Node) -> int:
        number = self._number()
        self._files[number] = handle, node
        return number

    def add_folder(self, folder: Folder) -> int:
        number = self._number()
        self._folders[number] = OpenFolder(folder)
        return number

    def _number(self) -> int:
        number, self._next = self._next, self._next + 1
        return number

    def file(self, number: int) -> Handle:
        return self._files[number][0]

    def folder(self, number: int) -> OpenFolder:
        return self._folders[number]

    def close_file(self, number: int) -> None:
        del self._files[number]

    def close_folder(self, number: int) -> None:
        del self._folders[number]

    def place(self, tree: Tree, operation: str, args: Sequence[Any]) -> str:
        """Return the path, from the root of the mount, that a request is about."""
        node: Node | None = None
        if operation in _BY_HANDLE:
            node = self._files[args[0]][1] if args[0] in self._files else None
        elif operation in _BY_OPEN_FOLDER:
            node = self._folders[args[0]].folder if args[0] in self._folders else None
        elif operation != "statfs":
            node = tree.get(args[0])
        names = [os.fsdecode(args[1])] if operation in _IN_FOLDER else []
        return "/".join([*(node.path_names if node else ["?"]), *names])
