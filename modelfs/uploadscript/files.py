"""A file to send, its bytes and their checksums."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from modelfs.uploadscript.troubles import Trouble

PARTS_MAX = 10_000  # S3's limit of one upload
PIECE_BYTES = 1 << 20  # what a thread holds in memory of a file


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

    def spans(self, step: int) -> list[tuple[int, int]]:
        """Return offset and length of each part of `step` bytes."""
        return [(at, min(step, self.size - at)) for at in range(0, self.size, step)]

    def has_etag(self, etag: str, part_size: int) -> bool:
        """Tell whether an object with this ETag, of the same size, has the same content."""
        whole, _, count = etag.partition("-")
        if not count:
            return self.md5(0, self.size).hex() == whole
        for step in steps_of(self.size, part_size):
            spans = self.spans(step)
            if str(len(spans)) == count:
                return etag_of_parts(self.md5(*span).hex() for span in spans) == etag
        return False


def steps_of(size: int, part_size: int) -> Iterator[int]:
    """Yield the part sizes in which modelfs, this script and most tools send a file."""
    yield part_size
    while part_size < size:
        part_size *= 2
        yield part_size
    yield max(1, -(-size // PARTS_MAX))


def metadata(source: Source) -> dict[str, str]:
    return {} if source.is_folder else {"x-amz-meta-mtime": source.mtime}


def etag_of_parts(etags: Iterable[str]) -> str:
    """Return the ETag of what is put together from parts with these ETags."""
    digests = [bytes.fromhex(etag) for etag in etags]
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def in_base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
