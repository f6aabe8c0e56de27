"""The versions that this mount knows: views of them, their files, freezes, aliases.

The async front of versions.py (what lies in the store) and freezes.py (what is on its
way). Owned by the trio thread. Manifests of ready versions, which never change, are kept
in memory up to a bound; what else a folder of the store says is read anew when it is
older than `SHELF_AGE_S`.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Set
from contextlib import suppress
from functools import partial

import trio
from cachetools import LRUCache, TTLCache

from modelfs.concurrency import Background, Threads, side_by_side
from modelfs.errors import Busy, ModelfsError, NoSpace, NotFound, VersionFailed
from modelfs.names import ModelId, VersionId, check_alias_name, check_version_name
from modelfs.registry.registry import Registry
from modelfs.store import aliases, pending, publishing, versions, views
from modelfs.store.cache import Cache
from modelfs.store.census import Census
from modelfs.store.freeze import State
from modelfs.store.freezes import Freezes
from modelfs.store.health import StoreHealth
from modelfs.store.layout import Layout, close_fd, free_bytes
from modelfs.store.localreads import LocalReads
from modelfs.store.manifest import Entry, Manifest, Provenance, pin
from modelfs.store.openfiles import ComingFile, PlainFile, Readable, open_plain
from modelfs.store.parts import Fetcher
from modelfs.store.sources import Caller, Sources
from modelfs.store.staging import Staging
from modelfs.store.views import VersionView
from modelfs.tables import NamespaceConfig

log = logging.getLogger(__name__)

ENTRIES_MAX = 200_000  # manifest entries held in memory over all versions
VIEWS_AT_ONCE = 8  # manifests of one model that are read side by side
SHELVES_MAX = 10_000  # models of which the store's folder is held in memory
SHELF_AGE_S = 0.5  # what another node did is seen within this and NAMES_TTL_S of mount/
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
        self._staging = staging
        self._cache = cache
        self.fetcher = fetcher
        self.reads = LocalReads(disk)
        self._disk = disk
        self._background = background
        self._health = health
        self._provenance = provenance
        self._namespace_of = namespace_of
        self._on_served = on_served
        self._views: LRUCache[VersionId, VersionView] = LRUCache(
            ENTRIES_MAX, getsizeof=lambda view: min(ENTRIES_MAX, 1 + len(view.manifest.files))
        )
        self._shelves: TTLCache[ModelId, versions.ModelShelf] = TTLCache(SHELVES_MAX, SHELF_AGE_S)
        self._changes = 0
        self.damaged: dict[VersionId, str] = {}  # as `keep_resuming` last saw it, for status.json
        self.census = Census(layout, disk, health)
        self.open_files: Counter[VersionId] = Counter()
        self.sources = Sources(
            *(layout, registry, staging, disk, background, health),
            namespace_of=namespace_of,
            shelf=self.shelf,
            changed=self._changed,
        )
        self.freezes = Freezes(
            *(layout, registry, cache, fetcher, disk, background),
            part_size=part_size,
            namespace_of=namespace_of,
            on_served=on_served,
            shelf=self.shelf,
            changed=self._changed,
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
        return not (await self.shelf(model)).is_empty

    async def forget_empty(self, namespace: str) -> None:
        """Let a namespace go whose models are gone."""
        await self._disk.run(publishing.forget_empty, self.layout, namespace)

    async def shelf(self, model: ModelId) -> versions.ModelShelf:
        """Return the versions and aliases of a model, at most `SHELF_AGE_S` old."""
        found = self._shelves.get(model)
        if found is None:
            changes = self._changes
            found = await self._disk.run(versions.shelf, self.layout, model)
            if changes == self._changes:  # else it may be of before the change
                self._shelves[model] = found
                self.census.note(model, found)
        return found

    async def view(self, version: VersionId) -> VersionView:
        """Return a version as it is now; raises NotFound."""
        found = self._views.get(version)
        shelf = await self.shelf(version.model)
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
            self._changed(version.model)
            if version.version not in (await self.shelf(version.model)).ready:
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
        is_ready = version.version in (await self.shelf(version.model)).ready
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

    # -------------------------------------------------------------- freezes

    async def freeze(self, version: VersionId, caller: Caller) -> None:
        """Pin the model's listing and begin to bring it; see DESIGN for the order of checks."""
        check_version_name(version.version)
        await self._disk.run(self._health.check_now)
        await self._disk.run(versions.check_unused, self.layout, version)
        self._check_idle((await self.shelf(version.model)).source or version.model)
        manifest = await self._pin(version, caller)
        unchanged = await self._disk.run(pending.unchanged_files, self.layout, manifest)
        needed = await self._check_space(manifest, unchanged)
        namespace = self._namespace_of(version.model.namespace)
        await self._disk.run(
            publishing.make_namespace, self.layout, version.model.namespace, namespace
        )
        lock_fd = await self._disk.run(pending.claim, self.layout, manifest, needed)
        self.freezes.start(manifest, lock_fd, unchanged)

    async def _pin(self, version: VersionId, caller: Caller) -> Manifest:
        origin, listing = await self.sources.list_afresh(version.model, caller)
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
        free, _ = await self._disk.run(free_bytes, self.layout.models)
        reserved = await self._disk.run(pending.reserved_bytes, self.layout)
        if needed and needed > free - reserved:
            raise NoSpace(
                f"{manifest.id} needs {needed} bytes more, the store {self.layout.root} "
                f"has {free} free, {reserved} of them promised to other freezes"
            )
        return needed

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
        self._changed(version.model)

    # -------------------------------------------------------------- aliases

    async def make_alias(self, model: ModelId, alias: str, target: str, uid: int) -> None:
        check_alias_name(alias)
        await self._change(model, aliases.make_alias, alias, target, uid)
        self._on_served(VersionId(model, target.removesuffix("/")))

    async def _change(self, model: ModelId, change: Callable[..., None], *args: str | int) -> None:
        await self._disk.run(self._health.check_now)
        await self._disk.run(change, self.layout, model, *args)
        self._changed(model)

    async def announce_served(self, announce: Callable[[VersionId], None]) -> None:
        """Name every version that an alias points at, those first that a person pointed at."""
        newest = []
        for model in await self._disk.run(versions.all_models, self.layout):
            shelf = await self.shelf(model)
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
        if (target := (await self.shelf(model)).aliases.get(new)) is not None:
            self._on_served(VersionId(model, target))

    async def remove_alias(self, model: ModelId, alias: str, uid: int) -> None:
        check_alias_name(alias)
        await self._change(model, aliases.remove_alias, alias, uid)

    def _changed(self, model: ModelId) -> None:
        self._changes += 1
        self._shelves.pop(model, None)

    def opened(self, version: VersionId) -> None:
        self.open_files[version] += 1

    def closed(self, version: VersionId) -> None:
        self.open_files[version] -= 1
        if not self.open_files[version]:
            del self.open_files[version]
