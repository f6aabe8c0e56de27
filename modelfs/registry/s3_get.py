"""GETs of objects, past most of boto3 (s3_http.py); one thread may have several under way.

What that does not know (a proxy, a bucket in another region) is left to boto3.
"""

import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from modelfs.registry.bodies import Readable
from modelfs.registry.connections import Connection
from modelfs.registry.objects import ObjectId
from modelfs.registry.s3_answers import Answer, answer_of
from modelfs.registry.s3_counts import NO_ANSWER, RequestCounts, outcome_of
from modelfs.registry.s3_http import BucketHttp

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ELSEWHERE = (301, 302, 307, 308, 400)  # how AWS says that a bucket is in another region
ERROR_MAX_BYTES = 1 << 20  # of an answer that tells of an error
OPERATION = "GetObject"


class Body(Readable, Protocol):
    """The body of an answer; a connection whose body was read to its end is kept."""

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Wish:
    """What to get: bytes [offset, offset + length) of one state of an object."""

    id: ObjectId
    offset: int
    length: int
    version_id: str | None = None

    @property
    def range(self) -> str:
        """As a request says it."""
        return f"bytes={self.offset}-{self.offset + self.length - 1}"


class _Body:
    """The body of an answer on one of our connections."""

    def __init__(self, connection: Connection, http: BucketHttp) -> None:
        self._connection = connection
        self._http = http
        self.readinto = connection.readinto

    def close(self) -> None:
        self._http.connections.give(self._connection)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that was sent; `begun` is when, in monotonic seconds."""

    wish: Wish
    connection: Connection
    begun: float


class Getter:
    """Gets objects of one bucket, and counts requests; any thread may call.

    Raises what boto3 would raise, or urllib3's errors.
    """

    def __init__(
        self, client: "S3Client", bucket: str, http: BucketHttp, counts: RequestCounts
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._http = http
        self._counts = counts

    def get(self, wish: Wish) -> tuple[Answer, Body]:
        """Return the answer, as boto3 would have it, and its body, which the caller closes."""
        if not self._http.serves:
            return self._by_boto3(wish)
        return self._answered(self._ask(wish))

    def get_all(
        self, wishes: Sequence[Wish], at_once: int
    ) -> Generator[tuple[Answer, Body], None, None]:
        """Yield the answers in their order, while those to the next `at_once` are on their way.

        A body is to be read before the next answer is asked for.
        """
        if not self._http.serves:
            with ThreadPoolExecutor(at_once) as threads:
                yield from threads.map(self._by_boto3, wishes)
            return
        left, asked = iter(wishes), deque[_Asked]()
        try:
            asked.extend(map(self._ask, islice(left, at_once)))
            while asked:
                answer, body = self._answered(asked.popleft())
                try:
                    yield answer, body
                finally:
                    body.close()
                asked.extend(map(self._ask, islice(left, 1)))
        finally:
            for request in asked:
                self._counts.end(OPERATION, NO_ANSWER, time.monotonic() - request.begun)
                request.connection.close()

    def _ask(self, wish: Wish) -> _Asked:
        version = {"versionId": wish.version_id} if wish.version_id else {}
        headers = {"range": wish.range, "if-match": f'"{wish.id.etag}"'}
        request = self._http.get(wish.id.key, version, headers)
        self._counts.begin(OPERATION)
        begun = time.monotonic()
        connection = None
        try:
            connection = self._http.connections.take()
            connection.ask(request)
        except BaseException:
            self._counts.end(OPERATION, NO_ANSWER, time.monotonic() - begun)
            if connection is not None:
                connection.close()
            raise
        return _Asked(wish, connection, begun)

    def _answered(self, asked: _Asked) -> tuple[Answer, Body]:
        connection, outcome = asked.connection, NO_ANSWER
        body = _Body(connection, self._http)
        try:
            connection.receive_head()
            outcome = outcome_of(connection.status)
            if connection.status < 300:
                return answer_of(connection.headers), body
            said = _whole(connection)
        except BaseException:
            connection.close()
            raise
        finally:
            self._counts.end(OPERATION, outcome, time.monotonic() - asked.begun)
        body.close()
        if connection.status in ELSEWHERE:
            return self._by_boto3(asked.wish)
        raise self._http.error_of(connection.status, connection.headers, said, OPERATION)

    def _by_boto3(self, wish: Wish) -> tuple[Answer, Body]:
        which: dict[str, Any] = {"Key": wish.id.key, "IfMatch": f'"{wish.id.etag}"'}
        if wish.version_id:
            which["VersionId"] = wish.version_id
        answer: Any = self._client.get_object(Bucket=self._bucket, Range=wish.range, **which)
        return answer, answer["Body"]


def _whole(connection: Connection) -> bytes:
    """Return the body of an answer that tells of an error, as far as it is worth reading."""
    found, buffer = bytearray(), memoryview(bytearray(16 << 10))
    while len(found) < ERROR_MAX_BYTES and (count := connection.readinto(buffer)):
        found += buffer[:count]
    return bytes(found)
