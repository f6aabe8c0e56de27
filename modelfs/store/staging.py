"""Staged files: what is being written, and what a restart finds of it.

On disk: `staged/HOST/ID` holds the bytes, `ID.json` tells of which file of which model
they are, which object they replace (`base_etag`), which multipart upload of them is not
finished, and what was promised of them:

    open    written, and nobody was told anything: never replaces an object after a crash
    closed  closed or fsynced: it is uploaded until the registry has it
    kept    the registry has it: nothing is left to do
    local   it stays on this node (`local_only`): never uploaded, never frozen
    aside   found `open` after a crash, kept for a person to look at

A file that waits to be uploaded is never changed itself: whoever writes to it changes a copy, and
the file as it was closed stays, as the fallback, until more than that is promised.

Owned by the trio thread; the work on the disk runs in its threads.
"""

import errno
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from modelfs.concurrency import Threads
from modelfs.errors import StoreError, WrongBytes
from modelfs.names import ModelId
from modelfs.registry.objects import ObjectInfo
from modelfs.store import stagedfolder
from modelfs.store.confirming import expected_of
from modelfs.store.cuts import CleanSpans
from modelfs.store.etags import SINGLE_PUT_MAX, expected_etag
from modelfs.store.hashing import hashes
from modelfs.store.leftuploads import LeftUploads
from modelfs.store.localreads import Buffer, LocalReads
from modelfs.store.parts import PartFile
from modelfs.store.stagedfile import Fallback, Promise, StagedFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StagingStatistics:
    """What status.json shows of staged files; `max_bytes` is None where the disk is the limit."""

    files: int
    bytes: int
    max_bytes: int | None
    aside_files: int


class Staging:
    """The staged files of this node.

    INVARIANT: at most one staged file is what a path shows; discarded ones are none.
    """

    def __init__(
        self,
        folder: Path,
        disk: Threads,
        *,
        local_only: tuple[str, ...] = (),
        max_bytes: int | None = None,
        check_store: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._check_store = check_store
        self._disk = disk
        self._reads = LocalReads(disk)
        self._local_only = local_only
        self._max_bytes = max_bytes
        self.local_folders: set[tuple[ModelId, str]] = set()
        self._shown: dict[tuple[ModelId, str], StagedFile] = {}
        self.aside: list[StagedFile] = []
        self.left_uploads = LeftUploads(folder, disk)
        self.before_discard: Callable[[StagedFile], Awaitable[None]] | None = None

    def statistics(self) -> StagingStatistics:
        return StagingStatistics(len(self._shown), self._used(), self._max_bytes, len(self.aside))

    def _used(self) -> int:
        return sum(staged.disk_bytes for staged in self._shown.values())

    def set_limits(self, local_only: tuple[str, ...], max_bytes: int | None) -> None:
        """Take others for what is written from now on; a file keeps what it was promised."""
        self._local_only, self._max_bytes = local_only, max_bytes

    def is_local(self, path: str) -> bool:
        """Tell whether a file or folder of main/ stays on this node."""
        return any(
            fnmatchcase(component, pattern)
            for component in path.split("/")
            for pattern in self._local_only
        )

    def promise_of(self, staged: StagedFile) -> Promise:
        """Return what closing or syncing a file promises."""
        return Promise.LOCAL if self.is_local(staged.name) else Promise.CLOSED

    def has_folder(self, model: ModelId, path: str) -> bool:
        """Tell whether a local folder is here, or a staged file below that path."""
        return (model, path) in self.local_folders or bool(self.below(model, path))

    def folders_in(self, model: ModelId, folder: str) -> set[str]:
        """Return the local folders that lie directly in a folder, by their last name."""
        start = f"{folder}/" if folder else ""
        local = [path for m, path in self.local_folders if m == model and path.startswith(start)]
        for staged in self.below(model, folder):
            above = staged.name.rpartition("/")[0]
            if staged.promise is Promise.LOCAL and above != folder:
                local.append(above)
        return {path.removeprefix(start).partition("/")[0] for path in local}

    def get(self, model: ModelId, name: str) -> StagedFile | None:
        return self._shown.get((model, name))

    def __iter__(self) -> Iterator[StagedFile]:
        return iter(list(self._shown.values()))

    def below(self, model: ModelId, folder: str) -> list[StagedFile]:
        """Return the staged files of a model anywhere below a folder ('' is main/)."""
        start = f"{folder}/" if folder else ""
        return [s for (m, name), s in self._shown.items() if m == model and name.startswith(start)]

    def models(self) -> set[ModelId]:
        """Return the models of which something is staged."""
        return {model for model, _ in self._shown}

    def in_folder(self, model: ModelId, folder: str) -> dict[str, StagedFile]:
        """Return the staged files that lie directly in a folder, by their last name."""
        return {
            s.name.rpartition("/")[2]: s
            for s in self.below(model, folder)
            if s.name.rpartition("/")[0] == folder
        }

    async def create(
        self,
        model: ModelId,
        name: str,
        base: ObjectInfo | None,
        source: PartFile | None = None,
        size: int = 0,
    ) -> StagedFile:
        """Return a new staged file with the first `size` bytes of `source`, shown at its path."""
        staged = StagedFile(self._folder / uuid.uuid4().hex, model, name, base)
        staged.size = size
        if base is not None:
            staged.clean = CleanSpans(size)
        await self._disk.run(self._create_checked, staged, source.fd if source else -1)
        self._shown[model, name] = staged
        return staged

    def _create_checked(self, staged: StagedFile, source: int) -> None:
        self._check_store()
        stagedfolder.create(staged, source)

    async def revive(self, staged: StagedFile) -> None:
        """Open a staged file anew: its store was away, and old descriptors stay dead.

        Raises StoreError where bytes may be missing: not all were durable.
        """
        if staged.synced_generation != staged.generation:
            staged.failure = OSError(errno.EIO, "the store went away before it had all bytes")
            raise StoreError(f"the staged file {staged.path}: {staged.failure.strerror}")
        await self._disk.run(stagedfolder.reopen, staged.path, staged.fd)

    async def read(self, staged: StagedFile, offset: int, size: int) -> Buffer:
        """Return bytes, fewer at the end of the file; they hold until the next await."""
        size = min(size, staged.size - offset)
        return await self._reads.read(staged.fd, offset, size) if size > 0 else b""

    async def write(self, staged: StagedFile, offset: int, data: bytes) -> None:
        await self._reopen(staged, staged.size)
        try:
            self._check_bound(staged, offset + len(data))
            await self._disk.run(stagedfolder.write, staged.fd, offset, data)
        except OSError as error:
            if error.errno != errno.EFBIG:  # which loses nothing that was written before
                staged.failure = error
            raise
        staged.wrote(offset, offset + len(data))

    async def truncate(self, staged: StagedFile, size: int) -> None:
        await self._reopen(staged, min(size, staged.size))
        self._check_bound(staged, size)
        await self._disk.run(os.ftruncate, staged.fd, size)
        staged.was_cut(size)

    async def is_content_of(self, staged: StagedFile, info: ObjectInfo) -> bool:
        """Tell whether an object has the bytes of the file, as far as its ETag says."""
        expected = expected_of(info)
        try:
            return (
                expected.confirmed_by(await self._disk.run(hashes, staged.path, expected))
                is not None
            )
        except WrongBytes:
            return False

    async def etag(self, staged: StagedFile) -> str:
        """Return the ETag that the file as it is has when it is uploaded whole."""
        return await self._disk.run(expected_etag, staged.fd, staged.size)

    def _check_bound(self, staged: StagedFile, size: int) -> None:
        """Raise ENOSPC where a file of `size` would make the staged bytes too many."""
        if size > staged.size:
            self._check_room(size - staged.size)

    def _check_room(self, size: int) -> None:
        if self._max_bytes is not None and self._used() + size > self._max_bytes:
            raise OSError(errno.ENOSPC, "more than `staged_max` would wait to be uploaded")

    async def _reopen(self, staged: StagedFile, size: int) -> None:
        """Before a file is changed again, of which `size` bytes stay: see to what was promised.

        If the registry has it, the promise is taken back; if it waits, it is kept as it is. Where
        the registry may have it, remember what that would look like: it is no stranger's. An
        upload in parts remembers that itself.
        """
        if staged.is_closed and staged.is_due:
            await self._keep_fallback(staged, size)
        is_unknown = staged.is_recovered or staged.lock.locked()  # locked: an upload is under way
        if is_unknown and await self._note_tried(staged):
            await self.record(staged)
        if staged.promise is not Promise.OPEN and not staged.is_dirty:
            await self.promise(staged, Promise.OPEN, durable=False)

    async def _note_tried(self, staged: StagedFile) -> bool:
        """Remember the ETag of the file as it is, where that was sent whole; tell whether."""
        was_sent = staged.tried_generation == staged.generation
        if was_sent and staged.size <= SINGLE_PUT_MAX:
            staged.sent_etags.add(await self.etag(staged))
            return True
        return False

    async def _keep_fallback(self, staged: StagedFile, size: int) -> None:
        """Leave a file that waits on the disk as it was closed; go on with a copy of `size` bytes.

        An upload of it that is under way is waited for. It is not uploaded meanwhile.
        """
        async with staged.lock, staged.recording:
            if not (staged.is_closed and staged.is_due):
                return
            self._check_room(size)
            await self._note_tried(staged)
            fallback = Fallback(staged.path, staged.size, staged.mtime_ns)
            path = self._folder / uuid.uuid4().hex
            await self._disk.run(stagedfolder.copy_under, path, staged.fd, size)
            staged.path, staged.fallback = path, fallback
            staged.promise = Promise.OPEN
            staged.was_cut(size)
            await self._record(staged, durable=False)

    async def go_back(self, staged: StagedFile) -> bool:
        """Show a file again as it was closed, after a write to its copy failed; tell whether."""
        async with staged.lock, staged.recording:
            if (fallback := staged.fallback) is None:
                return False
            await self._disk.run(stagedfolder.reopen, fallback.path, staged.fd)
            path = staged.path
            staged.went_back(fallback)
            await self._disk.run(stagedfolder.remove, path, -1, True)
        return True

    async def promise(self, staged: StagedFile, promise: Promise, *, durable: bool) -> None:
        """Write down what is promised now; `durable` also makes the bytes outlive a power cut."""
        async with staged.recording:
            staged.promise = promise
            await self._record(staged, durable)

    async def record(self, staged: StagedFile, *, durable: bool = False) -> None:
        """Write down what is known now of a file; what was promised stays as it is."""
        async with staged.recording:
            await self._record(staged, durable)

    async def _record(self, staged: StagedFile, durable: bool) -> None:
        """Write the sidecar. Of what was promised after a fallback that one goes, durably."""
        generation, fallback = staged.generation, staged.fallback
        is_past = fallback is not None and staged.promise is not Promise.OPEN
        durable = durable or is_past
        await self._disk.run(stagedfolder.record, staged, durable)
        if durable:
            staged.synced_generation = generation
        if fallback is not None and is_past:
            staged.fallback = None
            await self._disk.run(stagedfolder.remove, fallback.path, -1, True)
        elif fallback is not None:  # its name may be another one now
            await self._disk.run(stagedfolder.record_fallback, staged, fallback)

    def move(self, staged: StagedFile, model: ModelId, name: str) -> None:
        """Show a staged file at another path; what was shown there must be discarded."""
        self._shown.pop((staged.model, staged.name), None)
        staged.model, staged.name = model, name
        self._shown[model, name] = staged

    def move_local_folders(
        self, model: ModelId, path: str, to_model: ModelId, to_path: str
    ) -> None:
        """Show the local folders at and below `path` below `to_path`."""
        for of, name in list(self.local_folders):
            if of == model and f"{name}/".startswith(f"{path}/"):
                self.local_folders.remove((of, name))
                self.local_folders.add((to_model, to_path + name.removeprefix(path)))

    async def discard(self, staged: StagedFile) -> None:
        """Never upload a staged file: it was removed or replaced. Its users may go on."""
        staged.is_discarded = True
        if self.before_discard is not None:
            await self.before_discard(staged)
        if staged.fallback is not None:
            await self._disk.run(stagedfolder.remove, staged.fallback.path, -1, True)
            staged.fallback = None
        if self._shown.get((staged.model, staged.name)) is staged:
            del self._shown[staged.model, staged.name]
        if staged.users:
            await self._disk.run(stagedfolder.sidecar_of(staged.path).unlink, True)
        elif not staged.is_settling:
            staged.is_settling = True
            await self.remove(staged, with_bytes=True)

    async def remove(self, staged: StagedFile, *, with_bytes: bool) -> None:
        """Take a discarded or settled file off the disk (not its bytes when they have moved).

        It is shown until then: whoever meets it waits for `settled`.
        """
        fd, staged.fd = staged.fd, -1
        try:
            await self._disk.run(stagedfolder.remove, staged.path, fd, with_bytes)
        finally:
            if self._shown.get((staged.model, staged.name)) is staged:
                del self._shown[staged.model, staged.name]
            staged.settled.set()

    async def load(self) -> list[StagedFile]:
        """Find what an earlier daemon left; return what is to be uploaded.

        What was open and never promised is put `aside`, as is a second file of one path.
        """
        waiting, left = [], await self._disk.run(stagedfolder.load, self._folder)
        await self.left_uploads.load(found.upload for found in left if found.upload)
        for found in left:
            if found.promise is Promise.KEPT:
                await self._disk.run(stagedfolder.remove, found.path, -1, True)
                continue
            staged = StagedFile(found.path, found.model, found.name, None)
            staged.base_etag, staged.mtime_ns = found.base_etag, found.mtime_ns
            staged.size, staged.promise = found.size, found.promise
            staged.is_recovered = staged.is_written = staged.is_closed = True
            staged.tried_generation = staged.generation
            staged.sent_etags.update(found.sent_etags)
            is_promised = found.promise in (Promise.CLOSED, Promise.LOCAL)
            if is_promised and not self.get(found.model, found.name):
                staged.fd = await self._disk.run(os.open, found.path, os.O_RDWR | os.O_CLOEXEC)
                self._shown[found.model, found.name] = staged
                if found.promise is Promise.LOCAL:
                    staged.uploaded_generation = staged.generation
                else:
                    waiting.append(staged)
            else:
                if found.promise is not Promise.ASIDE:
                    await self._put_aside(staged)
                self.aside.append(staged)
        if self.aside:
            log.warning("files kept aside: %d (`modelfs status` lists them)", len(self.aside))
        return waiting

    async def _put_aside(self, staged: StagedFile) -> None:
        log.warning(
            "%s/main/%s was being written when modelfs ended: its bytes are kept in %s",
            *(staged.model, staged.name, staged.path),
        )
        await self.promise(staged, Promise.ASIDE, durable=False)
