"""Put right what verify has found: the wrong file into quarantine, the right one in its place.

The right bytes are a link to another version's good copy, or fetched from the registry in
the state that the manifest names (key and ETag) and hashed before they get their place: a
reader finds the old file or the right one. Nothing is deleted. Blocking.

On disk: `pending/NS/MODEL/.verify-*` is a file that comes, swept when verify starts;
`quarantine/NS/MODEL/VERSION/PATH.TIME` is what was found to be wrong, `.VERSION.error` beside
it says what could not be put right.
"""

import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelfs.errors import NotFound, RegistryUnavailable, Stale, WrongBytes
from modelfs.names import ModelId, VersionId
from modelfs.registry.objects import ObjectInfo, ObjectStore
from modelfs.store.layout import (
    Layout,
    move_durably,
    sync_folder,
    write_durably,
)
from modelfs.store.manifest import Entry
from modelfs.store.pending import link_or_copy, seal_file, set_attribute
from modelfs.store.rereading import Pace, sha256_of

TRIES = 3  # of one request
RETRY_PAUSE_S = 1.0  # before the second try; doubled before the third
ERROR_MAX = 1000  # characters of the attribute `error`
_TEMPORARY = ".verify-"


class Repairer:
    """Changes versions in the store: no two at once (the caller holds `verify.lock`).

    `open_registry` is called when something must be fetched for the first time.
    """

    def __init__(
        self, layout: Layout, open_registry: Callable[[], ObjectStore], *, part_size: int
    ) -> None:
        self._layout = layout
        self._open_registry = open_registry
        self._part_size = part_size
        self._registry: ObjectStore | None = None
        self._is_down = False

    def sweep(self, model: ModelId) -> None:
        """Remove the files that were coming when an earlier verify ended."""
        for path in self._layout.pending_model(model).glob(f"{_TEMPORARY}*"):
            path.unlink(missing_ok=True)

    # ------------------------------------------------------------- one file

    def replace(self, version: VersionId, entry: Entry, twin: Path | None) -> Path | None:
        """Put the right file in an entry's place: a link to `twin`, or fetched.

        Returns where the wrong one is now, None where there was none. Raises ModelfsError
        or OSError where there is no right one to be had; the wrong one is in its place then.
        """
        temporary = self._temporary(version.model)
        try:
            if twin is not None:
                link_or_copy(twin, temporary)
            else:
                self._fetch(entry, temporary)
            self._make_folders(version, entry.path)
            target = self._layout.version(version) / entry.path
            with writable(target.parent):
                quarantined = self._keep(version, entry.path)
                move_durably(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return quarantined

    def quarantine(self, version: VersionId, path: str) -> Path:
        """Take a file out of a version; raises OSError."""
        source = self._layout.version(version) / path
        target = self._quarantined(version, path)
        with writable(source.parent):
            move_durably(source, target)
            sync_folder(source.parent)
        return target

    def _keep(self, version: VersionId, path: str) -> Path | None:
        """Link the wrong file into quarantine, so that the right one can take its name."""
        source = self._layout.version(version) / path
        try:
            found = source.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return self.quarantine(version, path)
        target = self._quarantined(version, path)
        link_or_copy(source, target)
        sync_folder(target.parent)
        return target

    def _quarantined(self, version: VersionId, path: str) -> Path:
        # Namespaces have readers of their own; this has none.
        self._layout.quarantine.mkdir(mode=0o700, exist_ok=True)
        target = self._layout.quarantined(version, path, time.time_ns())
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _temporary(self, model: ModelId) -> Path:
        folder = self._layout.pending_model(model)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{_TEMPORARY}{uuid.uuid4().hex}"

    # ------------------------------------------------------------- fetching

    def _fetch(self, entry: Entry, target: Path) -> None:
        with target.open("xb", buffering=0) as file:
            for offset in range(0, entry.size, self._part_size):
                self._fetch_part(entry, offset, file.fileno())
            sha256 = sha256_of(target, Pace(None), lambda _: None)
            if sha256 != entry.sha256:
                raise WrongBytes(
                    f"the registry gives {entry.key} with SHA-256 {sha256}, "
                    "not with what was frozen"
                )
            seal_file(file.fileno(), entry)

    def _fetch_part(self, entry: Entry, offset: int, fd: int) -> ObjectInfo:
        length = min(self._part_size, entry.size - offset)
        version = (entry.version_id,) if entry.version_id else ()
        pause_s = RETRY_PAUSE_S
        for last in (*[False] * (TRIES - 1), True):
            try:
                registry = self._answering()
                return registry.get_range(
                    entry.object.id, offset, length, fd, offset, lambda _: None, *version
                )
            except RegistryUnavailable:
                if last or self._is_down:
                    self._is_down = True
                    raise
            except Stale:
                raise Stale(f"{entry.key} has changed in the registry") from None
            except NotFound:
                raise NotFound(f"{entry.key} is gone from the registry") from None
            time.sleep(pause_s)
            pause_s *= 2
        raise AssertionError("unreachable")

    def _answering(self) -> ObjectStore:
        """Return the registry; one that was down is asked whether it answers again, shortly."""
        if self._registry is None:
            self._registry = self._open_registry()
        if self._is_down:
            self._registry.probe()
            self._is_down = False
        return self._registry

    # -------------------------------------------------------------- folders

    def _make_folders(self, version: VersionId, path: str) -> None:
        """Make the folders above a path that are missing, never the version's own."""
        parent = path.rpartition("/")[0]
        if parent and not (self._layout.version(version) / parent).is_dir():
            self._make_folders(version, parent)
            self.make_folder(version, parent)

    def make_folder(self, version: VersionId, path: str) -> None:
        """Make a folder that is missing; the one above it is there."""
        folder = self._layout.version(version) / path
        above = folder.parent.stat()  # all folders of a version have its namespace's owner and mode
        with writable(folder.parent):
            folder.mkdir()
            with suppress(PermissionError):
                os.chown(folder, above.st_uid, above.st_gid)
            folder.chmod(stat.S_IMODE(above.st_mode))
            sync_folder(folder.parent)

    def remove_folder(self, version: VersionId, path: str) -> None:
        """Remove an empty folder that is not in the manifest."""
        folder = self._layout.version(version) / path
        with writable(folder.parent):
            folder.rmdir()

    def note(self, version: VersionId, reason: str | None) -> None:
        """Remember what is wrong with a version, or that nothing is.

        A file in quarantine tells daemons, which name it in status.json; the attribute
        `user.modelfs.error` of the plain folder tells who has that alone.
        """
        folder, mark = self._layout.version(version), self._layout.damage(version)
        if reason is not None:
            reason = reason[:ERROR_MAX]
            self._layout.quarantine.mkdir(mode=0o700, exist_ok=True)
            mark.parent.mkdir(parents=True, exist_ok=True)
            write_durably(mark, reason.encode(errors="replace"))
            if folder.is_dir():
                with writable(folder):
                    set_attribute(folder, "error", reason)
            return
        mark.unlink(missing_ok=True)
        if _has_error(folder):
            with writable(folder):
                os.removexattr(folder, "user.modelfs.error")

    def forget_cached(self, wrong: set[tuple[int, int]]) -> int:
        """Take wrong files out of the nodes' caches, which they are linked from; return how many.

        `wrong` holds their device and inode numbers. A cache fetches a file again that is gone.
        """
        count = 0
        for path in (self._layout.root / "cache").glob("*/??/*"):
            with suppress(OSError):
                found = path.lstat()
                if (found.st_dev, found.st_ino) in wrong:
                    path.unlink()
                    count += 1
        return count


def _has_error(folder: Path) -> bool:
    try:
        return bool(os.getxattr(folder, "user.modelfs.error"))
    except OSError:
        return False


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Let names in a version's folder be changed for the moment."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    folder.chmod(mode | stat.S_IWUSR)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):  # the version was deleted meanwhile
            folder.chmod(mode)
