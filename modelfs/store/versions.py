"""Versions and aliases as they lie in the store: what is there. Blocking, for threads.

The store is shared by nodes, so nothing here is remembered between calls; names appear and
vanish by rename alone. publishing.py and aliases.py change what is here.
"""

import os
from collections.abc import Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from modelfs.errors import AlreadyExists, NotFound
from modelfs.names import LATEST, MAIN, ModelId, VersionId, is_plain_name, is_version_name
from modelfs.store.layout import Layout, names_in
from modelfs.store.manifest import Manifest, from_json


@dataclass(frozen=True, slots=True)
class ModelShelf:
    """What the store holds of a model: ready and pending versions, aliases with targets.

    `source` is the model whose main/ it has, None where it has its own.
    """

    ready: frozenset[str]
    pending: frozenset[str]
    aliases: dict[str, str]
    source: ModelId | None = None

    @property
    def has_versions(self) -> bool:
        return bool(self.ready or self.pending or self.aliases)

    @property
    def chosen(self) -> frozenset[str]:
        """The ready versions that aliases of people point at."""
        return self.ready & {v for alias, v in self.aliases.items() if alias != LATEST}

    @property
    def latest(self) -> str | None:
        """The ready version that `latest` points at."""
        found = self.aliases.get(LATEST)
        return found if found in self.ready else None

    @property
    def is_empty(self) -> bool:
        return not self.has_versions and self.source is None


def namespaces(layout: Layout) -> set[str]:
    """Return the namespaces that have a folder in the store; raises StoreError."""
    found = {*_names(layout.models), *_names(layout.pending_root)}
    if not found:
        layout.check_there()
    return found


def has_namespace(layout: Layout, namespace: str) -> bool:
    """Tell whether a namespace has a folder in the store; raises StoreError."""
    if (layout.models / namespace).exists() or (layout.pending_root / namespace).exists():
        return True
    layout.check_there()
    return False


def models(layout: Layout, namespace: str, known: Set[str] = frozenset()) -> set[str]:
    """Return the models of a namespace that have a version, or a source, in the store.

    Those of `known`, which are there whatever the store has of them, are not looked at.
    """
    folders = _model_folders(layout, namespace)
    if not folders:
        layout.check_there()
    found = (ModelId(namespace, name) for name in folders - known)
    return {model.name for model in found if not shelf(layout, model).is_empty}


def all_models(layout: Layout) -> list[ModelId]:
    """Return every model that has a folder in the store, perhaps an empty one."""
    return [
        ModelId(namespace, name)
        for namespace in sorted(namespaces(layout))
        for name in sorted(_model_folders(layout, namespace))
    ]


def _model_folders(layout: Layout, namespace: str) -> set[str]:
    return {*_names(layout.models / namespace), *_names(layout.pending_root / namespace)}


def shelf(layout: Layout, model: ModelId) -> ModelShelf:
    """Return what the store holds of one model."""
    # Read first: a version that becomes ready between the two looks is in one of them, or in both.
    pending = {n for n in _names(layout.pending_model(model)) if is_version_name(n)}
    ready, links = set(), {}
    for entry in _scan(layout.model(model)):
        if entry.is_symlink():
            with suppress(FileNotFoundError):  # renamed since the folder was read
                links[entry.name] = os.readlink(entry.path)
        elif is_version_name(entry.name) and entry.is_dir():
            ready.add(entry.name)
    pending -= ready
    source = _linked_model(links.pop(MAIN, ""))
    if not (ready or pending or links or source):
        layout.check_there()  # else a disk that is gone would be a model without versions
    return ModelShelf(frozenset(ready), frozenset(pending), links, source)


def main_link(source: ModelId) -> str:
    """Return where `main` of a model points whose source is another one, in store and tree."""
    return f"../../{source}/{MAIN}"


def _linked_model(target: str) -> ModelId | None:
    """Return the model that a `main` points at; None where it is no link as we make it."""
    names = target.split("/")
    source = ModelId(*names[2:4]) if len(names) == 5 else None
    if source is None or target != main_link(source):
        return None
    return source if is_plain_name(source.namespace) and is_plain_name(source.name) else None


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from [e for e in entries if not e.name.startswith(".")]
    except FileNotFoundError:
        return


def _names(folder: Path) -> set[str]:
    return {name for name in names_in(folder) if not name.startswith(".")}


def read_manifest(layout: Layout, version: VersionId) -> Manifest:
    """Return the manifest of a ready version; raises NotFound."""
    path = layout.manifest(version)
    try:
        return from_json(path.read_bytes(), path)
    except FileNotFoundError:
        raise NotFound(f"{version} has no manifest") from None


def damage(layout: Layout, version: VersionId) -> str | None:
    """Return what `modelfs verify` could not put right of a version; None where that is nothing."""
    try:
        reason = layout.damage(version).read_text(errors="replace")
    except OSError:
        return None
    return None if layout.retired(version).exists() else reason


def damaged(layout: Layout) -> dict[VersionId, str]:
    """Return the versions of which something could not be put right, and what."""
    found = {}
    for path in sorted(layout.quarantine.glob("*/*/.*.error")):
        name = path.name.removeprefix(".").removesuffix(".error")
        version = VersionId(ModelId(*path.parts[-3:-1]), name)
        if (reason := damage(layout, version)) is not None:
            found[version] = reason
    return found


def check_unused(layout: Layout, version: VersionId) -> None:
    """Raise AlreadyExists where a version of that name exists or was ever ready."""
    if layout.retired(version).exists():
        raise AlreadyExists(f"{version} was used before: a version name is never used twice")
    if layout.version(version).exists() or layout.pending(version).exists():
        raise AlreadyExists(f"{version} exists")


def newest_first(layout: Layout, model: ModelId) -> list[VersionId]:
    """Return the ready versions, by when their manifests were written."""

    def written_ns(version: VersionId) -> int:
        try:
            return layout.manifest(version).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    ready = [VersionId(model, name) for name in shelf(layout, model).ready]
    return sorted(ready, key=written_ns, reverse=True)
