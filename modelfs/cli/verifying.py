"""The command verify: the store's files against their manifests, without daemon or mount."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from modelfs.cli import completing
from modelfs.cli.arguments import version_name
from modelfs.cli.bars import ByteBar
from modelfs.cli.options import Settings, as_json, in_registry, pass_settings
from modelfs.cli.output import complain, count_text, print_json, say, size_text
from modelfs.errors import ModelfsError
from modelfs.names import VersionId, is_version_name, parse_model

if TYPE_CHECKING:
    from modelfs.store.findings import Finding, Summary
    from modelfs.store.layout import Layout
    from modelfs.store.repair import Repairer
    from modelfs.tables import RegistryConfig


def _read_pace(_context: click.Context, _option: click.Parameter, text: str) -> int:
    """Return bytes a second of 200MiB, 200MiB/s or a number; 0 is no limit."""
    from modelfs import units

    with contextlib.suppress(ValueError):
        found = units.size(text.removesuffix("/s"))
        if found >= 0:
            return found
    raise click.BadParameter(f"{text!r} is no pace: write 200MiB, or 0 for no limit")


@click.command(short_help="Hash versions again, repair what differs.")
@click.argument(
    "what", metavar="[NS/MODEL[@VERSION]]", required=False, shell_complete=completing.versions
)
@click.option("--all", "wants_all", is_flag=True, help="Every version of the store.")
@click.option(
    "--pace",
    callback=_read_pace,
    default="200MiB",
    show_default=True,
    metavar="SIZE",
    help="Read at most so much a second; 0 is no limit.",
)
@click.option("--no-repair", is_flag=True, help="Only look: change nothing, fetch nothing.")
@in_registry
@as_json
@pass_settings
def verify(
    settings: Settings,
    what: str | None,
    wants_all: bool,
    pace: int,
    no_repair: bool,
    wants_json: bool,
) -> int:
    """Hash the files of ready versions again, quarantine what differs and fetch it again.

    \b
      modelfs verify acme/llama@v1        or @ALIAS
      modelfs verify acme/llama           every version of the model
      modelfs verify --all --pace 50MiB   every version of the store

    Works on the store of the configuration, with no mount, beside daemons; as their user.
    Exit status: 0 where all is right or was put right, 1 where something could not be.
    """
    if (what is None) != wants_all:
        raise click.UsageError("Say what: NS/MODEL@VERSION, NS/MODEL or --all")
    from modelfs.store import verify as work
    from modelfs.store.layout import Layout
    from modelfs.store.rereading import Pace

    config = settings.configured()
    layout = Layout(config.store, host="")
    with _ended_as_interrupted(), work.locked(layout), ByteBar.make("verify") as bar:
        wanted = _wanted(layout, what)
        repairer = None if no_repair else _repairer(config, layout)
        watcher = _Watcher(bar, wants_json)
        verifier = work.Verifier(layout, watcher, pace=Pace(pace or None), repairer=repairer)
        summary = verifier.run(wanted)
    if wants_json:
        print_json(_document(config, summary))
    else:
        say(_summary_line(summary))
    return 0 if summary.is_sound else 1


def _repairer(config: "RegistryConfig", layout: "Layout") -> "Repairer":
    from modelfs.store.repair import Repairer

    def open_registry() -> Any:
        from modelfs.registry.s3 import S3Store
        from modelfs.registry.s3_settings import S3Settings

        return S3Store(S3Settings.of(config))

    return Repairer(layout, open_registry, part_size=config.part_size)


def _wanted(layout: "Layout", what: str | None) -> list[VersionId]:
    from modelfs.store import verify as work
    from modelfs.store import versions

    if what is None:
        return work.all_versions(layout)
    if "@" not in what and what.strip("/").count("/") < 2:
        model = parse_model(what)
        found = work.versions_of(layout, model)
        if not found:
            raise ModelfsError(f"{model} has no ready version in the store {layout.root}")
        return found
    version = version_name(what)
    name = versions.shelf(layout, version.model).aliases.get(version.version, version.version)
    version = VersionId(version.model, os.path.basename(name))
    if not is_version_name(name) or version not in work.versions_of(layout, version.model):
        raise ModelfsError(f"{version} is no ready version in the store {layout.root}")
    return [version]


@contextlib.contextmanager
def _ended_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, systemd's way to end it, leave as tidily as ^C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Watcher:
    """Shows the bytes in a bar, and each finding in a line as soon as it is made."""

    def __init__(self, bar: ByteBar, wants_json: bool) -> None:
        self._bar = bar
        self._wants_json = wants_json

    def begin(self, total: int) -> None:
        self._bar.begin(total)

    def moved(self, count: int) -> None:
        self._bar.moved(count)

    def found(self, finding: "Finding") -> None:
        line = _finding_line(finding)
        with self._bar.aside():
            if not finding.is_repaired:
                complain(line)
            elif not self._wants_json:
                say(line)


def _finding_line(finding: "Finding") -> str:
    """Return `acme/llama@v1: config.json: wrong bytes (...): what was done`."""
    place = f"{finding.version}: {finding.path}" if finding.path else str(finding.version)
    detail = f" ({finding.detail})" if finding.detail else ""
    done = {None: f"NOT REPAIRED: {finding.error}", "here": "put right"}.get(
        finding.source, f"right again, from {finding.source}"
    )
    kept = f"; the file is now {finding.quarantined}" if finding.quarantined else ""
    return f"{place}: {finding.problem}{detail}: {done}{kept}"


def _summary_line(summary: "Summary") -> str:
    looked = (
        f"{count_text(summary.versions, 'version')}, {count_text(summary.files, 'file')}, "
        f"{size_text(summary.read_bytes)} read"
    )
    if not summary.findings:
        return f"{looked}: all right"
    repaired = sum(finding.is_repaired for finding in summary.findings)
    return f"{looked}: {len(summary.findings)} wrong, {repaired} of them put right"


def _document(config: "RegistryConfig", summary: "Summary") -> dict[str, Any]:
    return {
        "registry": config.name,
        "store": str(config.store),
        "versions": summary.versions,
        "files": summary.files,
        "read_bytes": summary.read_bytes,
        "sound": summary.is_sound,
        "findings": [
            {
                "model": str(finding.version.model),
                "version": finding.version.version,
                "path": finding.path,
                "problem": str(finding.problem),
                "detail": finding.detail,
                "quarantined": str(finding.quarantined) if finding.quarantined else None,
                "repaired": finding.is_repaired,
                "source": finding.source,
                "error": finding.error,
            }
            for finding in summary.findings
        ],
    }
