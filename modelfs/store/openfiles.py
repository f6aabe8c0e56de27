"""Open files of versions: finished ones, and ones that are still coming."""

import os
from typing import TYPE_CHECKING, Protocol

from modelfs.errors import VersionFailed
from modelfs.names import VersionId
from modelfs.store.freeze import Freeze, State
from modelfs.store.layout import close_fd
from modelfs.store.localreads import Buffer, Run
from modelfs.store.parts import PartFile

if TYPE_CHECKING:
    from modelfs.store.library import Library


class Readable(Protocol):
    """An open file of a version; `inode` is the number of the file that it is read from."""

    inode: int

    async def read(self, offset: int, size: int) -> Buffer:
        """Return bytes, fewer at the end of the file; they hold until the next await."""

    def close(self) -> None: ...


def open_plain(path: "os.PathLike[str]") -> tuple[int, os.stat_result]:
    """Open a finished file; blocking."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return fd, os.fstat(fd)


class PlainFile:
    """A finished file of a version: read as it is, with no request."""

    def __init__(
        self, library: "Library", version: VersionId, opened: tuple[int, os.stat_result]
    ) -> None:
        self._library, self._version = library, version
        self._fd, found = opened
        self._size, self.inode = found.st_size, found.st_ino
        self._run = Run()
        library.opened(version)

    async def read(self, offset: int, size: int) -> Buffer:
        size = min(size, self._size - offset)
        if size <= 0:
            return b""
        return await self._library.reads.read(self._fd, offset, size, self._run)

    def close(self) -> None:
        close_fd(self._fd)
        self._library.closed(self._version)


class ComingFile:
    """A file of a version that is still on its way: here (`freeze`), or on another node.

    What is not here of it is fetched first. When the version has become ready by other
    means (a link to what was here already), it is read from there.
    """

    def __init__(
        self,
        library: "Library",
        freeze: Freeze | None,
        file: PartFile,
        version: VersionId,
        path: str,
    ) -> None:
        self._library, self._freeze, self._file = library, freeze, file
        self._version, self._path = version, path
        self._finished: PlainFile | None = None
        self.inode = os.fstat(file.fd).st_ino
        library.opened(version)

    async def read(self, offset: int, size: int) -> Buffer:
        if self._freeze is not None and self._freeze.state is State.FAILED:
            raise VersionFailed(f"{self._version} has failed: {self._freeze.error}")
        if self._finished is None and not self._file.is_complete:
            self._finished = await self._library.open_finished(self._version, self._path)
        if self._finished is not None:
            return await self._finished.read(offset, size)
        return await self._library.fetcher.read(self._file, offset, size)

    def close(self) -> None:
        self._file.leave()
        if self._finished is not None:
            self._finished.close()
        self._library.closed(self._version)
