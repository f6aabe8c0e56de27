"""The commands freeze and wait: a version is made by mkdir, and followed until it is ready."""

import errno
import os

import click

from modelfs.cli import completing
from modelfs.cli.arguments import model_argument, version_argument
from modelfs.cli.failures import explained
from modelfs.cli.following import Follower, follow
from modelfs.cli.options import Settings, as_json, in_registry, pass_settings
from modelfs.cli.output import print_json, say, size_text
from modelfs.cli.tree import FAILED, Model, Version
from modelfs.errors import AlreadyExists, ModelfsError
from modelfs.names import check_version_name, next_version_name

ATTEMPTS_MAX = 1000  # names of deleted versions that are passed over


@click.command(short_help="Freeze main/ into a version.")
@click.argument("model", metavar="NS/MODEL", shell_complete=completing.models)
@click.argument("version", required=False)
@click.option("--no-wait", is_flag=True, help="Do not wait until every byte is on this disk.")
@in_registry
@as_json
@pass_settings
def freeze(
    settings: Settings, model: str, version: str | None, no_wait: bool, wants_json: bool
) -> None:
    """Freeze main/ as it is now into a version: local, complete, read-only.

    \b
      modelfs freeze acme/llama               the next number: v1, v2, v3
      modelfs freeze acme/llama 2026-11-22    a name that begins with a digit, or v and a digit
      modelfs freeze acme/llama --no-wait     return at once; modelfs wait waits

    `mkdir acme/llama/v1` in the mount does the same and does not wait.
    """
    frozen = model_argument(model, settings.registry)
    frozen.require()
    name = _freeze_as(frozen, version.rstrip("/")) if version else _freeze_next(frozen)
    if no_wait:
        _report(frozen, frozen.version(name), wants_json)
    else:
        _follow_to_end(frozen, name, None, wants_json)


def _freeze_next(model: Model) -> str:
    """Freeze under the first number that was never used, and return the name."""
    used = model.names()
    for _ in range(ATTEMPTS_MAX):
        name = next_version_name(used)
        try:
            return _freeze_as(model, name)
        except AlreadyExists:
            used.add(name)
    raise ModelfsError(
        f"cannot freeze {model}: {ATTEMPTS_MAX} names up to {name} were used before; give a name"
    )


def _freeze_as(model: Model, name: str) -> str:
    check_version_name(name)
    doing, source = f"freeze {model} as {name}", model.source
    wrong = {
        errno.ENOENT: f"there is no model {model}: modelfs create {model}",
        errno.ENODATA: "the model has no file in main/",
        errno.EBUSY: "a file of main/ is being written: close it, then try again",
        errno.EINVAL: f"the registry holds keys of {source or model} that no file can have "
        "(hidden_keys in modelfs status --json), and a version is the whole model",
        errno.ENOSPC: "the store has no room for it: delete versions (modelfs rm), "
        "see modelfs status",
    }
    if source is not None:
        wrong |= model.main_errors() | {
            errno.ENODATA: f"its source {source} has no file in main/",
            errno.EACCES: f"you may not write {model}, or not read its source {source}",
        }
    with explained(doing, wrong):
        try:
            os.mkdir(model.version_path(name))
        except FileExistsError:
            raise AlreadyExists(
                f"cannot {doing}: {name} exists or was used before (a version name is never "
                "used twice): take another, or none for the next number"
            ) from None
    return name


@click.command(short_help="Wait until a version is ready.")
@click.argument("version", metavar="NS/MODEL@VERSION", shell_complete=completing.versions)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Give up after so long (exit 1).  [default: never]",
)
@in_registry
@as_json
@pass_settings
def wait(settings: Settings, version: str, timeout: float | None, wants_json: bool) -> None:
    """Wait until a version is ready (exit 0) or failed (exit 1, with the reason).

    \b
      modelfs wait acme/llama@v3 && systemctl restart vllm
      modelfs wait acme/llama@v3 --timeout 600
    """
    model, name = version_argument(version, settings.registry)
    _follow_to_end(model, model.concrete(name), timeout, wants_json)


def _follow_to_end(model: Model, name: str, timeout_s: float | None, wants_json: bool) -> None:
    title = f"{model}@{name}"
    with Follower.make(title) as shown:
        try:
            version = follow(lambda: model.version(name), shown, timeout_s)
        except KeyboardInterrupt:
            say_on = f"the freeze of {title} goes on: modelfs wait {title}"
            click.echo(f"modelfs: {say_on}", err=True)
            raise
    _report(model, version, wants_json)
    if version.state == FAILED:
        reason = version.error or "no reason is given"
        raise ModelfsError(f"{title} failed: {reason}; modelfs rm {title} clears the name")
    if not version.is_ready:
        reason = f" ({version.error})" if version.error else ""
        raise ModelfsError(f"{title} is still {version.state} after {timeout_s:g} s{reason}")


def _report(model: Model, version: Version, wants_json: bool) -> None:
    if wants_json:
        print_json({"model": str(model), **version.document()})
    elif version.is_ready:
        digest = f", digest {version.digest}" if version.digest else ""
        say(f"{model}@{version.name} is ready: {size_text(version.total_bytes)}{digest}")
    elif not version.is_settled:
        say(f"{model}@{version.name} is {version.state}: {size_text(version.total_bytes)}")
