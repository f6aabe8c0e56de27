"""The command diff: versions by their manifests, main/ by its ETags; no file is read."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click

from modelfs.cli import completing
from modelfs.cli.arguments import version_argument
from modelfs.cli.failures import explained
from modelfs.cli.options import Settings, as_json, in_registry, pass_settings
from modelfs.cli.output import count_text, print_json, print_table, say, size_text
from modelfs.cli.tree import Model, attribute
from modelfs.errors import ModelfsError
from modelfs.names import CONTROL, MAIN

DIFFERENT = 1
TROUBLE = 2


@dataclass(frozen=True, slots=True)
class File:
    """A file of one side; `sha256` is None in main/ and while it downloads.

    `etag` is None where the registry does not have the file as it is here: it is being
    written, or waits for its upload.
    """

    size: int
    etag: str | None
    sha256: str | None = None

    def is_same(self, other: "File") -> bool:
        if self.size != other.size:
            return False
        if self.sha256 and other.sha256:
            return self.sha256 == other.sha256
        return self.etag is not None and self.etag == other.etag


@dataclass(frozen=True, slots=True)
class Differences:
    """What is in the second side and not in the first, and so on: paths, sorted."""

    added: list[str]
    removed: list[str]
    changed: list[str]

    @classmethod
    def between(cls, one: Mapping[str, File], other: Mapping[str, File]) -> "Differences":
        return cls(
            sorted(other.keys() - one.keys()),
            sorted(one.keys() - other.keys()),
            sorted(p for p in one.keys() & other.keys() if not one[p].is_same(other[p])),
        )

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


class _Trouble(click.ClickException):
    """What kept diff from an answer: 1 would say that there are differences."""

    exit_code = TROUBLE


@click.command(short_help="Compare versions, or one with main/.")
@click.argument("one", metavar="NS/MODEL@A", shell_complete=completing.versions)
@click.argument("other", metavar="NS/MODEL@B|main", shell_complete=completing.versions)
@in_registry
@as_json
@pass_settings
def diff(settings: Settings, one: str, other: str, wants_json: bool) -> int:
    """Compare two versions, or a version and main/, at once: no file is read.

    \b
      modelfs diff acme/llama@v1 acme/llama@v2
      modelfs diff acme/llama@production main     of the same model
      modelfs diff acme/llama@v1 v2 --json

    Exit status: 0 where the files are the same, 1 where they differ, 2 where that cannot be
    told. main/ is compared by size and ETag: a file that was uploaded anew in other parts
    counts as changed.
    """
    try:
        first = version_argument(one, settings.registry)
        second = _second(other, first[0], settings.registry)
        sides = _Side.of(*first), _Side.of(*second)
    except ModelfsError as error:
        raise _Trouble(str(error)) from error
    differences = Differences.between(sides[0].files, sides[1].files)
    if wants_json:
        print_json(_document(*sides, differences))
    else:
        _show(*sides, differences)
    return DIFFERENT if differences else 0


def _second(text: str, model: Model, registry: str | None) -> tuple[Model, str]:
    """Return what the second argument names; a bare name is of the first one's model."""
    if "/" not in text and "@" not in text:
        return model, text
    return version_argument(text, registry)


@dataclass(frozen=True, slots=True)
class _Side:
    title: str
    files: Mapping[str, File]

    @classmethod
    def of(cls, model: Model, name: str) -> "_Side":
        if name == MAIN:
            model.require()
            return cls(model.main_title, files_of_main(model))
        version = model.concrete(name)
        manifest = manifest_of(model, version)
        return cls(f"{model}@{version}", files_of(manifest))


def manifest_of(model: Model, version: str) -> dict[str, Any]:
    """Return a version's manifest, or raise ModelfsError."""
    path = model.path / CONTROL / "versions" / f"{version}.json"
    try:
        with explained(f"read the manifest of {model}@{version}"):
            found = json.loads(path.read_bytes())
        if isinstance(found["files"], list):
            return dict(found)
    except ModelfsError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOENT, errno.ENOTDIR):
            model.version(version)  # says that there is none
        raise
    except (ValueError, KeyError, TypeError):
        pass
    raise ModelfsError(f"the manifest of {model}@{version} is damaged: {path}")


def files_of(manifest: Mapping[str, Any]) -> dict[str, File]:
    """Return the files of a manifest by their paths."""
    return {
        entry["path"]: File(entry["size"], entry["etag"], entry.get("sha256"))
        for entry in manifest["files"]
    }


def files_of_main(model: Model) -> dict[str, File]:
    """Return the files of main/ as the tree shows them: sizes and ETags."""
    found = {}
    with explained(f"list {model.main_title}", model.main_errors()):
        for path, entry in walk(str(model.path / MAIN)):
            if entry.is_dir(follow_symlinks=False):
                continue
            try:
                size = entry.stat(follow_symlinks=False).st_size
                is_dirty = _attribute(entry, "dirty") == "1"
                found[path] = File(size, None if is_dirty else _attribute(entry, "etag"))
            except FileNotFoundError:  # removed just now
                continue
    return found


def _attribute(entry: "os.DirEntry[str]", name: str) -> str | None:
    from pathlib import Path

    return attribute(Path(entry.path), name)


def walk(folder: str, above: str = "") -> Iterator[tuple[str, "os.DirEntry[str]"]]:
    """Yield everything below a folder with its path; a folder comes before what is in it."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield above + entry.name, entry
            if entry.is_dir(follow_symlinks=False):
                yield from walk(entry.path, f"{above}{entry.name}/")


def _document(one: _Side, other: _Side, differences: Differences) -> dict[str, Any]:
    return {
        "one": one.title,
        "other": other.title,
        "equal": not differences,
        "added": [{"path": p, "size": other.files[p].size} for p in differences.added],
        "removed": [{"path": p, "size": one.files[p].size} for p in differences.removed],
        "changed": [
            {"path": p, "size": other.files[p].size, "size_before": one.files[p].size}
            for p in differences.changed
        ],
    }


def _show(one: _Side, other: _Side, differences: Differences) -> None:
    if not differences:
        size = size_text(sum(file.size for file in one.files.values()))
        say(f"{one.title} and {other.title}: {count_text(len(one.files), 'file')}, {size}, equal")
        return
    rows = [("added", path, "", _size(other, path)) for path in differences.added]
    rows += [("removed", path, _size(one, path), "") for path in differences.removed]
    rows += [
        ("changed", path, _size(one, path), _size(other, path)) for path in differences.changed
    ]
    print_table(("CHANGE", "FILE", one.title, other.title), rows)


def _size(side: _Side, path: str) -> str:
    return size_text(side.files[path].size)
