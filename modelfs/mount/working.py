"""`main/`: the working tree, a live view of a model in the registry, read and write.

A file is either clean (the registry's object, read through the cache) or staged (being
written here). A node follows its file when it is renamed; where the object was changed
by others while it is open, the open files keep the old node and the name gets a new one,
so that the kernel never mixes the pages of two states.
"""

from functools import partial

import trio

from modelfs.errors import (
    AlreadyExists,
    IsAFolder,
    NotAFolder,
    NotEmpty,
    NotFound,
    NotPermitted,
    ReadOnly,
    RegistryUnavailable,
    Stale,
)
from modelfs.mount import moving
from modelfs.mount.handles import WorkHandle
from modelfs.mount.tree import Attributes, Change, Folder, Maker, Node, Opened, Tree
from modelfs.names import ModelId, check_component
from modelfs.registry.listing import Folder as ListedFolder
from modelfs.registry.objects import ObjectId, ObjectInfo
from modelfs.store.cache import CachedFile
from modelfs.store.parts import Urgency
from modelfs.store.staging import StagedFile


class WorkFolder(Folder):
    """A folder of main/, or main/ itself (`path` is '')."""

    def __init__(
        self, tree: Tree, parent: Folder | None, name: str, model: ModelId | None = None
    ) -> None:
        super().__init__(tree, parent, name)
        self._model = model  # of main/ itself

    @property
    def model(self) -> ModelId:
        if self._model is not None:
            return self._model
        assert isinstance(self.parent, WorkFolder)
        return self.parent.model

    @property
    def path(self) -> str:
        if self._model is not None:
            return ""
        assert isinstance(self.parent, WorkFolder)
        return self.parent.path_of(self.name)

    def path_of(self, name: str) -> str:
        path = self.path
        return f"{path}/{name}" if path else name

    def refuse_change(self) -> None:
        if self.services.config.read_only:
            raise ReadOnly("this mount is read-only")

    async def listed(self) -> ListedFolder:
        """Return what the registry holds in this folder; an empty one for a local model."""
        try:
            return await self.services.registry.folder(self.model, self.path)
        except NotFound:
            if self._model is None and not self._staged():
                raise
            return ListedFolder()

    def _staged(self) -> dict[str, StagedFile]:
        return self.services.staging.in_folder(self.model, self.path)

    async def refresh(self) -> None:
        if not self.is_detached:
            await self.listed()

    def attributes(self) -> Attributes:
        return self._attributes(
            mode=self.owner()[2], ttl_s=min(1.0, self.services.registry.metadata_ttl_s)
        )

    async def lookup(self, name: str) -> Node:
        staged = self.services.staging.get(self.model, self.path_of(name))
        if staged is not None:
            return self.child(name, WorkFile, staged.base)
        try:
            listed = await self.listed()
        except RegistryUnavailable:
            if self.services.staging.below(self.model, self.path_of(name)):
                return self.child(name, WorkFolder)
            raise
        self._absent_ttl_s = self.services.registry.expires_in_s(listed)
        if name in listed.folders:
            return self.child(name, WorkFolder)
        if name not in listed.files:
            raise NotFound(f"{name} is not in {self.model}")
        return self.child(name, WorkFile, listed.files[name])

    def absent_ttl_s(self) -> float:
        return self._absent_ttl_s

    _absent_ttl_s = 0.0

    async def entries(self) -> list[tuple[str, Maker]]:
        listed = await self.listed()
        found: dict[str, Maker] = {
            name: partial(self.child, name, WorkFile, info) for name, info in listed.files.items()
        }
        for name, staged in self._staged().items():
            found[name] = partial(self.child, name, WorkFile, staged.base)
        for name in listed.folders:
            found[name] = partial(self.child, name, WorkFolder)
        return sorted(found.items())

    async def _absent(self, name: str) -> None:
        check_component(name)
        self.services.registry.keys.file(self.model, self.path_of(name))
        try:
            await self.lookup(name)
        except NotFound:
            return
        raise AlreadyExists(f"{name} exists")

    # -------------------------------------------------------------- changes

    async def create(self, name: str) -> tuple[Node, Opened]:
        self.refuse_change()
        await self._absent(name)
        staged = await self.services.staging.create(self.model, self.path_of(name), None)
        staged.is_written = True  # a new file is there as soon as it is closed, empty or not
        node = self.child(name, WorkFile, None)
        return node, node.opened(write=True, staged=staged)

    async def mkdir(self, name: str, uid: int) -> Node:
        self.refuse_change()
        await self._absent(name)
        await moving.put_marker(self.services, self.model, self.path_of(name))
        return self.child(name, WorkFolder)

    async def rmdir(self, name: str, uid: int) -> None:
        self.refuse_change()
        node = await self.lookup(name)
        if not isinstance(node, WorkFolder):
            raise NotAFolder(f"{name} is a file")
        listed = await node.listed()
        if not listed.is_empty or node._staged():
            raise NotEmpty(f"{name} is not empty")
        await self.keep()
        await moving.delete_marker(self.services, self.model, node.path)
        self.tree.detach(node)

    async def unlink(self, name: str, uid: int) -> None:
        self.refuse_change()
        node = await self.lookup(name)
        if not isinstance(node, WorkFile):
            raise IsAFolder(f"{name} is a folder")
        await self.keep()
        await node.before_its_name_goes()
        await moving.delete_file(self.services, self.model, node.path)
        self.tree.detach(node)

    async def keep(self) -> None:
        """Before something is taken out: see that the folder stays, as it does on a disk.

        In the registry a folder without a marker ends with its last key.
        """
        listed = await self.listed()
        if not listed.has_marker and len(listed.files) + len(listed.folders) <= 1:
            await moving.put_marker(self.services, self.model, self.path)

    async def symlink(self, name: str, target: str, uid: int) -> Node:
        self.refuse_change()
        raise NotPermitted("the registry has no symlinks: main/ holds files and folders")

    async def rename(
        self, name: str, into: Folder, new_name: str, uid: int, *, replace: bool
    ) -> None:
        self.refuse_change()
        if not isinstance(into, WorkFolder):
            into.refuse_change()
            raise NotPermitted(f"{name} stays in a main/: versions are made by mkdir")
        node = await self.lookup(name)
        check_component(new_name)
        target: Node | None
        try:
            target = await into.lookup(new_name)
        except NotFound:
            target = None
        if target is node:
            return
        if target is not None and not replace:
            raise AlreadyExists(f"{new_name} exists")
        if isinstance(node, WorkFolder):
            await self._rename_folder(node, into, new_name, target)
        else:
            if isinstance(target, WorkFolder):
                raise IsAFolder(f"{new_name} is a folder")
            await self.keep()
            if isinstance(target, WorkFile):
                await target.before_its_name_goes()
            path = into.path_of(new_name)
            await moving.move_file(self.services, self.model, self.path_of(name), into.model, path)
        self.tree.move(node, into, new_name)
        _follow(node)

    async def _rename_folder(
        self, node: "WorkFolder", into: "WorkFolder", new_name: str, target: Node | None
    ) -> None:
        if target is not None:
            if not isinstance(target, WorkFolder):
                raise NotAFolder(f"{new_name} is a file")
            if not (await target.listed()).is_empty or target._staged():
                raise NotEmpty(f"{new_name} is not empty")
        await self.keep()
        path = into.path_of(new_name)
        await moving.move_folder(self.services, self.model, node.path, into.model, path)


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

    @property
    def folder(self) -> WorkFolder:
        assert isinstance(self.parent, WorkFolder)
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
        """Return the staged file that the node shows, also after its name was removed."""
        if self.is_detached:
            return self.unlinked
        return self.services.staging.get(self.model, self.path)

    def is_same(self, *args: object) -> bool:
        """An open clean file is another one as soon as its object is in another state."""
        info = args[0]
        assert info is None or isinstance(info, ObjectInfo)
        if self.staged is not None:
            return True
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
        if self.is_detached or self.handles:
            return 0.0
        return self.services.registry.age_left_s(self.model, self.folder.path)

    # ----------------------------------------------------------------- open

    async def open(self, *, write: bool, truncate: bool) -> Opened:
        if write:
            self.refuse_change()
        staged = await self._settled()
        if staged is None:
            shown = self.info
            await self.refresh()
            if shown is not None and self.info is not None and shown.id != self.info.id:
                raise Stale(f"{self.path} has changed")  # the kernel looks it up anew
        if truncate:
            staged = await self._stage(0)
            staged.users += 1  # it must not settle while it is cut
            try:
                if staged.size:
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
        return self.opened(write=write, staged=staged, source=source)

    def opened(
        self, *, write: bool, staged: StagedFile | None, source: CachedFile | None = None
    ) -> Opened:
        object_id = self.info.id if self.info else None
        keeps_pages = staged is not None or self._pages_of == object_id
        self._pages_of = object_id
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

    def went_back_to(self, info: ObjectInfo | None) -> None:
        """Show the object of before a write that failed; the kernel's pages hold that write."""
        self.info, self._pages_of = info, None

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
                source = await services.cache.open(info)
                try:
                    parts = range(source.part_count)
                    with source.pinned(parts):  # until they are copied
                        await services.fetcher.bring(source, parts, Urgency.DEMAND)
                        staged = await services.staging.create(
                            self.model, self.path, info, source, size
                        )
                finally:
                    services.cache.close(source)
            for handle in self.handles:
                handle.join(staged)
            return staged

    # -------------------------------------------------------------- changes

    async def change(self, change: Change) -> None:
        if change.size is None and change.mtime_ns is None:
            return
        self.refuse_change()
        if change.size is not None:
            await self._truncate(change.size)
        if change.mtime_ns is not None:
            await self._set_mtime(change.mtime_ns)

    async def _truncate(self, size: int) -> None:
        staged = await self._settled()
        if staged is None and self.info is not None and size == self.info.size:
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
            await self.services.writeback.settle(staged)

    async def _set_mtime(self, mtime_ns: int) -> None:
        staged = await self._settled()
        if staged is not None and staged.is_dirty:
            staged.mtime_ns = mtime_ns
            staged.is_written = True
            if staged.lock.locked():  # an upload under way has sent the time before
                staged.generation += 1
            return
        info = staged.base if staged is not None else self.info
        if info is None or self.is_detached or self._mtime_ns(info) == mtime_ns:
            return
        if staged is None:
            self.became(await self._touch(info, mtime_ns))
            return
        staged.users += 1  # it must not settle as the object of before
        try:
            copied = await self._touch(info, mtime_ns)
            self.became(copied)
            staged.base, staged.base_etag, staged.mtime_ns = copied, copied.id.etag, mtime_ns
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
        info = staged.base if staged is not None else self.info
        if info is not None:
            found["etag"] = info.id.etag
        return found


def _follow(node: Node) -> None:
    """After a rename: let the files at and below a node show their objects' new keys."""
    if isinstance(node, WorkFile) and node.info is not None:
        info = node.services.registry.known_file(node.model, node.path)
        if info is not None:
            node.became(info)
    elif isinstance(node, WorkFolder):
        for child in node.children.values():
            _follow(child)
