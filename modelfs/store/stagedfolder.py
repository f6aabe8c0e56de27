"""What lies in `staged/HOST`, and the blocking work on it, run in threads; staging.py says what.

Nothing here changes what the event loop owns of a StagedFile, but for the descriptor of a new one.
"""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

from modelfs.errors import InvalidName, StoreError
from modelfs.names import ModelId, parse_model
from modelfs.store.layout import close_fd, write_durably
from modelfs.store.stagedfile import BegunUpload, Fallback, Promise, StagedFile

log = logging.getLogger(__name__)

COPY_BYTES = 1 << 20
LEFT_UPLOADS = "uploads.left"
NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Found:
    """A staged file as an earlier daemon left it."""

    path: Path
    model: ModelId
    name: str
    base_etag: str | None
    mtime_ns: int
    promise: Promise
    size: int
    sent_etags: tuple[str, ...]
    upload: BegunUpload | None
    replaces: str | None  # the file of its fallback


def reopen(path: Path, fd: int) -> None:
    """Open a staged file under the descriptor that it has: who has it open goes on with it."""
    opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.dup2(opened, fd, inheritable=False)
    finally:
        os.close(opened)


def copy_under(path: Path, fd: int, size: int) -> None:
    """Make `path` of the first `size` bytes of `fd`, and have the descriptor be that one's.

    A crash before its sidecar is there leaves bytes that the next start sweeps.
    """
    copy = os.open(path, NEW_FILE, 0o600)
    try:
        _copy(fd, copy, size)
        os.dup2(copy, fd, inheritable=False)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(copy)


def sidecar_of(path: Path) -> Path:
    """Return where it is said whose bytes lie at `path`."""
    return path.with_suffix(".json")


def create(staged: StagedFile, source: int) -> None:
    """Make the file and its sidecar, with its `size` first bytes of the descriptor `source`."""
    staged.fd = os.open(staged.path, NEW_FILE, 0o600)
    try:
        _copy(source, staged.fd, staged.size)
        record(staged, False)
    except BaseException:
        os.close(staged.fd)
        staged.path.unlink(missing_ok=True)
        raise


def record(staged: StagedFile, durable: bool) -> None:
    """Write the sidecar; `durable` makes it, and the bytes before it, outlive a power cut."""
    if durable:
        if staged.fd >= 0:
            os.fsync(staged.fd)
        write_durably(sidecar_of(staged.path), staged.record())
    else:
        _replace(sidecar_of(staged.path), staged.record())


def record_fallback(staged: StagedFile, fallback: Fallback) -> None:
    """Write the sidecar of what a crash goes back to: its file may have another name now."""
    _replace(sidecar_of(fallback.path), staged.record_of_fallback(fallback))


def _replace(sidecar: Path, content: bytes) -> None:
    temporary = sidecar.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(sidecar)


def remove(path: Path, fd: int, with_bytes: bool) -> None:
    """Remove the sidecar at last: a crash before leaves what is known of the bytes."""
    if fd >= 0:
        close_fd(fd)
    if with_bytes:
        path.unlink(missing_ok=True)
    sidecar_of(path).unlink(missing_ok=True)


def write(fd: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def is_bytes(path: Path) -> bool:
    """Tell whether what lies at a path is the bytes of a staged file."""
    return path.suffix not in (".json", ".new") and path.name != LEFT_UPLOADS


def load_uploads(folder: Path) -> list[BegunUpload]:
    """Return the multipart uploads that are on record to be aborted."""
    path = folder / LEFT_UPLOADS
    try:
        return [BegunUpload(*upload) for upload in json.loads(path.read_bytes())]
    except FileNotFoundError:
        return []
    except (ValueError, TypeError) as error:
        log.error("%s is damaged, and is written anew: %s", path, error)
        return []


def record_uploads(folder: Path, uploads: Sequence[BegunUpload]) -> None:
    path = folder / LEFT_UPLOADS
    if uploads:
        _replace(path, json.dumps([astuple(upload) for upload in uploads]).encode())
    else:
        path.unlink(missing_ok=True)


def _copy(source: int, target: int, size: int) -> None:
    offset = 0
    while offset < size:
        data = os.pread(source, min(COPY_BYTES, size - offset), offset)
        if not data:
            raise StoreError("a file is shorter than what is to be copied of it")
        write(target, offset, data)
        offset += len(data)


def load(folder: Path) -> list[Found]:
    """Return what an earlier daemon left, the oldest record first; what is only half is swept.

    What another record replaces, and was promised, is told as kept.
    """
    found = []
    for sidecar in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns):
        path = sidecar.with_suffix("")
        try:
            content = json.loads(sidecar.read_bytes())
            found.append(
                Found(
                    path,
                    parse_model(content["model"]),
                    content["path"],
                    content["base_etag"],
                    content["mtime_ns"],
                    Promise(content["promise"]),
                    path.stat().st_size,
                    tuple(content.get("sent_etags", ())),
                    BegunUpload(*content["upload"]) if content.get("upload") else None,
                    content.get("replaces"),
                )
            )
        except FileNotFoundError:
            sidecar.unlink()  # its bytes went into the cache in the moment of the crash
        except (OSError, ValueError, KeyError, TypeError, InvalidName) as error:
            log.error("the staged file %s is damaged, and left alone: %s", sidecar, error)
    for path in folder.iterdir():
        is_nobodys = is_bytes(path) and not sidecar_of(path).exists()
        if is_nobodys or path.suffix == ".new":
            path.unlink()  # removed while it was open, or a crash's half-made record
    gone = {one.replaces for one in found if one.promise is not Promise.OPEN}
    return [replace(f, promise=Promise.KEPT) if f.path.name in gone else f for f in found]
