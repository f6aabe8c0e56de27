"""One registry: its namespaces, its models, their listings, and how old those may be.

How it is asked is in calls.py. Listings live in memory, are answered from there for
`metadata_ttl_s`, and are changed at once by what this mount does. Owned by the trio thread.
"""

import logging
import math
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from functools import partial

from cachetools import LRUCache, TTLCache

from modelfs.concurrency import Background, SingleFlight
from modelfs.errors import AccessDenied, AlreadyExists, NotFound, RegistryUnavailable
from modelfs.names import Keys, ModelId, is_plain_name
from modelfs.registry.calls import Calls
from modelfs.registry.listing import Changes, Folder, Listing
from modelfs.registry.objects import ListPage, ObjectId, ObjectInfo, ObjectStore

log = logging.getLogger(__name__)

WHOLE_PAGES = 20  # a model of more pages of 1,000 keys is listed folder by folder
LISTED_KEYS_MAX = 500_000  # keys held in memory over all models
HIDDEN_SHOWN = 1_000  # hidden keys named in status.json
DESCRIPTIONS_MAX = 10_000  # models whose description is held in memory


class Registry(Calls):
    """See the module."""

    def __init__(
        self,
        store: ObjectStore,
        keys: Keys,
        background: Background,
        *,
        metadata_ttl_s: float,
        timeout_s: float,
        parallel_requests: int,
    ) -> None:
        super().__init__(store, background, parallel_requests)
        self.keys = keys
        self.set_times(metadata_ttl_s=metadata_ttl_s, timeout_s=timeout_s)
        self._flights: SingleFlight[str, None] = SingleFlight(background)
        self._listings: LRUCache[str, Listing] = LRUCache(
            LISTED_KEYS_MAX, getsizeof=lambda listing: min(listing.key_count, LISTED_KEYS_MAX)
        )
        self._changes: dict[str, Changes] = {}
        self._big: set[str] = set()  # prefixes that are listed folder by folder
        self._hidden: dict[str, dict[str, str]] = {}
        self._described = 0  # descriptions that this mount has changed

    def set_times(self, *, metadata_ttl_s: float, timeout_s: float) -> None:
        """Believe listings, and wait for a registry that is silent, for so long from now on."""
        self.metadata_ttl_s = metadata_ttl_s
        self.timeout_s = timeout_s
        self._descriptions: TTLCache[ModelId, dict[str, str]] = TTLCache(
            DESCRIPTIONS_MAX, metadata_ttl_s
        )

    # ------------------------------------------------------------- listings

    async def namespaces(self) -> set[str]:
        """Return the names of the namespaces; known ones while the registry is down."""
        return await self._names(self.keys.prefix)

    async def has_namespace(self, namespace: str) -> bool:
        """Tell whether a namespace is there.

        While nobody has asked for all of them it is asked alone: a path goes on into it.
        """
        if self.keys.prefix not in self._listings:
            with suppress(NotFound):
                await self.models(namespace)
                return True
        return namespace in await self.namespaces()

    async def models(self, namespace: str) -> set[str]:
        """Return the names of a namespace's models; raises NotFound."""
        return await self._names(self.keys.namespace(namespace))

    async def _names(self, prefix: str) -> set[str]:
        listing = await self._fresh(prefix, "", by_folder=True)
        folder = listing.folders[""]
        if not listing.exists and prefix != self.keys.prefix:
            raise NotFound(f"no namespace {prefix}")
        return {name for name in folder.folders if is_plain_name(name)}

    async def has_model(self, model: ModelId) -> bool:
        try:
            return model.name in await self.models(model.namespace)
        except NotFound:
            return False

    async def folder(self, model: ModelId, path: str) -> Folder:
        """Return a folder of main/ ('' is main/ itself), at most `metadata_ttl_s` old.

        While the registry is down: as it was when last seen. Raises NotFound.
        """
        listing = await self._fresh(self.keys.model(model), path, by_folder=False)
        folder = listing.folders.get(path)
        if folder is None or (not path and not listing.exists):
            raise NotFound(f"no folder {path or 'main'} in {model}")
        return folder

    async def files(self, model: ModelId) -> list[ObjectInfo] | None:
        """Return every file of main/, as `folder` does; None of a model that is listed by folder.

        Raises NotFound.
        """
        prefix = self.keys.model(model)
        listing = await self._fresh(prefix, "", by_folder=False)
        if not listing.exists:
            raise NotFound(f"there is no model {model} in the registry")
        if not listing.is_whole:
            return None
        return [info for folder in listing.folders.values() for info in folder.files.values()]

    def knows_files(self, model: ModelId) -> bool:
        """Tell whether memory holds anything of a model's main/, however old."""
        listing = self._listings.get(self.keys.model(model))
        known = listing.folders.get("") if listing else None
        return known is not None and not known.is_empty

    async def is_bare(self, model: ModelId) -> bool:
        """Tell whether a model is its marker alone; files in memory are believed, however old."""
        if self.knows_files(model):
            return False
        try:
            folder = await self.folder(model, "")
        except NotFound:
            return False
        return folder.has_marker and folder.is_empty

    async def has_keys(self, model: ModelId) -> bool:
        """Tell whether there is a key of a model but its marker, now, hidden ones too."""
        prefix = self.keys.model(model)
        page = await self.call(partial(self.store.list_page, prefix, by_folder=False))
        return any(info.id.key != prefix for info in page.objects)

    def known_folder(self, model: ModelId, path: str) -> Folder:
        """Return what memory holds of a folder, however old; an empty one where that is nothing."""
        listing = self._listings.get(self.keys.model(model))
        return (listing.folders.get(path) if listing else None) or Folder()

    def known_file(self, model: ModelId, path: str) -> ObjectInfo | None:
        """Return what memory holds of a file, however old; None where that is nothing."""
        listing = self._listings.get(self.keys.model(model))
        parent, _, name = path.rpartition("/")
        folder = listing.folders.get(parent) if listing else None
        return folder.files.get(name) if folder else None

    async def list_afresh(self, model: ModelId) -> Listing:
        """List a model whole, now, past all memory; raises NotFound.

        Where the bucket keeps versions of its objects, the objects have their VersionIds.
        """
        prefix = self.keys.model(model)
        listing = Listing(prefix)
        try:
            with_versions = await self.call(self.store.is_versioned)
        except AccessDenied:  # rights for objects alone do
            with_versions = False
        await _add(listing, self._pages(prefix, with_versions=with_versions))
        if not listing.exists:
            raise NotFound(f"there is no model {model} in the registry")
        return listing

    async def list_below(self, prefix: str) -> list[ObjectInfo]:
        """Return every object whose key begins with `prefix`, now, hidden ones too."""
        return [info async for page in self._pages(prefix) for info in page.objects]

    async def _fresh(self, prefix: str, path: str, *, by_folder: bool) -> Listing:
        """Return the listing of `prefix` in which the folder `path` is of age, or absent."""
        listing = self._listings.get(prefix)
        if listing is not None and not self._has_expired(listing, path):
            return listing
        was_whole = not by_folder and prefix not in self._big
        flight = prefix if was_whole else f"{prefix}\0{path}"
        try:
            await self._flights.do(flight, lambda: self._refresh(prefix, path, by_folder))
        except RegistryUnavailable:
            if listing is None or (not listing.is_whole and path not in listing.folders):
                raise
            return listing
        if was_whole and path and prefix in self._big:  # it has turned out to be big just now
            return await self._fresh(prefix, path, by_folder=False)
        return self._listings[prefix]

    def _has_expired(self, listing: Listing, path: str) -> bool:
        folder = listing.folders.get(path)
        if folder is None:
            if not listing.is_whole:
                return True
            folder = listing.folders[""]
        return time.monotonic() - folder.listed_at > self.metadata_ttl_s

    async def _refresh(self, prefix: str, path: str, by_folder: bool) -> None:
        started_at = time.monotonic()
        changes = self._changes.setdefault(prefix, Changes())
        if not by_folder and prefix not in self._big:
            listing = Listing(prefix)
            if await _add(listing, self._pages(prefix), pages_max=WHOLE_PAGES):
                listing.add_folder("")
                changes.apply(listing, started_at)
                earlier = self._listings.get(prefix)
                for at, folder in listing.folders.items():
                    folder.listed_at = started_at
                    if earlier is not None and (before := earlier.folders.get(at)) is not None:
                        folder.follow(before)
                self._remember(listing)
                return
            log.info("%s has many keys: it is listed folder by folder", prefix)
            self._big.add(prefix)
            path = ""
        await self._refresh_folder(prefix, path, started_at, changes)

    async def _refresh_folder(
        self, prefix: str, path: str, started_at: float, changes: Changes
    ) -> None:
        fresh = Listing(prefix, is_whole=False)
        where = f"{prefix}{path}/" if path else prefix
        await _add(fresh, self._pages(where, by_folder=True))
        listing = self._listings.get(prefix)
        if listing is None or listing.is_whole:
            listing = Listing(prefix, is_whole=False)
        fresh.add_folder(path)
        changes.apply(fresh, started_at, path)
        folder = fresh.folders[path]
        if path and folder.is_empty and not folder.has_marker:
            listing.remove(f"{path}/")
        else:
            folder.listed_at = started_at
            if (before := listing.folders.get(path)) is not None:
                folder.follow(before)
            listing.folders[path] = folder
        listing.hidden.update(fresh.hidden)
        self._remember(listing)

    async def _pages(
        self, prefix: str, *, by_folder: bool = False, with_versions: bool = False
    ) -> AsyncGenerator[ListPage, None]:
        ask = partial(self.store.list_page, prefix, by_folder=by_folder)
        if with_versions:
            ask = partial(self.store.list_versions_page, prefix)
        token: str | None = None
        while True:
            page = await self.call(partial(ask, token=token))
            yield page
            token = page.token
            if token is None:
                return

    def _remember(self, listing: Listing) -> None:
        self._listings.pop(listing.prefix, None)
        self._listings[listing.prefix] = listing
        new = listing.hidden.keys() - self._hidden.get(listing.prefix, {}).keys()
        for key in sorted(new, key=repr)[:20]:
            log.warning("hidden key %r: %s", key, listing.hidden[key])
        if listing.hidden:
            self._hidden[listing.prefix] = dict(listing.hidden)
        else:
            self._hidden.pop(listing.prefix, None)

    def expires_in_s(self, folder: Folder) -> float:
        """Return for how long what `folder` says may still be believed, in seconds."""
        return max(0.0, folder.listed_at + self.metadata_ttl_s - time.monotonic())

    def age_left_s(self, model: ModelId, path: str) -> float:
        """Return for how long what is known of the folder `path` may still be believed."""
        listing = self._listings.get(self.keys.model(model))
        folder = listing.folders.get(path) if listing else None
        return self.expires_in_s(folder) if folder else 0.0

    def expire(self, model: ModelId, path: str) -> None:
        """Believe no longer what is known of the folder `path`: it was seen to be wrong."""
        listing = self._listings.get(self.keys.model(model))
        if listing is not None and (folder := listing.folders.get(path)) is not None:
            folder.listed_at = -math.inf

    @property
    def hidden_count(self) -> int:
        """How many keys are hidden from the tree."""
        return sum(map(len, self._hidden.values()))

    def hidden_keys(self) -> dict[str, str]:
        """Return key -> reason of keys that are hidden from the tree (the first 1,000)."""
        hidden = {k: r for keys in self._hidden.values() for k, r in keys.items()}
        return dict(sorted(hidden.items(), key=repr)[:HIDDEN_SHOWN])

    # -------------------------------------------------- what this mount does

    def note_put(self, model: ModelId, path: str, info: ObjectInfo) -> None:
        """Show a file, or a folder's marker (`path/`), that this mount has put, at once."""
        self._note_change(self.keys.model(model), path, info)

    def note_removed(self, model: ModelId, path: str) -> None:
        """Show at once that a file, or a folder (`path/`), is gone."""
        self._note_change(self.keys.model(model), path, None)

    def _note_change(self, prefix: str, path: str, info: ObjectInfo | None) -> None:
        self._changes.setdefault(prefix, Changes()).note(path, info)
        if (listing := self._listings.get(prefix)) is None:
            return
        above, _, name = path.removesuffix("/").rpartition("/")
        folder = listing.folders.get(above)
        was_there = folder is not None and folder.has(name)
        if info is None:
            listing.remove(path)
        else:
            listing.add(info)
        folder = listing.folders.get(above)
        if folder is not None and folder.has(name) != was_there:
            folder.changed_ns = time.time_ns()

    async def create_namespace(self, namespace: str) -> None:
        """Put a namespace's marker; raises AlreadyExists."""
        if namespace in await self.namespaces():
            raise AlreadyExists(f"the namespace {namespace} exists")
        key = self.keys.namespace(namespace)
        info = await self.call(self.store.put_empty, key, {})
        self._note_change(self.keys.prefix, f"{namespace}/", info)
        self._note_change(key, "", info)

    async def create_model(self, model: ModelId, metadata: Mapping[str, str]) -> None:
        """Put a model's marker; raises AlreadyExists."""
        if await self.has_model(model):
            raise AlreadyExists(f"the model {model} exists")
        await self.describe(model, metadata)

    async def describe(self, model: ModelId, metadata: Mapping[str, str]) -> None:
        """Put a model's marker anew with this user metadata."""
        info = await self.call(self.store.put_empty, self.keys.model(model), metadata)
        self._note_change(self.keys.namespace(model.namespace), f"{model.name}/", info)
        self.note_put(model, "", info)
        self._note_description(model, metadata)

    def _note_description(self, model: ModelId, metadata: Mapping[str, str]) -> None:
        self._described += 1
        self._descriptions[model] = dict(metadata)

    async def description(self, model: ModelId, *, is_now: bool = False) -> dict[str, str]:
        """Return the user metadata of a model's marker; {} where it has none.

        At most `metadata_ttl_s` old; with `is_now` it is asked for whatever is remembered.
        """
        if not is_now and (known := self._descriptions.get(model)) is not None:
            return dict(known)
        described = self._described
        try:
            info = await self.call(self.store.head, self.keys.model(model))
            found = dict(info.metadata or {})
        except NotFound:
            found = {}
        if described == self._described:  # else it may be of before the change
            self._descriptions[model] = found
        return dict(found)

    async def remove_model(self, model: ModelId) -> None:
        """Delete a model's marker; the caller knows that main/ is empty."""
        await self._remove_marker(self.keys.namespace(model.namespace), model.name)
        self._listings.pop(self.keys.model(model), None)
        self._note_description(model, {})

    async def remove_namespace(self, namespace: str) -> None:
        """Delete a namespace's marker; the caller knows that it has no models."""
        await self._remove_marker(self.keys.prefix, namespace)
        self._listings.pop(self.keys.namespace(namespace), None)

    async def _remove_marker(self, above: str, name: str) -> None:
        listing = self._listings.get(above)
        has_marker = listing is not None and listing.folders[""].has_marker
        if not has_marker and above != self.keys.prefix:  # it stays when its last key goes
            info = await self.call(self.store.put_empty, above, {})
            self._note_change(above, "", info)
        await self.call(self.store.delete, f"{above}{name}/")
        self._note_change(above, f"{name}/", None)


async def _add(
    listing: Listing, pages: AsyncGenerator[ListPage, None], *, pages_max: int | None = None
) -> bool:
    """Add every page to a listing; return False where there are more than `pages_max`."""
    count = 0
    async with aclosing(pages):
        async for page in pages:
            for info in page.objects:
                listing.add(info)
            for key in page.folders:
                listing.add(ObjectInfo(ObjectId(key, ""), 0, 0))
            count += 1
            if count == pages_max and page.token is not None:
                return False
    return True
