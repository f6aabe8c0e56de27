"""Every path in the store, in one place (docs/FORMAT.md draws it).

store/
  format                       version of this layout
  models/NS/MODEL/v1/...       versions, as plain files; aliases as symlinks beside them
  manifests/NS/MODEL/v1.json   and v1.sha256, aliases.jsonl
  retired/NS/MODEL/v1          names that were used
  pending/NS/MODEL/v3/         freezes under way
  quarantine/NS/MODEL/v1/...   files of versions that were found to be wrong
  cache/HOST/  staged/HOST/    this node's own
"""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from modelfs.errors import StoreError
from modelfs.names import NAME_MAX_BYTES, ModelId, VersionId

FORMAT = "1"


@dataclass(frozen=True, slots=True)
class Layout:
    """The store below `root`, as the node `host` sees it."""

    root: Path
    host: str

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def pending_root(self) -> Path:
        return self.root / "pending"

    @property
    def cache(self) -> Path:
        return self.root / "cache" / self.host

    @property
    def staged(self) -> Path:
        return self.root / "staged" / self.host

    def model(self, model: ModelId) -> Path:
        """The folder of a model's versions and aliases."""
        return self.models / model.namespace / model.name

    def version(self, version: VersionId) -> Path:
        """The local model: a version's plain folder."""
        return self.model(version.model) / version.version

    @property
    def manifests_root(self) -> Path:
        return self.root / "manifests"

    @property
    def retired_root(self) -> Path:
        return self.root / "retired"

    def manifests(self, model: ModelId) -> Path:
        return self.manifests_root / model.namespace / model.name

    def manifest(self, version: VersionId) -> Path:
        return self.manifests(version.model) / f"{version.version}.json"

    def checksums(self, version: VersionId) -> Path:
        return self.manifests(version.model) / f"{version.version}.sha256"

    def alias_log(self, model: ModelId) -> Path:
        return self.manifests(model) / "aliases.jsonl"

    def retired(self, version: VersionId) -> Path:
        model = version.model
        return self.retired_root / model.namespace / model.name / version.version

    def pending_model(self, model: ModelId) -> Path:
        return self.pending_root / model.namespace / model.name

    def pending(self, version: VersionId) -> Path:
        return self.pending_model(version.model) / version.version

    @property
    def quarantine(self) -> Path:
        return self.root / "quarantine"

    def quarantined(self, version: VersionId, path: str, time_ns: int) -> Path:
        """Return where a version's file goes that was found to be wrong at `time_ns`."""
        folder, _, name = path.rpartition("/")
        suffix = f".{time_ns}"
        kept = name.encode()[: NAME_MAX_BYTES - len(suffix)].decode(errors="ignore")
        model = version.model
        top = self.quarantine / model.namespace / model.name / version.version
        return top / folder / (kept + suffix)

    def damage(self, version: VersionId) -> Path:
        """Return the file that says what of a version could not be put right."""
        model = version.model
        return self.quarantine / model.namespace / model.name / f".{version.version}.error"

    @property
    def verify_lock(self) -> Path:
        """Held (flock) by the one verify that works on the store."""
        return self.root / "verify.lock"

    def make(self) -> None:
        """Make what is missing of the store, or raise StoreError: another format, no right."""
        try:
            for folder in ("models", "manifests", "retired", "pending"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
            self.cache.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.staged.mkdir(parents=True, exist_ok=True, mode=0o700)
            marker = self.root / "format"
            if not marker.exists():
                write_durably(marker, f"{FORMAT}\n".encode())
        except OSError as error:
            raise StoreError(
                f"the store {self.root} cannot be used: {error.strerror} ({error.filename}): "
                "give it to the user who mounts (chown), or set another `store`"
            ) from error
        self.check()

    def check_there(self) -> None:
        """Raise StoreError where the store's disk is gone: nothing is made in its place."""
        try:
            os.stat(self.root / "format")
        except OSError as error:
            raise StoreError(
                f"the store {self.root} is not there ({error.strerror}): is its disk mounted?"
            ) from error

    def check(self) -> None:
        """Raise StoreError where no store is there, or one of another format."""
        try:
            found = (self.root / "format").read_text().strip()
        except FileNotFoundError:
            raise StoreError(
                f"{self.root} holds no store: is its disk mounted? modelfs mount makes a new one"
            ) from None
        except OSError as error:
            raise StoreError(
                f"the store {self.root} cannot be used: {error.strerror} ({error.filename})"
            ) from error
        if found != FORMAT:
            raise StoreError(
                f"the store {self.root} has format {found}, this modelfs writes {FORMAT}: "
                "use the modelfs that made it, or another folder"
            )


def close_fd(fd: int) -> None:
    """Close a descriptor; that its store went away meanwhile is no error, it is closed then."""
    with suppress(OSError):
        os.close(fd)


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder, none where it is not there."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def synced(folder: Path) -> Iterator[None]:
    """Make what the block does to the names in a folder durable.

    The folder is opened before: CephFS lets everyone who looks at a folder that has just been
    changed wait until the change is in its MDS's journal, up to 5 s where no fsync asks for it.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
        os.fsync(fd)
    finally:
        close_fd(fd)


def write_durably(path: Path, content: bytes) -> None:
    """Replace a file by a temporary name, fsync, rename: whole or not at all.

    It is open while it is renamed: of a file that was written, closed and then renamed, CephFS
    tells other nodes nothing for up to 5 s, until its MDS writes its journal unasked.
    """
    temporary = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}")
    with synced(path.parent):
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file with its mode, times and attributes: whole or not at all."""
    temporary = target.with_name(f".{uuid.uuid4().hex}")
    try:
        shutil.copyfile(source, temporary)
        shutil.copystat(source, temporary)
        fd = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(fd)
            temporary.replace(target)  # while it is open: see write_durably
        finally:
            os.close(fd)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def move_durably(source: Path, target: Path) -> None:
    """Give a synced file its name; where a rename ends (a quota's realm) it is copied."""
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_durably(source, target)
        source.unlink()
    sync_folder(target.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder whose files may be read-only; one that is gone is no error."""

    def make_writable(function: object, name: str, error: BaseException) -> None:
        if isinstance(error, FileNotFoundError):
            return
        raise error

    for folder, names, _ in os.walk(path):
        for name in ("", *names):
            _let_change(os.path.join(folder, name))
    shutil.rmtree(path, ignore_errors=False, onerror=lambda f, n, e: make_writable(f, n, e[1]))


def _let_change(folder: str) -> None:
    """Let the names in a folder be changed; what is no folder, or gone, is left alone."""
    with suppress(FileNotFoundError):
        mode = os.lstat(folder).st_mode
        if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:  # each chmod costs CephFS an entry
            os.chmod(folder, 0o700)


def free_bytes(path: Path) -> tuple[int, int]:
    """Return (free, total) bytes of the disk under `path`, as a plain user may use it.

    Quotas of CephFS on the folders above count too: statfs knows that of the mount's root only.
    """
    found = os.statvfs(path)
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    for _, quota, used in quotas(path):
        free, total = min(free, max(0, quota - used)), min(total, quota)
    return free, total


def quotas(path: Path) -> Iterator[tuple[Path, int, int]]:
    """Yield each folder from `path` upwards that has a quota of CephFS, it, and what is used."""
    for folder in (path, *path.parents):
        try:
            if quota := int(os.getxattr(folder, "ceph.quota.max_bytes")):
                yield folder, quota, int(os.getxattr(folder, "ceph.dir.rbytes"))
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # no CephFS (any more)
                break
