"""A file to send, its bytes and their checksums."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from modelfs.uploadscript.troubles import Trouble

PARTS_MAX = 10_000  # S3's limit of one upload
PIECE_BYTES = 1 << 20  # what a thread holds in memory of a file

Cut = Sequence[Sequence[int]]  # of parts: length and how many, the last of which goes on


@dataclass(frozen=True)
class Source:
    """A file to send; `name` is its path in main/. A folder that is empty ends in a slash."""

    path: str
    name: str
    key: str
    size: int
    mtime_ns: int

    @property
    def mtime(self) -> str:
        """Seconds since 1970 with their nanoseconds, as modelfs and rclone record them."""
        seconds, fraction_ns = divmod(abs(self.mtime_ns), 10**9)
        text = f"{seconds}.{fraction_ns:09d}".rstrip("0").rstrip(".")
        return f"-{text}" if self.mtime_ns < 0 else text

    @property
    def is_folder(self) -> bool:
        return self.name.endswith("/")

    def pieces(self, offset: int, length: int) -> Iterator[memoryview]:
        """Yield a range of the file; raises Trouble where it cannot be read, or ends before."""
        if not length:
            return
        buffer = memoryview(bytearray(min(length, PIECE_BYTES)))
        try:
            with open(self.path, "rb", buffering=0) as file:
                file.seek(offset)
                while length:
                    count = file.readinto(buffer[: min(length, len(buffer))])
                    if not count:
                        raise Trouble("it has become shorter")
                    length -= count
                    yield buffer[:count]
        except OSError as error:
            raise Trouble(f"it cannot be read: {error.strerror}") from None

    def md5(self, offset: int, length: int) -> bytes:
        digest = hashlib.md5(usedforsecurity=False)
        for piece in self.pieces(offset, length):
            digest.update(piece)
        return digest.digest()

    def check_unchanged(self) -> None:
        """Raise Trouble where the file is not what it was when this began."""
        if self.is_folder:
            return
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise Trouble(f"it is gone: {error.strerror}") from None
        if (found.st_size, found.st_mtime_ns) != (self.size, self.mtime_ns):
            raise Trouble("it changed while it was sent: send it again")

    def spans(self, cut: Cut) -> list[tuple[int, int]]:
        """Return offset and length of each part."""
        found: list[tuple[int, int]] = []
        at = 0
        for length, count in [*cut[:-1], (cut[-1][0], self.size)]:
            while count and at < self.size:
                found.append((at, min(length, self.size - at)))
                at, count = at + length, count - 1
        return found

    def has_etag(self, etag: str, cut: Cut) -> bool:
        """Tell whether an object with this ETag, of the same size, has the same content."""
        whole, _, count = etag.partition("-")
        if not count:
            return self.md5(0, self.size).hex() == whole
        likely = map(self.spans, cuts_of(self.size, cut))
        return any(
            etag_of_parts(self.md5(*span).hex() for span in spans) == etag
            for spans in likely
            if str(len(spans)) == count
        )


def cuts_of(size: int, cut: Cut) -> Iterator[Cut]:
    """Yield how modelfs and this script cut a file of several parts, and how most tools do."""
    yield cut
    length = cut[0][0]
    yield [(length, 1)]
    while length < size:
        length *= 2
        yield [(length, 1)]


def metadata(source: Source) -> dict[str, str]:
    return {} if source.is_folder else {"x-amz-meta-mtime": source.mtime}


def etag_of_parts(etags: Iterable[str]) -> str:
    """Return the ETag of what is put together from parts with these ETags."""
    digests = [bytes.fromhex(etag) for etag in etags]
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def in_base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
