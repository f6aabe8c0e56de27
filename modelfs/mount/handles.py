"""Open files."""

import logging
import time
from typing import TYPE_CHECKING

from modelfs.errors import ModelfsError, NotFound, ReadOnly, Stale
from modelfs.store.cachedfile import CachedFile
from modelfs.store.localreads import Buffer, Run
from modelfs.store.openfiles import Readable
from modelfs.store.prefetch import Look
from modelfs.store.stagedfile import StagedFile

if TYPE_CHECKING:
    from modelfs.mount.workfile import WorkFile

log = logging.getLogger(__name__)

FAILURE_AGE_S = 1.0


class _Failure:
    """A read that has failed. The kernel asks for each of its pages again, one after the other.

    They fail at once for a moment: each would wait as long as the whole did, and what of them
    came before the next failure would have the kernel go on with the one after it.
    """

    def __init__(self, error: ModelfsError, start: int, end: int) -> None:
        self._error = error
        self._range = range(start, end)
        self._until = time.monotonic() + FAILURE_AGE_S

    def check(self, offset: int) -> None:
        """Raise the error again where the same bytes are asked for so soon."""
        if offset in self._range and time.monotonic() < self._until:
            raise self._error


class WorkHandle:
    """An open file of main/.

    It reads what is staged of its file where there is such, else `source`: the cached
    file of the object that it was opened as.

    INVARIANT: a handle with `staged` is counted among the users of that.
    """

    def __init__(self, node: "WorkFile", is_writer: bool, source: CachedFile | None) -> None:
        self.node = node
        self.is_writer = is_writer
        self.source = source
        self.staged: StagedFile | None = None
        self._run = Run()
        self._look: Look | None = None
        self._failure: _Failure | None = None

    def join(self, staged: StagedFile | None) -> None:
        """Read and write a staged file from now on: every handle of a node does."""
        if staged is not None and self.staged is None:
            self.staged = staged
            staged.users += 1

    async def read(self, offset: int, size: int) -> Buffer:
        services = self.node.services
        staged = self.staged
        if staged is not None:
            return await services.staging.read(staged, offset, size)
        if self.source is None:
            raise Stale(f"{self.node.name} has changed")
        source = self.source
        if self._failure is not None:
            self._failure.check(offset)
        if not source.is_complete:
            self._bring(source, offset, size)
        try:
            return await services.fetcher.read(source, offset, size, self._run)
        except (Stale, NotFound):
            services.registry.expire(self.node.model, self.node.folder.path)
            raise Stale(f"{self.node.name} was changed in the registry by someone else") from None
        except ModelfsError as error:
            self._failure = _Failure(error, offset, offset + size)
            raise

    def _bring(self, source: CachedFile, offset: int, size: int) -> None:
        """Begin to bring what a read wants, and side by side with it what comes next."""
        node, services = self.node, self.node.services
        services.fetcher.begin(source, offset, min(size, source.info.size - offset))
        if self._look is None:
            self._look = services.prefetcher.look(source, node.name, node.folder.beside)
        self._look.after(offset, size)

    async def write(self, offset: int, data: bytes) -> int:
        if not self.is_writer:
            raise ReadOnly("opened for reading")
        staged = self.staged or await self.node.stage()
        await self.node.services.staging.write(staged, offset, data)
        self.node.services.writeback.uploader.written(staged)
        return len(data)

    async def flush(self) -> None:
        """Upload what was written. A file that was only opened with O_TRUNC waits for more.

        The shell closes a duplicate of what it redirects to before anything is written: the
        object must not be replaced by nothing then.
        """
        staged = self.staged
        if not self.is_writer or staged is None:
            return
        _check_whole(staged)
        if staged.is_dirty and staged.is_written:
            await self.node.services.writeback.publish(staged)

    async def fsync(self) -> None:
        staged = self.staged
        if staged is not None and staged.is_dirty:
            _check_whole(staged)
            staging = self.node.services.staging
            await staging.promise(staged, staging.promise_of(staged), durable=True)

    async def release(self) -> None:
        services, node, staged = self.node.services, self.node, self.staged
        node.handles.discard(self)
        if self.source is not None:
            services.cache.close(self.source)
        if staged is not None:
            staged.users -= 1
            staged.is_closed = not node.has_writers
            if staged.failure is not None:
                await self._give_up(staged)
            elif self.is_writer and staged.is_dirty:
                await services.writeback.publish_later(staged)
            await services.writeback.settle(staged)
            is_its_own = (staged.model, staged.name) == (node.model, node.path)
            if not node.is_detached and is_its_own and node.staged is None:
                node.became(staged.base)
        node.tree.drop_unused(node)

    async def _give_up(self, staged: StagedFile) -> None:
        """After the last close(), which has failed: the file is what it was before."""
        if staged.users or staged.is_discarded:
            return
        log.error("%s is not kept: %s", self.node.name, staged.failure)
        self.node.went_back()
        if await self.node.services.staging.go_back(staged):
            self.node.services.writeback.start(staged)
        else:
            await self.node.services.staging.discard(staged)


def _check_whole(staged: StagedFile) -> None:
    if staged.failure is not None:
        raise OSError(staged.failure.errno, f"a write failed: {staged.failure.strerror}")


class FrozenHandle:
    """An open file of a version."""

    def __init__(self, file: Readable) -> None:
        self._file = file

    async def read(self, offset: int, size: int) -> Buffer:
        return await self._file.read(offset, size)

    async def write(self, offset: int, data: bytes) -> int:
        raise ReadOnly("a version is never changed")

    async def flush(self) -> None:
        pass

    async def fsync(self) -> None:
        pass

    async def release(self) -> None:
        self._file.close()


class TextHandle:
    """An open file of a control directory: its content as it was at open."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def read(self, offset: int, size: int) -> Buffer:
        return self._content[offset : offset + size]

    async def write(self, offset: int, data: bytes) -> int:
        raise ReadOnly("control files are read-only")

    async def flush(self) -> None:
        pass

    async def fsync(self) -> None:
        pass

    async def release(self) -> None:
        pass
