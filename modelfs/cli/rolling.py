"""The command rollback: main/ becomes what a version is, by plain calls on the mount."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from modelfs.cli import completing
from modelfs.cli.arguments import model_argument
from modelfs.cli.bars import ByteBar
from modelfs.cli.comparing import Differences, files_of, files_of_main, manifest_of, walk
from modelfs.cli.failures import explained
from modelfs.cli.options import Settings, as_json, in_registry, pass_settings
from modelfs.cli.output import count_text, print_json, say, size_text
from modelfs.cli.tree import Model, attribute
from modelfs.errors import ModelfsError
from modelfs.names import MAIN

BLOCK_BYTES = 1 << 20
TEMPORARY = ".modelfs-rollback-"


@click.command(short_help="Make main/ equal to a version.")
@click.argument("model", metavar="NS/MODEL", shell_complete=completing.models)
@click.argument("version")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@in_registry
@as_json
@pass_settings
def rollback(settings: Settings, model: str, version: str, dry_run: bool, wants_json: bool) -> None:
    """Make main/ equal to a version: write what differs, then remove what it has not.

    \b
      modelfs rollback acme/llama v1 --dry-run   what would be done
      modelfs rollback acme/llama v1             or an alias
      modelfs freeze acme/llama                  before it: a way back

    Each file is written under another name and renamed, so that nobody reads half of one. If
    it is interrupted, say it again. The aliases stay: modelfs alias moves those.
    """
    of = model_argument(model, settings.registry)
    name = of.concrete(version.rstrip("/"))
    plan = _plan(of, name)
    if not dry_run:
        _carry_out(plan)
    if wants_json:
        print_json(plan.document(dry_run))
    else:
        _report(plan, dry_run)


@dataclass(frozen=True)
class _Plan:
    """What makes main/ equal to a version. Paths; folders that go are the deepest first."""

    model: Model
    version: str
    entries: dict[str, dict[str, Any]]
    write: list[str]
    remove: list[str]
    make_folders: list[str]
    remove_folders: list[str]

    @cached_property
    def main(self) -> Path:
        return self.model.path / MAIN

    @property
    def size(self) -> int:
        """The bytes to write."""
        return sum(self.entries[path]["size"] for path in self.write)

    def document(self, dry_run: bool) -> dict[str, Any]:
        return {
            "model": str(self.model),
            "version": self.version,
            "dry_run": dry_run,
            "written": [{"path": p, "size": self.entries[p]["size"]} for p in self.write],
            "removed": self.remove,
            "made_folders": self.make_folders,
            "removed_folders": self.remove_folders,
            "equal_before": len(self.entries) - len(self.write),
        }


def _plan(model: Model, name: str) -> _Plan:
    title = f"{model}@{name}"
    if (source := model.source) is not None:
        raise ModelfsError(
            f"cannot roll {model} back: its main/ is {source}'s; modelfs rollback {source} changes "
            f"it, and modelfs alias {model} ALIAS {name} what is served"
        )
    version = model.version(name)
    if not version.is_ready:
        reason = f" ({version.error})" if version.error else ""
        raise ModelfsError(f"{title} is {version.state}{reason}: modelfs wait {title}")
    manifest = manifest_of(model, name)
    files, here = files_of(manifest), files_of_main(model)
    differences = Differences.between(here, files)
    entries = {entry["path"]: entry for entry in manifest["files"]}
    with explained(f"list {model}/main"):
        found = {
            path
            for path, entry in walk(str(model.path / MAIN))
            if entry.is_dir(follow_symlinks=False)
        }
    folders = _folders(files, manifest.get("folders", ()))
    changed = [path for path in differences.changed if not _is_equal(model, path, entries[path])]
    return _Plan(
        model,
        name,
        entries,
        sorted([*differences.added, *changed]),
        differences.removed,
        sorted(folders - found),
        sorted(found - folders, reverse=True),
    )


def _folders(files: Any, listed: Any) -> set[str]:
    """Return the folders of a version: listed ones, and those above its files."""
    found = set(listed)
    for path in files:
        while path := path.rpartition("/")[0]:
            found.add(path)
    return found


def _is_equal(model: Model, path: str, entry: dict[str, Any]) -> bool:
    """Tell whether a file whose ETag differs has a version's bytes, where that costs nothing.

    A file of many parts has another ETag once it was uploaded anew or renamed, also by an
    earlier rollback: it is in the cache then.
    """
    file = model.path / MAIN / path
    size = entry["size"]
    with explained(f"read {model}/main/{path}"):
        if file.stat().st_size != size or attribute(file, "cached") != f"{size}/{size}":
            return False
        with file.open("rb", buffering=0) as opened:
            digest = hashlib.file_digest(opened, "sha256")
    return digest.hexdigest() == str(entry["sha256"])


def _carry_out(plan: _Plan) -> None:
    with explained(f"change {plan.model}/main"):
        for path in plan.make_folders:
            if path in plan.remove:  # a file where a folder must be
                (plan.main / path).unlink(missing_ok=True)
            (plan.main / path).mkdir(exist_ok=True)
    with ByteBar.make(f"rollback {plan.model}") as bar:
        bar.begin(plan.size)
        for path in plan.write:
            _write(plan, path, bar)
    _remove(plan)


def _write(plan: _Plan, path: str, bar: ByteBar) -> None:
    """Bring one file under a name of its own, check it, and rename it."""
    target = plan.main / path
    name = hashlib.sha256(path.encode()).hexdigest()[:16]
    temporary = target.with_name(TEMPORARY + name)
    with explained(f"write {plan.model}/main/{path}"):
        try:
            _copy(plan, path, temporary, bar)
            if path in plan.remove_folders:
                _remove_folder(plan, path)
            temporary.rename(target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def _copy(plan: _Plan, path: str, target: Path, bar: ByteBar) -> None:
    entry, digest = plan.entries[path], hashlib.sha256()
    time_ns = entry["modified_ns"] if entry.get("mtime_ns") is None else entry["mtime_ns"]
    with target.open("wb", buffering=0) as file:
        for block in _blocks(plan, path):
            digest.update(block)
            view = memoryview(block)
            while view:
                view = view[file.write(view) :]
            bar.moved(len(block))
        if digest.hexdigest() != entry["sha256"]:
            title = f"{plan.model}@{plan.version}"
            raise ModelfsError(f"{path} of {title} has wrong bytes: modelfs verify {title}")
        os.utime(file.fileno(), ns=(time_ns, time_ns))  # before close(), which uploads


def _blocks(plan: _Plan, path: str) -> Iterator[bytes]:
    title = f"{plan.model}@{plan.version}"
    damaged = {errno.EIO: f"the store does not give it: modelfs verify {title}"}
    with explained(f"read {path} of {title}", damaged | {errno.ENOENT: damaged[errno.EIO]}):
        file = (plan.model.version_path(plan.version) / path).open("rb", buffering=0)
    with file:
        while True:
            with explained(f"read {path} of {title}", damaged):
                block = file.read(BLOCK_BYTES)
            if not block:
                return
            yield block


def _remove(plan: _Plan) -> None:
    with explained(f"remove from {plan.model}/main what {plan.version} has not"):
        for path in plan.remove:
            if path in plan.make_folders:
                continue
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                (plan.main / path).unlink()
    for path in plan.remove_folders:
        if path not in plan.entries:
            _remove_folder(plan, path)


def _remove_folder(plan: _Plan, path: str) -> None:
    """Remove a folder; one that stands where a file must be goes with all that is in it."""
    with explained(f"remove {plan.model}/main/{path}"):
        if path in plan.entries:
            inside = f"{path}/"
            for file in plan.remove:
                if file.startswith(inside):
                    (plan.main / file).unlink(missing_ok=True)
            for folder in plan.remove_folders:
                if folder.startswith(inside):
                    (plan.main / folder).rmdir()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (plan.main / path).rmdir()


def _report(plan: _Plan, dry_run: bool) -> None:
    would = "would be " if dry_run else ""
    for path in plan.write:
        say(f"{would}written: {path} ({size_text(plan.entries[path]['size'])})")
    for path in plan.remove:
        say(f"{would}removed: {path}")
    for path in plan.make_folders:
        say(f"{would}made: {path}/")
    for path in plan.remove_folders:
        say(f"{would}removed: {path}/")
    done = (
        f"{count_text(len(plan.write), 'file')} ({size_text(plan.size)}) {would}written, "
        f"{count_text(len(plan.remove), 'file')} {would}removed"
    )
    is_equal = "is not changed" if dry_run else f"is equal to {plan.version}"
    say(f"{plan.model}/main {is_equal}: {done}")
