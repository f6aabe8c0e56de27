"""One staged file: what it replaces, what was promised of it, what of it the registry has."""

import json
import time
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


class StagedFile:
    """A file that is written here and not, or not yet, what the registry has.

    `base` is the object that it replaces, None where there is none. `generation` counts
    the changes; the registry has that of `uploaded_generation`, the disk durably that of
    `synced_generation`, and that of `tried_generation` was sent. `is_recovered` tells that
    nobody knows whether what was sent has arrived; `sent_etags` are what it may show there
    then. `clean` are the bytes that are those of `base`, `unchanged` those that were not
    written since the upload that is under way began. Up to `written_until` it was written in
    order from its beginning; `upload` is the multipart upload that is not finished, and `starting`
    that of which no id is known yet. `lock` is
    held while the file is uploaded, renamed or settled.

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
        self.is_recovered = False
        self.tried_generation = 0
        self.sent_etags: set[str] = set()
        self.clean = CleanSpans()
        self.unchanged = CleanSpans()
        self.written_until = 0
        self.upload: PartedUpload | None = None
        self.starting: tuple[str, int] | None = None  # key and time: an upload may have begun
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
        self.starting = None
        self.sent_etags.clear()

    def _unfinished(self) -> list[str | int | None] | None:
        """Return key, id and time of the multipart upload that a restart is to abort."""
        if self.upload is not None:
            return [self.upload.key, self.upload.id, None]
        return None if self.starting is None else [self.starting[0], None, self.starting[1]]

    def record(self) -> bytes:
        return json.dumps(
            {
                "model": str(self.model),
                "path": self.name,
                "base_etag": self.base_etag,
                "mtime_ns": self.mtime_ns,
                "promise": self.promise,
                "sent_etags": sorted(self.sent_etags),
                "upload": self._unfinished(),
            }
        ).encode()
