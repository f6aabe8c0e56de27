"""What lies in the cache's folder, and the blocking work on it, run in threads.

A sidecar is written after the parts it names are durable, so that a power cut leaves
nothing that is believed and wrong; a file without a sidecar is removed at start.
"""

import ctypes
import hashlib
import json
import logging
import os
import stat
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfs.registry.objects import ObjectId, ObjectInfo

log = logging.getLogger(__name__)

_PUNCH = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE of linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)


def path_of(folder: Path, object_id: ObjectId) -> Path:
    """Return the path of an object's sidecar."""
    name = hashlib.sha256(f"{object_id.key}\0{object_id.etag}".encode()).hexdigest()[:40]
    return folder / name[:2] / f"{name}.json"


def new_path(folder: Path, object_id: ObjectId) -> Path:
    """Return a path for an object's bytes that was never used."""
    return path_of(folder, object_id).with_suffix(f".{uuid.uuid4().hex[:12]}")


@dataclass(frozen=True, slots=True)
class Sidecar:
    """Which object's bytes lie at `path`, and which parts of them (None: all)."""

    path: Path
    info: ObjectInfo
    part_size: int
    parts: list[int] | None

    @property
    def present(self) -> Iterable[int]:
        if self.parts is None:
            return range(-(-self.info.size // self.part_size))
        return self.parts

    def write(self, folder: Path) -> None:
        """Make the bytes durable, then the sidecar that tells of them."""
        target = path_of(folder, self.info.id)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        if self.path.exists():
            fd = os.open(self.path, os.O_RDONLY)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
        temporary = target.with_suffix(f".{uuid.uuid4().hex[:12]}")
        temporary.write_bytes(json.dumps(self._content(folder)).encode())
        temporary.replace(target)

    def _content(self, folder: Path) -> dict[str, Any]:
        return {
            "file": str(self.path.relative_to(folder)),  # of a renamed object: where it was
            "key": self.info.id.key,
            "etag": self.info.id.etag,
            "size": self.info.size,
            "modified_ns": self.info.modified_ns,
            "mtime_ns": self.info.mtime_ns,
            "md5": self.info.md5,
            "etag_parts": self.info.etag_parts,
            "part_sizes": self.info.part_sizes,
            "part_size": self.part_size,
            "parts": "all" if self.parts is None else self.parts,
        }


def _read(sidecar: Path) -> tuple[Sidecar, bool]:
    content = json.loads(sidecar.read_bytes())
    info = ObjectInfo(
        ObjectId(content["key"], content["etag"]),
        content["size"],
        content["modified_ns"],
        content["mtime_ns"],
        content["md5"],
        etag_parts=content.get("etag_parts"),
        part_sizes=content.get("part_sizes"),
    )
    path = sidecar.parent.parent / content["file"]
    parts = None if content["parts"] == "all" else content["parts"]
    try:
        found = path.stat()
    except FileNotFoundError:
        return Sidecar(path, info, content["part_size"], [] if info.size else None), False
    if found.st_size != info.size:
        raise ValueError(f"{found.st_size} bytes instead of {info.size}")
    is_shared = found.st_nlink > 1 or not found.st_mode & stat.S_IWUSR
    return Sidecar(path, info, content["part_size"], parts), is_shared


def load(folder: Path) -> list[tuple[Sidecar, bool]]:
    """Return each sidecar, the most recently written last, and whether a version has its file.

    What no sidecar names, and sidecars that do not fit their file, are removed.
    """
    found: list[tuple[float, Sidecar, bool]] = []
    for path in folder.glob("??/*.json"):
        try:
            saved, is_shared = _read(path)
            found.append((path.stat().st_mtime, saved, is_shared))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("the cache's sidecar %s is thrown away: %s", path, error)
            remove(path)
    known = {saved.path for _, saved, _ in found}
    for path in folder.glob("??/*"):
        if path.suffix != ".json" and path not in known:
            remove(path)  # what a crash left
    return [(saved, shared) for _, saved, shared in sorted(found, key=lambda item: item[0])]


def write_all(folder: Path, sidecars: Iterable[Sidecar]) -> list[OSError | None]:
    """Write sidecars one after the other; return for each what went wrong, None for nothing."""
    failed: list[OSError | None] = []
    for saved in sidecars:
        try:
            saved.write(folder)
            failed.append(None)
        except OSError as error:
            failed.append(error)
    return failed


def move(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o700, exist_ok=True)
    source.replace(target)


def remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def punch(fd: int, offset: int, length: int) -> None:
    """Give the space of a range back to the disk; where it cannot do that, it stays used."""
    _libc.fallocate(fd, _PUNCH, ctypes.c_long(offset), ctypes.c_long(length))


def md5_of(fd: int, size: int) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for offset in range(0, size, 1 << 20):
        digest.update(os.pread(fd, 1 << 20, offset))
    return digest.hexdigest()
