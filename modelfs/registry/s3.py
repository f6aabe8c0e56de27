"""ObjectStore on S3: one bucket, plain synchronous Python; any thread may call.

What changes the bucket is here; what only looks is in s3_read.py.

Facts that shaped this file: Ceph's gateway ignores conditions on copy sources, answers
CompleteMultipartUpload without an ETag, and checks no checksum but Content-MD5. It copies
an object of any size whole in a moment (it copies references, not bytes), while its
UploadPartCopy decodes the source's key twice: a key with a % would be another object.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, Any, cast

from modelfs.errors import (
    ModelfsError,
    NotFound,
    NotSupported,
    RegistryError,
    RegistryUnavailable,
    Stale,
)
from modelfs.registry import s3_answers as answers
from modelfs.registry.bodies import FileBody, md5_of
from modelfs.registry.objects import (
    ABSENT,
    PART_SIZES,
    ObjectId,
    ObjectInfo,
    Progress,
    UnfinishedUpload,
    UploadedPart,
)
from modelfs.registry.rights import UploadRights, UploadWish
from modelfs.registry.s3_clients import S3Clients, was_answered
from modelfs.registry.s3_read import PAGE_KEYS, S3Reader
from modelfs.registry.s3_rights import Granter
from modelfs.registry.s3_settings import S3Settings

PARTS_MAX = 10_000
PARALLEL_COPIES = 4
COPIED_HEADERS = (
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
    "ContentType",
)


class S3Store(S3Reader):
    """A bucket; see ObjectStore."""

    def _take(self, settings: S3Settings, clients: S3Clients) -> None:
        super()._take(settings, clients)
        self._granter = Granter(self, clients, settings.bucket)

    def upload_rights(self, wish: UploadWish) -> UploadRights:
        return self._granter.grant(wish)

    # --------------------------------------------------------------- writing

    def put(
        self,
        key: str,
        fd: int,
        size: int,
        metadata: Mapping[str, str],
        progress: Progress,
        condition: str | None = None,
    ) -> ObjectInfo:
        body = FileBody(fd, 0, size, progress)
        return self._put(key, body, md5_of(fd, 0, size), size, metadata, condition)

    def put_empty(self, key: str, metadata: Mapping[str, str]) -> ObjectInfo:
        return self._put(key, b"", hashlib.md5(usedforsecurity=False).digest(), 0, metadata, None)

    def _put(
        self,
        key: str,
        body: FileBody | bytes,
        digest: bytes,
        size: int,
        metadata: Mapping[str, str],
        condition: str | None,
    ) -> ObjectInfo:
        wish: dict[str, Any] = {}
        if condition is not None:  # the ETag without quotes, as Ceph's gateway wants it
            wish = {"IfNoneMatch": "*"} if condition == ABSENT else {"IfMatch": condition}
        with self._translated(key):
            answer = self._fast.put_object(
                Bucket=self._bucket,
                Key=key,
                Body=cast("IO[bytes]", body) if size else b"",
                ContentMD5=_in_base64(digest),
                Metadata=answers.encode_metadata(metadata),
                **wish,
            )
        etag = answers.checked_etag(answer, digest, key)
        modified_ns = answers.answered_at_ns(answer)
        return answers.made_info(key, answer, etag, size, modified_ns, metadata)

    def start_upload(self, key: str, metadata: Mapping[str, str]) -> str:
        return self._start_upload(key, metadata, {})

    def _start_upload(
        self, key: str, metadata: Mapping[str, str], headers: Mapping[str, Any]
    ) -> str:
        with self._translated(key):
            answer = self._fast.create_multipart_upload(
                Bucket=self._bucket,
                Key=key,
                Metadata=answers.encode_metadata(metadata),
                **headers,
            )
            return answer["UploadId"]

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
        body = FileBody(fd, offset, length, progress, is_signed=True)
        with self._translated(key):
            answer = self._clients.put_part(key, upload_id, number, body)
            return UploadedPart(number, answers.etag_of(answer))

    def copy_part(
        self, source: ObjectInfo, offset: int, length: int, key: str, upload_id: str, number: int
    ) -> UploadedPart:
        if "%" in source.id.key or "+" in source.id.key:
            raise NotSupported(f"{source.id.key!r}: Ceph's gateway would take another key for it")
        return self._copy_part(source.id, offset, length, key, upload_id, number)

    def _copy_part(
        self, source: ObjectId, offset: int, length: int, key: str, upload_id: str, number: int
    ) -> UploadedPart:
        with self._translated(source.key):
            answer = self._slow.upload_part_copy(
                Bucket=self._bucket,
                Key=key,
                UploadId=upload_id,
                PartNumber=number,
                CopySourceRange=f"bytes={offset}-{offset + length - 1}",
                **self._copy_source(source),
            )
            return UploadedPart(number, answers.etag_of(answer["CopyPartResult"]))

    def unfinished_uploads(self, prefix: str) -> Sequence[UnfinishedUpload]:
        with self._translated():
            answer = self._fast.list_multipart_uploads(
                Bucket=self._bucket, Prefix=prefix, MaxUploads=PAGE_KEYS
            )
            return answers.unfinished_of(answer)

    def finish_upload(
        self, key: str, upload_id: str, parts: Sequence[UploadedPart], size: int
    ) -> ObjectInfo:
        expected = answers.multipart_etag(parts)
        numbered = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]
        said, gone = "", None
        try:
            with self._translated(key):
                answer = self._slow.complete_multipart_upload(
                    Bucket=self._bucket,
                    Key=key,
                    UploadId=upload_id,
                    MultipartUpload={"Parts": numbered},  # type: ignore[typeddict-item]
                )
            said = answers.etag_of(answer)
        except NotFound as error:
            gone = error  # perhaps an earlier try succeeded and its answer was lost
        except RegistryUnavailable as error:
            # Ceph's gateway says of an upload that is gone that it is being completed (500).
            if not was_answered(error) or self.has_upload(key, upload_id):
                raise
            gone = NotFound(f"{key!r}: the multipart upload is gone")
        info, head = self._head(key)
        if gone is not None and (info.size, info.id.etag) != (size, expected):
            raise gone
        return answers.checked_upload(info, head, said, expected, size)

    def has_upload(self, key: str, upload_id: str) -> bool:
        """Tell whether a multipart upload is there, neither finished nor aborted."""
        try:
            with self._translated(key):
                self._fast.list_parts(Bucket=self._bucket, Key=key, UploadId=upload_id, MaxParts=1)
        except NotFound:
            return False
        return True

    def abort_upload(self, key: str, upload_id: str) -> None:
        with suppress(NotFound), self._translated(key):
            self._fast.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)

    # --------------------------------------------------------------- copying

    def copy(
        self, source: ObjectInfo, key: str, metadata: Mapping[str, str] | None = None
    ) -> ObjectInfo:
        head = self._head_unchanged(source)
        headers = {name: head[name] for name in COPIED_HEADERS if head.get(name)}
        kept = answers.decode_metadata(head.get("Metadata", {}))
        wanted = kept if metadata is None else metadata
        small = head["ContentLength"] <= self._settings.copy_limit_bytes
        if small or answers.is_of_ceph(head):
            try:
                return self._copy_whole(source.id, head, key, wanted, headers)
            except RegistryError as error:
                if small or type(error) is not RegistryError:
                    raise  # any other refusal is of a size that it does not copy whole
        wanted = {name: said for name, said in wanted.items() if name != PART_SIZES}
        return self._copy_parts(source, key, wanted, headers)

    def _copy_whole(
        self,
        source: ObjectId,
        head: answers.Answer,
        key: str,
        metadata: Mapping[str, str],
        headers: Mapping[str, Any],
    ) -> ObjectInfo:
        with self._translated(source.key):
            answer = self._slow.copy_object(
                Bucket=self._bucket,
                Key=key,
                MetadataDirective="REPLACE",
                Metadata=answers.encode_metadata(metadata),
                **headers,
                **self._copy_source(source),
            )
            result = answer["CopyObjectResult"]
            etag, modified_ns = answers.etag_of(result), answers.nanoseconds(result["LastModified"])
        info = answers.made_info(key, answer, etag, head["ContentLength"], modified_ns, metadata)
        keeps_etag = answers.is_of_ceph(head) or (info.md5 and answers.md5_of_answer(head))
        if keeps_etag and etag != source.etag:
            raise Stale(f"{source.key!r} was changed by someone else while it was copied")
        return info

    def _head_unchanged(self, source: ObjectInfo) -> answers.Answer:
        """HEAD the source; raises Stale, which Ceph's gateway does not do for us."""
        info, head = self._head(source.id.key)
        if info.id != source.id:
            raise Stale(f"{source.id.key!r} was changed by someone else")
        return head

    def _copy_source(self, source: ObjectId) -> dict[str, Any]:
        return {
            "CopySource": {"Bucket": self._bucket, "Key": source.key},
            "CopySourceIfMatch": f'"{source.etag}"',
        }

    def _copy_parts(
        self,
        source: ObjectInfo,
        key: str,
        metadata: Mapping[str, str],
        headers: Mapping[str, Any],
    ) -> ObjectInfo:
        size = source.size
        step = max(self._settings.copy_part_bytes, -(-size // PARTS_MAX))
        spans = [(at, min(step, size - at)) for at in range(0, size, step)]
        upload_id = self._start_upload(key, metadata, headers)

        def copy_part(number: int, offset: int, length: int) -> UploadedPart:
            return self._copy_part(source.id, offset, length, key, upload_id, number)

        try:
            with ThreadPoolExecutor(PARALLEL_COPIES, "copy") as pool:
                jobs = [pool.submit(copy_part, n, *span) for n, span in enumerate(spans, 1)]
                try:
                    parts = [job.result() for job in jobs]
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
            self._head_unchanged(source)
            return self.finish_upload(key, upload_id, parts, size)
        except BaseException:
            with suppress(ModelfsError):
                self.abort_upload(key, upload_id)
            raise

    # -------------------------------------------------------------- deleting

    def delete(self, key: str) -> None:
        with suppress(NotFound), self._translated(key):
            self._fast.delete_object(Bucket=self._bucket, Key=key)

    def delete_many(self, keys: Sequence[str]) -> Mapping[str, str]:
        failed: dict[str, str] = {}
        for key in keys:
            if not answers.fits_xml(key):
                try:
                    self.delete(key)
                except ModelfsError as error:
                    failed[key] = str(error)
        batch = [key for key in keys if answers.fits_xml(key)]
        return failed | (self._delete_batch(batch) if batch else {})

    def _delete_batch(self, keys: Sequence[str]) -> dict[str, str]:
        with self._translated():
            answer = self._fast.delete_objects(
                Bucket=self._bucket,
                Delete={"Objects": [{"Key": key} for key in keys], "Quiet": True},
            )
        return {
            failed.get("Key", ""): f"{failed.get('Code', '')} {failed.get('Message', '')}".strip()
            for failed in answer.get("Errors", ())
            if failed.get("Code") != "NoSuchKey"
        }


def _in_base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
