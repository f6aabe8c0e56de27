"""What an examination asks of a bucket beyond what ObjectStore does; plain synchronous Python.

Owns the probe keys: `PREFIX.modelfs-doctor-HOST-ID`, right below the prefix, where the tree has
namespaces alone: a key with no slash behind it is no namespace, and a name with a leading dot
could not be one. Nothing is made but below such a key.
"""

import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from modelfs.errors import AccessDenied, ModelfsError, NotFound, Stale
from modelfs.registry.objects import ObjectId, ObjectInfo, UnfinishedUpload
from modelfs.registry.rights import session_policy
from modelfs.registry.s3 import S3Store
from modelfs.registry.s3_settings import S3Settings

PROBE_NAME = ".modelfs-doctor-"
SESSION_S = 900  # the least that STS gives
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9.-]+")


def code_of(error: ModelfsError) -> str:
    """Return the registry's own word for an error, '' where it gave none."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


class S3Probe(S3Store):
    """A bucket, and a key of this probe's own in it. One thread may use it."""

    def __init__(self, settings: S3Settings, prefix: str, host: str) -> None:
        """Read the credentials and make the clients; no request is sent. Raises ConfigError."""
        super().__init__(settings)
        self._probe_prefix = prefix + PROBE_NAME
        name = _NOT_PLAIN.sub("-", host)[:64]
        self.key = f"{self._probe_prefix}{name}-{uuid.uuid4().hex}"
        self._is_there = self._has_versions = False
        self._upload_id: str | None = None  # of an upload that may be unfinished

    @property
    def credentials_source(self) -> str | None:
        """Return what boto3 calls the place where it found credentials; None: nowhere."""
        return self._clients.credentials_source

    # -------------------------------------------------------------- the probe

    def put_bytes(self, data: bytes) -> ObjectInfo:
        """Put the probe object; raises AccessDenied where that is refused."""
        with _memory(data) as fd:
            return self._made(lambda: self.put(self.key, fd, len(data), {}, lambda _: None))

    def holds_if_none_match(self) -> bool:
        """Tell whether a PUT of what exists already is refused where it is asked to be."""
        try:
            with self._translated(self.key):
                self._fast.put_object(Bucket=self._bucket, Key=self.key, Body=b"", IfNoneMatch="*")
        except Stale:
            return True
        return False

    def read(self, info: ObjectInfo, length: int) -> bytes:
        """Return the first bytes of one state of an object; raises Stale where it is no longer."""
        with _memory(b"") as fd:
            self.get_range(info.id, 0, length, fd, 0, lambda _: None)
            return os.pread(fd, length, 0)

    def holds_if_match(self, info: ObjectInfo) -> bool:
        """Tell whether a GET of a state that is not the object's is refused by the registry."""
        other = replace(info, id=ObjectId(info.id.key, "0" * 32))
        try:
            self.read(other, 1)
        except Stale as error:  # by the registry, or only by us, who looked at the answer's ETag
            return error.__cause__ is not None
        return False

    def put_in_parts(self, data: bytes) -> ObjectInfo:
        """Put the probe object as a multipart upload of one part, after one that is aborted."""
        self._upload_id = self.start_upload(self.key, {})
        self.abort_upload(self.key, self._upload_id)
        self._upload_id = upload_id = self.start_upload(self.key, {})
        with _memory(data) as fd:
            part = self.upload_part(self.key, upload_id, 1, fd, 0, len(data), lambda _: None)
        info = self._made(lambda: self.finish_upload(self.key, upload_id, [part], len(data)))
        self._upload_id = None
        return info

    def _made(self, make: Callable[[], ObjectInfo]) -> ObjectInfo:
        was_there, self._is_there = self._is_there, True  # as far as an error tells, too
        try:
            info = make()
        except AccessDenied:
            self._is_there = was_there
            raise
        self._has_versions |= info.version_id is not None
        return info

    def erase(self) -> None:
        """Remove what the probe has left: its upload, its object, the versions of that."""
        if self._upload_id is not None:
            self.abort_upload(self.key, self._upload_id)
        if self._is_there:
            self.delete(self.key)
        if self._has_versions:
            self._erase_versions()

    def _erase_versions(self) -> None:
        with self._translated():
            answer = self._fast.list_object_versions(Bucket=self._bucket, Prefix=self.key)
        kept: list[Any] = [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]
        for version in kept:
            with suppress(NotFound), self._translated(self.key):
                self._fast.delete_object(
                    Bucket=self._bucket, Key=self.key, VersionId=version["VersionId"]
                )

    def sweep(self, before_ns: int) -> None:
        """Remove what probes that were killed have left; as far as these credentials may."""
        with suppress(AccessDenied):
            page = self.list_page(self._probe_prefix, by_folder=False)
            old = [info.id.key for info in page.objects if info.modified_ns < before_ns]
            if old:
                self.delete_many(old)
        with suppress(AccessDenied):
            for upload in self.unfinished_uploads(self._probe_prefix):
                if upload.started_ns < before_ns:
                    self.abort_upload(upload.key, upload.id)

    # ---------------------------------------------------------- whole bucket

    def is_known(self) -> bool:
        """Tell whether the registry knows these keys: whoever it knows may list their buckets.

        On AWS that takes a right of its own, but AWS says of wrong keys that they are wrong;
        Ceph's gateway may say of them what it says of missing rights (with STS it does).
        """
        try:
            with self._translated():
                self._fast.list_buckets()
        except AccessDenied:
            return False
        return True

    def uploaded_bytes(self, upload: UnfinishedUpload) -> int:
        """Return how many bytes the first 1,000 parts of an unfinished upload hold."""
        with self._translated(upload.key):
            answer = self._fast.list_parts(Bucket=self._bucket, Key=upload.key, UploadId=upload.id)
        return sum(part["Size"] for part in answer.get("Parts", ()))

    def assume(self, role: str, prefix: str) -> None:
        """Ask STS for credentials of `role` that hold below `prefix` alone; they are dropped."""
        policy = session_policy(self._bucket, prefix)
        self._clients.assume_role(role, "modelfs-doctor", SESSION_S, policy)


@contextmanager
def _memory(data: bytes) -> Iterator[int]:
    """Hold these bytes in memory as a file; yield its descriptor."""
    fd = os.memfd_create("probe", os.MFD_CLOEXEC)
    try:
        os.pwrite(fd, data, 0)
        yield fd
    finally:
        os.close(fd)
