"""Uploads: staged files become objects. Parts, retries, conflicts, drain.

A job belongs to the daemon's nursery and goes on until the registry has the file, however
long that takes; whoever closes a file waits for one try of its job. Owned by the trio
thread; bodies are read and sent by threads of the registry's pool.
"""

import errno
import logging
import time
from collections import deque
from dataclasses import dataclass, replace
from functools import partial

import trio

from modelfs.concurrency import Background, Progress, side_by_side, wait_while_moving
from modelfs.errors import ModelfsError, NotFound
from modelfs.names import ModelId
from modelfs.registry.objects import ObjectInfo, UploadedPart, format_mtime
from modelfs.registry.registry import Registry
from modelfs.store import etags
from modelfs.store.cache import Cache
from modelfs.store.staging import Promise, StagedFile, Staging

log = logging.getLogger(__name__)

PARALLEL_PARTS = 8
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
CONFLICTS_SHOWN = 100  # the newest ones, in status.json


@dataclass(frozen=True)
class UploadStatistics:
    """What is shown of uploads since the start; `sent_bytes` counts those of failed tries, too."""

    sent_bytes: int
    done_files: int
    failed_tries: int
    conflicts: int


@dataclass(frozen=True)
class Conflict:
    """A file that was changed by someone else while it was written here; ours is kept beside it."""

    model: ModelId
    name: str
    kept_as: str
    time_ns: int


class _Job:
    """The upload of one staged file; `tried` is set, and made anew, after each try."""

    def __init__(self) -> None:
        self.since_ns = time.time_ns()
        self.tried = trio.Event()
        self.again = trio.Event()
        self.error: ModelfsError | None = None


class Writeback:
    """See the module.

    INVARIANT: a staged file that was closed and is dirty has a job.
    """

    def __init__(
        self,
        registry: Registry,
        staging: Staging,
        cache: Cache,
        background: Background,
        *,
        host: str,
    ) -> None:
        self._registry = registry
        self._staging = staging
        self._cache = cache
        self._background = background
        self._host = host
        self._jobs: dict[StagedFile, _Job] = {}
        self._idle = trio.Event()
        self._idle.set()
        self._running = 0
        self._progress = Progress()
        self._failed_tries = 0
        self.uploaded_files = 0
        self.conflicts = 0
        self.newest_conflicts: deque[Conflict] = deque(maxlen=CONFLICTS_SHOWN)

    def waiting(self) -> list[StagedFile]:
        """Return the files whose upload is under way or waits."""
        return list(self._jobs)

    def waiting_since_ns(self, staged: StagedFile) -> int:
        """Return when the upload of one of `waiting` was begun (epoch ns)."""
        return self._jobs[staged].since_ns

    def statistics(self) -> UploadStatistics:
        counts = (self.uploaded_files, self._failed_tries, self.conflicts)
        return UploadStatistics(self._progress.bytes, *counts)

    async def publish(self, staged: StagedFile) -> None:
        """Return when the registry has the file; raise what stands in the way.

        Raises within the registry's time limit after the last byte moved; the upload goes
        on in the background all the same.
        """
        if staged.is_dirty:
            await self._promise(staged)
        while staged.is_dirty:
            job = self.start(staged)
            job.again.set()
            tried = job.tried
            try:
                self._registry.check_reachable()
                await wait_while_moving(tried, self._progress, self._registry.timeout_s)
            except ModelfsError as error:
                staged.error = str(error)
                await self._record(staged, Promise.CLOSED, durable=True)
                raise
            if job.error is not None:
                raise job.error

    async def _record(self, staged: StagedFile, promise: Promise, *, durable: bool) -> None:
        """Write a promise down; where the store's disk refuses, the upload goes on all the same."""
        try:
            await self._staging.promise(staged, promise, durable=durable)
        except OSError as error:
            log.warning("what was promised of %s is not on the disk: %s", staged.name, error)

    async def _promise(self, staged: StagedFile) -> None:
        """Write down that a file is closed; what stays on this node is done with that."""
        promise = self._staging.promise_of(staged)
        await self._record(staged, promise, durable=False)
        if promise is Promise.LOCAL:
            staged.uploaded_generation = staged.generation

    async def publish_later(self, staged: StagedFile) -> None:
        """Have a file that was closed uploaded, without waiting for it."""
        await self._promise(staged)
        if staged.is_dirty:
            self.start(staged)

    def start(self, staged: StagedFile) -> _Job:
        """Have a closed file uploaded in the background."""
        job = self._jobs.get(staged)
        if job is None:
            job = self._jobs[staged] = _Job()
            self._running += 1
            if self._idle.is_set():
                self._idle = trio.Event()
            self._background.start_soon(self._run, staged, job, name=f"upload {staged.name}")
        return job

    async def drain(self) -> None:
        """Return when no upload is under way or waits, and what is done is in the cache."""
        await self._idle.wait()

    async def _run(self, staged: StagedFile, job: _Job) -> None:
        try:
            await self._try_until_done(staged, job)
            await self.settle(staged)
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    async def _try_until_done(self, staged: StagedFile, job: _Job) -> None:
        pause_s = RETRY_FIRST_S
        try:
            while staged.is_dirty:
                job.again = trio.Event()
                job.error = await self._try(staged)
                if job.error is None:
                    staged.error = None
                else:
                    staged.error = str(job.error)
                    self._failed_tries += 1
                    log.error("%s/main/%s waits: %s", staged.model, staged.name, job.error)
                    await self._record(staged, Promise.CLOSED, durable=True)
                tried, job.tried = job.tried, trio.Event()
                tried.set()
                if job.error is not None:
                    staged.is_recovered = True  # from now on look before it is put
                    with trio.move_on_after(pause_s):
                        await job.again.wait()
                    pause_s = min(pause_s * 2, RETRY_MAX_S)
                    await self._registry.wait_reachable()
        finally:
            del self._jobs[staged]
            job.tried.set()

    async def _try(self, staged: StagedFile) -> ModelfsError | None:
        try:
            async with staged.lock:
                if staged.is_dirty:
                    await self._upload(staged)
        except ModelfsError as error:
            return error
        except OSError as error:
            if error.errno in (errno.ENOTCONN, errno.ESHUTDOWN):
                await self._revive(staged)
            return ModelfsError(f"the staged file {staged.path}: {error.strerror}")
        except Exception:
            log.exception("the upload of %s failed: a bug", staged.name)
            return ModelfsError("the upload failed by a bug of modelfs: see the log")
        return None

    async def _revive(self, staged: StagedFile) -> None:
        try:
            await self._staging.revive(staged)
        except (ModelfsError, OSError) as error:
            log.debug("%s cannot be opened anew yet: %s", staged.path, error)

    async def _upload(self, staged: StagedFile) -> None:
        generation = staged.tried_generation = staged.generation
        if staged.is_recovered:
            await self._look_for_conflict(staged)
        key = self._registry.keys.file(staged.model, staged.name)
        metadata = {"mtime": format_mtime(staged.mtime_ns)}
        if staged.size <= etags.SINGLE_PUT_MAX:
            put = partial(self._registry.store.put, key, staged.fd, staged.size, metadata)
            info = await self._registry.call_upload(put, self._progress)
        else:
            info = await self._upload_parts(staged, key, metadata)
        info = replace(info, mtime_ns=staged.mtime_ns)
        if staged.is_discarded:
            return
        staged.base, staged.base_etag = info, info.id.etag
        staged.uploaded_generation = generation
        staged.is_recovered = False
        staged.sent_etags.clear()
        self.uploaded_files += 1
        self._registry.note_put(staged.model, staged.name, info)
        # What was written meanwhile may be promised already; it replaces this object now.
        promise = staged.promise if staged.is_dirty else Promise.KEPT
        await self._record(staged, promise, durable=False)

    async def _upload_parts(
        self, staged: StagedFile, key: str, metadata: dict[str, str]
    ) -> ObjectInfo:
        store, call = self._registry.store, self._registry.call_upload
        size = staged.size
        part_size = etags.part_size_of(size)
        upload_id = await call(store.start_upload, key, metadata)
        done: list[UploadedPart] = []

        async def upload_part(number: int) -> None:
            offset = (number - 1) * part_size
            length = min(part_size, size - offset)
            where = (key, upload_id, number, staged.fd, offset, length)
            done.append(await call(store.upload_part, *where, self._progress))

        try:
            numbers = range(1, -(-size // part_size) + 1)
            await side_by_side([partial(upload_part, n) for n in numbers], PARALLEL_PARTS)
            done.sort(key=lambda part: part.number)
            return await call(store.finish_upload, key, upload_id, done, size)
        except BaseException:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                try:
                    await self._registry.call(store.abort_upload, key, upload_id)
                except ModelfsError as error:
                    log.warning("an unfinished upload of %s stays: %s", key, error)
            raise

    async def _look_for_conflict(self, staged: StagedFile) -> None:
        """Where someone else changed the object meanwhile, theirs stays: ours gets a new name."""
        key = self._registry.keys.file(staged.model, staged.name)
        try:
            theirs = await self._registry.call(self._registry.store.head, key)
        except NotFound:
            if staged.base_etag is None:
                return
            theirs = None
        if theirs is not None:
            # An earlier try of ours may have arrived, only its answer did not.
            if theirs.id.etag in (staged.base_etag, *staged.sent_etags):
                return
            if theirs.size == staged.size and theirs.id.etag == await self._staging.etag(staged):
                return
        now_ns = time.time_ns()
        moment = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now_ns / 1e9))
        name = f"{staged.name}.conflict-{self._host}-{moment}"
        self.conflicts += 1
        self.newest_conflicts.append(Conflict(staged.model, staged.name, name, now_ns))
        log.error(
            "%s/main/%s was %s by someone else while it was written here: ours is kept as %s",
            *(staged.model, staged.name, "changed" if theirs else "deleted", name),
        )
        if theirs is not None:
            self._registry.note_put(staged.model, staged.name, theirs)
        staged.base, staged.base_etag = None, None
        self._staging.move(staged, staged.model, name)

    async def settle(self, staged: StagedFile) -> None:
        """Where nobody uses a staged file any more and the registry has it: into the cache."""
        if staged.users or staged.settled.is_set() or staged in self._jobs:
            return
        async with staged.lock:
            if staged.users or staged.settled.is_set() or staged.is_dirty:
                return
            if staged.promise is Promise.LOCAL and not staged.is_discarded:
                return
            staged.is_settling = True
            if staged.is_discarded or staged.base is None:
                await self._staging.remove(staged, with_bytes=True)
            else:
                try:
                    await self._cache.adopt(staged.path, staged.base)
                    await self._staging.remove(staged, with_bytes=False)
                except (OSError, ModelfsError) as error:
                    log.warning("%s could not go into the cache: %s", staged.path, error)
                    await self._staging.remove(staged, with_bytes=True)
