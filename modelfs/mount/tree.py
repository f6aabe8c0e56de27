"""Inodes: what the kernel holds of the tree. Nodes, and the Tree that numbers them.

A node is a name in a folder, as long as the kernel (lookup count) or an open file needs
it. What a node shows is asked of the rooms below (registry, store) each time; a node
keeps no more than its place in the tree. Never imports pyfuse3. Owned by the trio thread.
"""

import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

from modelfs.concurrency import Background, Threads
from modelfs.errors import (
    IsAFolder,
    NoData,
    NotAFolder,
    NotPermitted,
    NotSupported,
)
from modelfs.mount.eventloop import EventLoopLag
from modelfs.mount.native import NativeVersions
from modelfs.mount.requests import FuseRequests
from modelfs.registry.registry import Registry
from modelfs.store.cache import Cache
from modelfs.store.health import StoreHealth
from modelfs.store.library import Library
from modelfs.store.localreads import Buffer
from modelfs.store.parts import Fetcher
from modelfs.store.prefetch import Prefetcher
from modelfs.store.sources import Caller
from modelfs.store.staging import Staging
from modelfs.store.warming import Warmer
from modelfs.store.writeback import Writeback
from modelfs.tables import RegistryConfig

ROOT_INODE = 1
NAMES_TTL_S = 0.5  # namespaces, models, versions, aliases: other nodes change them
FOREVER_TTL_S = 3600.0  # inside a ready version nothing changes


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat shows; the kernel may believe it for `ttl_s`."""

    inode: int
    mode: int
    size: int
    mtime_ns: int
    uid: int
    gid: int
    ttl_s: float
    link_count: int = 1


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file: `keeps_pages` tells that the kernel's pages of it are still right."""

    handle: "Handle"
    keeps_pages: bool = False
    is_direct: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """What setattr asks for; None is not asked for. chmod and chown change nothing."""

    size: int | None = None
    mtime_ns: int | None = None


class Handle(Protocol):
    """An open file."""

    async def read(self, offset: int, size: int) -> Buffer:
        """Return bytes, which hold until the caller's next await."""

    async def write(self, offset: int, data: bytes) -> int: ...

    async def flush(self) -> None:
        """Answer a close(): every file descriptor's, while others may stay open."""

    async def fsync(self) -> None: ...

    async def release(self) -> None:
        """The last file descriptor is closed."""


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What became of the configuration when it was read last: when (epoch ns), why it was refused.

    `applied` and `needs_restart` name settings as the file does.
    """

    read_ns: int
    error: str | None = None
    applied: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


@dataclass(slots=True)
class Services:
    """The rooms below, for the nodes of one mount."""

    config: RegistryConfig
    registry: Registry
    cache: Cache
    fetcher: Fetcher
    prefetcher: Prefetcher
    staging: Staging
    writeback: Writeback
    library: Library
    native: NativeVersions
    disk: Threads
    health: StoreHealth
    uid: int
    gid: int
    started_ns: int
    mountpoint: Path
    warmer: Warmer
    background: Background
    requests: FuseRequests = field(default_factory=FuseRequests)
    lag: EventLoopLag = field(default_factory=EventLoopLag)
    reloaded: Reloaded = field(default_factory=lambda: Reloaded(time.time_ns()))
    bugs: int = 0


class Node(ABC):
    """A name in the tree; the defaults refuse.

    INVARIANT: a node that is not detached is its parent's child of its name.
    """

    kind = stat.S_IFREG

    def __init__(self, tree: "Tree", parent: "Folder | None", name: str) -> None:
        self.tree = tree
        self.services = tree.services
        self.parent = parent
        self.name = name
        self.inode = 0
        self.lookups = 0
        self.is_detached = False

    @property
    def is_in_use(self) -> bool:
        return self.lookups > 0

    @property
    def path_names(self) -> list[str]:
        """Return the names on the way here from the root, which has none."""
        return [*self.parent.path_names, self.name] if self.parent is not None else []

    def is_same(self, *args: object) -> bool:
        """Tell whether a node made anew with these arguments would be this one."""
        return True

    async def refresh(self) -> None:  # noqa: B027  # a name that keeps nothing learns nothing
        """Learn what has changed, before `attributes`; raises NotFound where it is gone."""

    @abstractmethod
    def attributes(self) -> Attributes:
        """Return what stat shows, of what was learned last."""

    def _attributes(
        self, *, mode: int, size: int = 0, mtime_ns: int | None = None, ttl_s: float = NAMES_TTL_S
    ) -> Attributes:
        uid, gid, _ = self.owner()
        return Attributes(
            self.inode,
            self.kind | mode,
            size,
            self.services.started_ns if mtime_ns is None else mtime_ns,
            uid,
            gid,
            ttl_s,
            0 if self.is_detached else 1,
        )

    def owner(self) -> tuple[int, int, int]:
        """Return uid, gid and the mode of folders here: the namespace's."""
        assert self.parent is not None
        return self.parent.owner()

    async def open(self, *, write: bool, truncate: bool) -> Opened:
        raise IsAFolder(f"{self.name} is a folder")

    async def open_for(self, caller: Caller, *, write: bool, truncate: bool) -> Opened:
        """Open for a caller, where what is shown depends on who asks."""
        return await self.open(write=write, truncate=truncate)

    async def change(self, change: Change) -> None:
        """Set size or time; what is not a file of main/ is not changed by anyone."""
        self.refuse_change()

    def refuse_change(self) -> None:
        """Raise what a write here costs."""
        raise NotPermitted(f"{self.name} cannot be changed")

    async def readlink(self) -> str:
        raise NotSupported(f"{self.name} is no link")

    async def xattrs(self) -> dict[str, str]:
        """Return the extended attributes, without their common `user.modelfs.`."""
        return {}

    async def xattr(self, name: str) -> str:
        found = await self.xattrs()
        if name not in found:
            raise NoData(f"no attribute {name}")
        return found[name]

    async def set_xattr(self, name: str, value: str, caller: Caller) -> None:
        self.refuse_change()
        if name not in self.brought_along:
            raise NotSupported(f"the attribute {name} cannot be set here")

    def remove_xattr(self, name: str) -> None:
        self.refuse_change()
        if name not in self.brought_along:
            raise NoData(f"the attribute {name} cannot be removed here")

    # What tools that copy attributes (rsync -X, cp -a, mv) set as it was elsewhere, or remove as it
    # was not: that succeeds and changes nothing, as chmod does.
    brought_along: frozenset[str] = frozenset()


N = TypeVar("N", bound=Node)
Maker = Callable[[], Node | None]


class Folder(Node):
    """A folder. `children` are the nodes of it that are in use."""

    kind = stat.S_IFDIR

    def __init__(self, tree: "Tree", parent: "Folder | None", name: str) -> None:
        super().__init__(tree, parent, name)
        self.children: dict[str, Node] = {}

    @property
    def is_in_use(self) -> bool:
        return self.lookups > 0 or bool(self.children)

    @abstractmethod
    async def lookup(self, name: str) -> Node:
        """Return the child; raises NotFound."""

    @abstractmethod
    async def entries(self) -> list[tuple[str, Maker]]:
        """Return the names, each with what makes its node; None where it is gone by then."""

    def absent_ttl_s(self) -> float:
        """Return for how long the kernel may believe that a name is absent."""
        return 0.0

    def child(self, name: str, kind: type[N], *args: object) -> N:
        """Return the child node of that name and kind: the one in use, or a new one."""
        found = self.children.get(name)
        if type(found) is kind and found.is_same(*args):
            return found
        return self.tree.adopt(kind(self.tree, self, name, *args))

    async def mkdir(self, name: str, caller: Caller) -> Node:
        self._refuse(name)

    async def rmdir(self, name: str, caller: Caller) -> None:
        self._refuse(name)

    async def create(self, name: str) -> tuple[Node, Opened]:
        self._refuse(name)

    async def unlink(self, name: str, caller: Caller) -> None:
        self._refuse(name)

    async def symlink(self, name: str, target: str, caller: Caller) -> Node:
        self._refuse(name)

    async def rename(
        self, name: str, into: "Folder", new_name: str, caller: Caller, *, replace: bool
    ) -> None:
        self._refuse(name)

    def _refuse(self, name: str) -> NoReturn:
        self.refuse_change()
        raise NotPermitted(f"{name} cannot be changed")


class Tree:
    """The nodes in use, by inode number.

    INVARIANT: every node is in use, or is about to be shown; numbers are never used twice.
    """

    def __init__(self, services: Services, make_root: Callable[["Tree"], Folder]) -> None:
        self.services = services
        self.forget_name: Callable[[int, str], None] = lambda inode, name: None  # the kernel's
        self._nodes: dict[int, Node] = {}
        self._next_inode = ROOT_INODE
        self.root = self.adopt(make_root(self))
        self.root.lookups = 1

    def __getitem__(self, inode: int) -> Node:
        return self._nodes[inode]

    def get(self, inode: int) -> Node | None:
        return self._nodes.get(inode)

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    def folder(self, inode: int) -> Folder:
        node = self._nodes[inode]
        if not isinstance(node, Folder):
            raise NotAFolder(f"{node.name} is no folder")
        return node

    def adopt(self, node: N) -> N:
        """Number a new node and make it its parent's child, in place of an older one."""
        node.inode = self._next_inode
        self._next_inode += 1
        self._nodes[node.inode] = node
        if node.parent is not None:
            if (old := node.parent.children.get(node.name)) is not None:
                self.detach(old)
            node.parent.children[node.name] = node
        return node

    def detach(self, node: Node) -> None:
        """Take a node out of its folder: its name is gone, or another's."""
        if not node.is_detached and node.parent is not None:
            node.is_detached = True
            if node.parent.children.get(node.name) is node:
                del node.parent.children[node.name]
            self.drop_unused(node)

    def move(self, node: Node, into: Folder, name: str) -> None:
        """Give a node another name, in place of what had it."""
        if (old := into.children.get(name)) is not None and old is not node:
            self.detach(old)
        before = node.parent
        assert before is not None
        before.children.pop(node.name, None)
        node.parent, node.name = into, name
        into.children[name] = node
        self.drop_unused(before)

    def forget(self, inode: int, count: int) -> None:
        """The kernel needs a node `count` times less."""
        node = self._nodes.get(inode)
        if node is not None:
            node.lookups -= count
            self.drop_unused(node)

    def drop_unused(self, node: Node) -> None:
        """Forget a node, and the folders above it, where nothing needs them."""
        current: Node | None = node
        while current is not None and not current.is_in_use and current is not self.root:
            self._nodes.pop(current.inode, None)
            parent = current.parent
            if parent is not None and parent.children.get(current.name) is current:
                del parent.children[current.name]
            current = parent

    def find(self, *names: str) -> Node | None:
        """Return the node at a path where it is in use."""
        node: Node | None = self.root
        for name in names:
            node = node.children.get(name) if isinstance(node, Folder) else None
        return node

    def check_invariants(self) -> None:
        """For tests."""
        for inode, node in self._nodes.items():
            assert node.inode == inode
            assert node.is_in_use or node is self.root, node.name
            if not node.is_detached and node.parent is not None:
                assert node.parent.children.get(node.name) is node, node.name
