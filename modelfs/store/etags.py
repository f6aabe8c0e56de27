"""The ETag of an object that came in parts, and which parts those may have been.

The ETag of an object that came in N parts is the MD5 of its parts' MD5s, and `-N`. It tells
whether bytes are right where the parts' sizes are known. What modelfs cut oddly says them in
its metadata; else N and the object's size leave an interval, in which the tools that upload
have few sizes.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

from modelfs.registry.bodies import md5_of
from modelfs.registry.objects import ObjectInfo, UploadedPart
from modelfs.registry.s3_answers import multipart_etag
from modelfs.store import cuts
from modelfs.store.cuts import MIB, Cut

SINGLE_PUT_MAX = 16 * MIB  # bytes; larger files go in parts
GUESSES_MAX = 4  # part sizes that are tried: each costs an MD5 of the whole file

# The part sizes of tools, those that are met most first: boto3 and the AWS CLI take 8 MiB,
# minio-go 16 (older ones 64 and 128), rclone 5, s3a of Hadoop 64, s3cmd 15, s3fs and
# MLflow 10, s5cmd and DVC 50; what grows with the file grows to powers of two, or evenly.
TOOLS_SIZES = (
    *(size * MIB for size in (8, 16, 5, 64, 128, 32, 10, 15, 50, 100, 256, 512, 1024, 25, 20)),
    *(size * 1_000_000 for size in (10, 50, 100, 64, 16)),
)


def likely_cuts(info: ObjectInfo) -> tuple[Cut, ...]:
    """Return how an object was cut that came in parts: as its metadata says, or may have been."""
    parts, said = info.etag_parts, Cut.parse(info.part_sizes)
    if parts is None:
        return ()
    if said is not None and said.count(info.size) == parts:
        return (said,)
    guesses = [Cut.even(size) for size in part_sizes_of(info.size, parts)]
    ours = cuts.UPLOAD_CUT
    if ours.count(info.size) == parts and info.size > ours.runs[0][0] * ours.runs[0][1]:
        guesses.insert(0, ours)
    return tuple(guesses[:GUESSES_MAX])


def part_sizes_of(size: int, parts: int) -> list[int]:
    """Return the likeliest sizes of the parts in which an object of `size` bytes came.

    They are those that tools use; where none of them fits, round ones and an even cut.
    """
    if parts > size:
        return []
    least, most = -(-size // parts), -(-size // (parts - 1)) - 1 if parts > 1 else size
    tools = [size for size in TOOLS_SIZES if least <= size <= most]
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
    """The ETag of bytes that are uploaded in parts, as they come by."""

    def __init__(self, cut: Cut) -> None:
        self._lengths = cut.lengths()
        self._left = next(self._lengths)
        self._part = hashlib.md5(usedforsecurity=False)
        self._digests: list[bytes] = []

    def update(self, data: memoryview) -> None:
        while len(data) > self._left:  # a part ends when there is more
            self._part.update(data[: self._left])
            data = data[self._left :]
            self._digests.append(self._part.digest())
            self._part = hashlib.md5(usedforsecurity=False)
            self._left = next(self._lengths)
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
    """Return the ETag that a file has which is uploaded whole; reads all of it, blocking."""
    if size <= SINGLE_PUT_MAX:
        return md5_of(fd, 0, size).hex()
    return _etag_of([md5_of(fd, p.offset, p.length) for p in cuts.UPLOAD_CUT.pieces(size)])
