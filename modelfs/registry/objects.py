"""What is far away: objects, and the ObjectStore that holds them.

An ObjectStore is plain synchronous code, safe to call from several threads at once.
It makes one request a call, never retries (calls.py does), raises only errors of
modelfs.errors, and takes its time limits from its configuration.
"""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelfs.counting import Histogram
from modelfs.registry.rights import UploadRights, UploadWish

Progress = Callable[[int], None]
"""Called from the working thread with the number of bytes that have just moved."""

MTIME = "mtime"
"""The metadata key of an object's recorded time, as rclone writes it."""

PART_SIZES = "modelfs-parts"
"""The metadata key of the sizes of the parts in which an object came, where they are odd."""

ABSENT = "*"
"""The condition of a write that there be no object; else it is the ETag that is to be replaced."""

_SECOND_NS = 10**9
_MTIME = re.compile(r"(-?)([0-9]{1,11})(?:\.([0-9]*))?", re.ASCII)


def format_mtime(mtime_ns: int) -> str:
    """Return seconds since 1970 with their nanoseconds, no zeros at the end, as rclone does."""
    seconds, fraction_ns = divmod(abs(mtime_ns), _SECOND_NS)
    text = f"{seconds}.{fraction_ns:09d}".rstrip("0").removesuffix(".")
    return f"-{text}" if mtime_ns < 0 else text


def parse_mtime(text: str | None) -> int | None:
    """Return the nanoseconds since 1970 of what `format_mtime` wrote; None of anything else."""
    match = _MTIME.fullmatch(text or "")
    if match is None:
        return None
    sign, seconds, fraction = match.groups()
    mtime_ns = int(seconds) * _SECOND_NS + int((fraction or "")[:9].ljust(9, "0"))
    if mtime_ns >= 2**63:  # more than the kernel's timestamps hold
        return None
    return -mtime_ns if sign else mtime_ns


@dataclass(frozen=True, slots=True)
class ObjectId:
    """One state of one object: its key and its ETag (unquoted, compared and never interpreted)."""

    key: str
    etag: str


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the registry says of one state of an object.

    `modified_ns` is the registry's time. `mtime_ns` is the time recorded in the object's
    metadata `mtime` (as rclone writes it), None where there is none or, from a listing,
    where it is not known. `md5` is the hex MD5 of the content where the store knows that
    the ETag is one, else None. `metadata` is user metadata: empty from a listing.
    `etag_parts` is the number of parts where the store knows that the ETag is the MD5 of
    the parts' MD5s, else None. `checksum` is the algorithm of a checksum of the whole
    content that the registry keeps beside the ETag: known from a listing alone.
    """

    id: ObjectId
    size: int
    modified_ns: int
    mtime_ns: int | None = None
    md5: str | None = None
    version_id: str | None = None
    metadata: Mapping[str, str] | None = None
    etag_parts: int | None = None
    checksum: str | None = None
    part_sizes: str | None = None


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum of an object's whole content: md5, sha256, sha1 or crc32, and it in hex."""

    algorithm: str
    hex: str


@dataclass(frozen=True, slots=True)
class ListPage:
    """Up to 1,000 keys of a listing, in the registry's order.

    Keys hold surrogates (PEP 383) for bytes that are not UTF-8. `token` is None on the
    last page.
    """

    objects: Sequence[ObjectInfo]
    folders: Sequence[str]
    token: str | None


@dataclass(frozen=True, slots=True)
class UploadedPart:
    """A part of a multipart upload that the registry has; `number` counts from 1."""

    number: int
    etag: str


@dataclass(frozen=True, slots=True)
class UnfinishedUpload:
    """A multipart upload that was neither finished nor aborted; `started_ns` since 1970."""

    key: str
    id: str
    started_ns: int


@dataclass(frozen=True, slots=True)
class RequestStatistics:
    """How requests have ended: by operation and outcome, and how soon, by operation.

    `credentials_read_ns` is when the file of credentials was last read anew (epoch ns); None
    where there is none.
    """

    outcomes: Mapping[tuple[str, str], int]
    seconds: Mapping[str, Histogram]
    credentials_read_ns: int | None = None


class ObjectStore(Protocol):
    """A bucket. Every method may raise RegistryError and its kin."""

    def list_page(self, prefix: str, *, by_folder: bool, token: str | None = None) -> ListPage:
        """List keys below `prefix`: all of them, or (by_folder) up to the next slash."""

    def is_versioned(self) -> bool:
        """Tell whether the bucket keeps the versions of its objects."""

    def list_versions_page(self, prefix: str, *, token: str | None = None) -> ListPage:
        """List the current version of every key below `prefix`, with its VersionId."""

    def head(self, key: str) -> ObjectInfo:
        """Ask for one object with its metadata; raises NotFound."""

    def checksum(self, object_id: ObjectId, version_id: str | None = None) -> Checksum | None:
        """Ask for the checksum that the registry keeps of one state of an object.

        None where there is none of the whole content, or of an algorithm that is not ours.
        Raises Stale where the object is no longer in that state, NotFound where it is gone.
        """

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
        """Write bytes [offset, offset + length) of one state of an object into `fd` at `at`.

        With `version_id`, of that version of it, also when it is no longer the current one.
        The body goes through a small reused buffer. Raises Stale where the object is no
        longer in that state (If-Match), NotFound where it is gone, WrongBytes where the
        registry answers with another range, RegistryUnavailable where it promised the right
        one and the body broke off, NoSpace where the disk is full. `length` > 0.
        """

    def get_whole(
        self, infos: Sequence[ObjectInfo], at_once: int, progress: Progress
    ) -> Generator[tuple[ObjectInfo, memoryview], None, None]:
        """Yield what an answer says of each object, and its content: that holds until the next.

        For small ones, of 1 to BUFFER_BYTES bytes; `at_once` requests are on their way together.
        Raises as `get_range` does, of the object that would come next; nothing comes after that.
        """

    def put(
        self,
        key: str,
        fd: int,
        size: int,
        metadata: Mapping[str, str],
        progress: Progress,
        condition: str | None = None,
    ) -> ObjectInfo:
        """Upload `size` bytes of `fd` from 0 in one request, with Content-MD5.

        Raises WrongBytes where the registry answers with another MD5 than was sent, and Stale
        where it finds that `condition` (an ETag, ABSENT) does not hold. Not every registry
        looks: some ignore conditions, some refuse all on a bucket that keeps versions.
        """

    def put_empty(self, key: str, metadata: Mapping[str, str]) -> ObjectInfo:
        """Make an empty object: a folder's, a model's marker."""

    def start_upload(self, key: str, metadata: Mapping[str, str]) -> str:
        """Begin a multipart upload and return its id."""

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
        """Upload bytes [offset, offset + length) of `fd` as part `number` (from 1).

        Signed with the SHA-256 of the bytes: raises WrongBytes where others arrive, NotFound
        where the upload is gone.
        """

    def copy_part(
        self, source: ObjectInfo, offset: int, length: int, key: str, upload_id: str, number: int
    ) -> UploadedPart:
        """Have bytes of an object copied inside the registry as part `number` (from 1).

        Not every registry sees that the source is in another state by now: who copies asks
        before and after. Raises NotSupported for a key that not every registry copies from.
        """

    def finish_upload(
        self, key: str, upload_id: str, parts: Sequence[UploadedPart], size: int
    ) -> ObjectInfo:
        """Put the parts together; raises WrongBytes where the result is not what was sent.

        An upload that is gone because an earlier try succeeded counts as a success.
        """

    def unfinished_uploads(self, prefix: str) -> Sequence[UnfinishedUpload]:
        """List multipart uploads below `prefix` that are under way or were left: 1,000 at most."""

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Forget a multipart upload; one that is gone already is no error."""

    def copy(
        self, source: ObjectInfo, key: str, metadata: Mapping[str, str] | None = None
    ) -> ObjectInfo:
        """Copy inside the registry: the metadata is kept, or replaced where it is given.

        Raises NotFound where the source is gone, Stale where it is in another state. A
        large object is copied in parts. May make several requests.
        """

    def delete(self, key: str) -> None:
        """Delete an object; one that is gone already is no error."""

    def delete_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        """Delete up to 1,000 objects in one request; returns key -> reason of what failed."""

    def upload_rights(self, wish: UploadWish) -> UploadRights:
        """Return rights for who has no keys of the registry. May make several requests.

        Raises AccessDenied where the registry gives none, InvalidName for a time that it does not
        allow, NotSupported where it would not hold who has them to the wish.
        """

    def probe(self) -> None:
        """Make one cheap request with a short time limit that shows that the bucket answers."""

    def requests(self) -> Mapping[str, int]:
        """Return how many requests were sent so far, by the S3 operation's name."""

    def statistics(self) -> RequestStatistics:
        """Return how the requests so far have ended."""
