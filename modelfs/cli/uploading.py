"""The command upload-script: for a machine that has no mount."""

import errno
import json
import os
import sys
from pathlib import Path

import click

from modelfs.cli import completing
from modelfs.cli.arguments import model_argument
from modelfs.cli.failures import explained
from modelfs.cli.options import Settings, in_registry, pass_settings
from modelfs.cli.output import is_terminal
from modelfs.cli.tree import Model
from modelfs.names import CONTROL

PIECE_BYTES = 1 << 20


def _seconds(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """Read a time as the configuration has it."""
    from modelfs import units

    try:
        return None if value is None else units.seconds(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time: write 30m, 2h or 90s") from None


@click.command("upload-script", short_help="Make a script that uploads into a model.")
@click.argument("model", metavar="NS/MODEL", shell_complete=completing.models)
@click.option("--expires", callback=_seconds, metavar="TIME", help="How long it works.")
@click.option(
    "--large",
    multiple=True,
    metavar="PATH",
    help="A file of over 5 GiB that will be sent, by its path in main/: needed where the registry "
    "gives no temporary credentials.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE")
@in_registry
@pass_settings
def upload_script(
    settings: Settings,
    model: str,
    expires: float | None,
    large: tuple[str, ...],
    output: Path | None,
) -> None:
    """Make a Python script that uploads into a model from a machine without the mount.

    \b
      modelfs upload-script acme/llama > upload.py
      modelfs upload-script acme/llama --expires 2h -o upload.py
      modelfs upload-script acme/llama --large weights/model-70b.gguf -o upload.py
      ssh gpu-7 python3 - llama/ < upload.py

    It needs Python 3.9 and nothing else, and may list and write the files of this one model, for
    30 minutes or what the configuration says. There is a token in it: keep it to yourself.
    `cat NS/MODEL/.modelfs/upload.py` gives the same.
    """
    of = model_argument(model, settings.registry)
    if output is None and is_terminal():
        raise click.UsageError("there is a token in it: write > upload.py, or -o upload.py")
    wish: dict[str, object] = {"large": [name.strip("/") for name in large]}
    if expires is not None:
        wish["expires_s"] = expires
    content = _made(of, wish)
    if output is None:
        sys.stdout.buffer.write(content)
    else:
        with explained(f"write {output}"):
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "wb") as file:
                os.fchmod(fd, 0o600)
                file.write(content)


def _made(model: Model, wish: dict[str, object]) -> bytes:
    of_source = f"the main/ of {model} is {model.source}'s: make a script for that"
    model.require()
    wrong = {
        errno.EINVAL: "the registry gives no script for so long, or one of the names cannot be",
        errno.EACCES: f"you may not write {model}, or the registry refuses the role of scripts: "
        "see the daemon's log",
        errno.EOPNOTSUPP: "the registry would not hold it to this model: see the daemon's log",
    }
    if model.source is not None:
        wrong[errno.ENOENT] = of_source
    with explained(f"make an upload script for {model}", wrong):
        fd = os.open(model.path / CONTROL / "upload.py", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, json.dumps(wish).encode())
            content = b""
            while piece := os.pread(fd, PIECE_BYTES, len(content)):
                content += piece
        finally:
            os.close(fd)
    return content
