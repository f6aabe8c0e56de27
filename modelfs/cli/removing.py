"""Remove a whole model: refused while it has anything, unless that is to go with it."""

import errno
import os
import shutil
from collections.abc import Callable

from modelfs.cli.failures import explained
from modelfs.cli.output import count_text, say
from modelfs.cli.tree import Model
from modelfs.errors import ModelfsError
from modelfs.names import LATEST, MAIN, is_version_name


def remove_model(
    model: Model, remove_version: Callable[[Model, str], None], *, everything: bool
) -> None:
    """Remove a model that has nothing; with `everything`, what it has first.

    `remove_version` is called for each version.
    """
    model.require()
    versions = [name for name in sorted(model.names()) if is_version_name(name)]
    aliases = [alias for alias in model.aliases() if alias not in (MAIN, LATEST)]
    has_files = _has_files(model)
    what = _what(versions, aliases, has_files)
    if what and not everything:
        raise ModelfsError(
            f"{model} has {what}: remove them first, or all of it with "
            f"modelfs rm {model} --everything"
        )
    for alias in aliases:
        with explained(f"delete the alias {alias} of {model}"):
            os.unlink(model.path / alias)
    for version in versions:
        remove_version(model, version)
    if has_files:
        _empty_main(model)
    left = {errno.ENOTEMPTY: "something was just put into it: try again"}
    with explained(f"delete {model}", left):
        os.rmdir(model.path)
    say(f"{model} is deleted{f', with {what}' if what else ''}")


def _has_files(model: Model) -> bool:
    """Tell whether main/ has anything; what is in another model's is not this one's."""
    if model.source is not None:
        return False
    with explained(f"list {model.main_title}"):
        return bool(os.listdir(model.path / MAIN))


def _what(versions: list[str], aliases: list[str], has_files: bool) -> str:
    words = []
    if versions:
        words.append(count_text(len(versions), "version"))
    if aliases:
        words.append("1 alias" if len(aliases) == 1 else f"{len(aliases):,} aliases")
    if has_files:
        words.append("files in main/")
    return " and ".join(words)


def _empty_main(model: Model) -> None:
    main = model.path / MAIN
    with explained(f"delete the files of {model.main_title}"):
        for name in os.listdir(main):
            if (main / name).is_dir():
                shutil.rmtree(main / name)
            else:
                os.unlink(main / name)
