"""Puts everything together: start and stop order, signals, readiness.

Start: store, cache index, staged files, pending freezes; then the mount; then READY.
Stop (SIGTERM, SIGINT): waiting uploads are sent, at most `drain_timeout`; then the mount
is taken away. What could not be sent stays staged and is named in the log. SIGHUP: the
configuration is read again (reloading.py).
"""

import faulthandler
import fcntl
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pyfuse3
import trio

from modelfs import __version__, logs
from modelfs.concurrency import Background, Threads
from modelfs.config import Config
from modelfs.errors import MountError, RegistryError, RegistryUnavailable, StoreError
from modelfs.mount import mountpoints, scraping
from modelfs.mount.fuse import Operations
from modelfs.mount.levels import RootFolder
from modelfs.mount.metrics import metrics
from modelfs.mount.native import NativeVersions
from modelfs.mount.tree import Services, Tree
from modelfs.mount.workfile import WorkFile
from modelfs.mountinfo import SOURCE
from modelfs.names import Keys
from modelfs.notifying import Report, notify, notify_reloading, watchdog_s
from modelfs.registry.objects import ObjectId, ObjectStore
from modelfs.registry.registry import Registry
from modelfs.registry.s3 import S3Store
from modelfs.registry.s3_settings import S3Settings
from modelfs.registry.wire import wrong_scheme
from modelfs.reloading import Reloading
from modelfs.store import publishing, versions
from modelfs.store.cache import Cache
from modelfs.store.health import StoreHealth
from modelfs.store.layout import Layout
from modelfs.store.library import Library
from modelfs.store.manifest import Provenance
from modelfs.store.parts import Fetcher
from modelfs.store.prefetch import Prefetcher
from modelfs.store.staging import Staging
from modelfs.store.warming import Warmer
from modelfs.store.writeback import Writeback
from modelfs.tables import DEFAULT_STORES, RegistryConfig

log = logging.getLogger(__name__)

DISK_THREADS = 16
WAITING_REQUESTS = 512  # requests of the kernel that may wait for the registry at once
CACHE_SAVE_LIMIT_S = 10.0
FOLDED_INTERVAL_S = 5.0
HANDLERS_LIMIT_S = 10.0  # for requests that are still being answered when the daemon ends

WrapStore = Callable[[ObjectStore], ObjectStore]
MakeOperations = Callable[[Tree], Operations]


def run(
    config: RegistryConfig,
    mountpoint: Path,
    *,
    options: Sequence[str] = (),
    ready_fd: int | None = None,
    file: Config | None = None,
    wrap_store: WrapStore = lambda store: store,
    make_operations: MakeOperations = Operations,
) -> int:
    """Mount a registry and serve it until it is unmounted or told to end; return 0.

    Writes `ok` to `ready_fd`, and tells systemd, when the mount answers. `file` is what SIGHUP
    has read again. Raises ModelfsError for what a person has to mend. `wrap_store` and
    `make_operations` are for tests that inject faults.
    """
    faulthandler.enable()  # SIGABRT, by which systemd ends a daemon that hangs, says where
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    os.umask(0o022)  # who may read the store is said by namespaces, not by who starts us
    if "ro" in options:
        config = config.model_copy(update={"read_only": True})
    check_disk(config)
    layout = Layout(config.store, socket.gethostname())
    layout.make()
    mountpoints.prepare(mountpoint)
    lock_fd = _lock(layout)
    try:
        s3 = S3Store(S3Settings.of(config))
        daemon = _Daemon(config, mountpoint, layout, options, ready_fd, lock_fd, file, s3)
        trio.run(daemon.main, wrap_store(s3), make_operations)
    except BaseExceptionGroup as group:
        raise _only(group) from group
    finally:
        os.close(lock_fd)
    return 0


def check_disk(config: RegistryConfig) -> None:
    """Raise StoreError where the store is not on the disk that the configuration names."""
    is_default = config.store == DEFAULT_STORES / config.name
    mountpoints.check_store(config.store, config.store_filesystem, is_default=is_default)


def _only(error: BaseException) -> BaseException:
    """Return the one error inside nested groups of one: what a person is told."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _lock(layout: Layout) -> int:
    """Hold the node's part of the store; raises StoreError where another daemon does."""
    fd = os.open(layout.cache / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise StoreError(
            f"the store {layout.root} is used by another modelfs on this node: "
            "end it first, or give this registry a store of its own"
        ) from None
    return fd


class _Daemon:
    """One mount, from its start to its end."""

    def __init__(
        self,
        config: RegistryConfig,
        mountpoint: Path,
        layout: Layout,
        options: Sequence[str],
        ready_fd: int | None,
        lock_fd: int,
        file: Config | None,
        s3: S3Store,
    ) -> None:
        self._config = config
        self._mountpoint = mountpoint
        self._layout = layout
        self._options = options
        self._ready_fd = ready_fd
        self._lock_fd = lock_fd
        self._file = file
        self._has_terminal = os.isatty(0)
        self._s3 = s3
        self._tree: Tree | None = None
        self._drain_until: float | None = None

    async def main(self, store: ObjectStore, make_operations: MakeOperations) -> None:
        async with trio.open_nursery() as nursery:
            background = Background(nursery)
            services = self._build(store, background)
            await self._check_registry(services)
            await services.health.ask()
            await services.cache.load()
            for staged in await services.staging.load():
                services.writeback.start(staged)
            sweep = services.writeback.uploader.keep_sweeping
            background.start_soon(sweep, name="unfinished uploads")
            background.start_soon(services.registry.watch, name="registry watch")
            background.start_soon(services.health.watch, self._hold_again, name="store watch")
            background.start_soon(self._own_namespaces, services, name="owners of namespaces")
            background.start_soon(services.library.keep_resuming, name="pending freezes")
            shelves = services.library.shelves
            background.start_soon(shelves.keep_counting, name="count of versions")
            background.start_soon(services.lag.watch, name="event loop's lag")
            background.start_soon(_tell_folded, name="folded lines of the log")
            if (port := self._config.metrics_port) is not None:
                make_text = partial(metrics, services)
                serve = (scraping.serve, self._config.metrics_listen, port, make_text)
                background.start_soon(*serve, name="metrics over HTTP")
            self._tree = Tree(services, lambda tree: RootFolder(tree, None, ""))
            gc.freeze()  # what is here stays: looking through it again takes 50 ms each time
            await self._serve(services, background, make_operations(self._tree))
            await self._end(services)
            nursery.cancel_scope.cancel()

    def _build(self, store: ObjectStore, background: Background) -> Services:
        config, layout = self._config, self._layout
        disk = Threads(DISK_THREADS)
        registry = self._registry(store, background)
        cache = self._cache(disk, background)
        health = StoreHealth(layout, lambda: check_disk(self._config))
        staging = Staging(
            *(layout.staged, disk),
            local_only=config.local_only,
            max_bytes=config.staged_max,
            check_store=health.check_there,
        )
        fetcher = Fetcher(registry, background, disk, config.parallel_requests)
        prefetcher = Prefetcher(
            *(cache, fetcher, registry, background, disk),
            window_bytes=config.read_ahead,
            knows_formats=config.read_ahead_formats,
        )
        writeback = Writeback(registry, staging, cache, background, host=layout.host)
        native = NativeVersions(layout, self._mountpoint, is_enabled=config.native_versions)
        library = Library(
            *(layout, registry, staging, cache, fetcher, disk, background, health),
            part_size=config.part_size,
            provenance=self._provenance(),
            namespace_of=lambda name: self._config.namespace_of(name),
            on_served=native.want,
        )
        return Services(
            *(config, registry, cache, fetcher, prefetcher, staging, writeback, library, native),
            *(disk, health),
            uid=os.getuid(),
            gid=os.getgid(),
            started_ns=time.time_ns(),
            mountpoint=self._mountpoint,
            warmer=Warmer(cache, fetcher, background),
            background=background,
        )

    def _registry(self, store: ObjectStore, background: Background) -> Registry:
        return Registry(
            *(store, Keys(self._config.prefix), background),
            metadata_ttl_s=self._config.metadata_ttl_s,
            timeout_s=self._config.timeout_s,
            parallel_requests=self._config.parallel_requests,
        )

    def _cache(self, disk: Threads, background: Background) -> Cache:
        return Cache(
            *(self._layout.cache, disk, background),
            part_size=self._config.part_size,
            max_bytes=self._config.cache.max_size,
            min_free=self._config.cache.min_free_bytes,
            on_wrong_bytes=self._drop_pages,
        )

    def _provenance(self) -> Provenance:
        config = self._config
        where = (config.name, config.endpoint, config.bucket, config.prefix)
        return Provenance(*where, self._layout.host, __version__)

    async def _check_registry(self, services: Services) -> None:
        """Go on where the registry is down; refuse what it refuses, if nothing is served else."""
        try:
            await services.registry.probe()
        except RegistryUnavailable as error:
            wrong = await trio.to_thread.run_sync(wrong_scheme, self._config.endpoint)
            if wrong is None:
                log.warning("starting without the registry: %s", error)
            else:
                await self._refuse_start(services, RegistryError(wrong))
        except RegistryError as error:
            await self._refuse_start(services, error)

    async def _refuse_start(self, services: Services, error: RegistryError) -> None:
        if not await services.disk.run(versions.namespaces, self._layout):
            raise error
        log.error("the registry refuses, versions are served all the same: %s", error)

    async def _own_namespaces(self, services: Services) -> None:
        """Give the namespaces of the store the owners and modes of the configuration."""
        names, found = list(self._config.namespaces), self._config.namespace_of
        await services.disk.run(publishing.own_namespaces, self._layout, names, found)

    def _hold_again(self) -> None:
        """Lock the node's part of a store that was away: a new mount of it knows no locks."""
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            log.debug("the lock of the store is lost: %s", error)
        try:
            held = _lock(self._layout)
        except (StoreError, OSError) as error:
            log.error("the store is not ours alone any more: %s", error)
            return
        os.dup2(held, self._lock_fd, inheritable=False)
        os.close(held)

    def _drop_pages(self, object_id: ObjectId) -> None:
        """Let the kernel forget the pages of an object whose bytes were wrong."""
        assert self._tree is not None
        for node in list(self._tree):
            if isinstance(node, WorkFile) and node.info is not None and node.info.id == object_id:
                try:
                    pyfuse3.invalidate_inode(node.inode)
                except OSError as error:
                    log.debug("invalidating %s: %s", node.name, error)

    # ------------------------------------------------------------- the mount

    async def _serve(
        self, services: Services, background: Background, operations: Operations
    ) -> None:
        try:
            pyfuse3.init(operations, str(self._mountpoint), self._fuse_options())
        except RuntimeError as error:
            raise MountError(
                f"{self._mountpoint}: cannot be mounted ({error}); is /dev/fuse there, and "
                "fusermount3 installed (package fuse3)?"
            ) from error
        report = Report(self._mountpoint, services, lambda: operations.answered, watchdog_s())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._announce, services, background, report, name="announce")
                nursery.start_soon(self._obey, services, nursery.cancel_scope, name="signals")
                nursery.start_soon(self._reload, services, operations, report, name="reload")
                await pyfuse3.main(max_tasks=WAITING_REQUESTS)
                nursery.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)

    def _fuse_options(self) -> set[str]:
        options = set(pyfuse3.default_options)
        options |= {f"fsname={SOURCE}{self._config.name}", "subtype=modelfs"}
        options |= set(self._options)
        if self._config.read_only:
            options.add("ro")
        if os.getuid() == 0:
            options.add("allow_other")
        return options

    async def _announce(self, services: Services, background: Background, report: Report) -> None:
        """Say that the mount is there once it answers, asked by a thread."""
        await trio.to_thread.run_sync(os.stat, self._mountpoint, abandon_on_cancel=True)
        await trio.to_thread.run_sync(mountpoints.tune, self._mountpoint)
        log.info("%s is mounted at %s", self._config.name, self._mountpoint)
        report.say("READY=1")
        if self._ready_fd is not None:
            os.write(self._ready_fd, b"ok\n")
            os.close(self._ready_fd)
        offer = services.native.offer
        background.start_soon(services.library.announce_served, offer, name="served versions")
        background.start_soon(services.native.run, name="native mounts")
        background.start_soon(report.run, name="report to systemd")

    async def _reload(self, services: Services, operations: Operations, report: Report) -> None:
        """Obey SIGHUP: read the configuration again, or end with the terminal that is gone."""
        reloading = None
        if self._file is not None:
            reloading = Reloading(
                *(self._config.name, self._file, check_disk, services, self._s3, operations)
            )
        with trio.open_signal_receiver(signal.SIGHUP) as signals:
            async for _ in signals:
                if self._has_terminal and not os.isatty(0):
                    signal.raise_signal(signal.SIGTERM)
                elif reloading is not None:
                    notify_reloading()
                    try:
                        self._config = await reloading.reload()
                    except Exception:  # which must not end the mount
                        log.exception("reading the configuration again failed by a bug")
                    report.say("READY=1")

    async def _obey(self, services: Services, serving: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("%s: ending", signal.Signals(number).name)
                await self._drain(services)
                await services.native.release_all()
                pyfuse3.terminate()
                serving.deadline = trio.current_time() + HANDLERS_LIMIT_S

    async def _drain(self, services: Services) -> None:
        """Send what waits; before and after the unmount there is one `drain_timeout` for both."""
        if self._drain_until is None:
            notify("STOPPING=1")
            self._drain_until = trio.current_time() + self._config.drain_timeout_s
        with trio.move_on_at(self._drain_until):
            await services.writeback.drain()

    async def _end(self, services: Services) -> None:
        """After the unmount: send what waits still (umount(8) does not ask before it acts)."""
        await self._drain(services)
        for staged in services.writeback.waiting():
            log.error(
                "%s/main/%s is not in the registry yet: it stays staged and is sent at the "
                "next start (%s)",
                *(staged.model, staged.name, staged.error or "the time was up"),
            )
        with trio.move_on_after(CACHE_SAVE_LIMIT_S):
            await services.cache.save_all()


async def _tell_folded() -> None:
    """Say how often lines came again that were not said; runs for ever."""
    while True:
        await trio.sleep(FOLDED_INTERVAL_S)
        logs.tell_folded()
