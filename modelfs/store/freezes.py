"""The freezes that this node works on: begun here, or gone on with after another node died.

Owned by the trio thread.
"""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

from modelfs.concurrency import Background, Threads
from modelfs.errors import ModelfsError
from modelfs.names import ModelId, VersionId
from modelfs.registry.registry import Registry
from modelfs.store import pending, publishing, views
from modelfs.store.cache import Cache
from modelfs.store.freeze import Freeze, FreezeThreads, State
from modelfs.store.layout import Layout, close_fd
from modelfs.store.manifest import Manifest
from modelfs.store.parts import Fetcher
from modelfs.store.versions import ModelShelf
from modelfs.tables import NamespaceConfig

log = logging.getLogger(__name__)


class Freezes:
    """See the module. `failed` is what `resume` last saw of those that have failed for good."""

    def __init__(
        self,
        layout: Layout,
        registry: Registry,
        cache: Cache,
        fetcher: Fetcher,
        disk: Threads,
        background: Background,
        *,
        part_size: int,
        namespace_of: Callable[[str], NamespaceConfig],
        on_served: Callable[[VersionId], None],
        shelf: Callable[[ModelId], Awaitable[ModelShelf]],
        changed: Callable[[ModelId], None],
    ) -> None:
        self._layout = layout
        self._registry = registry
        self._cache = cache
        self._fetcher = fetcher
        self._disk = disk
        self._background = background
        self._threads = FreezeThreads()
        self._part_size = part_size
        self._namespace_of = namespace_of
        self._on_served = on_served
        self._shelf = shelf
        self._changed = changed
        self._under_way: dict[VersionId, Freeze] = {}
        self.failed: dict[VersionId, str] = {}

    def __iter__(self) -> Iterator[Freeze]:
        return iter(list(self._under_way.values()))

    def get(self, version: VersionId) -> Freeze | None:
        return self._under_way.get(version)

    async def stop(self, version: VersionId) -> bool:
        """End a freeze that this node works on; return whether there was one."""
        freeze = self._under_way.get(version)
        if freeze is None:
            return False
        freeze.scope.cancel()
        await freeze.over.wait()
        self._under_way.pop(version, None)  # it is gone where it became ready just now
        self._changed(version.model)
        return True

    def start(
        self, manifest: Manifest, lock_fd: int, unchanged: pending.Unchanged | None = None
    ) -> None:
        """Begin to bring what a manifest names; `lock_fd` holds the claim, and is taken over."""
        freeze = Freeze(
            manifest,
            self._layout,
            lock_fd,
            registry=self._registry,
            fetcher=self._fetcher,
            cache=self._cache,
            disk=self._disk,
            threads=self._threads,
            part_size=self._part_size,
            namespace=self._namespace_of(manifest.namespace),
            unchanged=unchanged,
        )
        self._under_way[manifest.id] = freeze
        self._changed(manifest.id.model)
        self._background.start_soon(self._run, freeze, name=f"freeze {manifest.id}")

    async def _run(self, freeze: Freeze) -> None:
        try:
            await freeze.run(lambda manifest: self._changed(manifest.id.model))
        except Exception:
            log.exception("the freeze of %s ended by a bug", freeze.manifest.id)
            await freeze.fail("a bug of modelfs: see the log")
        self._changed(freeze.manifest.id.model)
        if freeze.state is State.READY or not freeze.is_ours:
            self._under_way.pop(freeze.manifest.id, None)
        if freeze.state is State.READY:
            self._on_served(freeze.manifest.id)  # `latest` points at it
            with suppress(ModelfsError, OSError):
                await self._shelf(freeze.manifest.id.model)  # so that it is counted

    async def resume(self) -> None:
        """Go on with freezes that nobody works on: at start, and when another node died."""
        failed: dict[VersionId, str] = {}
        for version in await self._disk.run(views.pending_versions, self._layout):
            ours = self._under_way.get(version)
            if ours is not None and ours.state is State.DOWNLOADING:
                continue
            lock_fd = await self._disk.run(pending.take_over, self._layout, version)
            if lock_fd is None:
                continue
            try:
                view = await self._disk.run(views.pending_view, self._layout, version)
                is_ready = await self._disk.run(self._layout.version(version).is_dir)
            except ModelfsError as error:
                log.error("%s", error)
                close_fd(lock_fd)
                continue
            if is_ready:
                namespace = self._namespace_of(version.model.namespace)
                await self._disk.run(publishing.finish_publish, self._layout, version, namespace)
            if view.state is State.FAILED and not is_ready:
                failed[version] = view.error or ""
            if is_ready or view.state is State.FAILED:
                close_fd(lock_fd)
            else:
                log.info("going on with the freeze of %s", version)
                self.start(view.manifest, lock_fd)
        self.failed = failed
