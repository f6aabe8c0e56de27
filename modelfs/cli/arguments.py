"""What a user calls a model or a version: its name, or a path inside a mount."""

import os
from pathlib import Path

from modelfs.cli import mounts
from modelfs.cli.mounts import Mount
from modelfs.cli.tree import Model
from modelfs.errors import InvalidName, ModelfsError
from modelfs.names import MAIN, VersionId, is_plain_name, parse_model, parse_version

HOW = "write NAMESPACE/MODEL, or its path inside the mount"
HOW_VERSION = "write NAMESPACE/MODEL@VERSION, or its path inside the mount"


def tree_argument(text: str | None, registry: str | None) -> tuple[Mount, list[str]]:
    """Return the mount, and none to two names below it: namespace, model."""
    if text is None:
        return mounts.choose(registry), []
    if "/" not in text.rstrip("/") and is_plain_name(text.rstrip("/")):
        return mounts.choose(registry), [text.rstrip("/")]
    placed = _placed(text)
    if placed is None or len(placed[1]) > 1:
        model = model_argument(text, registry)
        return model.mount, [model.id.namespace, model.id.name]
    return placed


def model_argument(text: str, registry: str | None) -> Model:
    """Return the model that `NS/MODEL`, or a path inside a mount, names."""
    placed = _placed(text)
    if placed is None:
        return Model(mounts.choose(registry), parse_model(text))
    mount, names = placed
    if len(names) == 3 and names[2] == MAIN:
        names = names[:2]
    if len(names) != 2:
        raise InvalidName(f"{text!r} names no model: {HOW}")
    return Model(mount, parse_model("/".join(names)))


def version_argument(text: str, registry: str | None) -> tuple[Model, str]:
    """Return the model and the version (or alias) that `NS/MODEL@VERSION`, or a path, names."""
    placed = _placed(text)
    if placed is None:
        version = version_name(text)
        return Model(mounts.choose(registry), version.model), version.version
    mount, names = placed
    if len(names) != 3:
        raise InvalidName(f"{text!r} names no version: {HOW_VERSION}")
    return Model(mount, parse_model("/".join(names[:2]))), names[2]


def model_or_version_argument(text: str, registry: str | None) -> tuple[Model, str | None]:
    """Return the model, and the version where `text` (a name or a path) names one."""
    placed = _placed(text)
    names = len(placed[1]) if placed is not None else text.strip("/").count("/") + 1
    if names == 2 and "@" not in text:
        return model_argument(text, registry), None
    return version_argument(text, registry)


def place_argument(text: str, registry: str | None) -> tuple[Model, list[str]]:
    """Return the model and the names below it that a path, `NS/MODEL[/...]` or @VERSION, names.

    A path that is there, and in a mount, goes before a name.
    """
    is_there = os.path.lexists(text)
    placed = _inside_mount(os.path.realpath(text)) if is_there else None
    placed = placed or _placed(text)
    if placed is not None:
        mount, names = placed
    elif "@" in text and text.count("/") == 1:
        model, version = version_argument(text, registry)
        return model, [version]
    else:
        mount, names = mounts.choose(registry), text.strip("/").split("/")
    if len(names) < 2:
        raise InvalidName(f"{text!r} names no model: {HOW}")
    return Model(mount, parse_model("/".join(names[:2]))), names[2:]


def version_name(text: str) -> VersionId:
    """Return what `NS/MODEL@VERSION` names; NS/MODEL/VERSION, as the tree writes it, will do."""
    if "@" not in text and text.strip("/").count("/") == 2:
        model, _, version = text.strip("/").rpartition("/")
        text = f"{model}@{version}"
    return parse_version(text)


def is_path(text: str) -> bool:
    """Tell whether `text` is written as a path: /here, ./here, ../here, or a bare `here`."""
    first = text.split("/", 1)[0]
    return first in ("", ".", "..") or ("/" not in text.rstrip("/") and "@" not in text)


def _placed(text: str) -> tuple[Mount, list[str]] | None:
    """Return the mount and the names below it where `text` is a path; None where it is a name."""
    if not is_path(text):
        return None
    try:
        written = os.path.abspath(text)
    except FileNotFoundError:  # the current folder was deleted
        raise ModelfsError(f"{text!r} names nothing from a folder that is gone: {HOW}") from None
    placed = _inside_mount(written, _resolved(written))
    if placed is None:
        raise InvalidName(f"{text!r} is not inside a mount of modelfs: {HOW}")
    return placed


def _inside_mount(*paths: str) -> tuple[Mount, list[str]] | None:
    """Return the mount that the first of these absolute paths lies in, and the names below it."""
    known = mounts.find()
    for path in paths:
        mount = mounts.holding(path, known)
        if mount is not None:
            return mount, list(Path(path).relative_to(mount.path).parts)
    return None


def _resolved(path: str) -> str:
    """Follow the symlinks before the last component: that one may be an alias."""
    parent, name = os.path.split(path)
    return os.path.join(os.path.realpath(parent), name)
