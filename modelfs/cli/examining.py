"""The command doctor: what is wrong on this node, and what to do about it."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from modelfs.cli import completing
from modelfs.cli.mounts import Mount
from modelfs.cli.options import Settings, as_json, in_registry, pass_settings
from modelfs.cli.output import count_text, print_json, print_table, say
from modelfs.cli.probe import read_status
from modelfs.errors import ConfigError

if TYPE_CHECKING:
    from modelfs.doctor.outcome import Outcome
    from modelfs.tables import RegistryConfig

Findings = list[tuple[str | None, "Outcome"]]

NODE = "this node"


@click.command(short_help="Check configuration, registry, store, FUSE.")
@click.argument("name", metavar="[REGISTRY]", required=False, shell_complete=completing.registries)
@in_registry
@as_json
@pass_settings
def doctor(settings: Settings, name: str | None, wants_json: bool) -> int:
    """Check everything that a mount needs, and say of what is wrong what to do.

    \b
      modelfs doctor               every registry of the configuration
      modelfs doctor hub           one of them
      modelfs doctor --json | jq '.checks[] | select(.verdict != "ok")'

    Run it as the user whose daemon mounts. It looks at the configuration, credentials, endpoint,
    certificate and clock, tries each right in the bucket on an object of its own (which no model
    sees, and which is removed; of a registry that is read_only it only reads), tries the store's
    disk, and looks for what was left there, at FUSE, and at the mount where there is one.

    Exit status: 0 where nothing failed (warnings alone are no failure), else 1.
    """
    findings: Findings = []
    for registry, outcomes in _examine(settings, name or settings.registry):
        findings += [(registry, outcome) for outcome in outcomes]
        if not wants_json:
            _show(registry, outcomes)
    failures = sum(outcome.verdict == "failed" for _, outcome in findings)
    if wants_json:
        print_json(_document(findings, failures))
    else:
        say(_summary(findings))
    return 1 if failures else 0


def _examine(
    settings: Settings, registry: str | None
) -> Iterable[tuple[str | None, Sequence["Outcome"]]]:
    from modelfs.doctor import examine

    configs, configuration = _configuration(settings, registry)
    for name, outcomes in examine(configs, lambda name, path: read_status(Mount(name, path))):
        yield name, [*configuration, *outcomes] if name is None else outcomes


def _configuration(
    settings: Settings, registry: str | None
) -> tuple[list["RegistryConfig"], list["Outcome"]]:
    """Return the registries that are meant, and what is to be said of the file."""
    from modelfs.config import load
    from modelfs.doctor.outcome import failed, ok

    try:
        config = load(settings.config)
        wanted = [config.registry(registry)] if registry else list(config.registries.values())
    except ConfigError as error:
        return [], [failed("configuration", line) for line in str(error).splitlines()]
    return wanted, [ok("configuration", f"{config.file}: {', '.join(config.registries)}")]


def _show(name: str | None, outcomes: Sequence["Outcome"]) -> None:
    columns = ("STATE", "CHECK", f"FOUND, AND WHAT TO DO ({name or NODE})")
    print_table(columns, [(o.verdict, o.check, o.line) for o in outcomes])
    say("")


def _summary(findings: Findings) -> str:
    count = Counter(str(outcome.verdict) for _, outcome in findings)
    return f"{count['ok']} ok, {count_text(count['warning'], 'warning')}, {count['failed']} failed"


def _document(findings: Findings, failures: int) -> dict[str, Any]:
    return {
        "ok": not failures,
        "checks": [
            {
                "registry": name,
                "check": outcome.check,
                "verdict": str(outcome.verdict),
                "found": outcome.found,
                "advice": outcome.advice,
            }
            for name, outcome in findings
        ],
    }
