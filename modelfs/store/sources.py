"""Local models of another namespace's model: whose main/ they show, and who may make them.

The truth is the user metadata `source` (NS/MODEL) of the model's marker in the registry. The
store remembers it as the symlink `models/NS/MODEL/main`, so that the tree is right on every
node, and while the registry is down. The marker is asked, at most once in `metadata_ttl`, of
models that have such a link and of models that are their marker alone. Owned by the trio thread.
"""

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import trio

from modelfs.concurrency import Background, SingleFlight, Threads
from modelfs.errors import Forbidden, InvalidName, ModelfsError, NotEmpty, NotFound, StoreError
from modelfs.names import ModelId, parse_model
from modelfs.registry.listing import Listing
from modelfs.registry.registry import Registry
from modelfs.store import publishing
from modelfs.store.health import StoreHealth
from modelfs.store.layout import Layout
from modelfs.store.shelves import Shelves
from modelfs.store.staging import Staging
from modelfs.tables import NamespaceConfig

log = logging.getLogger(__name__)

SOURCE = "source"
ASK_LIMIT_S = 1.0  # of a lookup: the kernel lets nothing else into the folder meanwhile


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a process's user and group; its supplementary groups are asked for where they
    matter: reading them from /proc costs more than all else of an open().
    """

    uid: int
    gid: int
    groups: Callable[[], Collection[int]] = frozenset

    def may_read(self, uid: int, gid: int, mode: int) -> bool:
        """Tell whether a folder of that owner and mode may be listed and passed, as on a disk."""
        if self.uid == 0:
            return True
        if self.uid == uid:
            bits = mode >> 6
        elif gid == self.gid or gid in self.groups():
            bits = mode >> 3
        else:
            bits = mode
        return bits & 0o5 == 0o5


class Sources:
    """See the module."""

    def __init__(
        self,
        layout: Layout,
        registry: Registry,
        staging: Staging,
        disk: Threads,
        background: Background,
        health: StoreHealth,
        shelves: Shelves,
        *,
        namespace_of: Callable[[str], NamespaceConfig],
    ) -> None:
        self._layout = layout
        self._registry = registry
        self._staging = staging
        self._disk = disk
        self._health = health
        self._namespace_of = namespace_of
        self._shelves = shelves
        self._flights: SingleFlight[ModelId, ModelId | None] = SingleFlight(background)
        self._setting = trio.Lock()
        self._settings = 0

    # -------------------------------------------------------------- answers

    async def find(self, model: ModelId) -> ModelId | None:
        """Return the model whose main/ is this one's; None where it has its own.

        Where the registry does not answer within a moment, it is what the store remembers.
        """
        if (await self._shelves.of(model)).source is None and self._registry.knows_files(model):
            return None  # which is most lookups of a main/
        with trio.move_on_after(ASK_LIMIT_S):
            try:
                return await self._flights.do(model, partial(self._ask, model))
            except ModelfsError as error:
                log.debug("the source of %s is what the store remembers: %s", model, error)
        return (await self._shelves.of(model)).source

    async def _ask(self, model: ModelId) -> ModelId | None:
        """Return the source of a model, asking no more than is needed."""
        if (await self._shelves.of(model)).source is None and not await self._registry.is_bare(
            model
        ):
            return None
        return await self._learn(model)

    async def _learn(self, model: ModelId) -> ModelId | None:
        """Return what the marker says; the store remembers it."""
        settings = self._settings
        said = _parsed(model, (await self._registry.description(model)).get(SOURCE, ""))
        if said != (await self._shelves.of(model)).source:
            async with self._setting:
                if settings != self._settings:  # what the marker said may be of before the change
                    return (await self._shelves.of(model)).source
                await self._remember(model, said)
        return said

    async def _remember(self, model: ModelId, source: ModelId | None) -> None:
        namespace = self._namespace_of(model.namespace)
        try:
            await self._disk.run(self._health.check_now)
            await self._disk.run(publishing.set_source, self._layout, model, source, namespace)
        except (StoreError, OSError) as error:  # the marker will be asked again
            log.warning("the store does not remember the source of %s: %s", model, error)
        self._shelves.changed(model)

    # -------------------------------------------------------------- changes

    async def set(self, model: ModelId, text: str, caller: Caller) -> None:
        """Give a model the main/ of `text` (NS/MODEL), or its own ('').

        Raises InvalidName, Forbidden, NotFound, and NotEmpty where its own main/ has files.
        """
        source = parse_model(text) if text else None
        if source is not None:
            await self._check(model, source, caller)
        await self._disk.run(self._health.check_now)
        async with self._setting:
            described = await self._registry.description(model, is_now=True)
            described.pop(SOURCE, None)
            if source is not None:
                described[SOURCE] = str(source)
            await self._registry.describe(model, described)
            await self._remember(model, source)
            self._settings += 1

    async def forget(self, model: ModelId) -> None:
        """Forget whose main/ a model had: it is removed."""
        async with self._setting:
            await self._remember(model, None)
            self._settings += 1

    async def _check(self, model: ModelId, source: ModelId, caller: Caller) -> None:
        if source == model:
            raise InvalidName(f"{model} cannot be its own source")
        self._check_readable(source, caller)
        if not await self._registry.has_model(source):
            raise NotFound(f"there is no model {source} in the registry")
        if (further := await self._ask(source)) is not None:
            raise InvalidName(f"{source} has no main/ of its own, it is {further}'s")
        if self._staging.below(model, "") or await self._registry.has_keys(model):
            raise NotEmpty(f"{model}/main has files: they would be seen no more")

    def _check_readable(self, source: ModelId, caller: Caller) -> None:
        """Raise Forbidden where a caller may not read a source: the daemon reads it for him."""
        namespace = self._namespace_of(source.namespace)
        uid = os.getuid() if namespace.uid is None else namespace.uid
        gid = os.getgid() if namespace.gid is None else namespace.gid
        if not caller.may_read(uid, gid, namespace.mode):
            raise Forbidden(f"user {caller.uid} may not read {source}")

    # -------------------------------------------------------------- freezes

    async def list_afresh(self, model: ModelId, caller: Caller) -> tuple[ModelId, Listing]:
        """Return whose main/ a version of a model is made of, and what that holds, now.

        Raises NotFound where the model or its source is gone, Forbidden, InvalidName.
        """
        source = None
        if (await self._shelves.of(model)).source is not None:
            source = await self._learn(model)
        if source is None:
            listing = await self._registry.list_afresh(model)
            if _has_files(listing) or (source := await self._learn(model)) is None:
                return model, listing
        self._check_readable(source, caller)
        try:
            listing = await self._registry.list_afresh(source)
        except NotFound:
            raise NotFound(f"{source}, the source of {model}, is gone") from None
        further = (await self._shelves.of(source)).source
        if further is None and not _has_files(listing):
            further = await self._learn(source)
        if further is not None:
            raise InvalidName(f"{source}, the source of {model}, has {further}'s main/ now")
        return source, listing


def _has_files(listing: Listing) -> bool:
    return any(True for _ in listing.walk())


def _parsed(model: ModelId, text: str) -> ModelId | None:
    """Return the model that a marker's metadata names; what names none is passed over."""
    if not text:
        return None
    try:
        source = parse_model(text)
    except InvalidName as error:
        log.info("the source of %s is not understood: %s", model, error)
        return None
    return source if source != model else None
