"""The tree against a plain dictionary: hypothesis drives both, and compares after each step.

In-process, without FUSE, on the fake registry: writes, renames, removals, folders, freezes,
aliases, what others change, evictions, restarts.
"""

import contextlib
import errno
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, example, given, settings

from modelfs.errors import IsAFolder, ModelfsError
from modelfs.mount.tree import Change, Folder, Node
from modelfs.store.freeze import State
from tests.fake_store import FakeStore
from tests.trio_tests import LLAMA, PREFIX, ROOT, House, open_house, trio_test, version

MAIN = ("acme", "llama", "main")
MODEL = ("acme", "llama")

Step = tuple[str, ...]


def data_of(seed: str) -> bytes:
    chance = random.Random(seed)
    return chance.randbytes(chance.choice([0, 1, 1000, 70_000, 150_000]))


@dataclass
class Expected:
    """What there should be. `marked` are the folders that stay when their last file goes."""

    files: dict[str, bytes] = field(default_factory=dict)
    marked: set[str] = field(default_factory=set)
    versions: dict[str, dict[str, bytes]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def folders(self) -> set[str]:
        found = set()
        for path in (*self.files, *(f"{m}/x" for m in self.marked)):
            while "/" in path:
                path = path.rpartition("/")[0]
                found.add(path)
        return found

    def is_folder(self, path: str) -> bool:
        return path == "" or path in self.folders

    def inside(self, folder: str) -> set[str]:
        """Return the names in a folder."""
        start = f"{folder}/" if folder else ""
        every = {*self.files, *self.folders}
        return {p.removeprefix(start).split("/")[0] for p in every if p.startswith(start)}

    def keep(self, folder: str) -> None:
        if folder and len(self.inside(folder)) <= 1:
            self.marked.add(folder)

    def missing(self, path: str) -> int:
        """Return why nothing can be at `path`: a parent is no folder. 0 where one can."""
        parent = path.rpartition("/")[0]
        while parent and not self.is_folder(parent):
            if parent in self.files:
                return errno.ENOTDIR
            parent = parent.rpartition("/")[0]
        return 0 if self.is_folder(path.rpartition("/")[0]) else errno.ENOENT

    def write(self, path: str, seed: str) -> int:
        if number := self.missing(path):
            return number
        if self.is_folder(path):
            return errno.EISDIR
        self.files[path] = data_of(seed)
        return 0

    def append(self, path: str, seed: str) -> int:
        if path not in self.files:
            return self.missing(path) or (errno.EISDIR if self.is_folder(path) else errno.ENOENT)
        self.files[path] += data_of(seed)
        return 0

    def truncate(self, path: str, size: str) -> int:
        if path not in self.files:
            return self.missing(path) or (errno.EISDIR if self.is_folder(path) else errno.ENOENT)
        self.files[path] = self.files[path][: int(size)].ljust(int(size), b"\0")
        return 0

    def unlink(self, path: str) -> int:
        if path not in self.files:
            return self.missing(path) or (errno.EISDIR if self.is_folder(path) else errno.ENOENT)
        self.keep(path.rpartition("/")[0])
        del self.files[path]
        return 0

    def mkdir(self, path: str) -> int:
        if number := self.missing(path):
            return number
        if path in self.files or self.is_folder(path):
            return errno.EEXIST
        self.marked.add(path)
        return 0

    def rmdir(self, path: str) -> int:
        if path in self.files:
            return errno.ENOTDIR
        if not self.is_folder(path):
            return self.missing(path) or errno.ENOENT
        if self.inside(path):
            return errno.ENOTEMPTY
        self.keep(path.rpartition("/")[0])
        self.marked.discard(path)
        return 0

    def rename(self, old: str, new: str) -> int:
        if number := self.missing(old) or self.missing(new):
            return number
        if old in self.files:
            if self.is_folder(new):
                return errno.EISDIR
            if old != new:
                self.keep(old.rpartition("/")[0])
                self.files[new] = self.files.pop(old)
            return 0
        if not self.is_folder(old):
            return errno.ENOENT
        if new in self.files:
            return errno.ENOTDIR
        if self.is_folder(new) and old != new and self.inside(new):
            return errno.ENOTEMPTY
        if old != new:
            self._move_folder(old, new)
        return 0

    def _move_folder(self, old: str, new: str) -> None:
        self.keep(old.rpartition("/")[0])
        if not self.inside(old):
            self.marked.add(old)

        def moved(path: str) -> str:
            inside = path == old or path.startswith(f"{old}/")
            return new + path.removeprefix(old) if inside else path

        self.files = {moved(path): data for path, data in self.files.items()}
        self.marked = {moved(path) for path in self.marked}

    def others_put(self, path: str, seed: str) -> int:
        if self.missing(path) != errno.ENOTDIR and not self.is_folder(path):
            self.files[path] = data_of(seed)
        return 0

    def others_delete(self, path: str) -> int:
        self.files.pop(path, None)
        return 0

    def freeze(self, name: str) -> int:
        if name in self.used:
            return errno.EEXIST
        if not self.files:
            return errno.ENODATA
        self.used.add(name)
        self.versions[name] = dict(self.files)
        return 0

    def remove(self, name: str) -> int:
        if name not in self.versions:
            return errno.ENOENT
        if name in self.aliases.values():
            return errno.EBUSY
        del self.versions[name]
        return 0

    def alias(self, alias: str, name: str) -> int:
        if name not in self.versions:
            return errno.EINVAL
        self.aliases[alias] = name
        return 0

    def unalias(self, alias: str) -> int:
        return 0 if self.aliases.pop(alias, None) else errno.ENOENT

    def evict(self) -> int:
        return 0


class Kernel:
    """Does to the tree what the kernel does: looks names up, asks, and forgets them."""

    def __init__(self, house: House) -> None:
        self.house = house

    @asynccontextmanager
    async def at(self, *names: str) -> AsyncIterator[Node]:
        tree = self.house.tree
        node: Node = tree.root
        held: list[Node] = []
        try:
            for name in names:
                node = await tree.folder(node.inode).lookup(name)
                node.lookups += 1
                held.append(node)
            yield node
        finally:
            for each in reversed(held):
                tree.forget(each.inode, 1)

    @asynccontextmanager
    async def parent(self, path: str) -> AsyncIterator[tuple[Folder, str]]:
        *above, name = path.split("/")
        async with self.at(*MAIN, *above) as node:
            yield self.house.tree.folder(node.inode), name

    async def write(self, path: str, seed: str) -> None:
        async with self.parent(path) as (folder, name):
            try:
                async with self.at(*MAIN, *path.split("/")) as node:
                    opened = await node.open(write=True, truncate=True)
            except ModelfsError as error:
                if error.errno != errno.ENOENT:
                    raise
                _, opened = await folder.create(name)
            await self._fill(opened.handle, 0, data_of(seed))

    async def append(self, path: str, seed: str) -> None:
        async with self.at(*MAIN, *path.split("/")) as node:
            opened = await node.open(write=True, truncate=False)
            await self._fill(opened.handle, node.attributes().size, data_of(seed))

    @staticmethod
    async def _fill(handle: object, offset: int, data: bytes) -> None:
        for at in range(0, len(data), 40_000):
            await handle.write(offset + at, data[at : at + 40_000])  # type: ignore[attr-defined]
        await handle.flush()  # type: ignore[attr-defined]
        await handle.release()  # type: ignore[attr-defined]

    async def truncate(self, path: str, size: str) -> None:
        async with self.at(*MAIN, *path.split("/")) as node:
            if isinstance(node, Folder):  # the kernel itself says EISDIR
                raise IsAFolder(path)
            await node.change(Change(size=int(size)))

    async def unlink(self, path: str) -> None:
        async with self.parent(path) as (folder, name):
            await folder.unlink(name, ROOT)

    async def mkdir(self, path: str) -> None:
        async with self.parent(path) as (folder, name):
            self.house.tree.drop_unused(await folder.mkdir(name, ROOT))

    async def rmdir(self, path: str) -> None:
        async with self.parent(path) as (folder, name):
            await folder.rmdir(name, ROOT)

    async def rename(self, old: str, new: str) -> None:
        async with (
            self.parent(old) as (folder, name),
            self.parent(new) as (into, new_name),
            contextlib.AsyncExitStack() as held,  # the kernel knows both by now
        ):
            await held.enter_async_context(self.at(*MAIN, *old.split("/")))
            with contextlib.suppress(ModelfsError):
                await held.enter_async_context(self.at(*MAIN, *new.split("/")))
            await folder.rename(name, into, new_name, ROOT, replace=True)

    async def others_put(self, path: str, seed: str) -> None:
        self.house.store.place(PREFIX + path, data_of(seed))

    async def others_delete(self, path: str) -> None:
        self.house.store.take(PREFIX + path)

    async def freeze(self, name: str) -> None:
        async with self.at(*MODEL) as node:
            folder = self.house.tree.folder(node.inode)
            self.house.tree.drop_unused(await folder.mkdir(name, ROOT))
        view = await self.house.ended(name)
        assert view.state is State.READY, view.error

    async def remove(self, name: str) -> None:
        async with self.at(*MODEL) as node:
            await self.house.tree.folder(node.inode).rmdir(name, ROOT)

    async def alias(self, alias: str, name: str) -> None:
        """As ln -sfn does."""
        async with self.at(*MODEL) as node:
            folder = self.house.tree.folder(node.inode)
            self.house.tree.drop_unused(await folder.symlink("CuTemporary", name, ROOT))
            await folder.rename("CuTemporary", folder, alias, ROOT, replace=True)

    async def unalias(self, alias: str) -> None:
        async with self.at(*MODEL) as node:
            await self.house.tree.folder(node.inode).unlink(alias, ROOT)

    async def evict(self) -> None:
        cache = self.house.cache
        before, cache.max_bytes = cache.max_bytes, 0
        await cache.make_room(0)
        cache.max_bytes = before

    async def read(self, *names: str) -> tuple[dict[str, bytes], set[str]]:
        """Return the files and folders below a path."""
        files: dict[str, bytes] = {}
        folders: set[str] = set()
        async with self.at(*names) as node:
            listed = [n for n, _ in await self.house.tree.folder(node.inode).entries()]
        for name in listed:
            async with self.at(*names, name) as node:
                if isinstance(node, Folder):
                    folders.add(name)
                else:
                    files[name] = await self._content(node)
            if name in folders:
                inner_files, inner_folders = await self.read(*names, name)
                files |= {f"{name}/{path}": data for path, data in inner_files.items()}
                folders |= {f"{name}/{path}" for path in inner_folders}
        return files, folders

    @staticmethod
    async def _content(node: Node) -> bytes:
        await node.refresh()
        size = node.attributes().size
        opened = await node.open(write=False, truncate=False)
        try:
            data = await opened.handle.read(0, size + 10)
            assert len(data) == size
            return bytes(data)
        finally:
            await opened.handle.release()


async def check(house: House, expected: Expected) -> None:
    kernel = Kernel(house)
    files, folders = await kernel.read(*MAIN)
    assert files == expected.files
    assert folders == expected.folders
    assert house.store.below(PREFIX) == expected.files
    async with kernel.at(*MODEL) as node:
        listed = {name for name, _ in await house.tree.folder(node.inode).entries()}
    latest = {"latest"} if expected.versions else set()
    assert listed == {"main", *expected.versions, *expected.aliases, *latest}
    for name, content in expected.versions.items():
        assert (await kernel.read(*MODEL, name))[0] == content
        assert house.plain(name) == content
        assert (await house.library.view(version(name))).state is State.READY
    for alias, name in expected.aliases.items():
        async with kernel.at(*MODEL, alias) as node:
            assert await node.readlink() == name
    house.check()
    assert list(house.tree) == [house.tree.root]


paths = st.sampled_from(["a", "b", "d", "d/a", "d/e", "d/e/a", "f", "f/a"])
seeds = st.integers(0, 12).map(str)
names = st.sampled_from(["v1", "v2", "v3"])
alias_names = st.sampled_from(["production", "staging"])


def is_possible(step: Step) -> bool:
    """The kernel itself refuses to move a folder into itself, or over what holds it."""
    if step[0] != "rename":
        return True
    old, new = f"{step[1]}/", f"{step[2]}/"
    return old == new or not (old.startswith(new) or new.startswith(old))


steps = st.one_of(
    st.tuples(st.just("write"), paths, seeds),
    st.tuples(st.just("append"), paths, seeds),
    st.tuples(st.just("truncate"), paths, st.sampled_from(["0", "10", "100000"])),
    st.tuples(st.just("unlink"), paths),
    st.tuples(st.just("mkdir"), paths),
    st.tuples(st.just("rmdir"), paths),
    st.tuples(st.just("rename"), paths, paths).filter(is_possible),
    st.tuples(st.just("others_put"), paths, seeds),
    st.tuples(st.just("others_delete"), paths),
    st.tuples(st.just("freeze"), names),
    st.tuples(st.just("remove"), names),
    st.tuples(st.just("alias"), alias_names, names),
    st.tuples(st.just("unalias"), alias_names),
    st.tuples(st.just("evict")),
    st.tuples(st.just("restart")),
)

STORY: list[Step] = [
    *(("mkdir", "d"), ("write", "d/a", "1"), ("mkdir", "d/e"), ("write", "d/e/a", "2")),
    *(("freeze", "v1"), ("alias", "production", "v1"), ("rename", "d", "f"), ("freeze", "v2")),
    *(("others_put", "f/a", "5"), ("append", "f/a", "6"), ("evict",), ("alias", "staging", "v1")),
    *(("alias", "production", "v2"), ("remove", "v1"), ("unalias", "staging"), ("remove", "v1")),
    *(("restart",), ("mkdir", "d"), ("mkdir", "d/e"), ("rmdir", "d/e"), ("truncate", "f/a", "10")),
]


@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@example(STORY)
@given(st.lists(steps, min_size=5, max_size=20))
def test_the_tree_is_what_a_dictionary_would_be(story: list[Step]) -> None:
    drive(story)


@trio_test
async def drive(story: list[Step]) -> None:
    store, expected = FakeStore(), Expected()
    store.place(PREFIX, b"")
    left = list(story)
    with tempfile.TemporaryDirectory() as folder:
        while left:
            async with open_house(Path(folder) / "store", store) as house:
                await check(house, expected)
                while left and (step := left.pop(0)) != ("restart",):
                    await take(house, expected, step)
                    await check(house, expected)
                await house.writeback.drain()
        assert (Path(folder) / "store" / "models" / LLAMA.namespace).is_dir() or not expected.used


async def take(house: House, expected: Expected, step: Step) -> None:
    """Take a step on both sides; the answers must be the same."""
    what, *arguments = step
    others_would = Expected(dict(expected.files), set(expected.marked))
    if what == "others_put" and (
        others_would.missing(arguments[0]) == errno.ENOTDIR or others_would.is_folder(arguments[0])
    ):
        return  # it would hide a key: the tests of listings are about that
    wanted = getattr(expected, what)(*arguments)
    try:
        await getattr(Kernel(house), what)(*arguments)
        found = 0
    except ModelfsError as error:
        found = error.errno
    assert errno.errorcode.get(found, found) == errno.errorcode.get(wanted, wanted), step
