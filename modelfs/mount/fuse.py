"""pyfuse3's Operations: look up, call, convert. No decisions.

Every handler is wrapped (`handler`): a ModelfsError or OSError becomes its errno, time is
bounded and counted, and a bug costs the call EIO and a traceback in the log, never the mount
(with pyfuse3 any other exception would end it).
"""

import errno
import functools
import logging
import os
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio

from modelfs.errors import InvalidName, ModelfsError, NameTooLong, NotFound, NotPermitted
from modelfs.mount import failures
from modelfs.mount.mountpoints import has_direct_writes
from modelfs.mount.opentable import OpenTable
from modelfs.mount.tree import Attributes, Change, Node, Opened, Tree
from modelfs.names import NAME_MAX_BYTES
from modelfs.store.layout import free_bytes
from modelfs.store.sources import Caller

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

XATTR_PREFIX = "user.modelfs."
BLOCK_BYTES = 512  # the unit of st_blocks
PREFERRED_BYTES = 1 << 20  # st_blksize: how much cp and cat ask for at once
DEADLINE_GRACE_S = 5.0  # a handler's own limits end first; this one only bounds bugs


def handler(
    *, is_bounded: bool
) -> Callable[
    [Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]]],
    Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]],
]:
    """Wrap a FUSE handler; `is_bounded` where its time has no bound by progress of its own."""

    def wrap(
        method: Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]],
    ) -> Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]]:
        name = method.__name__

        @functools.wraps(method)
        async def wrapped(self: "Operations", *args: P.args, **kwargs: P.kwargs) -> R:
            begun = self.requests.begin()
            try:
                if not is_bounded:
                    return await method(self, *args, **kwargs)
                with trio.fail_after(self.deadline_s):
                    return await method(self, *args, **kwargs)
            except Exception as error:
                number = self._errno_of(name, args, error)
                self.requests.fail(name, number)
                raise pyfuse3.FUSEError(number) from error
            finally:
                self.requests.end(name, begun)
                self.answered += 1

        return wrapped  # type: ignore[return-value]  # functools.wraps names the first argument

    return wrap


class Operations(pyfuse3.Operations):
    """The kernel's requests, answered by the tree."""

    enable_writeback_cache = False
    enable_acl = False
    supports_dot_lookup = False

    def __init__(self, tree: Tree) -> None:
        super().__init__()
        self.tree = tree
        tree.forget_name = _forget_name
        self.requests = tree.services.requests
        self.set_timeout(tree.services.config.timeout_s)
        self.answered = 0  # requests, so that a busy mount is told from one that hangs
        self._open = OpenTable()
        self._writes_directly = has_direct_writes()

    def _errno_of(self, name: str, args: Sequence[Any], error: Exception) -> int:
        """Return the errno of what a handler has raised; the log says what is no daily matter."""
        if isinstance(error, pyfuse3.FUSEError):
            return int(error.errno)
        if not isinstance(error, ModelfsError | OSError | trio.TooSlowError):
            self.tree.services.bugs += 1
        place = self._open.place(self.tree, name, args)
        return failures.log_failure(name, place, error, self.deadline_s)

    def set_timeout(self, timeout_s: float) -> None:
        """Let the registry be silent for so long from now on."""
        self.deadline_s = timeout_s + DEADLINE_GRACE_S

    # ---------------------------------------------------------------- names

    @handler(is_bounded=True)
    async def lookup(self, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        folder = self.tree.folder(parent)
        if len(name) > NAME_MAX_BYTES:  # the kernel's own limit is higher
            raise NameTooLong(f"a name of {len(name)} bytes")
        try:
            return self._shown(await folder.lookup(_text(name)))
        except (NotFound, InvalidName) as error:
            absent_ttl_s = folder.absent_ttl_s()
            if absent_ttl_s <= 0:
                raise NotFound(str(error)) from error
            absent = pyfuse3.EntryAttributes()
            absent.st_ino = 0
            absent.entry_timeout = absent_ttl_s
            return absent

    def _shown(self, node: Node) -> pyfuse3.EntryAttributes:
        """Convert a node's attributes, and count that the kernel knows it now."""
        try:
            entry = _convert(node.attributes())
        except BaseException:
            self.tree.drop_unused(node)
            raise
        node.lookups += 1
        return entry

    async def forget(self, inodes: Sequence[tuple[int, int]]) -> None:
        for inode, count in inodes:
            try:
                self.tree.forget(inode, count)
            except Exception:
                log.exception("forget failed by a bug")

    @handler(is_bounded=True)
    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        node = self.tree[inode]
        await node.refresh()
        return _convert(node.attributes())

    @handler(is_bounded=False)
    async def setattr(
        self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        node = self.tree[inode]
        await node.change(
            Change(
                size=attr.st_size if fields.update_size else None,
                mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
            )
        )
        await node.refresh()
        return _convert(node.attributes())

    @handler(is_bounded=True)
    async def readlink(self, inode: int, ctx: Any) -> bytes:
        return os.fsencode(await self.tree[inode].readlink())

    @handler(is_bounded=True)
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._shown(await self.tree.folder(parent).mkdir(_text(name), _caller(ctx)))

    @handler(is_bounded=True)
    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        await self.tree.folder(parent).rmdir(_text(name), _caller(ctx))

    @handler(is_bounded=False)
    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        await self.tree.folder(parent).unlink(_text(name), _caller(ctx))

    @handler(is_bounded=True)
    async def symlink(
        self, parent: int, name: bytes, target: bytes, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        return self._shown(
            await self.tree.folder(parent).symlink(_text(name), _text(target), _caller(ctx))
        )

    @handler(is_bounded=False)
    async def rename(
        self, parent: int, name: bytes, into: int, new_name: bytes, flags: int, ctx: Any
    ) -> None:
        if flags & pyfuse3.RENAME_EXCHANGE:
            raise InvalidName("two names cannot be exchanged in a registry")
        await self.tree.folder(parent).rename(
            _text(name),
            self.tree.folder(into),
            _text(new_name),
            _caller(ctx),
            replace=not flags & pyfuse3.RENAME_NOREPLACE,
        )

    @handler(is_bounded=True)
    async def link(self, inode: int, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        raise NotPermitted("the registry has no hard links")

    @handler(is_bounded=True)
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        raise NotPermitted("the registry holds files and folders alone")

    # -------------------------------------------------------------- folders

    @handler(is_bounded=True)
    async def opendir(self, inode: int, ctx: Any) -> int:
        return self._open.add_folder(self.tree.folder(inode))

    @handler(is_bounded=True)
    async def readdir(self, fh: int, start: int, token: Any) -> None:
        opened = self._open.folder(fh)
        entries = await opened.entries_from(start)
        dots = [(b".", opened.folder), (b"..", opened.folder.parent or opened.folder)]
        for index, (dot, folder) in enumerate(dots[start:], start):
            if not pyfuse3.readdir_reply(token, dot, _convert(folder.attributes()), index + 1):
                return
        first = max(0, start - len(dots))
        for index, (name, make) in enumerate(entries[first:], first):
            node = make()
            if node is None:
                continue
            shown = _convert(node.attributes())
            number = index + len(dots) + 1
            if not pyfuse3.readdir_reply(token, os.fsencode(name), shown, number):
                self.tree.drop_unused(node)
                return
            node.lookups += 1

    @handler(is_bounded=True)
    async def releasedir(self, fh: int) -> None:
        self._open.close_folder(fh)

    @handler(is_bounded=True)
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        pass  # names are in the registry, or in the store durably, when they are made

    # ---------------------------------------------------------------- files

    @handler(is_bounded=False)
    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        opened = await self.tree[inode].open_for(
            _caller(ctx),
            write=flags & os.O_ACCMODE != os.O_RDONLY,
            truncate=bool(flags & os.O_TRUNC),
        )
        return self._opened(opened, self.tree[inode], flags)

    @handler(is_bounded=True)
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        node, opened = await self.tree.folder(parent).create(_text(name))
        return self._opened(opened, node, flags), self._shown(node)

    def _opened(self, opened: Opened, node: Node, flags: int) -> pyfuse3.FileInfo:
        # Whoever writes alone has no use for pages in the kernel: each is a copy more.
        is_write_only = flags & os.O_ACCMODE == os.O_WRONLY
        number = self._open.add_file(opened.handle, node)
        self.requests.open_files += 1
        return pyfuse3.FileInfo(
            fh=number,
            direct_io=opened.is_direct or (self._writes_directly and is_write_only),
            keep_cache=opened.keeps_pages,
        )

    @handler(is_bounded=False)
    async def read(self, fh: int, offset: int, size: int) -> bytes:
        data = await self._open.file(fh).read(offset, size)
        self.requests.served_bytes += len(data)
        return data  # type: ignore[return-value]  # any buffer

    @handler(is_bounded=False)
    async def write(self, fh: int, offset: int, data: bytes) -> int:
        count = await self._open.file(fh).write(offset, data)
        self.requests.written_bytes += count
        return count

    @handler(is_bounded=False)
    async def flush(self, fh: int) -> None:
        await self._open.file(fh).flush()

    @handler(is_bounded=False)
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._open.file(fh).fsync()

    @handler(is_bounded=False)
    async def release(self, fh: int) -> None:
        self.requests.open_files -= 1
        try:
            await self._open.file(fh).release()
        finally:
            self._open.close_file(fh)

    # ----------------------------------------------------------- attributes

    @handler(is_bounded=True)
    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        services = self.tree.services
        free, total = await services.disk.run_or_leave(free_bytes, services.config.store)
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = total // 4096
        answer.f_bfree = answer.f_bavail = free // 4096
        answer.f_files = answer.f_ffree = answer.f_favail = 0
        answer.f_namemax = 255
        return answer

    @handler(is_bounded=True)
    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        text = os.fsdecode(name)
        if not text.startswith(XATTR_PREFIX):
            # Of other namespaces (security, system) there are none at all: ls and cp, which are
            # told so once, ask no more for each file; of user there is just none of this name.
            missing = errno.ENODATA if text.startswith("user.") else errno.EOPNOTSUPP
            raise pyfuse3.FUSEError(missing)
        return (await self.tree[inode].xattr(text.removeprefix(XATTR_PREFIX))).encode()

    @handler(is_bounded=True)
    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        return [os.fsencode(XATTR_PREFIX + name) for name in await self.tree[inode].xattrs()]

    @handler(is_bounded=True)
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        node = self.tree[inode]
        node_name = os.fsdecode(name)
        if not node_name.startswith(XATTR_PREFIX):
            node.refuse_change()
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        text = node_name.removeprefix(XATTR_PREFIX)
        try:
            said = value.decode()
        except UnicodeDecodeError:
            raise InvalidName(f"the value of {text} is no UTF-8") from None
        await node.set_xattr(text, said, _caller(ctx))

    @handler(is_bounded=True)
    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        self.tree[inode].remove_xattr(os.fsdecode(name).removeprefix(XATTR_PREFIX))


def _text(name: bytes) -> str:
    return os.fsdecode(name)


def _caller(ctx: Any) -> Caller:
    return Caller(ctx.uid, ctx.gid, functools.partial(_groups, ctx.pid))


def _groups(pid: int) -> Collection[int]:
    """Return the supplementary groups of a process; of one that cannot be seen there are none."""
    try:
        return pyfuse3.get_sup_groups(pid)
    except OSError:  # of another pid namespace, as a container's daemon sees its host's
        return ()


def _forget_name(inode: int, name: str) -> None:
    """Let the kernel look a name up anew: soon, it holds the folder while it waits for us."""
    pyfuse3.invalidate_entry_async(inode, os.fsencode(name), ignore_enoent=True)


def _convert(attributes: Attributes) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = attributes.inode
    entry.generation = 0
    entry.entry_timeout = entry.attr_timeout = attributes.ttl_s
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.link_count
    entry.st_uid = attributes.uid
    entry.st_gid = attributes.gid
    entry.st_rdev = 0
    entry.st_size = attributes.size
    entry.st_blksize = PREFERRED_BYTES
    entry.st_blocks = -(-attributes.size // BLOCK_BYTES)
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.mtime_ns
    return entry
