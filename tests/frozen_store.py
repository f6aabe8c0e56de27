"""A store with versions in it, made by the code that freezes, without a daemon."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from modelfs.names import ModelId, VersionId
from modelfs.store import aliases, publishing
from modelfs.store import pending as pending_room
from modelfs.store.layout import Layout
from modelfs.store.manifest import Entry, Manifest, Provenance, folders_of

LLAMA = ModelId("acme", "llama")
MODIFIED_NS = 1_700_000_000 * 10**9


@dataclass(frozen=True)
class FrozenStore:
    """The store in a folder; files are given as path -> (bytes, ETag)."""

    root: Path

    @property
    def layout(self) -> Layout:
        return Layout(self.root, "node-a")

    def path(self, version: str, path: str = "") -> Path:
        return self.layout.version(VersionId(LLAMA, version)) / path

    def freeze(
        self,
        version: str,
        files: dict[str, tuple[bytes, str]],
        *,
        model: ModelId = LLAMA,
        source: ModelId | None = None,
        folders: tuple[str, ...] = (),
        is_linked: bool = True,
    ) -> VersionId:
        """Make a ready version; a file that an earlier one has is a link to it.

        With `source` it is a version of a local model of that other one.
        """
        self.layout.make()
        folders = tuple(sorted({*folders, *folders_of(files)}))
        entries = [_entry(source or model, path, *files[path]) for path in sorted(files)]
        bare = Manifest(
            *(model.namespace, model.name, version),
            Provenance("hub", "http://h:1", "b", "models/", "node-a", "0"),
            pinned_ns=MODIFIED_NS,
            uid=0,
            folders=folders,
            files=tuple(entries),
            source=str(source) if source else None,
        )
        here = pending_room.unchanged_files(self.layout, bare) if is_linked else {}
        pending = self.layout.pending(bare.id)
        pending.mkdir(parents=True)
        pending_room.make_folders(pending, bare)
        for entry in entries:
            target = pending / "files" / entry.path
            if entry.object.id in here:
                pending_room.link_or_copy(here[entry.object.id][1], target)
            else:
                with target.open("wb", buffering=0) as file:
                    file.write(files[entry.path][0])
                    pending_room.seal_file(file.fileno(), entry)
        manifest = bare.completed(entries, MODIFIED_NS + int.from_bytes(version.encode()[-1:]))
        pending_room.seal_folders(pending / "files", manifest)
        publishing.publish(self.layout, manifest, pending / "files")
        aliases.follow_latest(self.layout, model)
        publishing.discard_pending(self.layout, bare.id)
        return bare.id

    def quarantined(self) -> dict[str, bytes]:
        """Return what is in quarantine, by path without the time."""
        top = self.layout.quarantine
        files = [path for path in top.rglob("*") if path.is_file() and path.suffix != ".error"]
        return {str(p.relative_to(top)).rpartition(".")[0]: p.read_bytes() for p in files}


def _entry(model: ModelId, path: str, data: bytes, etag: str) -> Entry:
    key = f"models/{model}/{path}"
    sha256 = hashlib.sha256(data).hexdigest()
    return Entry(path, key, etag, len(data), MODIFIED_NS, MODIFIED_NS - 5, sha256=sha256)


def flip_a_bit(path: Path) -> bytes:
    """Change one bit of a file behind everybody's back, as a disk does; return the bytes."""
    found = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    path.chmod(0o444)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    return bytes(data)


def error_of(path: Path) -> str | None:
    """Return what a version's folder says is wrong with it."""
    try:
        return os.getxattr(path, "user.modelfs.error").decode()
    except OSError:
        return None
