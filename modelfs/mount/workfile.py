"""A file of `main/`: clean (the registry's object, read through the cache) or staged.

A node follows its file when it is renamed; where the object was changed by others while it
is open, the open files keep the old node and the name gets a new one, so that the kernel
never mixes the pages of two states.
"""

import re
import time
from collections.abc import Iterator
from dataclasses import replace

import trio

from modelfs.errors import Busy, InvalidName, NotFound, Stale
from modelfs.mount import moving
from modelfs.mount.handles import WorkHandle
from modelfs.mount.tree import Attributes, Change, Folder, Node, Opened, Tree
from modelfs.mount.workplace import WorkPlace
from modelfs.names import ModelId
from modelfs.registry.objects import ObjectId, ObjectInfo
from modelfs.store.cachedfile import CachedFile
from modelfs.store.parts import Urgency
from modelfs.store.sources import Caller
from modelfs.store.stagedfile import Promise, StagedFile

_SHOWN = re.compile(r"\d+/\d+")  # `cached` as getxattr tells it
OPEN_TTL_S = 0.5  # for how long the kernel believes the attributes of a file that is open


class WorkFile(Node):
    """A file of main/.

    `info` is the object that the node shows: while it is open, the one it was opened as.
    """

    def __init__(self, tree: Tree, parent: Folder, name: str, info: ObjectInfo | None) -> None:
        super().__init__(tree, parent, name)
        self.info = info
        self.handles: set[WorkHandle] = set()
        self.unlinked: StagedFile | None = None
        self._staging = trio.Lock()
        self._pages_of: ObjectId | None = None  # what the kernel's pages were read from
        self._has_wrong_pages = False  # those of a write that failed

    @property
    def folder(self) -> WorkPlace:
        assert isinstance(self.parent, WorkPlace)
        return self.parent

    @property
    def model(self) -> ModelId:
        return self.folder.model

    @property
    def path(self) -> str:
        return self.folder.path_of(self.name)

    @property
    def is_in_use(self) -> bool:
        return self.lookups > 0 or bool(self.handles)

    @property
    def staged(self) -> StagedFile | None:
        """Return the staged file that the node shows, also after its name was removed.

        After a conflict the name is that of what someone else has put; who has it open goes on.
        """
        shown = None if self.is_detached else self._staged_at_its_path
        return shown or self.unlinked or next(self._held_open(), None)

    @property
    def _staged_at_its_path(self) -> StagedFile | None:
        return self.services.staging.get(self.model, self.path)

    def _held_open(self) -> Iterator[StagedFile]:
        staged = (handle.staged for handle in self.handles)
        return (found for found in staged if found is not None and not found.settled.is_set())

    def is_same(self, *args: object) -> bool:
        """An open clean file is another one as soon as its object is in another state."""
        info = args[0]
        assert info is None or isinstance(info, ObjectInfo)
        if self._staged_at_its_path is not None:
            return True
        if self.staged is not None:
            return False
        is_changed = info is not None and (self.info is None or info.id != self.info.id)
        if is_changed and self.handles:
            return False
        self.info = info or self.info
        return True

    @property
    def has_writers(self) -> bool:
        return any(handle.is_writer for handle in self.handles)

    async def before_its_name_goes(self) -> None:
        """See that whoever has the file open to write can go on: its object is about to go."""
        if self.has_writers:
            await self.stage()
        self.unlinked = self.staged

    async def publish_what_was_local(self) -> None:
        """Return when the registry has a file that has lost the name by which it stayed here."""
        staged = self.staged
        if staged is not None and staged.promise is Promise.CLOSED and not self.has_writers:
            await self.services.writeback.publish(staged)

    def refuse_change(self) -> None:
        self.folder.refuse_change()

    async def refresh(self) -> None:
        if self.is_detached or self.staged is not None or self.handles:
            return
        listed = await self.folder.listed()
        info = listed.files.get(self.name)
        if info is None:
            raise NotFound(f"{self.path} is gone from {self.model}")
        self.info = info

    def attributes(self) -> Attributes:
        mode = self.owner()[2] & 0o666
        if (staged := self.staged) is not None:
            return self._attributes(
                mode=mode, size=staged.size, mtime_ns=staged.mtime_ns, ttl_s=1.0
            )
        info = self.info
        if info is None:
            return self._attributes(mode=mode, ttl_s=0.0)
        return self._attributes(
            mode=mode, size=info.size, mtime_ns=self._mtime_ns(info), ttl_s=self._ttl_s()
        )

    def _mtime_ns(self, info: ObjectInfo) -> int:
        if info.mtime_ns is not None:
            return info.mtime_ns
        recorded = self.services.cache.recorded_mtime_ns(info.id)
        return info.modified_ns if recorded is None else recorded

    def _ttl_s(self) -> float:
        if self.is_detached:
            return 0.0
        registry = self.services.registry
        left_s = registry.age_left_s(self.model, self.folder.path)
        if self.handles:  # it stays what it was opened as; the kernel asks before each read()
            return max(left_s, min(OPEN_TTL_S, registry.metadata_ttl_s / 4))
        return left_s

    # ----------------------------------------------------------------- open

    async def open(self, *, write: bool, truncate: bool) -> Opened:
        write = write or truncate  # O_RDONLY | O_TRUNC empties the file, too
        if write:
            self.refuse_change()
        staged = await self._settled()
        if staged is None:
            shown = self.info
            try:
                await self.refresh()
            except NotFound as error:  # the kernel looks again, and may make it anew
                raise Stale(str(error)) from error
            if shown is not None and self.info is not None and shown.id != self.info.id:
                raise Stale(f"{self.path} has changed")  # the kernel looks it up anew
        if truncate:
            staged = await self._stage(0)
            staged.users += 1  # it must not settle while it is cut
            try:
                await self.services.staging.truncate(staged, 0)
                staged.is_written = False
            finally:
                staged.users -= 1
        source = None
        if staged is None:
            assert self.info is not None
            source = await self.services.cache.open(self.info)
            staged = self.staged  # which another handle may have begun meanwhile
            if self.info.id != source.info.id or (staged is not None and staged.is_settling):
                self.services.cache.close(source)
                raise Stale(f"{self.path} has changed")
            if not write:
                self.services.prefetcher.opened(source.info, self.name, self.folder.beside)
        return self.opened(write=write, staged=staged, source=source)

    def opened(
        self, *, write: bool, staged: StagedFile | None, source: CachedFile | None = None
    ) -> Opened:
        object_id = self.info.id if self.info else None
        is_known = staged is not None or self._pages_of == object_id
        keeps_pages = is_known and not self._has_wrong_pages
        self._pages_of, self._has_wrong_pages = object_id, False
        handle = WorkHandle(self, write, source)
        handle.join(staged)
        self.handles.add(handle)
        return Opened(handle, keeps_pages)

    def became(self, info: ObjectInfo | None) -> None:
        """Show another object with the same bytes: what was staged, renamed or touched.

        The kernel's pages stay where they were read from what the node has shown so far.
        """
        pages_are_right = self._pages_of == (self.info.id if self.info else None)
        self.info = info
        self._pages_of = info.id if info and pages_are_right else None

    def went_back(self) -> None:
        """Note that the file is what it was before a write that failed."""
        self._has_wrong_pages = True

    async def _settled(self) -> StagedFile | None:
        """Return the staged file; one that is just going into the cache is waited for."""
        while (staged := self.staged) is not None and staged.is_settling:
            await staged.settled.wait()
            if self.is_detached:
                return None
            self.info = staged.base or self.info
        return staged

    async def stage(self) -> StagedFile:
        """Return the staged file that writes go to; the object's bytes are copied into it."""
        staged = await self._settled()
        return staged or await self._stage(self.info.size if self.info else 0)

    async def _stage(self, size: int) -> StagedFile:
        """Begin to write: stage the first `size` bytes of the object, for all open handles."""
        services = self.services
        async with self._staging:
            if (staged := await self._settled()) is not None:
                return staged
            if self.is_detached:
                raise Stale(f"{self.name} was removed")
            info = self.info
            if info is None or size == 0:
                staged = await services.staging.create(self.model, self.path, info)
            else:
                staged = await self._stage_copy(info, size)
            for handle in self.handles:
                handle.join(staged)
            return staged

    async def _stage_copy(self, info: ObjectInfo, size: int) -> StagedFile:
        services = self.services
        source = await services.cache.open(info)
        try:
            parts = range(source.part_count)
            with source.pinned(parts):  # until they are copied
                await services.fetcher.bring(source, parts, Urgency.DEMAND)
                return await services.staging.create(self.model, self.path, info, source, size)
        except (Stale, NotFound) as error:
            services.registry.expire(self.model, self.folder.path)
            raise Stale(f"{self.name} was changed in the registry by someone else") from error
        finally:
            services.cache.close(source)

    # -------------------------------------------------------------- changes

    async def change(self, change: Change) -> None:
        if change.size is None and change.mtime_ns is None:
            return
        self.refuse_change()
        await self.refresh()  # an upload in the background may have ended since the last look
        if change.size is not None:
            await self._truncate(change.size)
        if change.mtime_ns is not None:
            await self._set_mtime(change.mtime_ns)

    async def _truncate(self, size: int) -> None:
        staged = await self._settled()
        if staged is None and self.info is not None and size == self.info.size:
            await self._set_mtime(time.time_ns())  # as on a disk; its bytes stay where they are
            return
        if staged is None:
            staged = await self._stage(min(size, self.info.size) if self.info else 0)
        staged.users += 1
        try:
            await self.services.staging.truncate(staged, size)
            if not self.has_writers:  # truncate(2): there is no close() to wait for
                await self.services.writeback.publish(staged)
        finally:
            staged.users -= 1
            staged.is_closed = not self.has_writers
            await self.services.writeback.settle(staged)

    async def _set_mtime(self, mtime_ns: int) -> None:
        staged = await self._settled()
        if self.is_detached:
            if staged is not None:
                staged.mtime_ns = mtime_ns
            elif self.info is not None:
                self.info = replace(self.info, mtime_ns=mtime_ns)
            return
        if staged is not None and staged.promise is Promise.LOCAL:
            staged.mtime_ns = mtime_ns
            await self.services.staging.promise(staged, Promise.LOCAL, durable=False)
            return
        if staged is not None and staged.is_dirty:
            staged.mtime_ns = mtime_ns
            staged.is_written = True
            if staged.lock.locked():  # an upload under way has sent the time before
                staged.generation += 1
            return
        info = staged.base if staged is not None else self.info
        if info is None or self._mtime_ns(info) == mtime_ns:
            return
        if staged is None:
            self.became(await self._touch(info, mtime_ns))
            return
        staged.users += 1  # it must not settle as the object of before
        try:
            copied = await self._touch(info, mtime_ns)
            self.became(copied)
            staged.replaces(copied)
            staged.mtime_ns = mtime_ns
        finally:
            staged.users -= 1
            await self.services.writeback.settle(staged)

    async def _touch(self, info: ObjectInfo, mtime_ns: int) -> ObjectInfo:
        return await moving.touch(self.services, self.model, self.path, info, mtime_ns)

    # ----------------------------------------------------------- attributes

    async def xattrs(self) -> dict[str, str]:
        staged = self.staged
        found = {
            "key": self.services.registry.keys.file(self.model, self.path),
            "dirty": str(int(staged is not None and staged.is_dirty)),
        }
        if staged is not None:
            found["cached"] = f"{staged.size}/{staged.size}"
            if staged.error:
                found["error"] = staged.error
        elif self.info is not None:
            here = self.services.cache.cached_bytes(self.info.id)
            found["cached"] = f"{here}/{self.info.size}"
            warmer = self.services.warmer
            if state := warmer.state(self.info.id):
                found["warming"] = state
            if error := warmer.error(self.info.id):
                found["error"] = error
        info = staged.base if staged is not None else self.info
        if info is not None:
            found["etag"] = info.id.etag
        return found

    brought_along = frozenset(
        ("key", "etag", "dirty", "cached", "warming", "error", "sha256", "confirmed")
    )

    async def set_xattr(self, name: str, value: str, caller: Caller) -> None:
        """Take `cached`: `all` begins to bring the file's bytes into the cache, `none` drops them.

        What is staged is here, and stays.
        """
        if name != "cached" or _SHOWN.fullmatch(value):
            await super().set_xattr(name, value, caller)
        elif value == "all":
            await self._warm()
        elif value == "none":
            await self._evict()
        else:
            raise InvalidName(f"cached is set to all or none, not to {value!r}")

    async def _warm(self) -> None:
        await self.refresh()
        if self.staged is None and self.info is not None:
            self.services.warmer.start(self.info)

    async def _evict(self) -> None:
        if self.handles or self.staged is not None:
            raise Busy(f"{self.path} is open, or not in the registry yet")
        if self.info is None:
            return
        if self.services.warmer.state(self.info.id) is not None:
            raise Busy(f"{self.path} is being warmed")
        self.services.prefetcher.let_go(self.info)
        await self.services.cache.evict(self.info.id)
        self._pages_of = None
