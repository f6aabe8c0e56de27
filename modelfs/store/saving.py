"""The cache's sidecars are written: soon after parts came, many by one thread.

Owned by the trio thread.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from modelfs.concurrency import Background, Threads
from modelfs.store import sidecar
from modelfs.store.cachedfile import CachedFile

log = logging.getLogger(__name__)

SAVE_INTERVAL_S = 2.0  # how long a part that came may stay unrecorded
FILES_A_THREAD = 32  # one after the other; who evicts one of them waits for all


class Saver:
    """See the module. `is_current` tells whether the cache knows a file still.

    INVARIANT: a file whose sidecar does not tell what is here is `is_unsaved`, and one of its
    tasks will write it.
    """

    def __init__(
        self,
        folder: Path,
        disk: Threads,
        background: Background,
        is_current: Callable[[CachedFile], bool],
    ) -> None:
        self._folder = folder
        self._disk = disk
        self._background = background
        self._is_current = is_current
        self._complete: list[CachedFile] = []
        self._is_saving = False
        self._several = trio.Lock()  # of those who lock several files, one at a time

    def save_soon(self, file: CachedFile) -> None:
        """Have a file's sidecar written soon: those of complete files together."""
        if file.is_unsaved:
            return
        file.is_unsaved = True
        if not file.is_complete:
            self._background.start_soon(self._save_later, file, name="sidecar")
            return
        self._complete.append(file)
        if not self._is_saving:
            self._is_saving = True
            self._background.start_soon(self._save_complete, name="sidecars")

    async def _save_later(self, file: CachedFile) -> None:
        await trio.sleep(SAVE_INTERVAL_S)
        if file.is_unsaved:
            await self._write([file])

    async def _save_complete(self) -> None:
        try:
            while self._complete:
                await trio.sleep(SAVE_INTERVAL_S)
                files, self._complete = self._complete, []
                await self.save_all(files)
        finally:
            self._is_saving = False

    async def save(self, file: CachedFile) -> None:
        """Write a file's sidecar now."""
        file.is_unsaved = True
        await self._write([file])

    async def save_all(self, files: Iterable[CachedFile]) -> None:
        """Write the sidecars of those that wait for it."""
        waiting = [file for file in files if file.is_unsaved]
        for start in range(0, len(waiting), FILES_A_THREAD):
            async with self._several:
                await self._write(waiting[start : start + FILES_A_THREAD])

    async def _write(self, files: Iterable[CachedFile]) -> None:
        async with AsyncExitStack() as locks:
            waiting = []
            for file in dict.fromkeys(files):  # one that was saved in between may wait twice
                await locks.enter_async_context(file.saving)
                if file.is_unsaved and self._is_current(file):
                    file.is_unsaved = False
                    parts = None if file.is_complete else sorted(file.present)
                    saved = sidecar.Sidecar(file.path, file.info, file.part_size, parts)
                    waiting.append((file, saved))
            sidecars = [saved for _, saved in waiting]
            failed = await self._disk.run(sidecar.write_all, self._folder, sidecars)
            for (file, saved), error in zip(waiting, failed, strict=True):
                if error is not None and self._is_current(file):  # else it was evicted meanwhile
                    log.warning("the cache's sidecar of %s: %s", saved.info.id.key, error)
