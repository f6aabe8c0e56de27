"""Uploads: staged files become objects. Jobs, retries, drain; uploads.py does one try.

A job belongs to the daemon's nursery and goes on until the registry has the file, however
long that takes; whoever closes a file waits for one try of its job. Owned by the trio
thread; bodies are read and sent by threads of the registry's pool.
"""

import errno
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from modelfs.concurrency import Background, Progress, wait_while_moving
from modelfs.errors import ModelfsError, StoreError, WrongBytes
from modelfs.registry.registry import Registry
from modelfs.store.cache import Cache
from modelfs.store.stagedfile import Promise, StagedFile
from modelfs.store.staging import Staging
from modelfs.store.uploads import Uploader

log = logging.getLogger(__name__)

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
TORN_MAX = 10  # tries in a row during which the file was written to


@dataclass(frozen=True)
class UploadStatistics:
    """What is shown of uploads since the start; `sent_bytes` counts those of failed tries, too."""

    sent_bytes: int
    done_files: int
    failed_tries: int
    conflicts: int


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
        self._jobs: dict[StagedFile, _Job] = {}
        self._idle = trio.Event()
        self._idle.set()
        self._running = 0
        self._progress = Progress()
        self.uploader = Uploader(registry, staging, background, self._progress, host=host)
        self._failed_tries = 0
        self.uploaded_files = 0

    def waiting(self) -> list[StagedFile]:
        """Return the files whose upload is under way or waits."""
        return list(self._jobs)

    def waiting_since_ns(self, staged: StagedFile) -> int:
        """Return when the upload of one of `waiting` was begun (epoch ns)."""
        return self._jobs[staged].since_ns

    def statistics(self) -> UploadStatistics:
        counts = (self.uploaded_files, self._failed_tries, self.uploader.conflicts.count)
        return UploadStatistics(self._progress.bytes, *counts)

    async def publish(self, staged: StagedFile) -> None:
        """Return when the registry has the file; raise what stands in the way.

        Raises within the registry's time limit after the last byte moved; the upload goes
        on in the background all the same.
        """
        if staged.is_dirty:
            await self._promise(staged)
        wanted = staged.generation  # what others write from now on is not waited for
        while staged.is_due and staged.uploaded_generation < wanted:
            job = self.start(staged)
            job.again.set()
            tried = job.tried
            try:
                self._registry.check_reachable()
                await wait_while_moving(tried, self._progress, self._registry.timeout_s)
            except ModelfsError as error:
                staged.error = str(error)
                await self._secure(staged)
                raise
            if job.error is not None:
                raise job.error

    async def _secure(self, staged: StagedFile) -> None:
        """Make a file that waits outlive a power cut, where the store's disk takes it."""
        with _logged(staged):
            await self._staging.record(staged, durable=True)

    async def _promise(self, staged: StagedFile) -> None:
        """Write down that a file is closed; what stays on this node is done with that."""
        promise = self._staging.promise_of(staged)
        with _logged(staged):
            await self._staging.promise(staged, promise, durable=False)
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
        pause_s, torn = RETRY_FIRST_S, 0
        try:
            while staged.is_due:
                job.again = trio.Event()
                job.error = await self._try(staged)
                if _is_torn(staged, job.error) and torn < TORN_MAX:
                    torn += 1
                    continue
                torn = 0
                if job.error is None:
                    staged.error = None
                else:
                    staged.error = str(job.error)
                    self._failed_tries += 1
                    log.error("%s/main/%s waits: %s", staged.model, staged.name, job.error)
                    await self._secure(staged)
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
                if staged.is_due:
                    await self._upload(staged)
        except ModelfsError as error:
            return error
        except OSError as error:
            if error.errno in (errno.ENOTCONN, errno.ESHUTDOWN):
                await self._revive(staged)
            return ModelfsError(f"the staged file {staged.path}: {error.strerror or error}")
        except Exception:
            log.exception("the upload of %s failed: a bug", staged.name)
            return ModelfsError("the upload failed by a bug of modelfs: see the log")
        return None

    async def _upload(self, staged: StagedFile) -> None:
        await self.uploader.upload(staged)
        if staged.is_discarded:
            return
        self.uploaded_files += 1
        # What was written meanwhile may be promised already; it replaces this object now.
        with _logged(staged):
            if staged.is_dirty:
                await self._staging.record(staged)
            else:
                await self._staging.promise(staged, Promise.KEPT, durable=False)

    async def _revive(self, staged: StagedFile) -> None:
        try:
            await self._staging.revive(staged)
        except (ModelfsError, OSError) as error:
            log.debug("%s cannot be opened anew yet: %s", staged.path, error)

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


@contextmanager
def _logged(staged: StagedFile) -> Iterator[None]:
    """Where the store's disk refuses what is promised, the upload goes on all the same."""
    try:
        yield
    except OSError as error:
        log.warning("what was promised of %s is not on the disk: %s", staged.name, error)


def _is_torn(staged: StagedFile, error: ModelfsError | None) -> bool:
    """Tell whether a try failed only because the file was written to, or cut, while it was sent."""
    is_changed = staged.generation != staged.tried_generation
    return is_changed and isinstance(error, WrongBytes | StoreError)
