"""A version as the tree shows it: answered from its manifest, never changed.

The same nodes serve a version that is still downloading and one that is ready.
"""

from functools import partial

from modelfs.errors import NoData, NotFound, ReadOnly, Stale
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
from modelfs.store.manifest import Entry
from modelfs.store.sources import Caller
from modelfs.store.views import VersionView


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
        self._pinned_ns, self._state = view.manifest.pinned_ns, view.state

    def is_same(self, *args: object) -> bool:
        """A name that was frozen anew after a failure is another folder."""
        view = args[2]
        assert isinstance(view, VersionView)
        if view.manifest.pinned_ns != self._pinned_ns:
            return False
        self._state = view.state
        return True

    async def refresh(self) -> None:
        if not self.is_detached:
            await self.look()

    async def look(self) -> VersionView:
        """Return the version as it is now; raises NotFound, and Stale where it is another one.

        It is not kept here: the kernel holds far more folders than manifests fit into memory.
        """
        view = await self.services.library.view(self.version)
        if not self.is_same(self.version, self.path, view):
            raise Stale(f"{self.version} is another one now")
        return view

    async def _enter(self) -> VersionView:
        """Return the version, of which somebody uses what is in it."""
        view = await self.look()
        if view.state is State.READY:
            self.services.native.want(self.version)
        return view

    def attributes(self) -> Attributes:
        ttl_s = self.ttl_s() if self.path else NAMES_TTL_S
        return self._attributes(mode=self.owner()[2] & 0o555, mtime_ns=self._pinned_ns, ttl_s=ttl_s)

    def ttl_s(self) -> float:
        return FOREVER_TTL_S if self._state is State.READY else NAMES_TTL_S

    def absent_ttl_s(self) -> float:
        return FOREVER_TTL_S

    def _path_of(self, name: str) -> str:
        return f"{self.path}/{name}" if self.path else name

    async def lookup(self, name: str) -> Node:
        view = await self._enter()
        here = view.folders[self.path]
        if (entry := here.files.get(name)) is not None:
            return self.child(name, VersionFile, self.version, entry, view)
        if name in here.folders:
            return self.child(name, VersionFolder, self.version, self._path_of(name), view)
        raise NotFound(f"{name} is not in {self.version}")

    async def entries(self) -> list[tuple[str, Maker]]:
        if self.is_detached:
            return []
        view = await self._enter()
        here = view.folders[self.path]
        found: dict[str, Maker] = {
            name: partial(self.child, name, VersionFile, self.version, entry, view)
            for name, entry in here.files.items()
        }
        for name in here.folders:
            path = self._path_of(name)
            found[name] = partial(self.child, name, VersionFolder, self.version, path, view)
        return sorted(found.items())

    def refuse_change(self) -> None:
        raise ReadOnly(f"{self.version} is frozen: change main/ and freeze a new version")

    async def rename(
        self, name: str, into: Folder, new_name: str, caller: Caller, *, replace: bool
    ) -> None:
        self.refuse_change()

    async def xattrs(self) -> dict[str, str]:
        if self.path:
            return {}
        view = await self.look()
        found = self._told_by(view)
        error = view.error
        if view.state is State.READY:
            error = await self.services.library.damage(self.version)
        if error:
            found["error"] = error
        return found

    async def xattr(self, name: str) -> str:
        """Return one attribute; the disk is asked for `error` alone."""
        if self.path or name == "error":
            return await super().xattr(name)
        found = self._told_by(await self.look())
        if name not in found:
            raise NoData(f"no attribute {name}")
        return found[name]

    def _told_by(self, view: VersionView) -> dict[str, str]:
        found = {
            "state": str(view.state),
            "progress": f"{view.done_bytes}/{view.manifest.size}",
            "path": str(self.services.library.layout.version(self.version)),
        }
        if view.digest:
            found["digest"] = view.digest
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
        self._pinned_ns, self._state = view.manifest.pinned_ns, view.state
        self._pages_of: int | None = None  # the inode that the kernel's pages were read from

    def is_same(self, *args: object) -> bool:
        entry, view = args[1], args[2]
        assert isinstance(entry, Entry)
        assert isinstance(view, VersionView)
        if view.manifest.pinned_ns != self._pinned_ns:
            return False
        self._entry, self._state = entry, view.state
        return True

    async def refresh(self) -> None:
        if self.is_detached:
            return
        assert isinstance(self.parent, VersionFolder)
        view = await self.parent.look()
        self.is_same(self._version, view.folders[self.parent.path].files[self.name], view)

    def attributes(self) -> Attributes:
        is_ready = self._state is State.READY
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
        known = {"sha256": self._entry.sha256, "confirmed": self._entry.confirmed}
        return {name: text for name, text in known.items() if text is not None}
