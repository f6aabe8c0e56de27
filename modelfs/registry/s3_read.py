"""The half of an S3Store that looks: lists, heads, bytes; plain synchronous Python.

Any thread may call.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any

from modelfs.concurrency import thread_buffer
from modelfs.errors import RegistryUnavailable, Stale
from modelfs.registry import s3_answers as answers
from modelfs.registry.bodies import fill, receive
from modelfs.registry.objects import (
    Checksum,
    ListPage,
    ObjectId,
    ObjectInfo,
    Progress,
    RequestStatistics,
)
from modelfs.registry.s3_clients import LISTING, S3Clients
from modelfs.registry.s3_get import Wish
from modelfs.registry.s3_listings import list_page_of
from modelfs.registry.s3_settings import S3Settings

PAGE_KEYS = 1000  # the most that S3 gives


class S3Reader:
    """What of ObjectStore changes nothing in the bucket."""

    def __init__(self, settings: S3Settings) -> None:
        """Read the credentials and make the clients; no request is sent. Raises ConfigError."""
        self._bucket = settings.bucket
        self._take(settings, S3Clients(settings))

    def _take(self, settings: S3Settings, clients: S3Clients) -> None:
        self._settings = settings
        self._clients = clients
        self._fast, self._slow = clients.fast, clients.slow
        self._translated = clients.translated

    def use(self, settings: S3Settings) -> None:
        """Ask by other settings of the same bucket from now on; blocking. Raises ConfigError.

        Requests under way go on as they began: the connections before are closed when the last
        one that uses them has ended.
        """
        if settings != self._settings:
            self._take(settings, S3Clients(settings, before=self._clients))

    def close(self) -> None:
        """Close the connections that are kept; nothing may be asked afterwards."""
        self._clients.close()

    def requests(self) -> Mapping[str, int]:
        return self._clients.counts.sent()

    def statistics(self) -> RequestStatistics:
        return self._clients.statistics()

    def list_page(self, prefix: str, *, by_folder: bool, token: str | None = None) -> ListPage:
        wish: dict[str, Any] = {"Delimiter": "/"} if by_folder else {}
        if token is not None:
            wish["ContinuationToken"] = token
        with self._translated():
            answer: answers.Answer = self._fast.list_objects_v2(
                Bucket=self._bucket, Prefix=prefix, MaxKeys=PAGE_KEYS, EncodingType="url", **wish
            )
            return list_page_of(answer[LISTING])

    def is_versioned(self) -> bool:
        with self._translated():
            answer = self._fast.get_bucket_versioning(Bucket=self._bucket)
        return answer.get("Status") == "Enabled"

    def list_versions_page(self, prefix: str, *, token: str | None = None) -> ListPage:
        wish: dict[str, Any] = {}
        if token is not None:
            wish["KeyMarker"], _, wish["VersionIdMarker"] = token.rpartition("\0")
        with self._translated():
            answer = self._fast.list_object_versions(
                Bucket=self._bucket, Prefix=prefix, MaxKeys=PAGE_KEYS, EncodingType="url", **wish
            )
            return answers.versions_page_of(answer)

    def head(self, key: str) -> ObjectInfo:
        return self._head(key)[0]

    def _head(self, key: str) -> tuple[ObjectInfo, answers.Answer]:
        with self._translated(key):
            answer = self._fast.head_object(Bucket=self._bucket, Key=key)
            return answers.info_of(key, answer, answer["ContentLength"]), answer

    def checksum(self, object_id: ObjectId, version_id: str | None = None) -> Checksum | None:
        wish: dict[str, Any] = {"VersionId": version_id} if version_id else {}
        with self._translated(object_id.key):
            answer = self._fast.head_object(
                Bucket=self._bucket,
                Key=object_id.key,
                IfMatch=f'"{object_id.etag}"',
                ChecksumMode="ENABLED",
                **wish,
            )
        if answers.etag_of(answer) != object_id.etag:
            raise Stale(f"{object_id.key!r} was changed by someone else")
        return answers.checksum_of(answer)

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
        with self._translated(object_id.key):
            wish = Wish(object_id, offset, length, version_id)
            answer, body = self._clients.getter.get(wish)
            with closing(body):  # a connection that was read to its end is kept, any other dropped
                info = answers.checked_range(object_id, answer, offset, length)
                done = receive(body, length, fd, at, progress)
        _check_length(object_id.key, done, length)
        return info

    def get_whole(
        self, infos: Sequence[ObjectInfo], at_once: int, progress: Progress
    ) -> Generator[tuple[ObjectInfo, memoryview], None, None]:
        wishes = [Wish(info.id, 0, info.size, info.version_id) for info in infos]
        with closing(self._clients.getter.get_all(wishes, at_once)) as got:
            for wish in wishes:
                with self._translated(wish.id.key):
                    answer, body = next(got)
                    info = answers.checked_range(wish.id, answer, 0, wish.length)
                    content = thread_buffer()[: wish.length]
                    done = fill(body, content, progress)
                _check_length(wish.id.key, done, wish.length)
                yield info, content

    def probe(self) -> None:
        with self._translated():
            self._clients.probe.list_objects_v2(Bucket=self._bucket, MaxKeys=1)


def _check_length(key: str, done: int, length: int) -> None:
    if done != length:
        raise RegistryUnavailable(f"{key!r}: the registry broke off after {done} of {length} bytes")
