"""One staged file: what it replaces, what was promised of it, what of it the registry has."""

import json
import time
from dataclasses import astuple, dataclass
from enum import StrEnum
from pathlib import Path

import trio

from modelfs.names import ModelId
from modelfs.registry.objects import ObjectInfo
from modelfs.store.cuts import CleanSpans
from modelfs.store.partedupload import PartedUpload


class Promise(StrEnum):
    """What was promised of a staged file; see staging.py."""

    OPEN = "open"
    CLOSED = "closed"
    KEPT = "kept"
    LOCAL = "local"
    ASIDE = "aside"


@dataclass(frozen=True, slots=True)
class BegunUpload:
    """A multipart upload that is to be aborted if nobody goes on with it.

    `since_ns` (epoch; 0 is not known) is since when it is left; where `id` is None its answer is
    lost, and it may have begun then.
    """

    key: str
    id: str | None
    since_ns: int


@dataclass(frozen=True, slots=True)
class Fallback:
    """A staged file as it was closed, kept on the disk while it is written anew."""

    path: Path
    size: int
    mtime_ns: int


class StagedFile:
    """A file that is written here and not, or not yet, what the registry has.

    `base` is the object that it replaces, None where there is none. `generation` counts
    the changes; the registry has that of `uploaded_generation`, the disk durably that of
    `synced_generation`, and that of `tried_generation` was sent. `is_recovered` tells that
    nobody knows whether what was sent has arrived; `sent_etags` are what it may show there
    then. `clean` are the bytes that are those of `base`, `unchanged` those that were not
    written since the upload that is under way began. Up to `written_until` it was written in
    order from its beginning; `upload` is the multipart upload that is not finished, and `starting`
    that of which no id is known yet. `is_closed` tells that nobody has changed it since the last
    writer closed it; a crash goes back to `fallback` until more is promised than that. `lock` is
    held while the file is uploaded, renamed or settled, and `recording` while it is recorded.

    INVARIANT: `fd` is open until the file is settled or discarded.
    """

    def __init__(self, path: Path, model: ModelId, name: str, base: ObjectInfo | None) -> None:
        self.path = path
        self.model = model
        self.name = name
        self.base = base
        self.base_etag = base.id.etag if base else None
        self.fd = -1
        self.size = 0
        self.mtime_ns = time.time_ns()
        self.users = 0
        self.generation = 1
        self.uploaded_generation = 0
        self.synced_generation = 0
        self.is_written = False  # since it was opened with O_TRUNC
        self.is_closed = False
        self.fallback: Fallback | None = None
        self.is_recovered = False
        self.tried_generation = 0
        self.sent_etags: set[str] = set()
        self.clean = CleanSpans()
        self.unchanged = CleanSpans()
        self.written_until = 0
        self.upload: PartedUpload | None = None
        self.starting: BegunUpload | None = None
        self.is_begun_ahead = False
        self.is_discarded = False
        self.is_settling = False
        self.promise = Promise.OPEN
        self.error: str | None = None
        self.failure: OSError | None = None  # of a write: bytes are missing, it is never uploaded
        self.lock = trio.Lock()
        self.recording = trio.Lock()
        self.settled = trio.Event()

    @property
    def is_dirty(self) -> bool:
        return self.generation != self.uploaded_generation and not self.is_discarded

    @property
    def is_due(self) -> bool:
        """Tell whether the file is to be uploaded: promised, and not in the registry yet."""
        return self.is_dirty and self.promise is Promise.CLOSED

    @property
    def disk_bytes(self) -> int:
        return self.size + (self.fallback.size if self.fallback else 0)

    def wrote(self, start: int, end: int) -> None:
        """Note that bytes [start, end) were written just now."""
        self.size = max(self.size, end)
        if start <= self.written_until:
            self.written_until = max(self.written_until, end)
        self._changed(start, end)

    def was_cut(self, size: int) -> None:
        """Note that the file was truncated, or made longer, just now."""
        start = min(size, self.size)
        self.size = size
        self.written_until = min(self.written_until, size)
        self._changed(start, None)

    def _changed(self, start: int, end: int | None) -> None:
        self.generation += 1
        self.is_written = True
        self.is_closed = False
        self.mtime_ns = time.time_ns()
        self.clean.remove(start, end)
        self.unchanged.remove(start, end)
        if self.upload is not None:
            self.upload.change(start, end)

    def replaces(self, base: ObjectInfo | None) -> None:
        """Note which object the file replaces; its clean bytes are those of that one, too."""
        self.base, self.base_etag = base, base.id.etag if base else None
        if base is None:
            self.clean = CleanSpans()

    def was_uploaded(self, info: ObjectInfo, generation: int) -> None:
        """Note that the registry has the file as it was when that upload began."""
        self.clean, self.unchanged = self.unchanged, CleanSpans()
        self.replaces(info)
        self.uploaded_generation = generation
        self.written_until = 0  # what is appended now goes when it is closed, and alone
        self.is_begun_ahead = False
        self.is_recovered = False
        self.sent_etags.clear()

    def _unfinished(self) -> BegunUpload | None:
        """Return the multipart upload that a restart is to abort."""
        if self.upload is not None:
            return BegunUpload(self.upload.key, self.upload.id, 0)
        return self.starting

    def take_place_of(self, other: "StagedFile") -> None:
        """Have another file's promise go in one step with the record of this one's new name."""
        if self.promise is not Promise.OPEN and self.fallback is None:
            self.fallback = other.fallback or Fallback(other.path, other.size, other.mtime_ns)

    def went_back(self, fallback: Fallback) -> None:
        """Note that the file is again as it was closed: a write after that has failed."""
        self.path, self.size, self.fallback = fallback.path, fallback.size, None
        self._changed(0, None)
        self.mtime_ns, self.failure = fallback.mtime_ns, None
        self.promise, self.is_closed = Promise.CLOSED, True

    def record(self) -> bytes:
        return self._record(self.mtime_ns, self.promise, self.fallback)

    def record_of_fallback(self, fallback: Fallback) -> bytes:
        return self._record(fallback.mtime_ns, Promise.CLOSED, None)

    def _record(self, mtime_ns: int, promise: Promise, fallback: Fallback | None) -> bytes:
        return json.dumps(
            {
                "model": str(self.model),
                "path": self.name,
                "base_etag": self.base_etag,
                "mtime_ns": mtime_ns,
                "promise": promise,
                "sent_etags": sorted(self.sent_etags),
                "upload": astuple(begun) if (begun := self._unfinished()) else None,
                "replaces": fallback.path.name if fallback else None,
            }
        ).encode()
