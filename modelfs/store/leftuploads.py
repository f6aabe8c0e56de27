"""Multipart uploads that nobody goes on with: they are aborted, for they cost space unseen.

They are those of an earlier daemon, those that could not be aborted, and those that may have begun
though no answer came. A request that was on its way when its daemon was killed may arrive after
the next one has looked: each is looked for again, until it is old. Until then they are on record
in `staged/HOST/uploads.left`, for a daemon may be killed again. Owned by the trio thread.
"""

import logging
import time
from collections.abc import Iterable, Set
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from modelfs.concurrency import Threads
from modelfs.errors import ModelfsError, RegistryUnavailable
from modelfs.registry.registry import Registry
from modelfs.store import stagedfolder
from modelfs.store.stagedfile import BegunUpload

log = logging.getLogger(__name__)

LEFT_MAX = 1000  # on record; what is left beside them is named by `doctor`
LATE_NS = 15 * 10**9  # after so long no request arrives any more
CLOCKS_DIFFER_NS = 60 * 10**9  # the registry's and ours


class LeftUploads:
    """See the module."""

    def __init__(self, folder: Path, disk: Threads) -> None:
        self._folder = folder
        self._disk = disk
        self._uploads: list[BegunUpload] = []
        self._recording = trio.Lock()

    async def load(self, uploads: Iterable[BegunUpload]) -> None:
        """Take those that are on record, and these of staged files, whose records come anew."""
        self._uploads = await self._disk.run(stagedfolder.load_uploads, self._folder)
        now_ns = time.time_ns()
        await self.add(*(replace(u, since_ns=u.since_ns or now_ns) for u in uploads))

    async def add(self, *uploads: BegunUpload) -> None:
        """Put uploads on record, to be aborted. Of one whose id is lost the first look counts."""
        known = {(upload.key, upload.id) for upload in self._uploads}
        new = [upload for upload in uploads if (upload.key, upload.id) not in known]
        if new:
            await self._record([*self._uploads, *new][-LEFT_MAX:])

    async def _record(self, uploads: list[BegunUpload]) -> None:
        self._uploads = uploads
        try:
            async with self._recording:
                await self._disk.run(stagedfolder.record_uploads, self._folder, self._uploads)
        except OSError as error:
            log.warning("uploads that are to be aborted are not on record: %s", error)

    async def abort(self, registry: Registry, own: Set[str], starting: Set[str]) -> None:
        """Abort what is left, but for the ids that are our `own`, and keys that are `starting`."""
        gone = set()
        for upload in self._uploads:
            if upload.key in starting:  # which of those found is ours is not known yet
                continue
            try:
                await _abort(registry, upload, own)
            except RegistryUnavailable as error:
                log.info("an unfinished upload of %s stays for now: %s", upload.key, error)
                continue
            except ModelfsError as error:
                log.warning("an unfinished upload of %s stays: %s", upload.key, error)
            if time.time_ns() - upload.since_ns > LATE_NS:
                gone.add(upload)
        if gone:
            await self._record([upload for upload in self._uploads if upload not in gone])


async def _abort(registry: Registry, upload: BegunUpload, own: Set[str]) -> None:
    if upload.id is not None:
        await registry.call(registry.store.abort_upload, upload.key, upload.id)
        return
    earliest_ns = upload.since_ns - CLOCKS_DIFFER_NS
    latest_ns = upload.since_ns + LATE_NS + CLOCKS_DIFFER_NS
    for found in await registry.call(partial(registry.store.unfinished_uploads, upload.key)):
        is_it = found.key == upload.key and earliest_ns < found.started_ns < latest_ns
        if is_it and found.id not in own:
            await registry.call(registry.store.abort_upload, found.key, found.id)
