"""How many ready versions the store has, for whoever watches.

Counted when a model is looked at for any reason, and now and then all over: other nodes make
and remove versions. Owned by the trio thread.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from modelfs.concurrency import Threads
from modelfs.errors import ModelfsError
from modelfs.names import ModelId
from modelfs.store import versions
from modelfs.store.health import StoreHealth
from modelfs.store.layout import Layout
from modelfs.store.versions import ModelShelf

log = logging.getLogger(__name__)

INTERVAL_S = 300.0


class Census:
    """See the module. INVARIANT: a model without a ready version is not in `_ready`."""

    def __init__(self, layout: Layout, disk: Threads, health: StoreHealth) -> None:
        self._layout = layout
        self._disk = disk
        self._health = health
        self._ready: dict[ModelId, int] = {}

    @property
    def ready_versions(self) -> int:
        return sum(self._ready.values())

    def note(self, model: ModelId, shelf: ModelShelf) -> None:
        """Count a model that was just looked at."""
        self._ready.pop(model, None)
        if shelf.ready:
            self._ready[model] = len(shelf.ready)

    async def watch(self, look: Callable[[ModelId], Awaitable[ModelShelf]]) -> None:
        """Have every model looked at now and then, one after the other; runs for ever."""
        while True:
            try:
                self._health.check()
                models = await self._disk.run(versions.all_models, self._layout)
                for gone in self._ready.keys() - set(models):
                    del self._ready[gone]
                for model in models:
                    await look(model)
            except (ModelfsError, OSError) as error:
                log.debug("the versions cannot be counted: %s", error)
            await trio.sleep(INTERVAL_S)
