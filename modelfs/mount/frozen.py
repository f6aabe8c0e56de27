"""A version as the tree shows it: answered from its manifest, never changed.

The same nodes serve a version that is still downloading and one that is ready.
"""

from functools import partial

from modelfs.errors import NotFound, ReadOnly, Stale
from modelfs.mount.handles import FrozenHandle
from modelfs.mount.tree import (
    FOREVER_TTL_S,
    NAMES_TTL_S,
    Attributes,
    Folder,
    Maker,
    Node,
    Opened,
    Tree,
)
from modelfs.names import VersionId
from modelfs.store.freeze import State
from modelfs.store.library import VersionView
from modelfs.store.manifest import Entry


class VersionFolder(Folder):
    """A folder of a version; `path` is '' for the version's own."""

    def __init__(
        self,
        tree: Tree,
        parent: Folder | None,
        name: str,
        version: VersionId,
        path: str,
        view: VersionView,
    ) -> None:
        super().__init__(tree, parent, name)
        self.version = version
        self.path = path
        self.view = view

    def is_same(self, *args: object) -> bool:
        """A name that was frozen anew after a failure is another folder."""
        view = args[2]
        assert isinstance(view, VersionView)
        if view.manifest.pinned_ns != self.view.manifest.pinned_ns:
            return False
        self.view = view
        return True

    async def refresh(self) -> None:
        if self.is_detached:
            return
        view = await self.services.library.view(self.version)
        if not self.is_same(self.version, self.path, view):
            raise Stale(f"{self.version} is another one now")

    def attributes(self) -> Attributes:
        manifest = self.view.manifest
        ttl_s = self.ttl_s() if self.path else NAMES_TTL_S
        return self._attributes(
            mode=self.owner()[2] & 0o555, mtime_ns=manifest.pinned_ns, ttl_s=ttl_s
        )

    def ttl_s(self) -> float:
        return FOREVER_TTL_S if self.view.state is State.READY else NAMES_TTL_S

    def absent_ttl_s(self) -> float:
        return FOREVER_TTL_S

    def _path_of(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    async def lookup(self, name: str) -> Node:
        await self.refresh()
        here = self.view.folders[self.path]
        if (entry := here.files.get(name)) is not None:
            return self.child(name, VersionFile, self.version, entry, self.view)
        if name in here.folders:
            return self.child(name, VersionFolder, self.version, self._path_of(name), self.view)
        raise NotFound(f"{name} is not in {self.version}")

    async def entries(self) -> list[tuple[str, Maker]]:
        await self.refresh()
        here = self.view.folders[self.path]
        found: dict[str, Maker] = {
            name: partial(self.child, name, VersionFile, self.version, entry, self.view)
            for name, entry in here.files.items()
        }
        for name in here.folders:
            path = self._path_of(name)
            found[name] = partial(self.child, name, VersionFolder, self.version, path, self.view)
        return sorted(found.items())

    def refuse_change(self) -> None:
        raise ReadOnly(f"{self.version} is frozen: change main/ and freeze a new version")

    async def rename(
        self, name: str, into: Folder, new_name: str, uid: int, *, replace: bool
    ) -> None:
        self.refuse_change()

    async def xattrs(self) -> dict[str, str]:
        if self.path:
            return {}
        await self.refresh()
        view = self.view
        found = {
            "state": str(view.state),
            "progress": f"{view.done_bytes}/{view.manifest.size}",
            "path": str(self.services.library.layout.version(self.version)),
        }
        if view.manifest.digest:
            found["digest"] = view.manifest.digest
        if view.error:
            found["error"] = view.error
        return found


class VersionFile(Node):
    """A file of a version."""

    def __init__(
        self,
        tree: Tree,
        parent: Folder,
        name: str,
        version: VersionId,
        entry: Entry,
        view: VersionView,
    ) -> None:
        super().__init__(tree, parent, name)
        self._version = version
        self._entry = entry
        self._view = view
        self._pages_of: int | None = None  # the inode that the kernel's pages were read from

    def is_same(self, *args: object) -> bool:
        entry, view = args[1], args[2]
        assert isinstance(entry, Entry)
        assert isinstance(view, VersionView)
        if view.manifest.pinned_ns != self._view.manifest.pinned_ns:
            return False
        self._entry, self._view = entry, view
        return True

    async def refresh(self) -> None:
        if self.is_detached:
            return
        view = await self.services.library.view(self._version)
        assert isinstance(self.parent, VersionFolder)
        entry = view.folders[self.parent.path].files[self.name]
        if not self.is_same(self._version, entry, view):
            raise Stale(f"{self._version} is another one now")

    def attributes(self) -> Attributes:
        is_ready = self._view.state is State.READY
        return self._attributes(
            mode=self.owner()[2] & 0o444,
            size=self._entry.size,
            mtime_ns=self._entry.time_ns,
            ttl_s=FOREVER_TTL_S if is_ready else NAMES_TTL_S,
        )

    async def open(self, *, write: bool, truncate: bool) -> Opened:
        if write or truncate:
            self.refuse_change()
        await self.refresh()
        file = await self.services.library.open(self._version, self._entry)
        keeps_pages = self._pages_of == file.inode  # `modelfs verify` may have put another
        self._pages_of = file.inode
        return Opened(FrozenHandle(file), keeps_pages)

    def refuse_change(self) -> None:
        raise ReadOnly(f"{self._version} is frozen")

    async def xattrs(self) -> dict[str, str]:
        await self.refresh()
        return {"sha256": self._entry.sha256} if self._entry.sha256 else {}
