"""Manifest and Entry: what a version is made of. Pure.

A manifest is canonical JSON (sorted names, no blanks, UTF-8, one line feed at the end).
Its `digest` is the SHA-256 of the canonical JSON of `[[path, size, sha256], ...]` sorted
by path, followed by the folders: two versions with equal content have equal digests,
whenever and from wherever they were frozen.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from modelfs.errors import InvalidName, NoData, StoreError
from modelfs.names import ModelId, VersionId
from modelfs.registry.listing import Listing
from modelfs.registry.objects import ObjectId, ObjectInfo

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of a version: `path` below the version's folder, and where it came from.

    `modified_ns` is the registry's time of it, `mtime_ns` its recorded one. `sha256` is
    None until the bytes are here and checked. `checksum` is the algorithm of a checksum that
    the registry listed; `confirmed` is by what the bytes were seen to be the registry's:
    md5, multipart (the parts' ETag), sha256, sha1, crc32; None where nothing could tell.
    """

    path: str
    key: str
    etag: str
    size: int
    modified_ns: int
    mtime_ns: int | None = None
    md5: str | None = None
    version_id: str | None = None
    sha256: str | None = None
    checksum: str | None = None
    confirmed: str | None = None

    @property
    def time_ns(self) -> int:
        return self.modified_ns if self.mtime_ns is None else self.mtime_ns

    @property
    def object(self) -> ObjectInfo:
        """The object of the registry that this file is."""
        return ObjectInfo(
            ObjectId(self.key, self.etag),
            self.size,
            self.modified_ns,
            self.mtime_ns,
            self.md5,
            self.version_id,
            checksum=self.checksum,
        )


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where versions of this mount come from: the registry, the node, the program's version."""

    registry: str
    endpoint: str
    bucket: str
    prefix: str
    host: str
    modelfs: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A version: its files, its folders (below it, '' excluded), its provenance.

    `pinned_ns` is when the model was listed, `ready_ns` when all of it was here; `uid`
    is who froze it. `source` is the model (NS/MODEL) whose main/ it is, where that is another one.
    """

    namespace: str
    model: str
    version: str
    provenance: Provenance
    pinned_ns: int
    uid: int
    folders: tuple[str, ...]
    files: tuple[Entry, ...]
    ready_ns: int | None = None
    source: str | None = None

    @property
    def id(self) -> VersionId:
        return VersionId(ModelId(self.namespace, self.model), self.version)

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(entry.size for entry in self.files)

    @property
    def digest(self) -> str | None:
        """`sha256:HEX` of the content, None while a file has no SHA-256 yet."""
        if any(entry.sha256 is None for entry in self.files):
            return None
        content = [[e.path, e.size, e.sha256] for e in sorted(self.files, key=lambda e: e.path)]
        text = canonical([content, sorted(self.folders)])
        return "sha256:" + hashlib.sha256(text).hexdigest()

    def completed(self, files: Iterable[Entry], ready_ns: int) -> "Manifest":
        return replace(self, files=tuple(files), ready_ns=ready_ns)

    def to_json(self) -> bytes:
        """Return the canonical JSON."""
        content: dict[str, Any] = asdict(self)
        if self.source is None:
            del content["source"]  # as it was before there were sources
        content["format"] = FORMAT
        content["digest"] = self.digest
        return canonical(content)

    def to_checksums(self) -> bytes:
        """Return the lines that `sha256sum -c` reads, run in the version's folder."""
        return "".join(
            _checksum_line(entry.sha256, entry.path)
            for entry in self.files
            if entry.sha256 is not None
        ).encode()


def _entry(path: str, info: ObjectInfo) -> Entry:
    return Entry(
        *(path, info.id.key, info.id.etag, info.size, info.modified_ns),
        md5=info.md5,
        version_id=info.version_id,
        checksum=info.checksum,
    )


def pin(
    version: VersionId,
    origin: ModelId,
    listing: Listing,
    provenance: Provenance,
    *,
    pinned_ns: int,
    uid: int,
) -> Manifest:
    """Return the manifest of a version that is made of the listing of `origin`'s main/.

    Raises InvalidName where a key is hidden, NoData where there is no file.
    """
    if listing.hidden:
        key, reason = next(iter(sorted(listing.hidden.items(), key=repr)))
        raise InvalidName(
            f"{origin} has {len(listing.hidden)} hidden keys, as {key!r} ({reason}): "
            "a version is the whole model or it is not made"
        )
    files = tuple(_entry(path, info) for path, info in sorted(listing.walk()))
    if not files:
        raise NoData(f"{origin} has no file in main/")
    return Manifest(
        version.model.namespace,
        version.model.name,
        version.version,
        provenance,
        pinned_ns=pinned_ns,
        uid=uid,
        folders=tuple(sorted(path for path in listing.folders if path)),
        files=files,
        source=None if origin == version.model else str(origin),
    )


def _checksum_line(digest: str, path: str) -> str:
    """One line as coreutils writes it: a name with \\ or a line end is escaped."""
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "\\" if escaped != path else ""
    return f"{mark}{digest}  {escaped}\n"


def canonical(content: Any) -> bytes:
    """Return the canonical JSON of plain values."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode() + b"\n"


def from_json(text: bytes, where: object) -> Manifest:
    """Return the manifest in `text`; raises StoreError naming `where` it was read."""
    try:
        content = json.loads(text)
        found = content.pop("format")
        if found != FORMAT:
            raise StoreError(f"the manifest {where} has format {found}, expected {FORMAT}")
        content.pop("digest")
        content["files"] = tuple(Entry(**entry) for entry in content["files"])
        content["folders"] = tuple(content["folders"])
        content["provenance"] = Provenance(**content["provenance"])
        return Manifest(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"the manifest {where} is damaged: {error}") from error


def folders_of(paths: Iterable[str]) -> set[str]:
    """Return every folder above the given file paths."""
    found: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


@dataclass(frozen=True, slots=True)
class FrozenFolder:
    """The names in one folder of a version."""

    files: Mapping[str, Entry]
    folders: frozenset[str]


def as_tree(manifest: Manifest) -> dict[str, FrozenFolder]:
    """Return every folder of a version by its path; '' is the version's own."""
    files: dict[str, dict[str, Entry]] = {"": {}}
    folders: dict[str, set[str]] = {"": set()}
    for path in {*manifest.folders, *folders_of(entry.path for entry in manifest.files)}:
        files.setdefault(path, {})
        folders.setdefault(path, set())
    for path in list(folders):
        if path:
            parent, _, name = path.rpartition("/")
            folders.setdefault(parent, set()).add(name)
            files.setdefault(parent, {})
    for entry in manifest.files:
        parent, _, name = entry.path.rpartition("/")
        files[parent][name] = entry
    return {path: FrozenFolder(files[path], frozenset(folders[path])) for path in folders}
