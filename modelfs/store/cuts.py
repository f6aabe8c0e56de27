"""How a file is cut into the parts of a multipart upload. Pure.

A file that is sent whole is cut by UPLOAD_CUT, which need not know its size: parts can go
while more is written. Of a file that replaces an object and has most of its bytes at the same
place, only what differs is sent, and the registry copies the rest: `sparing` cuts around that.
Such parts are of odd sizes; the object's metadata PART_SIZES tells them, so that a freeze can
compare the ETag.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

MIB = 1 << 20
PART_MIN = 5 * MIB  # S3's own limit, of every part but the last
PARTS_MAX = 10_000  # S3's limit of one upload
COPIED_MAX = 1 << 30  # S3 copies up to 5 GiB as one part; smaller ones go side by side
PART_SIZES_MAX = 1024  # characters of the metadata, of which S3 takes 2 KiB in all

_RUN = re.compile(r"([1-9][0-9]{0,12})\*([1-9][0-9]{0,4})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [offset, offset + length) of a file, as part `number` (from 1); sent, or copied."""

    number: int
    offset: int
    length: int
    is_copied: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Cut:
    """Part sizes: runs of (length, count), the last of which goes on until the file ends."""

    runs: tuple[tuple[int, int], ...]

    @classmethod
    def even(cls, length: int) -> "Cut":
        """Return parts of one size."""
        return cls(((length, 1),))

    @classmethod
    def parse(cls, text: str | None) -> "Cut | None":
        """Return what `text` gave; None of anything else."""
        found = [_RUN.fullmatch(run) for run in (text or "").split(",")]
        runs = tuple((int(match[1]), int(match[2])) for match in found if match)
        return cls(runs) if len(runs) == len(found) else None

    @property
    def text(self) -> str:
        """Return the sizes as metadata holds them."""
        return ",".join(f"{length}*{count}" for length, count in self.runs)

    def lengths(self) -> Iterator[int]:
        """Yield the size of each part, for ever."""
        for length, count in self.runs[:-1]:
            yield from (length for _ in range(count))
        while True:
            yield self.runs[-1][0]

    def number_at(self, offset: int) -> int:
        """Return the number of the part in which a byte lies."""
        number, start = 1, 0
        for length, count in self.runs[:-1]:
            if offset < start + length * count:
                return number + (offset - start) // length
            number, start = number + count, start + length * count
        return number + (offset - start) // self.runs[-1][0]

    def piece(self, number: int, size: int) -> Piece:
        """Return a part of a file of `size` bytes; its length is 0 behind the end."""
        first, start = 1, 0
        for length, count in self.runs[:-1]:
            if number < first + count:
                break
            first, start = first + count, start + length * count
        else:
            length = self.runs[-1][0]
        offset = start + (number - first) * length
        return Piece(number, offset, max(0, min(length, size - offset)))

    def count(self, size: int) -> int:
        """Return how many parts a file of `size` bytes has; an empty one has none."""
        return self.number_at(size - 1) if size else 0

    def pieces(self, size: int) -> Iterator[Piece]:
        """Yield the parts of a file."""
        for number in range(1, self.count(size) + 1):
            yield self.piece(number, size)


# 31 GiB of parts of 8 MiB, as boto3 and the AWS CLI cut, 375 GiB of larger ones, and 5.9 TiB
# of parts that take a while: more than the 5 TiB that S3 takes.
UPLOAD_CUT = Cut(((8 * MIB, 4000), (128 * MIB, 3000), (2048 * MIB, 3000)))


class CleanSpans:
    """Which bytes of a file are still those of the object that it replaces, at their place.

    INVARIANT: the spans are in order, apart, and of PART_MIN bytes at least: shorter ones are
    not worth a request.
    """

    def __init__(self, size: int = 0) -> None:
        self._spans: list[tuple[int, int]] = [(0, size)] if size >= PART_MIN else []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._spans)

    def remove(self, start: int, end: int | None = None) -> None:
        """Note that bytes [start, end), or all from `start` on, have changed."""
        first = bisect_right(self._spans, start, key=lambda span: span[1])
        last, kept = first, []
        while last < len(self._spans) and (end is None or self._spans[last][0] < end):
            clean_start, clean_end = self._spans[last]
            kept.append((clean_start, min(clean_end, start)))
            if end is not None:
                kept.append((max(clean_start, end), clean_end))
            last += 1
        if last > first:
            self._spans[first:last] = [(s, e) for s, e in kept if e - s >= PART_MIN]


def sparing(size: int, clean: CleanSpans) -> list[Piece] | None:
    """Cut a file such that clean spans are copied; None where that spares less than half.

    Every part but the last is of PART_MIN bytes at least, and there are PARTS_MAX at most.
    """
    pieces: list[Piece] = []
    done = 0  # up to here it is cut
    for start, end in clean:
        if 0 < start - done < PART_MIN:
            start = done + PART_MIN
        if end - start >= PART_MIN:
            _append(pieces, done, start, UPLOAD_CUT.runs[0][0], is_copied=False)
            _append(pieces, start, end, COPIED_MAX, is_copied=True)
            done = end
    _append(pieces, done, size, UPLOAD_CUT.runs[0][0], is_copied=False)
    spared = sum(piece.length for piece in pieces if piece.is_copied)
    return pieces if spared * 2 >= size and 0 < len(pieces) <= PARTS_MAX else None


def _append(pieces: list[Piece], start: int, end: int, length: int, *, is_copied: bool) -> None:
    """Add bytes [start, end) in pieces of `length` or up to twice that, none of them short."""
    count = max(1, (end - start) // length) if end > start else 0
    for index in range(count):
        at, to = (start + (end - start) * i // count for i in (index, index + 1))
        pieces.append(Piece(len(pieces) + 1, at, to - at, is_copied))


def cut_of(pieces: Sequence[Piece]) -> Cut | None:
    """Return the sizes of parts; None where metadata cannot hold them."""
    runs = tuple((n, len(list(same))) for n, same in groupby(piece.length for piece in pieces))
    cut = Cut(runs)
    return cut if len(cut.text) <= PART_SIZES_MAX else None
