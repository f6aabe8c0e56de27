"""The command ls: models of a registry, versions of a model."""

from typing import Any

import click

from modelfs.cli import completing
from modelfs.cli.arguments import tree_argument
from modelfs.cli.failures import explained
from modelfs.cli.options import Settings, as_json, in_registry, pass_settings
from modelfs.cli.output import print_json, print_table, share_text, size_text, time_text
from modelfs.cli.tree import DOWNLOADING, Model, Usage, find_models
from modelfs.errors import ModelfsError
from modelfs.names import LATEST, MAIN, ModelId


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
    """
    mount, names = tree_argument(what, settings.registry)
    if len(names) == 2:
        _show_model(Model(mount, ModelId(*names)), wants_json)
    else:
        _show_models(find_models(mount, *names), wants_json)


def _show_models(models: list[Model], wants_json: bool) -> None:
    documents = [_document(model) for model in models]
    if wants_json:
        print_json(documents)
        return
    columns: tuple[str, ...]
    columns = ("MODEL", "VERSIONS", "SIZE", "LATEST", "ALIASES", "DESCRIPTION")
    rows = list(map(_model_row, documents))
    if any(document["source"] for document in documents):
        columns += ("SOURCE",)
        rows = [(*row, d["source"] or "") for row, d in zip(rows, documents, strict=True)]
    print_table(columns, rows)


def _document(model: Model) -> dict[str, Any]:
    with explained(f"look at {model}"):
        return {
            "model": str(model),
            "description": model.attribute("description"),
            "source": model.attribute("source"),
            "aliases": model.aliases(),
            "versions": [version.document() for version in model.versions()],
        }


def _model_row(document: dict[str, Any]) -> tuple[str, ...]:
    aliases, versions = dict(document["aliases"]), document["versions"]
    latest = aliases.pop(LATEST, "")
    return (
        document["model"],
        str(len(versions)),
        size_text(sum(version["total_bytes"] or 0 for version in versions)),
        latest,
        " ".join(f"{alias}->{target}" for alias, target in aliases.items()),
        document["description"] or "",
    )


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
    columns = ("NAME", "STATE", "SIZE", "FILES", "FROZEN", "ALIASES")
    files = "" if usage is None else f"{usage.files:,}"
    main = (MAIN, state, size_text(usage.size if usage else None), files, "", "")
    rows = [_version_row(version, document["aliases"]) for version in document["versions"]]
    print_table(columns, [main, *rows])


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
    state, files = version["state"], version["files"]
    if state == DOWNLOADING and version["total_bytes"]:
        state += f" {share_text(version['done_bytes'], version['total_bytes'])}"
    if version["error"]:
        state += f": {version['error']}"
    return (
        version["version"],
        state,
        size_text(version["total_bytes"]),
        "" if files is None else f"{files:,}",
        time_text(version["pinned_ns"]),
        " ".join(alias for alias, target in aliases.items() if target == version["version"]),
    )
