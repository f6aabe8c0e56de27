"""What the store's folders say of each model, remembered for a moment.

Owned by the trio thread.
"""

from cachetools import TTLCache

from modelfs.concurrency import Threads
from modelfs.names import ModelId
from modelfs.store import versions
from modelfs.store.census import Census
from modelfs.store.health import StoreHealth
from modelfs.store.layout import Layout
from modelfs.store.versions import ModelShelf

SHELVES_MAX = 10_000  # models of which the store's folder is held in memory
SHELF_AGE_S = 0.5  # what another node did is seen within this and NAMES_TTL_S of mount/


class Shelves:
    """See the module."""

    def __init__(self, layout: Layout, disk: Threads, health: StoreHealth) -> None:
        self._layout = layout
        self._disk = disk
        self._known: TTLCache[ModelId, ModelShelf] = TTLCache(SHELVES_MAX, SHELF_AGE_S)
        self._changes = 0
        self.census = Census(layout, disk, health)

    async def of(self, model: ModelId) -> ModelShelf:
        """Return the versions and aliases of a model, at most `SHELF_AGE_S` old."""
        found = self._known.get(model)
        if found is None:
            changes = self._changes
            found = await self._disk.run(versions.shelf, self._layout, model)
            if changes == self._changes:  # else it may be of before the change
                self._known[model] = found
                self.census.note(model, found)
        return found

    async def keep_counting(self) -> None:
        """Look at every model now and then, so that all are counted; runs for ever."""
        await self.census.watch(self.of)

    def changed(self, model: ModelId) -> None:
        """Read anew what the store says of a model: this node has just changed it."""
        self._changes += 1
        self._known.pop(model, None)
