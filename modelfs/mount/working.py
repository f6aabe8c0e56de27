"""The folders of `main/`: the working tree, a live view of a model in the registry."""

import time
from functools import partial

from modelfs.errors import (
    AlreadyExists,
    CrossDevice,
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
from modelfs.mount.tree import Attributes, Folder, Maker, Node, Opened, Tree
from modelfs.mount.workfile import WorkFile
from modelfs.mount.workplace import WorkPlace
from modelfs.names import ModelId, check_component
from modelfs.registry.listing import Folder as ListedFolder
from modelfs.store.sources import Caller
from modelfs.store.stagedfile import StagedFile


class WorkFolder(WorkPlace):
    """A folder of main/, or main/ itself (`path` is '')."""

    def __init__(
        self, tree: Tree, parent: Folder | None, name: str, model: ModelId | None = None
    ) -> None:
        super().__init__(tree, parent, name)
        self._model = model  # of main/ itself
        self._changed_ns = 0  # when a name came or went, also of what is staged alone

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

    def refuse_change(self) -> None:
        if self.services.config.read_only:
            raise ReadOnly("this mount is read-only")

    brought_along = frozenset(("state", "progress", "digest", "error", "path"))  # of a version

    async def listed(self) -> ListedFolder:
        """Return what the registry holds in this folder; an empty one for a local model."""
        try:
            return await self.services.registry.folder(self.model, self.path)
        except NotFound:
            if self._model is None and not self.services.staging.has_folder(self.model, self.path):
                raise
            return ListedFolder()

    def _staged(self) -> dict[str, StagedFile]:
        return self.services.staging.in_folder(self.model, self.path)

    def _local_folders(self) -> set[str]:
        return self.services.staging.folders_in(self.model, self.path)

    async def is_empty(self) -> bool:
        return (await self.listed()).is_empty and not self._staged() and not self._local_folders()

    async def refresh(self) -> None:
        if not self.is_detached:
            await self.listed()

    def attributes(self) -> Attributes:
        """Return what stat shows; the time is when names came or went, as on a disk.

        Python, for one, looks for a new module in a folder that it knows only when that moves.
        """
        registry = self.services.registry
        listed_ns = registry.known_folder(self.model, self.path).changed_ns
        return self._attributes(
            mode=self.owner()[2],
            mtime_ns=max(self.services.started_ns, self._changed_ns, listed_ns),
            ttl_s=min(1.0, registry.metadata_ttl_s),
        )

    def _changed(self) -> None:
        """Note that a name came or went just now."""
        self._changed_ns = time.time_ns()

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
        if name in listed.folders or name in self._local_folders():
            return self.child(name, WorkFolder)
        if name not in listed.files:
            raise NotFound(f"{name} is not in {self.model}")
        return self.child(name, WorkFile, listed.files[name])

    def absent_ttl_s(self) -> float:
        return self._absent_ttl_s

    _absent_ttl_s = 0.0

    async def entries(self) -> list[tuple[str, Maker]]:
        listed, local = await self.listed(), self._local_folders()
        names = {*listed.files, *listed.folders, *self._staged(), *local}
        return [(name, partial(self._made, name, listed, local)) for name in sorted(names)]

    def _made(self, name: str, listed: ListedFolder, local: set[str]) -> Node | None:
        """Return the child as it is now: the kernel reads a folder bit by bit, and believes it.

        Where memory has forgotten the folder, it is as it was listed.
        """
        path = self.path_of(name)
        staged = self.services.staging.get(self.model, path)
        if staged is not None:
            return self.child(name, WorkFile, staged.base)
        known = self.known()
        listed = known if known.listed_at else listed
        if name in listed.folders:
            return self.child(name, WorkFolder)
        if name in local and self.services.staging.has_folder(self.model, path):
            return self.child(name, WorkFolder)
        info = listed.files.get(name)
        return self.child(name, WorkFile, info) if info else None

    async def _absent(self, name: str) -> None:
        if self.is_detached and self._model is not None:  # main is a link just now
            raise Stale(f"{self.model} has another model's main/")
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
        self._changed()
        node = self.child(name, WorkFile, None)
        return node, node.opened(write=True, staged=staged)

    async def mkdir(self, name: str, caller: Caller) -> Node:
        self.refuse_change()
        await self._absent(name)
        await moving.put_marker(self.services, self.model, self.path_of(name))
        self._changed()
        return self.child(name, WorkFolder)

    async def rmdir(self, name: str, caller: Caller) -> None:
        self.refuse_change()
        node = await self.lookup(name)
        if not isinstance(node, WorkFolder):
            raise NotAFolder(f"{name} is a file")
        if not await node.is_empty():
            raise NotEmpty(f"{name} is not empty")
        await self.keep()
        await moving.delete_marker(self.services, self.model, node.path)
        self._changed()
        self.tree.detach(node)

    async def unlink(self, name: str, caller: Caller) -> None:
        self.refuse_change()
        node = await self.lookup(name)
        if not isinstance(node, WorkFile):
            raise IsAFolder(f"{name} is a folder")
        await self.keep()
        await node.before_its_name_goes()
        await moving.delete_file(self.services, self.model, node.path)
        self._changed()
        self.tree.detach(node)

    async def keep(self) -> None:
        """Before something is taken out: see that the folder stays, as it does on a disk.

        In the registry a folder without a marker ends with its last key.
        """
        if self.services.staging.is_local(self.path):
            await moving.put_marker(self.services, self.model, self.path)
            return
        listed = await self.listed()
        if not listed.has_marker and len(listed.files) + len(listed.folders) <= 1:
            await moving.put_marker(self.services, self.model, self.path)

    async def symlink(self, name: str, target: str, caller: Caller) -> Node:
        self.refuse_change()
        raise NotPermitted("the registry has no symlinks: main/ holds files and folders")

    async def rename(
        self, name: str, into: Folder, new_name: str, caller: Caller, *, replace: bool
    ) -> None:
        self.refuse_change()
        if not isinstance(into, WorkFolder):
            into.refuse_change()
            raise NotPermitted(f"{name} stays in a main/: versions are made by mkdir")
        node = await self.lookup(name)
        check_component(new_name)
        self.services.registry.keys.file(into.model, into.path_of(new_name))
        target: Node | None
        try:
            target = await into.lookup(new_name)
        except NotFound:
            target = None
        if target is node:
            return
        if target is not None and not replace:
            raise AlreadyExists(f"{new_name} exists")
        was_local = self.services.staging.is_local(self.path_of(name))
        if isinstance(node, WorkFolder):
            await self._rename_folder(node, into, new_name, target)
        else:
            if isinstance(target, WorkFolder):
                raise IsAFolder(f"{new_name} is a folder")
            assert isinstance(node, WorkFile)
            await self.keep()
            if isinstance(target, WorkFile):
                await target.before_its_name_goes()
            path = into.path_of(new_name)
            if self.services.staging.is_local(path) and node.staged is None:
                await node.stage()  # from now on its bytes are here alone
            await moving.move_file(self.services, self.model, node.path, into.model, path)
        self.tree.move(node, into, new_name)
        self._changed()
        into._changed()
        _follow(node)
        if was_local and isinstance(node, WorkFile):
            await node.publish_what_was_local()

    async def _rename_folder(
        self, node: "WorkFolder", into: "WorkFolder", new_name: str, target: Node | None
    ) -> None:
        if target is not None:
            if not isinstance(target, WorkFolder):
                raise NotAFolder(f"{new_name} is a file")
            if not await target.is_empty():
                raise NotEmpty(f"{new_name} is not empty")
        path, is_local = into.path_of(new_name), self.services.staging.is_local
        if is_local(path) != is_local(node.path):  # mv copies its files then, one by one
            raise CrossDevice(f"of {node.path} and {path} one stays on this node")
        await self.keep()
        await moving.move_folder(self.services, self.model, node.path, into.model, path)


def _follow(node: Node) -> None:
    """After a rename: let the files at and below a node show their objects' new keys."""
    if isinstance(node, WorkFile) and node.info is not None:
        info = node.services.registry.known_file(node.model, node.path)
        if info is not None:
            node.became(info)
    elif isinstance(node, WorkFolder):
        for child in node.children.values():
            _follow(child)
