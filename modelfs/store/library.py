"""The versions that this mount knows: views of them, their files, freezes, aliases.

The async front of versions.py (what lies in the store) and freezes.py (what is on its
way). Owned by the trio thread. Manifests of ready versions, which never change, are kept
in memory up to a bound; what else the store says is in shelves.py.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from functools import partial

import trio
from cachetools import LRUCache

from modelfs.concurrency import Background, Threads, side_by_side
from modelfs.errors import Busy, ModelfsError, NotFound, VersionFailed
from modelfs.names import ModelId, VersionId, check_alias_name
from modelfs.registry.registry import Registry
from modelfs.store import aliases, pending, publishing, versions, views
from modelfs.store.cache import Cache
from modelfs.store.freeze import State
from modelfs.store.freezes import Freezes
from modelfs.store.health import StoreHealth
from modelfs.store.layout import Layout, close_fd
from modelfs.store.localreads import LocalReads
from modelfs.store.manifest import Entry, Provenance
from modelfs.store.openfiles import ComingFile, PlainFile, Readable, open_plain
from modelfs.store.parts import Fetcher
from modelfs.store.shelves import Shelves
from modelfs.store.sources import Sources
from modelfs.store.staging import Staging
from modelfs.store.views import VersionView
from modelfs.tables import NamespaceConfig

log = logging.getLogger(__name__)

ENTRIES_MAX = 200_000  # manifest entries held in memory over all versions
VIEWS_AT_ONCE = 8  # manifests of one model that are read side by side
ORPHANS_INTERVAL_S = 10.0  # how often freezes of nodes that died, and damage, are looked for


class Library:
    """See the module."""

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
        *,
        part_size: int,
        provenance: Provenance,
        namespace_of: Callable[[str], NamespaceConfig] = lambda name: NamespaceConfig(),
        on_served: Callable[[VersionId], None] = lambda version: None,
    ) -> None:
        self.layout = layout
        self._cache = cache
        self.fetcher = fetcher
        self.reads = LocalReads(disk)
        self._disk = disk
        self._background = background
        self._health = health
        self._on_served = on_served
        self._views: LRUCache[VersionId, VersionView] = LRUCache(ENTRIES_MAX, _weight)
        self.damaged: dict[VersionId, str] = {}  # as `keep_resuming` last saw it, for status.json
        self.open_files: Counter[VersionId] = Counter()
        self.shelves = Shelves(layout, disk, health)
        self.sources = Sources(
            *(layout, registry, staging, disk, background, health, self.shelves),
            namespace_of=namespace_of,
        )
        self.freezes = Freezes(
            *(layout, registry, staging, cache, fetcher, disk, background, health),
            *(self.shelves, self.sources),
            part_size=part_size,
            provenance=provenance,
            namespace_of=namespace_of,
            on_served=on_served,
        )

    # ---------------------------------------------------------------- views

    async def namespaces(self) -> set[str]:
        return await self._disk.run(versions.namespaces, self.layout)

    async def models(self, namespace: str, known: Set[str] = frozenset()) -> set[str]:
        """Return the models of a namespace that the store knows, without asking for `known`."""
        return await self._disk.run(versions.models, self.layout, namespace, known)

    async def has_namespace(self, namespace: str) -> bool:
        return await self._disk.run(versions.has_namespace, self.layout, namespace)

    async def has_model(self, model: ModelId) -> bool:
        """Tell whether the store knows a model."""
        return not (await self.shelves.of(model)).is_empty

    async def forget_empty(self, namespace: str) -> None:
        """Let a namespace go whose models are gone."""
        await self._disk.run(publishing.forget_empty, self.layout, namespace)

    async def view(self, version: VersionId) -> VersionView:
        """Return a version as it is now; raises NotFound."""
        found = self._views.get(version)
        shelf = await self.shelves.of(version.model)
        if version.version in shelf.ready:
            if found is None:
                found = await self._disk.run(views.ready_view, self.layout, version)
                self._views[version] = found
            return found
        self._views.pop(version, None)
        freeze = self.freezes.get(version)
        if freeze is not None and freeze.state is State.DOWNLOADING:
            return VersionView(
                freeze.manifest,
                freeze.folders,
                freeze.state,
                freeze.done_bytes,
                freeze.error or self._health.state.error,
            )
        if version.version not in shelf.pending:
            raise NotFound(f"there is no version {version}")
        try:
            return await self._disk.run(views.pending_view, self.layout, version)
        except NotFound:  # perhaps another node has made it ready since the shelf was read
            self.shelves.changed(version.model)
            if version.version not in (await self.shelves.of(version.model)).ready:
                raise
            return await self.view(version)

    async def damage(self, version: VersionId) -> str | None:
        """Return what `modelfs verify` could not put right of a ready version.

        While the store is away: what was known before.
        """
        if self._health.state.error is not None:
            return self.damaged.get(version)
        return await self._disk.run(versions.damage, self.layout, version)

    async def views(self, wanted: Iterable[VersionId]) -> dict[VersionId, VersionView]:
        """Return those versions that are there, as they are now."""
        found: dict[VersionId, VersionView] = {}

        async def look(version: VersionId) -> None:
            with suppress(NotFound):
                found[version] = await self.view(version)

        works = [partial(look, version) for version in wanted]
        await side_by_side(works, VIEWS_AT_ONCE)
        return found

    async def open(self, version: VersionId, entry: Entry) -> Readable:
        """Open a file of a version: the plain file, or what is coming of it."""
        view = await self.view(version)
        if view.state is State.FAILED:
            raise VersionFailed(f"{version} has failed: {view.error}")
        finished = await self.open_finished(version, entry.path)
        if finished is not None:
            return finished
        freeze = self.freezes.get(version)
        coming = await (freeze.open_coming(entry) if freeze else self._cache.open(entry.object))
        return ComingFile(self, freeze, coming, version, entry.path)

    async def open_finished(self, version: VersionId, path: str) -> PlainFile | None:
        """Open a file of a version where all of it is here and checked, else return None."""
        freeze = self.freezes.get(version)
        is_ready = version.version in (await self.shelves.of(version.model)).ready
        if not is_ready and (freeze is None or path not in freeze.done):
            return None
        folders = [self.layout.pending(version) / "files"] if not is_ready else []
        for folder in (*folders, self.layout.version(version)):  # it may move in between
            try:
                opened = await self._disk.run(open_plain, folder / path)
            except FileNotFoundError:
                continue
            return PlainFile(self, version, opened)
        if not await self._disk.run(self.layout.version(version).is_dir):
            raise NotFound(f"there is no version {version}")
        raise VersionFailed(
            f"{version} lacks {path}, in quarantine: modelfs verify {version} brings it"
        )

    # ---------------------------------------------------- freezes, removal

    async def keep_resuming(self) -> None:
        """Look for freezes of nodes that died, and for damage that was found; runs for ever."""
        is_swept = False
        while True:
            try:
                self._health.check()
                self.damaged = await self._disk.run(versions.damaged, self.layout)
                await self.freezes.resume()
                if not is_swept:
                    await self._sweep_all()
                    is_swept = True
            except (ModelfsError, OSError) as error:
                level = logging.DEBUG if self._health.state.error else logging.WARNING
                log.log(level, "pending freezes cannot be looked at: %s", error)
            await trio.sleep(ORPHANS_INTERVAL_S)

    async def _sweep_all(self) -> None:
        """Remove what earlier daemons had begun to remove, and claims that were not finished.

        A model at a time: the end of the daemon waits for no more than one.
        """
        for model in await self._disk.run(versions.all_models, self.layout):
            await self._disk.run(publishing.sweep, self.layout, model)
            await self._disk.run(publishing.sweep_claims, self.layout, model)

    async def remove(self, version: VersionId) -> None:
        """Delete a version whole, or give up a freeze; raises Busy, NotFound."""
        if self.open_files[version]:
            raise Busy(f"{version} has {self.open_files[version]} open files on this mount")
        await self._disk.run(self._health.check_now)
        shelf = await self._disk.run(versions.shelf, self.layout, version.model)
        if version.version in shelf.ready:
            await self.freezes.stop(version)  # it may just be ready, and has a last step to do
            # What a freeze that was cut off at its very end left would bring it back.
            await self._disk.run(publishing.discard_pending, self.layout, version)
            await self._disk.run(publishing.retire, self.layout, version)
            sweep = (self._disk.run, publishing.sweep, self.layout, version.model)
            self._background.start_soon(*sweep, name=f"sweep {version}")
        elif version.version in shelf.pending:
            if await self.freezes.stop(version):
                await self.remove(version)
                return
            lock_fd = await self._disk.run(pending.take_over, self.layout, version)
            if lock_fd is None:
                if not await self._disk.run(self.layout.pending(version).exists):
                    await self.remove(version)  # it became ready, or was removed, just now
                    return
                raise Busy(f"{version} is being frozen by another node: remove it there")
            try:
                await self._disk.run(publishing.discard_pending, self.layout, version)
            finally:
                close_fd(lock_fd)
        else:
            raise NotFound(f"there is no version {version}")
        self.shelves.changed(version.model)

    # -------------------------------------------------------------- aliases

    async def make_alias(self, model: ModelId, alias: str, target: str, uid: int) -> None:
        check_alias_name(alias)
        await self._change(model, aliases.make_alias, alias, target, uid)
        self._on_served(VersionId(model, target.removesuffix("/")))

    async def _change(self, model: ModelId, change: Callable[..., None], *args: str | int) -> None:
        await self._disk.run(self._health.check_now)
        await self._disk.run(change, self.layout, model, *args)
        self.shelves.changed(model)

    async def announce_served(self, announce: Callable[[VersionId], None]) -> None:
        """Name every version that an alias points at, those first that a person pointed at."""
        newest = []
        for model in await self._disk.run(versions.all_models, self.layout):
            shelf = await self.shelves.of(model)
            for name in shelf.chosen:
                announce(VersionId(model, name))
            if shelf.latest is not None:
                newest.append(VersionId(model, shelf.latest))
        for version in newest:
            announce(version)

    async def rename_alias(self, model: ModelId, old: str, new: str, uid: int) -> None:
        check_alias_name(old)
        check_alias_name(new)
        await self._change(model, aliases.rename_alias, old, new, uid)
        if (target := (await self.shelves.of(model)).aliases.get(new)) is not None:
            self._on_served(VersionId(model, target))

    async def remove_alias(self, model: ModelId, alias: str, uid: int) -> None:
        check_alias_name(alias)
        await self._change(model, aliases.remove_alias, alias, uid)

    def opened(self, version: VersionId) -> None:
        self.open_files[version] += 1

    def closed(self, version: VersionId) -> None:
        self.open_files[version] -= 1
        if not self.open_files[version]:
            del self.open_files[version]


def _weight(view: VersionView) -> int:
    return min(ENTRIES_MAX, 1 + len(view.manifest.files))
