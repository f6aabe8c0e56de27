"""The commands warm and evict: the attribute `cached` of files, set and followed."""

import errno
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from modelfs.cli.arguments import place_argument
from modelfs.cli.bars import ByteBar
from modelfs.cli.failures import explained
from modelfs.cli.following import Follower, follow
from modelfs.cli.mounts import Mount
from modelfs.cli.options import Settings, as_json, in_registry, pass_settings
from modelfs.cli.output import complain, count_text, print_json, say, size_text
from modelfs.cli.probe import read_status
from modelfs.cli.tree import ATTRIBUTE_PREFIX, FAILED, Model, attribute, files_at, progress
from modelfs.errors import ModelfsError
from modelfs.names import CONTROL, MAIN

UNDER_WAY_MAX = 32  # files that the daemon is asked for at once
ERRORS_MAX = 20  # files that fail before no others are begun
FIRST_PAUSE_S = 0.02
LAST_PAUSE_S = 0.5
CACHED = "cached"

_STAGED = "it is not in the registry"
GONE_AGAIN = "its bytes went again, or it was changed: is the cache large enough?"
_REASONS = {
    errno.EACCES: "permission denied: only who may write it may warm or evict it",
    errno.ENOENT: "it is gone",
    errno.EROFS: "the mount is read-only: read the files instead (cat FILE > /dev/null)",
}


@dataclass(slots=True)
class File:
    """A file of main/; `here` of its bytes are on this node, `first` were when it was met."""

    path: str
    mount: Mount
    first: int
    here: int
    size: int
    error: str | None = None

    @classmethod
    def at(cls, path: str, mount: Mount) -> "File":
        here, size = _look(path)
        return cls(path, mount, here, here, size)

    @property
    def is_whole(self) -> bool:
        return self.here >= self.size

    @property
    def fetched(self) -> int:
        return max(0, self.here - self.first)

    def look(self) -> int:
        """Learn what is here now; return how many bytes that is more than ever before."""
        before = self.fetched
        self.here, self.size = _look(self.path)
        return max(0, self.fetched - before)

    def set_cached(self, value: str) -> None:
        os.setxattr(self.path, ATTRIBUTE_PREFIX + CACHED, value.encode())


@dataclass(slots=True)
class Wanted:
    """What the arguments name: files of main/, and those of versions, which are plain."""

    files: list[File] = field(default_factory=list)
    plain_files: int = 0
    plain_bytes: int = 0


def _look(path: str) -> tuple[int, int]:
    with explained(f"look at {path}", _REASONS):
        here, size = progress(attribute(path, CACHED))
    if here is None or size is None:
        raise ModelfsError(f"{path} does not tell what of it is here (user.modelfs.{CACHED})")
    return here, size


@click.command(short_help="Bring files of main/ here before they are read.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@in_registry
@as_json
@pass_settings
def warm(settings: Settings, paths: Sequence[str], wants_json: bool) -> int:
    """Bring whole files of main/ into this node's cache, and return when they are here.

    \b
      modelfs warm acme/llama                           all of its main/
      modelfs warm /models/hub/acme/llama/main/weights  a folder, or a file
      modelfs warm acme/llama@v3                        waits until the version is ready

    Less urgent than who reads just now. A script may set user.modelfs.cached of a file to `all`.
    Exit status: 0 where every byte is here, else 1.
    """
    wanted = _wanted(paths, settings.registry)
    _check_room(wanted.files)
    missing = [file for file in wanted.files if not file.is_whole]
    if missing:
        with ByteBar.make("warm") as bar:
            bar.begin(sum(file.size - file.here for file in missing))
            not_tried = _Warming(missing, bar).run()
        _look_again(wanted.files)
    else:
        not_tried = 0
    return _report_warm(wanted, not_tried, wants_json)


def _wanted(paths: Iterable[str], registry: str | None) -> Wanted:
    wanted, met = Wanted(), set[str]()
    for text in paths:
        model, names = _place(text, registry)
        is_version = names[0] != MAIN
        if is_version:
            folder = model.version_path(_ready_version(model, names[0])).joinpath(*names[1:])
        else:
            folder = model.path.joinpath(*names)
        for path, size in _files_of(model, str(folder)):
            if path in met:
                continue
            met.add(path)
            if is_version:
                wanted.plain_files += 1
                wanted.plain_bytes += size
            else:
                wanted.files.append(File.at(path, model.mount))
    return wanted


def _place(text: str, registry: str | None) -> tuple[Model, list[str]]:
    """Return the model and the names below it: `main` or a version, and what is in that."""
    model, names = place_argument(text, registry)
    model.require()
    if names[:1] == [CONTROL]:
        raise ModelfsError(f"{text} is made by the daemon: nothing of it is cached")
    return model, names or [MAIN]


def _ready_version(model: Model, name: str) -> str:
    """Return the version's name, an alias resolved, once it is ready."""
    name = model.concrete(name)
    title = f"{model}@{name}"
    with Follower.make(title) as shown:
        version = follow(lambda: model.version(name), shown, None)
    if version.state == FAILED:
        raise ModelfsError(f"{title} failed: {version.error or 'no reason is given'}")
    return name


def _files_of(model: Model, path: str) -> Iterator[tuple[str, int]]:
    """Yield path and size of a file, or of all files of a folder; a link to main/ resolved."""
    missing = {errno.ENOENT: f"there is no {path}", errno.ENOTDIR: f"there is no {path}"}
    with explained(f"list {path}", missing | model.main_errors()):
        yield from files_at(os.path.realpath(path))


def _check_room(files: Sequence[File]) -> None:
    """Raise ModelfsError where a cache can never hold all of what shall be in it."""
    for mount in {file.mount for file in files if not file.is_whole}:
        total = sum(file.size for file in files if file.mount == mount)
        limit = (read_status(mount).get("cache") or {}).get("max_bytes")
        if limit is not None and total > limit:
            raise ModelfsError(
                f"cannot warm {size_text(total)}: the cache of {mount.registry} holds "
                f"{size_text(limit)} (max_size); name fewer files, or freeze the model"
            )


class _Warming:
    """Asks for files, a few at once, and watches them come."""

    def __init__(self, files: Iterable[File], bar: ByteBar) -> None:
        self._waiting = deque(files)
        self._begun: list[File] = []
        self._failed = 0
        self._bar = bar

    def run(self) -> int:
        """Return when each file is here or has failed; how many were not even tried."""
        try:
            self._run()
        except KeyboardInterrupt:
            begun = count_text(len(self._begun), "file")
            complain(f"the daemon goes on with {begun}, and begins no others")
            raise
        return len(self._waiting)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while self._begin() or self._begun:
            still = [file for file in self._begun if self._is_coming(file)]
            pause_s = FIRST_PAUSE_S if len(still) < len(self._begun) else pause_s * 1.5
            self._begun = still
            time.sleep(min(pause_s, LAST_PAUSE_S))

    def _begin(self) -> bool:
        """Begin what may be begun; tell whether anything was."""
        before = len(self._waiting)
        while self._waiting and len(self._begun) < UNDER_WAY_MAX and self._failed < ERRORS_MAX:
            file = self._waiting.popleft()
            try:
                file.set_cached("all")
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOSPC):
                    with explained(f"warm {file.path}", _REASONS):
                        raise
                self._fail(file, _REASONS.get(error.errno, "it is larger than the cache"))
            else:
                self._begun.append(file)
        return len(self._waiting) < before

    def _is_coming(self, file: File) -> bool:
        """Look how far a file is; what it shows once it is not `warming` stays so."""
        try:
            is_over = attribute(file.path, "warming") is None
            moved = file.look()
            error = attribute(file.path, "error")
        except (OSError, ModelfsError) as failure:
            if not os.path.lexists(file.path):
                self._fail(file, _REASONS[errno.ENOENT])
                return False
            raise failure
        if moved:
            self._bar.moved(moved)
        if is_over and not file.is_whole:
            self._fail(file, error or GONE_AGAIN)
        return not is_over

    def _fail(self, file: File, reason: str) -> None:
        file.error = reason
        self._failed += 1


def _look_again(files: Iterable[File]) -> None:
    """See that what was here, or came, has not gone again while others came."""
    for file in files:
        if file.error is None and file.is_whole:
            file.look()
            if not file.is_whole:
                file.error = GONE_AGAIN


def _report_warm(wanted: Wanted, not_tried: int, wants_json: bool) -> int:
    whole = [file for file in wanted.files if file.is_whole and not file.error]
    failed = [file for file in wanted.files if file.error]
    count = wanted.plain_files + len(whole)
    size = wanted.plain_bytes + sum(file.size for file in whole)
    fetched = sum(file.fetched for file in wanted.files)
    if wants_json:
        _print(failed, files=count, bytes=size, fetched_bytes=fetched, not_tried=not_tried)
    else:
        _complain_of(failed)
        if not_tried:
            complain(f"{count_text(not_tried, 'more file')} were not tried")
        of = f" of {len(wanted.files) + wanted.plain_files:,}" if failed or not_tried else ""
        files = count_text(count, "file") if not of else f"{count:,}{of} files"
        say(f"{files}, {size_text(size)} are here ({size_text(fetched)} fetched)")
    return 1 if failed or not_tried else 0


@click.command(short_help="Drop files of main/ from this node's cache.")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@in_registry
@as_json
@pass_settings
def evict(settings: Settings, paths: Sequence[str], wants_json: bool) -> int:
    """Drop the bytes of files of main/ from this node's cache; the registry keeps them.

    \b
      modelfs evict acme/llama                            all of its main/
      modelfs evict /models/hub/acme/llama/main/old.gguf  a file, or a folder

    A file that is open, or is being warmed, stays and is named (exit status 1); what the
    registry does not have (yet) stays, too. A script may set user.modelfs.cached to `none`.
    """
    freed, staged, freed_bytes = 0, 0, 0
    busy: list[File] = []
    for file in _evictable(paths, settings.registry):
        outcome = _evict(file)
        if outcome is None:
            freed, freed_bytes = freed + 1, freed_bytes + file.here
        elif outcome == _STAGED:
            staged += 1
        else:
            file.error = outcome
            busy.append(file)
    if wants_json:
        _print(busy, files=freed, freed_bytes=freed_bytes, not_uploaded=staged)
    else:
        _complain_of(busy)
        kept = f"; {count_text(staged, 'file')} kept that the registry lacks" if staged else ""
        say(f"{count_text(freed, 'file')}, {size_text(freed_bytes)} freed{kept}")
    return 1 if busy else 0


def _evictable(paths: Iterable[str], registry: str | None) -> Iterator[File]:
    places = [_place(text, registry) for text in paths]
    for model, names in places:
        if names[0] != MAIN:
            raise ModelfsError(
                f"{model}@{names[0]} is a version, and no cache: modelfs rm deletes it"
            )
    found: dict[str, Mount] = {}
    for model, names in places:
        for path, _ in _files_of(model, str(model.path.joinpath(*names))):
            found[path] = model.mount
    for path, mount in found.items():
        file = File.at(path, mount)
        if file.here:
            yield file


def _evict(file: File) -> str | None:
    """Drop a file's bytes; return why that is not done."""
    busy = "it is open, or its bytes are just coming"
    try:
        file.set_cached("none")
    except OSError as error:
        if error.errno == errno.EBUSY:
            is_here_only = attribute(file.path, "etag") is None  # as `local_only` has it
            return _STAGED if is_here_only or attribute(file.path, "dirty") == "1" else busy
        with explained(f"evict {file.path}", _REASONS):
            raise
    return None


def _complain_of(files: Iterable[File]) -> None:
    for file in files:
        complain(f"{file.path}: {file.error}")


def _print(failed: Iterable[File], **figures: Any) -> None:
    errors = [{"path": file.path, "error": file.error} for file in failed]
    print_json({**figures, "errors": errors})
