"""The command ls: models of a registry, versions of a model."""

import errno
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from modelfs.cli import completing
from modelfs.cli.arguments import tree_argument
from modelfs.cli.failures import explained
from modelfs.cli.options import Settings, as_json, in_registry, pass_settings
from modelfs.cli.output import print_json, print_table, say, share_text, size_text, time_text
from modelfs.cli.tree import DOWNLOADING, READY, Model, Usage, find_models, progress
from modelfs.errors import ModelfsError
from modelfs.names import LATEST, MAIN, ModelId

MODELS_AT_ONCE = 8  # that the registry is asked about


@click.command(short_help="Show models; versions, sizes, states.")
@click.argument("what", metavar="[NS[/MODEL]]", required=False, shell_complete=completing.models)
@in_registry
@as_json
@pass_settings
def ls(settings: Settings, what: str | None, wants_json: bool) -> None:
    """Show the models of a registry, or the versions of one model.

    \b
      modelfs ls                all models
      modelfs ls acme           those of the namespace acme
      modelfs ls acme/llama     main and the versions: state, size, aliases

    MAIN is the size of main/, CACHED how much of that is in this node's cache, SIZE that of the
    versions. While the registry is down, what it would have to tell is left out.
    """
    mount, names = tree_argument(what, settings.registry)
    if len(names) == 2:
        _show_model(Model(mount, ModelId(*names)), wants_json)
    else:
        _show_models(find_models(mount, *names), wants_json)


def _show_models(models: list[Model], wants_json: bool) -> None:
    with ThreadPoolExecutor(MODELS_AT_ONCE) as pool:
        documents = list(pool.map(_document, models))
    if wants_json:
        print_json(documents)
        return
    columns: tuple[str, ...]
    columns = ("MODEL", "MAIN", "CACHED", "VERSIONS", "SIZE", "LATEST", "ALIASES", "DESCRIPTION")
    rows = list(map(_model_row, documents))
    if any(document["source"] for document in documents):
        columns += ("SOURCE",)
        rows = [(*row, d["source"] or "") for row, d in zip(rows, documents, strict=True)]
    print_table(columns, rows)


def _document(model: Model) -> dict[str, Any]:
    with explained(f"look at {model}"):
        cached, size = progress(_told(model, "cached"))
        return {
            "model": str(model),
            "description": _told(model, "description"),
            "source": _told(model, "source") or model.source,
            "main_bytes": size,
            "cached_bytes": cached,
            "aliases": model.aliases(),
            "versions": [version.document() for version in model.versions()],
        }


def _told(model: Model, name: str) -> str | None:
    """Return an attribute that the registry tells; None while it cannot."""
    try:
        return model.attribute(name)
    except OSError as error:
        if error.errno in (errno.EIO, errno.EACCES, errno.ENOENT):
            return None
        raise


def _model_row(document: dict[str, Any]) -> tuple[str, ...]:
    aliases, versions = dict(document["aliases"]), document["versions"]
    latest = aliases.pop(LATEST, "")
    return (
        document["model"],
        size_text(document["main_bytes"]),
        _cached_text(document),
        _versions_text(versions),
        size_text(sum(version["total_bytes"] or 0 for version in versions)),
        latest,
        " ".join(f"{alias}->{target}" for alias, target in aliases.items()),
        document["description"] or "",
    )


def _cached_text(document: dict[str, Any]) -> str:
    cached, size = document["cached_bytes"], document["main_bytes"]
    return share_text(cached, size) if size else ""


def _versions_text(versions: list[dict[str, Any]]) -> str:
    """Return how many there are, and of what is not simply ready how many."""
    odd = Counter(_state(version) for version in versions)
    odd.pop(READY, None)
    words = ", ".join(f"{count} {state}" for state, count in sorted(odd.items()))
    return f"{len(versions)} ({words})" if words else str(len(versions))


def _state(version: dict[str, Any]) -> str:
    """Return the state; of a ready version that is not as its manifest says, `damaged`."""
    state = str(version["state"])
    return "damaged" if state == READY and version["error"] else state


def _show_model(model: Model, wants_json: bool) -> None:
    model.require()
    document = _document(model)
    for version in document["versions"]:
        manifest = model.manifest(version["version"])
        files = manifest.get("files")
        version["files"] = len(files) if isinstance(files, list) else None
        version["pinned_ns"] = manifest.get("pinned_ns")
    usage, state = _main(model)
    document["main"] = {"files": usage and usage.files, "bytes": usage and usage.size}
    if wants_json:
        print_json([document])
        return
    columns = ("NAME", "STATE", "SIZE", "CACHED", "FILES", "FROZEN", "ALIASES")
    files = "" if usage is None else f"{usage.files:,}"
    size = size_text(usage.size if usage else None)
    main = (MAIN, state, size, _cached_text(document), files, "", "")
    rows = [_version_row(version, document["aliases"]) for version in document["versions"]]
    print_table(columns, [main, *rows])
    for name in ("description", "source"):
        if document[name]:
            say(f"{name}: {document[name]}")


def _main(model: Model) -> tuple[Usage | None, str]:
    """Return what is in main/, and whose it is; another model's may be gone, or not for us."""
    try:
        usage = model.main_usage()
    except ModelfsError as error:
        cause = error.__cause__
        number = cause.errno if isinstance(cause, OSError) else None
        if number not in (unread := model.main_errors()):
            raise
        return None, unread[number]
    return usage, "working tree" if model.source is None else f"working tree of {model.source}"


def _version_row(version: dict[str, Any], aliases: dict[str, str]) -> tuple[str, ...]:
    state, files = _state(version), version["files"]
    if state == DOWNLOADING and version["total_bytes"]:
        state += f" {share_text(version['done_bytes'], version['total_bytes'])}"
    if version["error"]:
        state += f": {version['error']}"
    return (
        version["version"],
        state,
        size_text(version["total_bytes"]),
        "",
        "" if files is None else f"{files:,}",
        time_text(version["pinned_ns"]),
        " ".join(alias for alias, target in aliases.items() if target == version["version"]),
    )
