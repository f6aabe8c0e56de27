"""A file of the cache: an object's bytes, sealed, checked and recorded or not yet."""

import os
from dataclasses import replace
from pathlib import Path

import trio

from modelfs.registry.objects import ObjectInfo
from modelfs.store.layout import close_fd
from modelfs.store.parts import PartFile, PartOwner


class CachedFile(PartFile):
    """A PartFile of the cache.

    INVARIANT: a sealed file is complete, and its bytes never change.
    """

    def __init__(self, path: Path, info: ObjectInfo, part_size: int, owner: PartOwner) -> None:
        super().__init__(path, info, part_size, owner)
        self.saving = trio.Lock()
        self.is_sealed = False
        self.is_checked = False
        self.is_being_checked = False
        self.is_unsaved = False
        self._former_fds: list[int] = []

    def replace_fd(self, fd: int) -> None:
        """Read and write another file from now on; a thread may still be reading the former."""
        if self.fd >= 0:
            self._former_fds.append(self.fd)
        self.fd = fd

    def leave(self) -> None:
        super().leave()
        if self.users == 0:
            for fd in self._former_fds:
                close_fd(fd)
            self._former_fds.clear()

    def learn(self, info: ObjectInfo) -> None:
        """Note what an answer to a GET says of the object, and a listing does not."""
        self.info = replace(
            self.info,
            mtime_ns=info.mtime_ns,
            md5=info.md5,
            version_id=info.version_id,
            etag_parts=info.etag_parts,
        )

    @property
    def is_idle(self) -> bool:
        """Tell whether nobody uses the file but who checks it, and can do without its name."""
        return self.users == int(self.is_being_checked)

    def new_fd(self, *, is_to_fill: bool = False) -> int:
        try:
            return super().new_fd(is_to_fill=is_to_fill)
        except FileNotFoundError:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            return super().new_fd(is_to_fill=is_to_fill)

    @property
    def open_flags(self) -> int:
        if self.is_sealed:
            return os.O_RDONLY
        return os.O_RDWR if self.present else super().open_flags  # never made anew, all zeros
