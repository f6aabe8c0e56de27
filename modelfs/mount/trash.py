"""`.Trash-UID` of the root: where programs look for a trash on this mount. It takes nothing.

JupyterLab (send2trash) and desktops (gio) move what a user removes into such a folder; where a
rename into it is EXDEV they go on as between two disks, to the trash of the user's home, or ask
whether to delete for good. But JupyterLab refuses to remove anything where the folder cannot be
made. So it is there for who looks for it, like `.modelfs` never listed, and holds nothing: the
note about a file, which is written before the rename, is taken and forgotten.
"""

import re
from functools import partial

from modelfs.errors import CrossDevice, NotFound
from modelfs.mount.handles import TextHandle
from modelfs.mount.tree import Attributes, Folder, Maker, Node, Opened

_NAME = re.compile(r"\.Trash-[0-9]{1,10}")


def is_trash(name: str) -> bool:
    """Tell whether a name of the root is that of a user's trash."""
    return _NAME.fullmatch(name) is not None


class _Empty(Folder):
    def attributes(self) -> Attributes:
        return self._attributes(mode=0o700)

    async def lookup(self, name: str) -> Node:
        raise NotFound(f"there is no {name} here")

    async def entries(self) -> list[tuple[str, Maker]]:
        return []

    def refuse_change(self) -> None:
        raise CrossDevice("this mount keeps no trash")


class _Notes(_Empty):
    """`info`: what is written here is gone when it is closed."""

    async def create(self, name: str) -> tuple[Node, Opened]:
        return self.child(name, _Note), Opened(_Unkept(b""))


class _Note(Node):
    def attributes(self) -> Attributes:
        return self._attributes(mode=0o600, ttl_s=0.0)


class _Unkept(TextHandle):
    """An open note."""

    async def write(self, offset: int, data: bytes) -> int:
        return len(data)


class Trash(_Empty):
    """See the module."""

    async def lookup(self, name: str) -> Node:
        if name not in _ROOMS:
            raise NotFound(f"there is no {name} here")
        return self.child(name, _ROOMS[name])

    async def entries(self) -> list[tuple[str, Maker]]:
        return [(name, partial(self.child, name, kind)) for name, kind in _ROOMS.items()]


_ROOMS: dict[str, type[_Empty]] = {"files": _Empty, "info": _Notes}
