"""The freezes that this node works on: begun here, or gone on with after another node died.

Owned by the trio thread.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from modelfs.concurrency import Background, Threads
from modelfs.errors import Busy, ModelfsError, NoSpace
from modelfs.names import ModelId, VersionId, check_version_name
from modelfs.registry.registry import Registry
from modelfs.store import pending, publishing, versions, views
from modelfs.store.cache import Cache
from modelfs.store.freeze import Freeze, FreezeThreads, State
from modelfs.store.health import StoreHealth
from modelfs.store.layout import Layout, close_fd, free_bytes
from modelfs.store.manifest import Manifest, Provenance, pin
from modelfs.store.parts import Fetcher
from modelfs.store.shelves import Shelves
from modelfs.store.sources import Caller, Sources
from modelfs.store.staging import Staging
from modelfs.tables import NamespaceConfig

log = logging.getLogger(__name__)


class Freezes:
    """See the module. `failed` is what `resume` last saw of those that have failed for good."""

    def __init__(
        self,
        layout: Layout,
        registry: Registry,
        staging: Staging,
        cache: Cache,
        fetcher: Fetcher,
        disk: Threads,
        background: Background,
        health: StoreHealth,
        shelves: Shelves,
        sources: Sources,
        *,
        part_size: int,
        provenance: Provenance,
        namespace_of: Callable[[str], NamespaceConfig],
        on_served: Callable[[VersionId], None],
    ) -> None:
        self._layout = layout
        self._registry = registry
        self._staging = staging
        self._cache = cache
        self._fetcher = fetcher
        self._disk = disk
        self._background = background
        self._health = health
        self._shelves = shelves
        self._sources = sources
        self._threads = FreezeThreads()
        self._part_size = part_size
        self._provenance = provenance
        self._namespace_of = namespace_of
        self._on_served = on_served
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
        self._shelves.changed(version.model)
        return True

    async def begin(self, version: VersionId, caller: Caller) -> None:
        """Pin the model's listing and begin to bring it; what costs least is checked first."""
        check_version_name(version.version)
        await self._disk.run(self._health.check_now)
        await self._disk.run(versions.check_unused, self._layout, version)
        self._check_idle((await self._shelves.of(version.model)).source or version.model)
        manifest = await self._pin(version, caller)
        unchanged = await self._disk.run(pending.unchanged_files, self._layout, manifest)
        needed = await self._check_space(manifest, unchanged)
        namespace = self._namespace_of(version.model.namespace)
        await self._disk.run(
            publishing.make_namespace, self._layout, version.model.namespace, namespace
        )
        lock_fd = await self._disk.run(pending.claim, self._layout, manifest, needed)
        self._start(manifest, lock_fd, unchanged)

    async def _pin(self, version: VersionId, caller: Caller) -> Manifest:
        origin, listing = await self._sources.list_afresh(version.model, caller)
        self._check_idle(origin)
        return pin(
            *(version, origin, listing, self._provenance),
            pinned_ns=time.time_ns(),
            uid=caller.uid,
        )

    def _check_idle(self, model: ModelId) -> None:
        writing = [s for s in self._staging.below(model, "") if s.is_dirty]
        if writing:
            raise Busy(f"{writing[0].name} is being written, or waits for its upload")

    async def _check_space(self, manifest: Manifest, here: pending.Unchanged) -> int:
        """Return how many bytes must be fetched; raises NoSpace where they do not fit.

        What the freezes under way will still write is counted as used.
        """
        needed = sum(
            entry.size
            for entry in manifest.files
            if entry.object.id not in here and not self._cache.complete_file(entry.object.id)
        )
        free, _ = await self._disk.run(free_bytes, self._layout.models)
        reserved = await self._disk.run(pending.reserved_bytes, self._layout)
        if needed and needed > free - reserved:
            raise NoSpace(
                f"{manifest.id} needs {needed} bytes more, the store {self._layout.root} "
                f"has {free} free, {reserved} of them promised to other freezes"
            )
        return needed

    def _start(
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
        self._shelves.changed(manifest.id.model)
        self._background.start_soon(self._run, freeze, name=f"freeze {manifest.id}")

    async def _run(self, freeze: Freeze) -> None:
        try:
            await freeze.run(lambda manifest: self._shelves.changed(manifest.id.model))
        except Exception:
            log.exception("the freeze of %s ended by a bug", freeze.manifest.id)
            await freeze.fail("a bug of modelfs: see the log")
        self._shelves.changed(freeze.manifest.id.model)
        if freeze.state is State.READY or not freeze.is_ours:
            self._under_way.pop(freeze.manifest.id, None)
        if freeze.state is State.READY:
            self._on_served(freeze.manifest.id)  # `latest` points at it
            with suppress(ModelfsError, OSError):
                await self._shelves.of(freeze.manifest.id.model)  # so that it is counted

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
            is_going_on = False
            try:
                view = await self._disk.run(views.pending_view, self._layout, version)
                if await self._disk.run(self._layout.version(version).is_dir):
                    of = (self._layout, version, self._namespace_of(version.model.namespace))
                    await self._disk.run(publishing.finish_publish, *of)
                elif view.state is State.FAILED:
                    failed[version] = view.error or ""
                else:
                    log.info("going on with the freeze of %s", version)
                    self._start(view.manifest, lock_fd)
                    is_going_on = True
            except ModelfsError as error:
                log.error("%s", error)
            finally:
                if not is_going_on:
                    close_fd(lock_fd)
        self.failed = failed
