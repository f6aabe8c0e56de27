"""How a file is cut into parts when it is uploaded, and the ETag that this gives it.

The ETag of an object that came in N parts is the MD5 of its parts' MD5s, and `-N`. It tells
whether bytes are right where the parts' size is known. Nobody keeps that, but N and the
object's size leave an interval for it, in which the tools that upload have few sizes.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from modelfs.registry.bodies import md5_of
from modelfs.registry.objects import UploadedPart
from modelfs.registry.s3_answers import multipart_etag

SINGLE_PUT_MAX = 16 << 20  # bytes; larger files go in parts
UPLOAD_PART_MIN = 8 << 20
PARTS_MAX = 10_000  # S3's limit of one upload
GUESSES_MAX = 4  # part sizes that are tried: each costs an MD5 of the whole file
MIB = 1 << 20

# The part sizes of tools, those that are met most first: boto3 and the AWS CLI take 8 MiB,
# minio-go 16 (older ones 64 and 128), rclone 5, s3a of Hadoop 64, s3cmd 15, s3fs and
# MLflow 10, s5cmd and DVC 50; what grows with the file grows to powers of two, or evenly.
TOOLS_SIZES = (
    *(size * MIB for size in (8, 16, 5, 64, 128, 32, 10, 15, 50, 100, 256, 512, 1024, 25, 20)),
    *(size * 1_000_000 for size in (10, 50, 100, 64, 16)),
)


def part_size_of(size: int) -> int:
    """Return the size of the parts in which a file of `size` bytes is uploaded."""
    return max(UPLOAD_PART_MIN, -(-size // PARTS_MAX))


def part_sizes_of(size: int, parts: int) -> list[int]:
    """Return the likeliest sizes of the parts in which an object of `size` bytes came.

    They are those that tools use; where none of them fits, round ones and an even cut.
    """
    if parts > size:
        return []
    least, most = -(-size // parts), -(-size // (parts - 1)) - 1 if parts > 1 else size
    tools = [s for s in (part_size_of(size), *TOOLS_SIZES) if least <= s <= most]
    others = chain(_roundest(MIB, least, most), _roundest(1_000_000, least, most), (least,))
    return list(islice(_distinct(tools or others), GUESSES_MAX))


def _roundest(unit: int, least: int, most: int) -> Iterator[int]:
    """Yield the multiples of a unit in [least, most], those of large powers of two first."""
    for power in range(most.bit_length(), -1, -1):
        step = unit << power
        yield from range(-(-least // step) * step, most + 1, step)


def _distinct(sizes: Iterable[int]) -> Iterator[int]:
    seen: set[int] = set()
    for size in sizes:
        if size not in seen:
            seen.add(size)
            yield size


class MultipartEtag:
    """The ETag of bytes that are uploaded in parts of one size, as they come by."""

    def __init__(self, part_size: int) -> None:
        self._part_size = part_size
        self._left = part_size
        self._part = hashlib.md5(usedforsecurity=False)
        self._digests: list[bytes] = []

    def update(self, data: memoryview) -> None:
        while len(data) > self._left:  # a part ends when there is more
            self._part.update(data[: self._left])
            data = data[self._left :]
            self._digests.append(self._part.digest())
            self._part = hashlib.md5(usedforsecurity=False)
            self._left = self._part_size
        self._part.update(data)
        self._left -= len(data)

    def hexdigest(self) -> str:
        return _etag_of([*self._digests, self._part.digest()])


def _etag_of(digests: Sequence[bytes]) -> str:
    """Return the ETag of an upload in parts, of the MD5s of these."""
    etag = multipart_etag([UploadedPart(n, d.hex()) for n, d in enumerate(digests, 1)])
    assert etag is not None  # each part's is an MD5
    return etag


def expected_etag(fd: int, size: int) -> str:
    """Return the ETag that an upload of a file gets; reads all of it, blocking."""
    if size <= SINGLE_PUT_MAX:
        return md5_of(fd, 0, size).hex()
    step = part_size_of(size)
    return _etag_of([md5_of(fd, at, min(step, size - at)) for at in range(0, size, step)])
