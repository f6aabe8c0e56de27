"""What the shell offers on TAB: names of the tree, registries, mounts; and the command completion.

Nothing here may hang or complain: the tree is asked by a child within a limit, and what cannot
be asked offers nothing.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from modelfs.cli import mounts
from modelfs.cli.options import Settings
from modelfs.errors import ModelfsError
from modelfs.names import MAIN

LIMIT_S = 2.0
OFFERED_MAX = 1_000
MODELS, VERSIONS = 2, 3  # how deep they lie in a mount

Complete = Callable[[click.Context, click.Parameter, str], list[str]]


def _names(depth: int) -> Complete:
    """Return what completes the names of up to `depth` levels of the tree, a level at a time."""

    def complete(context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
        settings = context.find_object(Settings)
        try:
            mount = mounts.choose(settings.registry if settings else None)
        except (ModelfsError, OSError):
            return []
        folder, _, _ = incomplete.rpartition("/")
        level = incomplete.count("/") + 1
        if level > depth or folder.startswith(("/", ".")) or "/." in folder:
            return []
        names = [f"{folder}/{name}".lstrip("/") for name in _listed(mount.path / folder)]
        if level < depth:
            names = [f"{name}/" for name in names]
        elif depth == VERSIONS:
            names = [name for name in names if not name.endswith(f"/{MAIN}")]
        found = [name for name in names if name.startswith(incomplete)]
        if len(found) == 1 and level < depth:  # the shell would end the word here
            return complete(context, _param, found[0]) or found
        return found[:OFFERED_MAX]

    return complete


def _listed(folder: Path) -> list[str]:
    try:
        done = subprocess.run(
            ["ls", "-1", "--", folder],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines()


models = _names(MODELS)
versions = _names(VERSIONS)


def registries(context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Offer the registries of the configuration."""
    from modelfs.config import load

    settings = context.find_object(Settings)
    try:
        known = load(settings.config if settings else None).registries
    except ModelfsError:
        return []
    return [name for name in known if name.startswith(incomplete)]


def mountpoints(_context: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Offer the folders that registries are mounted on."""
    return [text for mount in mounts.find() if (text := str(mount.path)).startswith(incomplete)]


@click.command(short_help="Print what completes commands and names in a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script by which a shell completes commands, options, models and versions.

    `make install` puts it where the shells of the machine find it.

    \b
      source <(modelfs completion bash)
      modelfs completion zsh > "${fpath[1]}/_modelfs"
      modelfs completion fish > ~/.config/fish/completions/modelfs.fish
    """
    made = get_completion_class(shell)
    context = click.get_current_context().find_root()
    if made is None:  # a shell that click knew, and knows no more
        raise click.UsageError(f"no completion for {shell}")
    script = made(context.command, {}, "modelfs", "_MODELFS_COMPLETE")
    if shell == "bash":
        # click asks the installed bash for its version, which may not be the one that will read it.
        click.echo(script.source_template % script.source_vars())
    else:
        click.echo(script.source())
    sys.stdout.flush()
