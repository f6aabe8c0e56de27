"""A model as a mount shows it: folders, symlinks, extended attributes. Nothing is kept."""

import errno
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfs.cli.failures import explained
from modelfs.cli.mounts import Mount
from modelfs.errors import ModelfsError
from modelfs.names import CONTROL, MAIN, ModelId, is_plain_name, is_version_name

DOWNLOADING, READY, FAILED, UNKNOWN = "downloading", "ready", "failed", "unknown"
ATTRIBUTE_PREFIX = "user.modelfs."

_PROGRESS = re.compile(r"([0-9]+)/([0-9]+)")


@dataclass(frozen=True, slots=True)
class Version:
    """What is known of a version from its folder's attributes; sizes are bytes."""

    name: str
    state: str
    done_bytes: int | None
    total_bytes: int | None
    digest: str | None
    error: str | None
    plain_path: str | None

    @property
    def is_ready(self) -> bool:
        return self.state == READY

    @property
    def is_settled(self) -> bool:
        """Tell whether the state stays as it is: ready or failed."""
        return self.state in (READY, FAILED)

    def document(self) -> dict[str, Any]:
        """Return it as the JSON of every command has it."""
        return {
            "version": self.name,
            "state": self.state,
            "done_bytes": self.done_bytes,
            "total_bytes": self.total_bytes,
            "digest": self.digest,
            "error": self.error,
            "path": self.plain_path,
        }


@dataclass(frozen=True, slots=True)
class Usage:
    """How many files, and their bytes."""

    files: int
    size: int


@dataclass(frozen=True, slots=True)
class Model:
    """A model in a mount; the folder need not be there."""

    mount: Mount
    id: ModelId

    def __str__(self) -> str:
        return str(self.id)

    @property
    def path(self) -> Path:
        return self.mount.path / self.id.namespace / self.id.name

    def version_path(self, name: str) -> Path:
        return self.path / name

    def require(self) -> None:
        """Raise ModelfsError where the folder is not there."""
        missing = f"there is no such model in {self.mount.registry}: modelfs ls shows those there"
        with explained(f"find {self}", {errno.ENOENT: missing, errno.ENOTDIR: missing}):
            os.stat(self.path)

    def attribute(self, name: str) -> str | None:
        """Return an extended attribute of the model."""
        return attribute(self.path, name)

    @property
    def source(self) -> str | None:
        """Return the model (NS/MODEL) whose main/ it has; None where it has its own."""
        try:
            names = os.readlink(self.path / MAIN).split("/")
        except OSError:  # no symlink, or no model
            return None
        return "/".join(names[-3:-1])

    @property
    def main_title(self) -> str:
        """Return what its main/ is called: its source's name where it has one."""
        return f"{self.source or self}/{MAIN}"

    def names(self) -> set[str]:
        """Return the names beside main/: versions and aliases."""
        with explained(f"list {self}"):
            return set(os.listdir(self.path)) - {MAIN, CONTROL}

    def versions(self) -> list[Version]:
        """Return the versions, the oldest name first."""
        names = sorted(filter(is_version_name, self.names()), key=_by_number)
        return [version for name in names if (version := self.find_version(name)) is not None]

    def find_version(self, name: str) -> Version | None:
        """Return what is known of a version; None where there is none."""
        path = self.version_path(name)
        with explained(f"look at {self}@{name}"):
            try:
                os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            state = attribute(path, "state")
            if state is None:
                return self._version_of_manifest(name)
            done, total = progress(attribute(path, "progress"))
            return Version(
                name=name,
                state=state,
                done_bytes=done,
                total_bytes=total,
                digest=attribute(path, "digest"),
                error=attribute(path, "error") or None,
                plain_path=attribute(path, "path"),
            )

    def _version_of_manifest(self, name: str) -> Version:
        """Return what the manifest tells: a store's disk may know no attributes."""
        manifest = self.manifest(name)
        size, state = None, UNKNOWN
        if manifest.get("ready_ns"):
            size, state = sum(entry.get("size", 0) for entry in manifest.get("files", ())), READY
        return Version(name, state, size, size, manifest.get("digest"), None, None)

    def version(self, name: str) -> Version:
        """Return what is known of a version, or raise ModelfsError."""
        found = self.find_version(name)
        if found is None:
            self.require()
            raise ModelfsError(f"there is no version {self}@{name}: modelfs ls {self} shows them")
        return found

    def aliases(self) -> dict[str, str]:
        """Return each alias and the version that it points at."""
        found = {}
        for name in sorted(self.names()):
            target = self.alias_target(name)
            if target is not None:
                found[name] = target
        return found

    def alias_target(self, name: str) -> str | None:
        """Return the version that an alias points at; None where `name` is no alias."""
        if is_version_name(name):
            return None
        try:
            return os.path.basename(os.readlink(self.path / name).rstrip("/"))
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):  # no symlink
                return None
            raise

    def concrete(self, name: str) -> str:
        """Return the version's name behind a version or an alias, or raise ModelfsError."""
        if is_version_name(name):
            return name
        with explained(f"look at {self}/{name}"):
            target = self.alias_target(name)
        if name == MAIN or target is None:
            self.require()
            raise ModelfsError(f"{self} has no version or alias {name!r}: modelfs ls {self}")
        return target

    def manifest(self, version: str) -> dict[str, Any]:
        """Return a version's manifest; {} where it cannot be read."""
        try:
            text = (self.path / CONTROL / "versions" / f"{version}.json").read_bytes()
            found = json.loads(text)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def main_usage(self) -> Usage:
        """Count main/, which lists the registry."""
        files = size = 0
        with explained(f"list {self.main_title}", self.main_errors()):
            for _, file_size in files_at(str(self.path / MAIN)):
                files += 1
                size += file_size
        return Usage(files, size)

    def main_errors(self) -> dict[int, str]:
        """Return what an errno in main/ means where that is another model's."""
        source = self.source
        if source is None:
            return {}
        return {
            errno.ENOENT: f"{source}, the source of {self}, is gone",
            errno.EACCES: f"you may not read {source}, the source of {self}",
        }


def find_models(mount: Mount, namespace: str | None = None) -> list[Model]:
    """Return the models of a mount, or of one namespace of it, by name."""
    with explained(f"list {mount.path}"):
        namespaces = (
            [namespace] if namespace else sorted(filter(is_plain_name, os.listdir(mount.path)))
        )
    models: list[Model] = []
    for name in namespaces:
        missing = {errno.ENOENT: f"there is no such namespace in {mount.registry}"}
        with explained(f"list {name}", missing):
            try:
                names = os.listdir(mount.path / name)
            except NotADirectoryError:
                continue
        models += (
            Model(mount, ModelId(name, model)) for model in sorted(names) if is_plain_name(model)
        )
    return models


def attribute(path: str | Path, name: str) -> str | None:
    """Return the extended attribute user.modelfs.`name`; None where there is none."""
    try:
        return os.getxattr(path, ATTRIBUTE_PREFIX + name).decode(errors="replace")
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def progress(text: str | None) -> tuple[int | None, int | None]:
    """Return bytes done and in all of the attribute `progress`."""
    match = _PROGRESS.fullmatch(text or "")
    return (int(match[1]), int(match[2])) if match else (None, None)


def _by_number(name: str) -> list[tuple[int, str]]:
    """Sort v2 before v10."""
    return [(int(number or 0), word) for word, number in re.findall(r"([^0-9]*)([0-9]*)", name)]


def files_at(path: str) -> Iterator[tuple[str, int]]:
    """Yield path and size of a file, or of every file below a folder."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from files_at(entry.path)
                else:
                    yield entry.path, entry.stat(follow_symlinks=False).st_size
    except NotADirectoryError:
        yield path, os.stat(path).st_size
