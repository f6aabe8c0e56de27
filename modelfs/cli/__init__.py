"""The command line: sugar over the tree of a mount, by calls and attributes anyone can use.

Nothing here knows the daemon's insides: a command makes a folder, a symlink, reads an
attribute. What starts quickly is imported at the top (click); rich, pydantic, boto3 and
pyfuse3 are imported by the command that needs them.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from modelfs.cli import (
    comparing,
    completing,
    examining,
    freezing,
    listing,
    manual,
    models,
    reloading,
    rolling,
    serving,
    showing,
    uploading,
    verifying,
    versions,
    warming,
)
from modelfs.cli.options import Settings
from modelfs.cli.output import complain
from modelfs.errors import ModelfsError

FAILED = 1
USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells count


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"modelfs {version('modelfs')}")
        except PackageNotFoundError:
            click.echo("modelfs, run from its source folder")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The configuration.  [default: $MODELFS_CONFIG or /etc/modelfs/modelfs.toml]",
)
@click.option(
    "-r",
    "--registry",
    metavar="NAME",
    envvar="MODELFS_REGISTRY",
    help="Which mount, where there are several (also: $MODELFS_REGISTRY).",
)
@click.option("-v", "--verbose", is_flag=True, help="Say more: the daemon's log at its finest.")
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def commands(
    context: click.Context, config: Path | None, registry: str | None, verbose: bool
) -> None:
    """Show a model registry (an S3 bucket) as folders; freeze models into local versions.

    \b
      modelfs mount hub /models/hub --background   the registry hub as a folder
      modelfs create acme/llama                    a model: mkdir does it too
      cp -r llama/. /models/hub/acme/llama/main/   fill it: plain files, plain cp
      modelfs freeze acme/llama                    an immutable local version: v1
      modelfs alias acme/llama production v1       roll it out (and back)
      vllm serve /models/hub/acme/llama/production
      modelfs ls acme/llama                        versions, sizes, states, aliases
      modelfs status                               is the registry there? what waits?
      modelfs doctor                               what is wrong on this node, and what to do

    A model is NAMESPACE/MODEL or its path inside the mount. `modelfs COMMAND --help`
    shows examples; `modelfs demo` shows everything, in a throw-away folder.
    """
    context.obj = Settings(config, registry, verbose)


for _command in (
    serving.mount,
    serving.umount,
    reloading.reload,
    listing.ls,
    models.create,
    freezing.freeze,
    freezing.wait,
    versions.path,
    models.alias,
    comparing.diff,
    rolling.rollback,
    versions.rm,
    verifying.verify,
    warming.warm,
    warming.evict,
    uploading.upload_script,
    showing.status,
    examining.doctor,
    showing.demo,
    completing.completion,
    manual.manual,
):
    commands.add_command(_command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a user's mistake is one line on stderr."""
    try:
        status = commands.main(argv, prog_name="modelfs", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "modelfs"
        complain(f"{error.format_message().rstrip('.')}; see {where} --help")
        return USAGE
    except click.ClickException as error:
        complain(error.format_message())
        return error.exit_code
    except ModelfsError as error:
        complain(str(error))
        return FAILED
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # `modelfs ls | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        place = f": {os.fsdecode(error.filename)}" if error.filename else ""
        complain(f"{error.strerror or error}{place}")
        return FAILED
