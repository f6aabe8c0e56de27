"""Hash the files of ready versions again, and have put right what differs.

Works on the store alone, beside daemons and other nodes, under `verify.lock`: manifests say
what must be there. A file that versions share by hard links is read once, and one that is
wrong is found in all of them, also in those that nobody asked about. Blocking.
"""

import errno
import fcntl
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modelfs.errors import Busy, ModelfsError, NotFound, StoreError
from modelfs.names import ModelId, VersionId, is_version_name
from modelfs.registry.objects import ObjectId
from modelfs.store import versions
from modelfs.store.findings import Finding, Problem, Summary, Watcher
from modelfs.store.layout import Layout
from modelfs.store.manifest import Entry, Manifest, folders_of, from_json
from modelfs.store.repair import Repairer
from modelfs.store.rereading import Pace, sha256_of

DAMAGED_DISK = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)

Inode = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Suspect:
    """A file that is not right: `entry` is what it should be, None where it should not be."""

    path: str
    entry: Entry | None
    problem: Problem
    detail: str = ""
    is_folder: bool = False


_Copies = dict[tuple[ObjectId, str | None], list[tuple[VersionId, Entry]]]
_Look = Callable[[Manifest], Iterator[_Suspect]]


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Be the one verify of a store, over all nodes; raises Busy, StoreError."""
    layout.check()
    try:
        fd = os.open(layout.verify_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"cannot verify the store {layout.root}: {error.strerror} ({error.filename}); run it "
            "as the user of the daemon"
        ) from None
    try:
        _lock(fd, layout)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, layout: Layout) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(
            f"another modelfs verify works on the store {layout.root}, here or on another node"
        ) from None


def all_versions(layout: Layout) -> list[VersionId]:
    """Return every version that should be whole in the store."""
    folder = layout.root / "manifests"
    found = {ModelId(*path.parts[-2:]) for path in folder.glob("*/*") if path.is_dir()}
    for namespace in versions.namespaces(layout):
        found |= {ModelId(namespace, name) for name in versions.models(layout, namespace)}
    return [version for model in sorted(found) for version in versions_of(layout, model)]


def versions_of(layout: Layout, model: ModelId) -> list[VersionId]:
    """Return the versions of a model that are ready, or were and whose folder is lost."""
    names = set(versions.shelf(layout, model).ready)
    for path in layout.manifests(model).glob("*.json"):
        if is_version_name(path.stem) and _is_lost(layout, VersionId(model, path.stem)):
            names.add(path.stem)
    return [VersionId(model, name) for name in sorted(names)]


def _is_lost(layout: Layout, version: VersionId) -> bool:
    """Tell whether a version was ready and is gone; in this order of asking no race says so.

    A freeze is pending until its folder is in place; a removal retires the name first.
    """
    return (
        not layout.pending(version).exists()
        and not layout.version(version).exists()
        and not layout.retired(version).exists()
    )


class Verifier:
    """One run over versions of a store; without a `repairer` nothing is changed.

    INVARIANT: an inode in `_hashes` was read in this run; one in `_wrong` has other bytes
    than a manifest says.
    """

    def __init__(
        self, layout: Layout, watcher: Watcher, *, pace: Pace, repairer: Repairer | None
    ) -> None:
        self._layout = layout
        self._watcher = watcher
        self._pace = pace
        self._repairer = repairer
        self._hashes: dict[Inode, str] = {}
        self._wrong: set[Inode] = set()
        self._copies: _Copies | None = None
        self._findings: list[Finding] = []
        self._files = 0
        self._read_bytes = 0

    def run(self, wanted: Sequence[VersionId]) -> Summary:
        """Verify versions, and whatever else shares a wrong file with them."""
        models = sorted({version.model for version in wanted})
        if self._repairer is not None:
            for model in models:
                self._repairer.sweep(model)
        self._watcher.begin(self._total(wanted))
        for version in wanted:
            self._verify(version, self._suspects)
        if self._wrong:
            for version in set(all_versions(self._layout)) - set(wanted):  # of local models, too
                self._verify(version, self._shared)
            if self._repairer is not None:
                self._repairer.forget_cached(self._wrong)
        return Summary(len(wanted), self._files, self._read_bytes, tuple(self._findings))

    def _total(self, wanted: Iterable[VersionId]) -> int:
        """Return how many bytes there are to read."""
        sizes: dict[Inode, int] = {}
        for version in wanted:
            for folder, _, names in os.walk(self._layout.version(version)):
                for name in names:
                    try:
                        found = os.lstat(os.path.join(folder, name))
                    except FileNotFoundError:
                        continue
                    sizes[found.st_dev, found.st_ino] = found.st_size
        return sum(sizes.values())

    # ---------------------------------------------------------- one version

    def _verify(self, version: VersionId, look: _Look) -> None:
        try:
            manifest = self._manifest(version)
        except NotFound:
            return  # it was deleted meanwhile
        except StoreError as error:
            why = "nothing was read"
            found = [self._note(Finding(version, "", Problem.MANIFEST, str(error), error=why))]
            self._remember(version, found)
            return
        if _is_lost(self._layout, version):
            mark, used = self._layout.manifest(version), self._layout.retired(version)
            why = f"freeze what it was under a new name; to give it up, move {mark} to {used}"
            found = [self._note(Finding(version, "", Problem.VERSION, "", error=why))]
            self._remember(version, found)
            return
        try:
            found = [finding for s in look(manifest) if (finding := self._settle(version, s))]
        except FileNotFoundError:
            if self._layout.version(version).is_dir():
                raise
            return
        if look == self._suspects or not all(finding.is_repaired for finding in found):
            self._remember(version, found)

    def _remember(self, version: VersionId, found: Iterable[Finding]) -> None:
        """Let the store tell what of a version could not be put right, or that all is right."""
        if self._repairer is None:
            return
        places = ((f"{f.path}: " if f.path else "", f) for f in found if not f.is_repaired)
        errors = [f"{place}{f.problem}: {f.error}" for place, f in places]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        with suppress(OSError):  # whoever may not write it was told of each file
            self._repairer.note(version, errors[0] + more if errors else None)

    def _manifest(self, version: VersionId) -> Manifest:
        """Return a manifest that agrees with its own digest: a wrong one condemns good files."""
        path = self._layout.manifest(version)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            if not self._layout.version(version).is_dir():
                raise NotFound(f"there is no version {version}") from None
            raise StoreError(f"the manifest {path} is missing") from None
        manifest = from_json(text, path)
        if manifest.digest is None or json.loads(text)["digest"] != manifest.digest:
            raise StoreError(f"the manifest {path} is damaged: its digest does not fit")
        return manifest

    def _suspects(self, manifest: Manifest) -> Iterator[_Suspect]:
        """Yield what is not as the manifest says: what should not be there first."""
        top = self._layout.version(manifest.id)
        folders = {*manifest.folders, *folders_of(entry.path for entry in manifest.files)}
        here, files = _walk(top)
        for path in sorted(files - {entry.path for entry in manifest.files}):
            yield _Suspect(path, None, Problem.EXTRA)
        for path in sorted(here - folders, reverse=True):
            yield _Suspect(path, None, Problem.EXTRA, "a folder", is_folder=True)
        for path in sorted(folders - here):
            yield _Suspect(path, None, Problem.MISSING, "a folder", is_folder=True)
        for entry in manifest.files:
            self._files += 1
            if (suspect := self._check(top / entry.path, entry)) is not None:
                yield suspect

    def _shared(self, manifest: Manifest) -> Iterator[_Suspect]:
        """Yield the files that are wrong inodes, known from other versions."""
        top = self._layout.version(manifest.id)
        for entry in manifest.files:
            if _inode(top / entry.path) in self._wrong:
                suspect = self._check(top / entry.path, entry)
                if suspect is not None:
                    yield suspect

    def _check(self, path: Path, entry: Entry) -> _Suspect | None:
        """Compare a file with its entry; None where it is right."""
        suspect = partial(_Suspect, entry.path, entry)
        try:
            found = path.lstat()
            if not stat.S_ISREG(found.st_mode):
                return suspect(Problem.BYTES, "no plain file")
            if found.st_size != entry.size:
                self._wrong.add((found.st_dev, found.st_ino))
                return suspect(Problem.SIZE, f"{found.st_size} bytes instead of {entry.size}")
            sha256 = self._hash(path, found)
        except (FileNotFoundError, NotADirectoryError):
            return suspect(Problem.MISSING)
        except OSError as error:
            is_damaged = error.errno in DAMAGED_DISK
            problem = Problem.UNREADABLE if is_damaged else Problem.DENIED
            return suspect(problem, error.strerror or str(error))
        if sha256 == entry.sha256:
            return None
        self._wrong.add((found.st_dev, found.st_ino))
        return suspect(Problem.BYTES, f"SHA-256 {sha256} instead of {entry.sha256}")

    def _hash(self, path: Path, found: os.stat_result) -> str:
        inode = (found.st_dev, found.st_ino)
        if inode not in self._hashes:
            self._hashes[inode] = sha256_of(path, self._pace, self._moved)
        return self._hashes[inode]

    def _moved(self, count: int) -> None:
        self._read_bytes += count
        self._watcher.moved(count)

    # ----------------------------------------------------------- repairing

    def _settle(self, version: VersionId, suspect: _Suspect) -> Finding | None:
        """Have a file put right, and say what came of it; None where the version is gone."""
        finding = partial(Finding, version, suspect.path, suspect.problem, suspect.detail)
        if not self._layout.version(version).is_dir():
            return None
        if self._repairer is None:
            return self._note(finding(error="nothing is changed with --no-repair"))
        try:
            quarantined, source = self._repair(self._repairer, version, suspect)
            return self._note(finding(quarantined, source))
        except (ModelfsError, OSError) as error:
            reason = _reason(error)
        if not self._layout.version(version).is_dir():
            return None
        gone = None
        if suspect.problem in (Problem.BYTES, Problem.SIZE):
            try:
                gone = self._repairer.quarantine(version, suspect.path)
            except OSError as error:
                reason += f"; not quarantined: {_reason(error)}"
        return self._note(finding(gone, error=reason))

    def _repair(
        self, repairer: Repairer, version: VersionId, suspect: _Suspect
    ) -> tuple[Path | None, str]:
        """Put one thing right; return where the wrong one is and where the right one is from."""
        path, entry = suspect.path, suspect.entry
        if suspect.is_folder and suspect.problem is Problem.MISSING:
            repairer.make_folder(version, path)
        elif suspect.is_folder:
            repairer.remove_folder(version, path)
        elif entry is None:
            return repairer.quarantine(version, path), "here"
        elif suspect.problem is Problem.DENIED:
            raise StoreError("run it as the user of the daemon")
        else:
            owner, twin = self._twin(entry)
            quarantined = repairer.replace(version, entry, twin)
            found = (self._layout.version(version) / path).lstat()
            self._hashes[found.st_dev, found.st_ino] = entry.sha256 or ""
            return quarantined, owner
        return None, "here"

    def _twin(self, entry: Entry) -> tuple[str, Path | None]:
        """Return whose good copy of a file there is, and the copy; else the registry."""
        if self._copies is None:
            self._copies = self._index()
        for version, other in self._copies.get((entry.object.id, entry.sha256), ()):
            path = self._layout.version(version) / other.path
            if self._check(path, other) is None:
                return str(version), path
        return "registry", None

    def _index(self) -> _Copies:
        """Return which files should have the same bytes: versions and local models share them."""
        found: _Copies = {}
        for version in all_versions(self._layout):
            with suppress(ModelfsError):
                for entry in self._manifest(version).files:
                    found.setdefault((entry.object.id, entry.sha256), []).append((version, entry))
        return found

    def _note(self, finding: Finding) -> Finding:
        self._findings.append(finding)
        self._watcher.found(finding)
        return finding


def _walk(top: Path) -> tuple[set[str], set[str]]:
    """Return the folders and the other things below a folder, by their paths."""
    folders, files, waiting = set(), set(), [""]
    while waiting:
        path = waiting.pop()
        with os.scandir(top / path) as entries:
            for entry in entries:
                found = f"{path}/{entry.name}" if path else entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.add(found)
                    waiting.append(found)
                else:
                    files.add(found)
    return folders, files


def _inode(path: Path) -> Inode | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _reason(error: ModelfsError | OSError) -> str:
    if isinstance(error, OSError):
        place = f" ({os.fsdecode(error.filename)})" if error.filename else ""
        return f"{error.strerror or error}{place}"
    return str(error)
