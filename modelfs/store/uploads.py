"""One try to bring a staged file into the registry: whole, in parts, or what differs alone.

What others did to the object since it was opened here is looked for before it is replaced
(conflicts.py). Where the registry takes conditions, it also refuses what changed in the moment
between. Parts of a large file that is written in order go while more of it is written. Owned by
the trio thread; bodies are read and sent by threads.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import trio

from modelfs.concurrency import Background, Progress, side_by_side
from modelfs.errors import ModelfsError, NotFound, RegistryUnavailable, Stale, WrongBytes
from modelfs.registry.objects import (
    MTIME,
    PART_SIZES,
    ObjectInfo,
    UnfinishedUpload,
    format_mtime,
)
from modelfs.registry.registry import Registry
from modelfs.registry.s3_answers import multipart_etag
from modelfs.store import cuts, etags
from modelfs.store.conflicts import Conflicts
from modelfs.store.cuts import Cut, Piece
from modelfs.store.partedupload import PartedUpload
from modelfs.store.stagedfile import BegunUpload, Promise, StagedFile
from modelfs.store.staging import Staging

log = logging.getLogger(__name__)

PARALLEL_PARTS = 16  # of one file; with 8 a gateway that waits for its disk leaves a core idle
AHEAD_FROM = 24 * cuts.MIB  # bytes written in order, from which on parts go before close()
ABORT_LIMIT_S = 5.0
SWEEP_INTERVAL_S = 5.0
PUT_TRIES = 3  # of a file of which the registry says that it came wrong, or has changed


class Uploader:
    """See the module."""

    def __init__(
        self,
        registry: Registry,
        staging: Staging,
        background: Background,
        progress: Progress,
        *,
        host: str,
    ) -> None:
        self._registry = registry
        self._staging = staging
        self._background = background
        self._progress = progress
        self._has_conditions = True  # until the registry refuses one that holds
        self._own: set[str] = set()  # ids of the multipart uploads that are under way
        self._starting: set[str] = set()  # keys of those that have no id yet
        self.unfinished: list[UnfinishedUpload] = []
        self.conflicts = Conflicts(registry, staging, host)
        staging.before_discard = self._abandon

    # ------------------------------------------------------------- one upload

    async def upload(self, staged: StagedFile) -> None:
        """Bring a file into the registry; its lock is held. Raises what stands in the way."""
        generation = staged.tried_generation = staged.generation
        staged.unchanged = cuts.CleanSpans(staged.size)
        info = await self._send(staged, await self.conflicts.look(staged))
        info = replace(info, mtime_ns=staged.mtime_ns)
        if staged.is_discarded:
            return
        staged.was_uploaded(info, generation)
        self._registry.note_put(staged.model, staged.name, info)

    def _key(self, staged: StagedFile) -> str:
        return self._registry.keys.file(staged.model, staged.name)

    async def _send(self, staged: StagedFile, condition: str) -> ObjectInfo:
        pieces = None
        if staged.upload is None and condition == staged.base_etag:
            pieces = cuts.sparing(staged.size, staged.clean)
        if pieces is not None and (made := await self._send_sparing(staged, pieces, condition)):
            return made
        if staged.size > etags.SINGLE_PUT_MAX:
            return await self._send_parts(staged, condition)
        await self._abandon(staged)
        return await self._put(staged, condition)

    async def _put(self, staged: StagedFile, condition: str) -> ObjectInfo:
        for tries_left in reversed(range(PUT_TRIES)):
            metadata = {MTIME: format_mtime(staged.mtime_ns)}
            asked = condition if self._has_conditions else None
            what = (self._key(staged), staged.fd, staged.size, metadata, self._progress, asked)
            try:
                return await self._registry.call_upload(self._registry.store.put, *what)
            except (Stale, WrongBytes) as error:
                if not tries_left:
                    raise
                log.info("put again: %s", error)
                if isinstance(error, WrongBytes) and error.stored_etag:
                    staged.sent_etags.add(error.stored_etag)  # it is no stranger's
                condition = await self._look_again(staged, condition, isinstance(error, Stale))
        raise AssertionError("unreachable")

    async def _look_again(self, staged: StagedFile, condition: str, is_refused: bool) -> str:
        """Look at the object after a put was refused; what refuses true conditions gets none."""
        key, found = self._key(staged), await self.conflicts.look(staged)
        is_unchanged = (key, condition) == (self._key(staged), found)
        if is_refused and is_unchanged and self._has_conditions:
            log.warning(
                "the registry refuses conditions that hold (a bucket that keeps versions?): "
                "changes by others are looked for before each upload, and no more in its moment"
            )
            self._has_conditions = False
        return found

    # ------------------------------------------------------------------ parts

    async def _send_parts(self, staged: StagedFile, condition: str) -> ObjectInfo:
        upload = await self._begun(staged)
        size = staged.size
        try:
            await self._send_all(staged, upload, cuts.UPLOAD_CUT.pieces(size))
            # Hours may have gone by since it was looked at: once more, with another name perhaps.
            condition = await self.conflicts.look(staged)
            if upload.key != self._key(staged):
                return await self._send(staged, condition)
            return await self._finish(staged, upload, size)
        except NotFound as error:  # aborted by others, as by a rule of the bucket
            staged.upload = None
            self._own.discard(upload.id)
            raise RegistryUnavailable(f"{upload.key!r}: its multipart upload is gone") from error
        except WrongBytes:
            await self._abandon(staged)
            raise

    async def _begun(self, staged: StagedFile) -> PartedUpload:
        """Return the multipart upload of the file; its lock is held."""
        key = self._key(staged)
        if staged.upload is not None and (staged.upload.key != key or staged.upload.is_sparing):
            await self._abandon(staged)
        if staged.upload is None:
            await self._begin(staged, {}, cuts.UPLOAD_CUT)
        assert staged.upload is not None
        return staged.upload

    async def _begin(
        self,
        staged: StagedFile,
        metadata: dict[str, str],
        cut: Cut,
        source: ObjectInfo | None = None,
    ) -> PartedUpload:
        key, mtime_ns, tries = self._key(staged), staged.mtime_ns, 0
        metadata = {MTIME: format_mtime(mtime_ns), **metadata}
        # From now on a restart looks for it, and aborts it.
        starting = staged.starting = BegunUpload(key, None, time.time_ns())
        await self._staging.record(staged)

        def start() -> str:
            nonlocal tries
            tries += 1
            return self._registry.store.start_upload(key, metadata)

        self._starting.add(key)
        try:
            upload_id = await self._registry.call(start)
        except ModelfsError:  # it may have begun all the same
            await self._staging.left_uploads.add(starting)
            raise
        finally:
            staged.starting = None
            self._starting.discard(key)
        self._own.add(upload_id)
        where = (self._registry, self._progress, key, upload_id, mtime_ns, cut, source)
        staged.upload = PartedUpload(*where)
        await self._staging.record(staged)
        if tries > 1:  # each that had no answer may have begun one
            await self._staging.left_uploads.add(starting)
        return staged.upload

    async def _send_all(
        self, staged: StagedFile, upload: PartedUpload, pieces: Iterable[Piece]
    ) -> None:
        waiting = iter(pieces)

        async def work() -> None:
            for piece in waiting:
                await upload.send(staged.fd, piece)

        await side_by_side([work] * PARALLEL_PARTS, PARALLEL_PARTS)

    async def _finish(self, staged: StagedFile, upload: PartedUpload, size: int) -> ObjectInfo:
        await upload.landed()  # of a file that was cut, what lay behind its end may be on its way
        parts = upload.parts(size)
        if etag := multipart_etag(parts):  # what it shows if the answer to this is lost
            staged.sent_etags.add(etag)
            await self._staging.record(staged)
        finish = partial(self._registry.store.finish_upload, upload.key, upload.id, parts, size)
        info = await self._registry.call_upload(finish)
        staged.upload = None
        self._own.discard(upload.id)
        return await self._timed(staged, upload, info)

    async def _timed(
        self, staged: StagedFile, upload: PartedUpload, info: ObjectInfo
    ) -> ObjectInfo:
        """Record the file's time: an upload says one when it begins, before all was written."""
        if upload.mtime_ns == staged.mtime_ns:
            return info
        metadata = {**(info.metadata or {}), MTIME: format_mtime(staged.mtime_ns)}
        copy = partial(self._registry.store.copy, info, info.id.key, metadata)
        try:
            return await self._registry.call_upload(copy)
        except ModelfsError as error:
            log.warning("%s has the time at which its upload began: %s", info.id.key, error)
        found = await self._registry.call(self._registry.store.head, info.id.key)
        if found.size == info.size and found.mtime_ns == staged.mtime_ns:
            return found  # the copy was made, and its answer lost
        staged.mtime_ns = upload.mtime_ns
        return info

    async def _send_sparing(
        self, staged: StagedFile, pieces: list[Piece], condition: str
    ) -> ObjectInfo | None:
        """Send what differs from the object, the rest is copied; None where that cannot be."""
        cut = Cut(tuple((piece.length, 1) for piece in pieces))
        said = cuts.cut_of(pieces)
        upload = await self._begin(
            staged, {PART_SIZES: said.text} if said else {}, cut, staged.base
        )
        try:
            await self._send_all(staged, upload, pieces)
            if await self.conflicts.look(staged) == condition and upload.key == self._key(staged):
                return await self._finish(staged, upload, staged.size)
            log.info("%s has changed while parts of it were copied: it is sent whole", upload.key)
        except RegistryUnavailable:
            await self._abandon(staged)
            raise
        except ModelfsError as error:
            log.info("%s is sent whole, parts of it cannot be copied: %s", upload.key, error)
        await self._abandon(staged)
        return None

    # --------------------------------------------- while it is still written

    def written(self, staged: StagedFile) -> None:
        """Take note of a write: parts of a file that is written in order go already."""
        upload = staged.upload
        if staged.written_until < AHEAD_FROM or not self._goes_ahead(staged):
            return
        if upload is None:
            if not staged.is_begun_ahead:
                staged.is_begun_ahead = True
                name = f"upload of {staged.name} ahead"
                self._background.start_soon(self._begin_ahead, staged, name=name)
            return
        if upload.key != self._key(staged) or upload.is_sparing:
            return
        until = staged.written_until
        while upload.flights < PARALLEL_PARTS and (piece := upload.take_ahead(until)):
            name = f"part {piece.number} of {staged.name}"
            self._background.start_soon(self._send_ahead, staged, upload, piece, name=name)

    def _goes_ahead(self, staged: StagedFile) -> bool:
        return not (
            staged.is_discarded
            or staged.is_recovered
            or staged.failure is not None
            or self._staging.promise_of(staged) is Promise.LOCAL
            or not self._registry.reachability.reachable
        )

    async def _begin_ahead(self, staged: StagedFile) -> None:
        try:
            async with staged.lock:
                if staged.users and staged.upload is None and self._goes_ahead(staged):
                    await self._begun(staged)
        except (ModelfsError, OSError) as error:
            log.info("%s is not uploaded before it is closed: %s", staged.name, error)
        self.written(staged)

    async def _send_ahead(self, staged: StagedFile, upload: PartedUpload, piece: Piece) -> None:
        try:
            await upload.fly(staged.fd, piece)
        except (ModelfsError, OSError) as error:  # close() sends it, and tells
            upload.sends_ahead = False
            log.info("part %d of %s waits for its close: %s", piece.number, staged.name, error)
        self.written(staged)

    # ------------------------------------------------------- what is left over

    async def _abandon(self, staged: StagedFile) -> None:
        """Abort what was begun of a file's upload, if anything was, within a limit."""
        upload, staged.upload = staged.upload, None
        if upload is None:
            return
        upload.sends_ahead = False
        is_gone = False
        with trio.CancelScope(shield=True, deadline=trio.current_time() + ABORT_LIMIT_S):
            await upload.landed()
            is_gone = await self._abort(upload)
        if not is_gone:
            begun = BegunUpload(upload.key, upload.id, time.time_ns())
            await self._staging.left_uploads.add(begun)
        self._own.discard(upload.id)

    async def _abort(self, upload: PartedUpload) -> bool:
        """Abort an upload; tell whether it is gone."""
        try:
            await self._registry.call(self._registry.store.abort_upload, upload.key, upload.id)
        except ModelfsError as error:
            log.info("the upload of %s is aborted later: %s", upload.key, error)
            return False
        return True

    async def keep_sweeping(self) -> None:
        """Abort what an earlier daemon has left, and what could not be aborted; runs for ever."""
        await self.sweep()
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            await self._abort_left()

    async def _abort_left(self) -> None:
        await self._registry.wait_reachable()
        await self._staging.left_uploads.abort(self._registry, self._own, self._starting)

    async def sweep(self) -> None:
        """Abort the uploads that an earlier daemon has left, and look which others there are."""
        await self._abort_left()
        ask = partial(self._registry.store.unfinished_uploads, self._registry.keys.prefix)
        try:
            found = await self._registry.call(ask)
        except ModelfsError as error:  # rights for objects alone do
            log.info("unfinished uploads are not looked for: %s", error)
            return
        self.unfinished = [
            upload
            for upload in found
            if upload.id not in self._own and upload.key not in self._starting
        ]
        for upload in self.unfinished[:20]:
            log.warning("an unfinished upload of %s is there, begun by someone else", upload.key)
