"""Commands on a version: path, rm."""

import errno
import os
from pathlib import Path

import click

from modelfs.cli import completing, mounts
from modelfs.cli.arguments import (
    is_path,
    model_or_version_argument,
    version_argument,
    version_name,
)
from modelfs.cli.failures import explained
from modelfs.cli.options import Settings, as_json, in_registry, pass_settings
from modelfs.cli.output import print_json, say
from modelfs.cli.probe import read_status
from modelfs.cli.removing import remove_model
from modelfs.cli.tree import Model
from modelfs.errors import ModelfsError
from modelfs.names import LATEST, MAIN, VersionId, is_version_name


@click.command(short_help="Print the plain folder of a version.")
@click.argument("version", metavar="NS/MODEL@VERSION|ALIAS", shell_complete=completing.versions)
@in_registry
@as_json
@pass_settings
def path(settings: Settings, version: str, wants_json: bool) -> None:
    """Print the plain folder of a version, the alias resolved: no FUSE in the way.

    \b
      modelfs path acme/llama@v1
      vllm serve "$(modelfs path acme/llama@production)"

    Where the registry is not mounted, the folder is found in the configuration's store.
    """
    if is_path(version) or mounts.find():
        model, name = version_argument(version, settings.registry)
        found = _mounted_path(model, name)
    else:
        found = _stored_path(settings, version_name(version))
    if wants_json:
        print_json(found)
    else:
        say(found["path"])


def _mounted_path(model: Model, name: str) -> dict[str, str]:
    version = model.version(model.concrete(name))
    if not version.is_ready:
        reason = f" ({version.error})" if version.error else ""
        raise ModelfsError(
            f"{model}@{version.name} is {version.state}{reason}, its plain folder is not whole: "
            f"modelfs wait {model}@{version.name}"
        )
    plain = version.plain_path or _plain_path(model, version.name)
    return {"model": str(model), "version": version.name, "path": plain}


def _plain_path(model: Model, name: str) -> str:
    """Return the plain folder in the store that the daemon says it uses."""
    from modelfs.store.layout import Layout

    store = (read_status(model.mount).get("store") or {}).get("path")
    if not isinstance(store, str):
        raise ModelfsError(f"{model.mount.registry} is mounted without a store")
    return str(Layout(Path(store), host="").version(VersionId(model.id, name)))


def _stored_path(settings: Settings, wanted: VersionId) -> dict[str, str]:
    from modelfs.store.layout import Layout

    registry = settings.configured()
    folder = Layout(registry.store, host="").model(wanted.model)
    name = wanted.version
    with explained(f"look into the store {registry.store}"):
        if not is_version_name(name) and (folder / name).is_symlink():
            name = os.path.basename(os.readlink(folder / name))
        if not is_version_name(name) or not (folder / name).is_dir():
            raise ModelfsError(
                f"{wanted} is not in the store {registry.store}, and {registry.name} is not "
                f"mounted: modelfs mount {registry.name}"
            )
    return {"model": str(wanted.model), "version": name, "path": str(folder / name)}


@click.command(short_help="Delete a version, or a model.")
@click.argument("what", metavar="NS/MODEL[@VERSION]", shell_complete=completing.versions)
@click.option(
    "--everything", is_flag=True, help="Of a model: with its versions, aliases and files of main/."
)
@in_registry
@pass_settings
def rm(settings: Settings, what: str, everything: bool) -> None:
    """Delete a version, whole, or a model that has nothing. Nothing is asked.

    \b
      modelfs rm acme/llama@v1             rmdir acme/llama/v1 does it too
      modelfs rm acme/llama                while it has no version, no alias and no file
      modelfs rm acme/llama --everything

    A version's name is never given again. What an alias points at, and what is in use, is not
    deleted.
    """
    model, name = model_or_version_argument(what, settings.registry)
    if name is None:
        remove_model(model, _remove_or_explain, everything=everything)
        return
    if everything:
        raise click.UsageError("--everything is of a model")
    if not is_version_name(name):
        raise ModelfsError(_no_version(model, name))
    model.version(name)
    _remove_or_explain(model, name)
    say(f"{model}@{name} is deleted")


def _remove_or_explain(model: Model, name: str) -> None:
    try:
        _remove(model, name)
    except OSError as error:
        busy = {errno.EBUSY: _why_busy(model, name)}
        with explained(f"delete {model}@{name}", busy):
            raise error


def _no_version(model: Model, name: str) -> str:
    if name == MAIN:
        return f"{model}/main is the working tree and no version: rm deletes files in it"
    if model.alias_target(name) is None:
        return f"{name!r} is no version's name: modelfs ls {model} shows those there"
    return f"{name} is an alias and no version: modelfs alias {model} --delete {name}"


def _pointing(model: Model, name: str) -> list[str]:
    return [alias for alias, target in model.aliases().items() if target == name]


def _why_busy(model: Model, name: str) -> str:
    with explained(f"look at {model}"):
        aliases = [alias for alias in _pointing(model, name) if alias != LATEST]
    if not aliases:
        return "a file of it is open: lsof shows by whom"
    return (
        f"{' and '.join(aliases)} {'points' if len(aliases) == 1 else 'point'} at it: "
        f"modelfs alias {model} {aliases[0]} ANOTHER, or --delete {aliases[0]}"
    )


def _remove(model: Model, name: str) -> None:
    """Remove a version's folder; what is mounted on it for native speed is taken away first."""
    path = model.version_path(name)
    if path in mounts.mounted_folders() and not _is_pinned(model, name):
        os.setxattr(model.path, "user.modelfs.release", name.encode())
    os.rmdir(path)


def _is_pinned(model: Model, name: str) -> bool:
    return any(alias != LATEST for alias in _pointing(model, name))
