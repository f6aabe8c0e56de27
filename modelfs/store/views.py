"""A version as it is now, read from the store. Blocking."""

from dataclasses import dataclass

from modelfs.errors import NotFound
from modelfs.names import ModelId, VersionId
from modelfs.store import versions
from modelfs.store.freeze import State
from modelfs.store.layout import Layout
from modelfs.store.manifest import FrozenFolder, Manifest, as_tree, from_json


@dataclass(frozen=True)
class VersionView:
    """A version as it is now; `folders` answers lookups, `done_bytes` is what is here."""

    manifest: Manifest
    folders: dict[str, FrozenFolder]
    state: State
    done_bytes: int
    error: str | None
    digest: str | None = None


def _view(manifest: Manifest, state: State, error: str | None = None) -> VersionView:
    done = manifest.size if state is State.READY else 0
    return VersionView(manifest, as_tree(manifest), state, done, error, manifest.digest)


def ready_view(layout: Layout, version: VersionId) -> VersionView:
    """Return a ready version; raises NotFound."""
    return _view(versions.read_manifest(layout, version), State.READY)


def pending_view(layout: Layout, version: VersionId) -> VersionView:
    """Return a version that another node brings, or that has failed; raises NotFound."""
    folder = layout.pending(version)
    path = folder / "manifest.json"
    try:
        manifest = from_json(path.read_bytes(), path)
    except FileNotFoundError:
        raise NotFound(f"there is no version {version}") from None
    try:
        return _view(manifest, State.FAILED, (folder / "failed").read_text())
    except FileNotFoundError:
        return _view(manifest, State.DOWNLOADING)


def pending_versions(layout: Layout) -> list[VersionId]:
    """Return the versions that are being frozen, or whose freeze has failed, on all nodes."""
    found = []
    for path in layout.pending_root.glob("*/*/[!.]*/manifest.json"):
        namespace, model, version = path.parts[-4:-1]
        found.append(VersionId(ModelId(namespace, model), version))
    return found
