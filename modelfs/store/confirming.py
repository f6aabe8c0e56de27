"""Whether the bytes that came are those that the registry has. Pure.

What confirms them is what the registry says of the object's whole content: its ETag where
that is an MD5, else a checksum that it keeps beside it. The ETag of an object that came in
parts confirms them too where one of the likely cuts gives it; that none does proves nothing,
as the parts may have had any size.
"""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelfs.errors import WrongBytes
from modelfs.registry.objects import Checksum, ObjectId, ObjectInfo
from modelfs.store.cuts import Cut
from modelfs.store.etags import MultipartEtag, likely_cuts

MULTIPART = "multipart"
_MD5_OF_NOTHING = hashlib.md5(usedforsecurity=False).hexdigest()


class Unconfirmed(WrongBytes):
    """Bytes that may be right: what the registry says of them does not tell."""

    def __init__(self, text: str, sha256: str) -> None:
        super().__init__(text)
        self.sha256 = sha256


class Hasher(Protocol):
    """One hash of bytes that come by; it lets other threads run meanwhile."""

    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: memoryview, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


def _new_hash(algorithm: str) -> Hasher:
    return _Crc32() if algorithm == "crc32" else hashlib.new(algorithm, usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Hashes:
    """What bytes hash to: in hex by algorithm, and the ETag that each cut gives."""

    sums: Mapping[str, str]
    etags: tuple[str, ...]

    @property
    def sha256(self) -> str:
        return self.sums["sha256"]


@dataclass(frozen=True, slots=True)
class Expected:
    """What the registry says of one state of an object: a checksum, or an ETag of its parts."""

    id: ObjectId
    checksum: Checksum | None = None
    cuts: tuple[Cut, ...] = ()

    def confirmed_by(self, found: Hashes) -> str | None:
        """Return what confirms the bytes: the algorithm, or `multipart`; None where nothing does.

        Raises WrongBytes where they are not those that the registry has.
        """
        said = self.checksum
        if said is None:
            return MULTIPART if self.id.etag in found.etags else None
        if said.hex != (sum_found := found.sums[said.algorithm]):
            raise WrongBytes(
                f"{self.id.key} arrived with {said.algorithm.upper()} {sum_found} "
                f"instead of {said.hex}"
            )
        return said.algorithm


class Hashing:
    """SHA-256, and what is compared with what is expected: all in one pass over the bytes."""

    def __init__(self, expected: Expected | None = None) -> None:
        said = expected.checksum if expected else None
        algorithms = {"sha256", said.algorithm} if said else {"sha256"}
        self._sums = {algorithm: _new_hash(algorithm) for algorithm in algorithms}
        self._etags = [MultipartEtag(cut) for cut in expected.cuts] if expected else []

    @property
    def hashers(self) -> Sequence[Hasher]:
        """All that must be given the bytes, where they do not go by `update`."""
        return (*self._sums.values(), *self._etags)

    def update(self, data: memoryview) -> None:
        for one in self.hashers:
            one.update(data)

    def hashes(self) -> Hashes:
        sums = {algorithm: one.hexdigest() for algorithm, one in self._sums.items()}
        return Hashes(sums, tuple(etag.hexdigest() for etag in self._etags))


def expected_of(info: ObjectInfo, kept: Checksum | None = None) -> Expected:
    """Return what is known of an object's bytes; `kept` is the registry's own checksum.

    Of an empty object only the listing was asked, which takes any ETag for an MD5.
    """
    if info.md5 is not None and (info.size or info.md5 == _MD5_OF_NOTHING):
        return Expected(info.id, Checksum("md5", info.md5))
    if kept is not None:
        return Expected(info.id, kept)
    return Expected(info.id, None, likely_cuts(info))
