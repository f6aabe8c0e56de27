"""A bucket in memory: the ObjectStore of unit tests.

It behaves as S3 does (ETags, If-Match, pages of 1,000 keys, folders) and counts requests.
What goes wrong is told to it: an error at the n-th request, before the request or with its
answer lost; bytes that are flipped; anything at all by a function that is called with each
request, which may wait, change an object, or raise.
"""

import hashlib
import itertools
import os
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from modelfs.errors import (
    ModelfsError,
    NotFound,
    RegistryUnavailable,
    Stale,
    StoreError,
    WrongBytes,
)
from modelfs.registry.objects import (
    ABSENT,
    MTIME,
    PART_SIZES,
    Checksum,
    ListPage,
    ObjectId,
    ObjectInfo,
    Progress,
    RequestStatistics,
    UnfinishedUpload,
    UploadedPart,
    parse_mtime,
)

PAGE_KEYS = 1000
LONGEST_WAIT_S = 20.0

Hook = Callable[["FakeStore", "Request"], None]
BodyHook = Callable[["Request", int], None]


@dataclass(frozen=True)
class Request:
    """A request as it reaches the registry: its place in the count, operation, key or prefix."""

    number: int
    operation: str
    key: str
    offset: int = 0
    length: int = 0


@dataclass(frozen=True)
class Stored:
    """An object."""

    data: bytes
    etag: str
    metadata: Mapping[str, str]
    modified_ns: int
    checksum: Checksum | None = None  # of its own; nothing sees to it that it is right
    has_own_etag: bool = False  # as where it is encrypted: only GET and HEAD tell


@dataclass
class _Upload:
    key: str
    metadata: Mapping[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


class FakeStore:
    """See the module. `objects` may be read; `place` and `take` are what others do to it."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.sent: list[Request] = []
        self.most_at_once: Counter[str] = Counter()
        self.is_down = False
        self.pieces = 2  # in which a body comes
        self._at_once: Counter[str] = Counter()
        self._uploads: dict[str, _Upload] = {}
        self._hooks: list[Hook] = []
        self._body_hooks: list[BodyHook] = []
        self._faults: dict[int, tuple[Exception, bool]] = {}
        self._flips: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._clock_ns = 1_700_000_000 * 10**9

    # -------------------------------------------------------- what others do

    def place(
        self,
        key: str,
        data: bytes,
        metadata: Mapping[str, str] | None = None,
        *,
        part_size: int | None = None,
        etag: str | None = None,
        checksum: Checksum | None = None,
    ) -> ObjectInfo:
        """Put an object as another tool does: no request is counted.

        `etag` is one that says nothing of the bytes, as that of an encrypted object.
        """
        parts = [data]
        if part_size is not None:
            parts = [data[at : at + part_size] for at in range(0, len(data), part_size)]
        with self._lock:
            made = self._keep(key, parts, metadata or {}, is_multipart=part_size is not None)
            stored = replace(self.objects[key], checksum=checksum)
            if etag is not None:
                stored = replace(stored, etag=etag, has_own_etag=True)
            self.objects[key] = stored
        return replace(made, id=ObjectId(key, stored.etag))

    def take(self, key: str) -> None:
        """Delete an object as another tool does."""
        with self._lock:
            self.objects.pop(key, None)

    def below(self, prefix: str) -> dict[str, bytes]:
        """Return the bytes of the files below a prefix by their path, markers excluded."""
        return {
            key.removeprefix(prefix): stored.data
            for key, stored in self.objects.items()
            if key.startswith(prefix) and not key.endswith("/")
        }

    def asked(self, key: str) -> list[tuple[int, int]]:
        """Return offset and length of every GET of a key, in order."""
        with self._lock:
            sent = [r for r in self.sent if r.operation == "GetObject" and r.key == key]
        return [(request.offset, request.length) for request in sent]

    @property
    def uploads_open(self) -> int:
        return len(self._uploads)

    # ------------------------------------------------------- what goes wrong

    def hook(self, hook: Hook) -> None:
        """Have `hook` called with every request, in the request's thread, before it is done."""
        self._hooks.append(hook)

    def hook_bodies(self, hook: BodyHook) -> None:
        """Have `hook` called before each piece of a body, with how much of that body has come."""
        self._body_hooks.append(hook)

    def unhook(self) -> None:
        self._hooks.clear()
        self._body_hooks.clear()

    def fail(self, number: int, error: Exception, *, after: bool = False) -> None:
        """Let the `number`-th request from now raise; with `after`, once it has been done."""
        self._faults[len(self.sent) + number] = (error, after)

    def flip(self, key: str, times: int = 1) -> None:
        """Deliver wrong bytes of a key, other ones each time, at the next `times` GETs."""
        self._flips[key] += times

    def hold(self, operation: str, key: str = "") -> "Gate":
        """Keep requests of an operation (and key) waiting until the gate is opened."""
        gate = Gate(operation, key)
        self.hook(gate)
        return gate

    def _begin(self, operation: str, key: str, offset: int = 0, length: int = 0) -> Request:
        with self._lock:
            request = Request(next(self._numbers), operation, key, offset, length)
            self.sent.append(request)
            self._at_once[operation] += 1
            at_once = self._at_once[operation]
            self.most_at_once[operation] = max(self.most_at_once[operation], at_once)
        try:
            for hook in list(self._hooks):
                hook(self, request)
            if self.is_down:
                raise RegistryUnavailable("the fake registry is down")
            error, after = self._faults.get(request.number, (None, False))
            if error is not None and not after:
                raise error
        except BaseException:
            self._end(request)
            raise
        return request

    def _end(self, request: Request) -> None:
        with self._lock:
            self._at_once[request.operation] -= 1

    def _answer(self, request: Request) -> None:
        """End a request that was done; its answer may still be lost."""
        self._end(request)
        error, after = self._faults.get(request.number, (None, False))
        if error is not None and after:
            raise error

    # ----------------------------------------------------------- ObjectStore

    def list_page(self, prefix: str, *, by_folder: bool, token: str | None = None) -> ListPage:
        request = self._begin("ListObjectsV2", prefix)
        with self._lock:
            objects, folders, last = [], [], token
            keys = sorted((k for k in self.objects if k.startswith(prefix)), key=_bytes_of)
            start = (
                0 if token is None else bisect_right([_bytes_of(k) for k in keys], token_of(token))
            )
            is_cut = False
            for key in keys[start:]:
                folder = _folder_of(key, prefix) if by_folder else None
                if folder is not None and token is not None and folder == token:
                    continue
                if folder is not None and folders[-1:] == [folder]:
                    continue
                if len(objects) + len(folders) == PAGE_KEYS:
                    is_cut = True
                    break
                last = key if folder is None else folder
                if folder is None:
                    objects.append(self._info(key, listed=True))
                else:
                    folders.append(folder)
        self._answer(request)
        return ListPage(objects, folders, last if is_cut else None)

    def head(self, key: str) -> ObjectInfo:
        request = self._begin("HeadObject", key)
        try:
            with self._lock:
                return self._info(key)
        finally:
            self._answer(request)

    def checksum(self, object_id: ObjectId, version_id: str | None = None) -> Checksum | None:
        assert version_id is None
        request = self._begin("HeadObject", object_id.key)
        try:
            with self._lock:
                if self._info(object_id.key).id != object_id:
                    raise Stale(f"{object_id.key!r} was changed by someone else")
                return self.objects[object_id.key].checksum
        finally:
            self._answer(request)

    def is_versioned(self) -> bool:
        return False

    def list_versions_page(self, prefix: str, *, token: str | None = None) -> ListPage:
        raise AssertionError("this bucket keeps no versions")

    def get_range(
        self,
        object_id: ObjectId,
        offset: int,
        length: int,
        fd: int,
        at: int,
        progress: Progress,
        version_id: str | None = None,
    ) -> ObjectInfo:
        assert version_id is None
        info, pieces = self._get(object_id, offset, length)
        for start, piece in pieces:
            os.pwrite(fd, piece, at + start)
            progress(len(piece))
        return info

    def get_whole(
        self, infos: Sequence[ObjectInfo], at_once: int, progress: Progress
    ) -> Generator[tuple[ObjectInfo, memoryview], None, None]:
        for info in infos:
            found, pieces = self._get(info.id, 0, info.size)
            content = b""
            for _, piece in pieces:
                content += piece
                progress(len(piece))
            yield found, memoryview(content)

    def _get(
        self, object_id: ObjectId, offset: int, length: int
    ) -> tuple[ObjectInfo, Generator[tuple[int, bytes], None, None]]:
        """Return what is said of an object, and the pieces of a range with their places in it."""
        request = self._begin("GetObject", object_id.key, offset, length)
        try:
            with self._lock:
                info = self._info(object_id.key)
                data = self.objects[object_id.key].data[offset : offset + length]
            if info.id != object_id:
                raise Stale(f"{object_id.key!r} was changed by someone else")
            if len(data) != length:
                raise WrongBytes(f"{object_id.key!r}: {len(data)} bytes instead of {length}")
            with self._lock:
                if self._flips[object_id.key] > 0:
                    data = bytes([data[0] ^ self._flips[object_id.key]]) + data[1:]
                    self._flips[object_id.key] -= 1
        except BaseException:
            self._end(request)
            raise
        return info, self._pieces_of(request, data)

    def _pieces_of(self, request: Request, data: bytes) -> Generator[tuple[int, bytes], None, None]:
        try:
            edges = [len(data) * number // self.pieces for number in range(self.pieces + 1)]
            for start, end in pairwise(edges):
                for hook in list(self._body_hooks):
                    hook(request, start)
                yield start, data[start:end]
        except BaseException:
            self._end(request)
            raise
        self._answer(request)

    def put(
        self,
        key: str,
        fd: int,
        size: int,
        metadata: Mapping[str, str],
        progress: Progress,
        condition: str | None = None,
    ) -> ObjectInfo:
        request = self._begin("PutObject", key, length=size)
        data = os.pread(fd, size, 0)
        if len(data) < size:
            self._end(request)
            raise StoreError("a staged file became shorter while it was uploaded")
        progress(size)
        with self._lock:
            stored = self.objects.get(key)
            found = ABSENT if stored is None else stored.etag
            if condition not in (None, found):
                self._end(request)
                raise Stale(f"{key!r}: the condition {condition} does not hold")
            info = self._keep(key, [data], metadata)
        self._answer(request)
        return info

    def put_empty(self, key: str, metadata: Mapping[str, str]) -> ObjectInfo:
        request = self._begin("PutObject", key)
        info = self._keep(key, [b""], metadata)
        self._answer(request)
        return info

    def start_upload(self, key: str, metadata: Mapping[str, str]) -> str:
        request = self._begin("CreateMultipartUpload", key)
        with self._lock:
            upload_id = f"upload-{request.number}"
            self._uploads[upload_id] = _Upload(key, dict(metadata))
        self._answer(request)
        return upload_id

    def upload_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        fd: int,
        offset: int,
        length: int,
        progress: Progress,
    ) -> UploadedPart:
        request = self._begin("UploadPart", key, offset, length)
        data = os.pread(fd, length, offset)
        progress(len(data))
        with self._lock:
            if upload_id not in self._uploads:
                self._end(request)
                raise NotFound(f"{key!r}: no upload {upload_id}")
            self._uploads[upload_id].parts[number] = data
        self._answer(request)
        return UploadedPart(number, _md5(data))

    def copy_part(
        self, source: ObjectInfo, offset: int, length: int, key: str, upload_id: str, number: int
    ) -> UploadedPart:
        request = self._begin("UploadPartCopy", key, offset, length)
        with self._lock:
            data = self.objects[source.id.key].data[offset : offset + length]
            self._uploads[upload_id].parts[number] = data
        self._answer(request)
        return UploadedPart(number, _md5(data))

    def unfinished_uploads(self, prefix: str) -> Sequence[UnfinishedUpload]:
        request = self._begin("ListMultipartUploads", prefix)
        with self._lock:
            found = [
                UnfinishedUpload(upload.key, upload_id, time.time_ns())
                for upload_id, upload in self._uploads.items()
                if upload.key.startswith(prefix)
            ]
        self._answer(request)
        return found

    def finish_upload(
        self, key: str, upload_id: str, parts: Sequence[UploadedPart], size: int
    ) -> ObjectInfo:
        request = self._begin("CompleteMultipartUpload", key)
        try:
            with self._lock:
                upload = self._uploads.pop(upload_id, None)
                if upload is None:
                    info = self._info(key)
                    if (info.size, info.id.etag) != (size, _multipart_etag(p.etag for p in parts)):
                        raise NotFound(f"{key!r}: no upload {upload_id}")
                    return info
                data = [upload.parts[part.number] for part in parts]
                info = self._keep(key, data, upload.metadata, is_multipart=True)
        finally:
            self._answer(request)
        if info.size != size:
            raise WrongBytes(f"{key!r}: {info.size} bytes instead of {size}")
        return info

    def abort_upload(self, key: str, upload_id: str) -> None:
        request = self._begin("AbortMultipartUpload", key)
        with self._lock:
            self._uploads.pop(upload_id, None)
        self._answer(request)

    def copy(
        self, source: ObjectInfo, key: str, metadata: Mapping[str, str] | None = None
    ) -> ObjectInfo:
        request = self._begin("CopyObject", key)
        try:
            with self._lock:
                found = self._info(source.id.key)
                if found.id != source.id:
                    raise Stale(f"{source.id.key!r} was changed by someone else")
                stored = self.objects[source.id.key]
                kept = stored.metadata if metadata is None else metadata
                return self._keep(key, [stored.data], kept)  # one request makes a plain ETag
        finally:
            self._answer(request)

    def delete(self, key: str) -> None:
        request = self._begin("DeleteObject", key)
        self.take(key)
        self._answer(request)

    def delete_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        assert len(keys) <= PAGE_KEYS, "S3 takes no more"
        request = self._begin("DeleteObjects", keys[0] if keys else "")
        for key in keys:
            self.take(key)
        self._answer(request)
        return {}

    def probe(self) -> None:
        self._answer(self._begin("HeadBucket", ""))

    def requests(self) -> Mapping[str, int]:
        with self._lock:
            return Counter(request.operation for request in self.sent)

    def statistics(self) -> RequestStatistics:
        outcomes = {(operation, "ok"): count for operation, count in self.requests().items()}
        return RequestStatistics(outcomes, {})

    # --------------------------------------------------------------- objects

    def _keep(
        self,
        key: str,
        parts: Sequence[bytes],
        metadata: Mapping[str, str],
        *,
        is_multipart: bool = False,
    ) -> ObjectInfo:
        data = b"".join(parts)
        etag = _multipart_etag(map(_md5, parts)) if is_multipart else _md5(data)
        with self._lock:
            self._clock_ns += 10**9
            self.objects[key] = Stored(data, etag, dict(metadata), self._clock_ns)
            return self._info(key)

    def _info(self, key: str, *, listed: bool = False) -> ObjectInfo:
        stored = self.objects.get(key)
        if stored is None:
            raise NotFound(f"there is no {key!r}")
        _, dash, parts = stored.etag.partition("-")
        is_believed = listed or not stored.has_own_etag
        return ObjectInfo(
            ObjectId(key, stored.etag),
            len(stored.data),
            stored.modified_ns,
            None if listed else parse_mtime(stored.metadata.get(MTIME)),
            stored.etag if is_believed and not dash else None,
            None,
            None if listed else dict(stored.metadata),
            int(parts) if is_believed and dash else None,
            stored.checksum.algorithm if listed and stored.checksum else None,
            None if listed else stored.metadata.get(PART_SIZES),
        )


class Gate:
    """Keeps requests waiting until it is opened."""

    def __init__(self, operation: str, key: str) -> None:
        self._operation, self._key = operation, key
        self._opened = threading.Event()
        self.waiting = 0

    def __call__(self, store: FakeStore, request: Request) -> None:
        if request.operation == self._operation and request.key.startswith(self._key):
            with store._lock:
                self.waiting += 1
            assert self._opened.wait(LONGEST_WAIT_S), "nobody opened the gate"

    def open(self) -> None:
        self._opened.set()


def slow(operation: str, pause_s: float) -> Hook:
    """Return a hook that makes every request of an operation take its time."""

    def wait(store: FakeStore, request: Request) -> None:
        if request.operation == operation:
            time.sleep(pause_s)

    return wait


def unavailable(text: str = "503 Slow Down") -> ModelfsError:
    return RegistryUnavailable(text)


def token_of(token: str) -> bytes:
    """Return what a page goes on after: past every key of a folder that it ended with."""
    return _bytes_of(token) + (b"\xff" if token.endswith("/") else b"")


def _folder_of(key: str, prefix: str) -> str | None:
    head, slash, _ = key.removeprefix(prefix).partition("/")
    return f"{prefix}{head}/" if slash else None


def _bytes_of(key: str) -> bytes:
    return key.encode(errors="surrogateescape")


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _multipart_etag(etags: "Sequence[str] | map[str] | object") -> str:
    digests = [bytes.fromhex(etag) for etag in etags]  # type: ignore[attr-defined]
    return f"{_md5(b''.join(digests))}-{len(digests)}"
