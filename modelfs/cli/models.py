"""Commands on models and their aliases: create, alias."""

import contextlib
import errno
import os
import secrets
from pathlib import Path

import click

from modelfs.cli import completing
from modelfs.cli.arguments import model_argument
from modelfs.cli.failures import explained
from modelfs.cli.options import Settings, as_json, in_registry, pass_settings
from modelfs.cli.output import print_json, print_table, say
from modelfs.cli.tree import ATTRIBUTE_PREFIX, Model
from modelfs.errors import ModelfsError
from modelfs.names import MAIN, check_alias_name, check_version_name, parse_model


@click.command(short_help="Make a model.")
@click.argument("model", metavar="NS/MODEL", shell_complete=completing.models)
@click.option("--description", metavar="TEXT", help="What it is, in a line.")
@click.option("--source", metavar="NS/MODEL", help="Make a local model of this other model.")
@in_registry
@pass_settings
def create(settings: Settings, model: str, description: str | None, source: str | None) -> None:
    """Make a model, and its namespace where there is none.

    \b
      modelfs create acme/llama --description "chat, 8B"
      modelfs create team-b/llama --source acme/llama    versions of acme's main

    With a source, main is a link to its main/, and versions of that are frozen for this
    namespace, with its owner and mode.
    """
    made = model_argument(model, settings.registry)
    parse_model(str(made))
    origin = str(model_argument(source, settings.registry)) if source else None
    exists = "it exists already (setfattr -n user.modelfs.description changes its description)"
    with explained(f"create {made}", {errno.EEXIST: exists}):
        os.makedirs(made.path.parent, exist_ok=True)
        os.mkdir(made.path)
    try:
        _describe(made, {"description": description, "source": origin})
    except ModelfsError:
        with contextlib.suppress(OSError):
            os.rmdir(made.path)
        raise
    if origin is None:
        say(f"{made} is there: copy its files into {made.path / MAIN}")
    else:
        say(f"{made} is there: its main is {origin}'s; modelfs freeze {made} makes a version")


def _describe(model: Model, attributes: dict[str, str | None]) -> None:
    for name, text in attributes.items():
        if text is None:
            continue
        wrong = {
            errno.ENOENT: f"there is no model {text!r}",
            errno.EINVAL: f"{text!r} is too long, the model itself, or has itself a source",
            errno.EACCES: f"you may not read {text!r}",
            errno.ERANGE: "the text is too long",
        }
        with explained(f"set the {name} of {model}", wrong):
            os.setxattr(model.path, ATTRIBUTE_PREFIX + name, text.encode())


@click.command(short_help="Point an alias at a version.")
@click.argument("model", metavar="NS/MODEL", shell_complete=completing.models)
@click.argument("name", metavar="[ALIAS", required=False)
@click.argument("version", metavar="VERSION]", required=False)
@click.option("--delete", "deleted", metavar="ALIAS", help="Delete this alias.")
@in_registry
@as_json
@pass_settings
def alias(
    settings: Settings,
    model: str,
    name: str | None,
    version: str | None,
    deleted: str | None,
    wants_json: bool,
) -> None:
    """Point an alias at a version, at once and whole: roll out, roll back.

    \b
      modelfs alias acme/llama production v2        roll out
      modelfs alias acme/llama production v1        roll back
      modelfs alias acme/llama --delete production
      modelfs alias acme/llama                      show them
    """
    of = model_argument(model, settings.registry)
    if deleted is not None:
        if name is not None:
            raise click.UsageError("--delete takes one alias and no version")
        _delete_alias(of, deleted)
    elif name is None:
        of.require()
        _show_aliases(of, wants_json)
        return
    elif version is None:
        raise click.UsageError("Missing argument 'VERSION'")
    else:
        _point_alias(of, check_alias_name(name), version.rstrip("/"))
    if wants_json:
        _show_aliases(of, wants_json)


def _show_aliases(model: Model, wants_json: bool) -> None:
    with explained(f"list {model}"):
        aliases = model.aliases()
    if wants_json:
        print_json(aliases)
    else:
        print_table(("ALIAS", "VERSION"), aliases.items())


def _point_alias(model: Model, name: str, wanted: str) -> None:
    version = check_version_name(model.concrete(wanted))
    state = model.version(version).state
    wrong = {
        errno.EINVAL: f"{version} is {state}, and an alias points at a ready version only: "
        f"modelfs wait {model}@{version}",
        errno.EEXIST: f"{name} exists and is no alias",
        errno.EISDIR: f"{name} exists and is no alias",
    }
    with explained(f"point {name} of {model} at {version}", wrong):
        before = model.alias_target(name)
        _replace_link(version, model.path / name)
    say(f"{model}/{name}: {f'{before} -> ' if before else ''}{version}")


def _replace_link(target: str, link: Path) -> None:
    """Make or move a symlink in one step, as `ln -sfn` does: nobody finds it missing."""
    try:
        os.symlink(target, link)
        return
    except FileExistsError:
        temporary = link.with_name(f"tmp-{secrets.token_hex(6)}")
    os.symlink(target, temporary)
    try:
        os.rename(temporary, link)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _delete_alias(model: Model, name: str) -> None:
    check_alias_name(name)
    with explained(f"delete the alias {name} of {model}"):
        target = model.alias_target(name)
        if target is None:
            model.require()
            raise ModelfsError(f"{model} has no alias {name!r}: modelfs alias {model} shows them")
        os.unlink(model.path / name)
    say(f"{model}/{name} is deleted; it pointed at {target}")
