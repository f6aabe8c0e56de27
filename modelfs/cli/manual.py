"""The manual pages modelfs(1) and modelfs.toml(5), made of the commands' and settings' own help.

So nothing of them can be forgotten or out of date. In the format of man(7).
"""

import inspect
from collections.abc import Iterator

import click

PAGES = {"modelfs": 1, "modelfs.toml": 5}
EXAMPLE = "\b"  # with which click's help begins what is to be shown as it is

FILES = {
    "/etc/modelfs/modelfs.toml": "The configuration: modelfs.toml(5).",
    "/var/lib/modelfs/REGISTRY": "The store of a registry whose configuration names no other.",
    "/var/log/modelfs/REGISTRY.log": "The log of a mount by mount(8) or --background.",
}
ENVIRONMENT = {
    "MODELFS_CONFIG": "The configuration, where --config names none.",
    "MODELFS_REGISTRY": "The registry, where -r names none.",
    "CREDENTIALS_DIRECTORY": "Of systemd: its file `credentials` holds the registry's keys, where "
    "the configuration names no file.",
}


@click.command(short_help="Print a manual page.")
@click.argument("page", type=click.Choice(list(PAGES)), default="modelfs")
def manual(page: str) -> None:
    """Print the manual page modelfs(1) or modelfs.toml(5), for man(1).

    `make install` puts both where man finds them.

    \b
      modelfs manual | man -l -
      modelfs manual modelfs.toml > /usr/local/share/man/man5/modelfs.toml.5
    """
    root = click.get_current_context().find_root()
    lines = _commands_page(root) if page == "modelfs" else _settings_page()
    click.echo("\n".join([f'.TH {page.upper()} {PAGES[page]} "" modelfs', *lines]))


def _commands_page(root: click.Context) -> Iterator[str]:
    group = root.command
    assert isinstance(group, click.Group)
    yield from _section("NAME", "modelfs \\- a model registry (an S3 bucket) as folders")
    yield from _section("SYNOPSIS", r"\fBmodelfs\fR [OPTIONS] COMMAND [ARGUMENTS]")
    yield from (".SH DESCRIPTION", *_prose(group.help or ""))
    yield from (".SH OPTIONS", *_options(group, root))
    yield ".SH COMMANDS"
    for name in group.list_commands(root):
        command = group.get_command(root, name)
        if command is not None and not command.hidden:
            context = click.Context(command, info_name=name, parent=root)
            usage = " ".join(command.collect_usage_pieces(context))
            yield f".SS {_text(f'modelfs {name} {usage}')}"
            yield from _prose(command.help or "")
            yield from _options(command, context)
    yield from (".SH FILES", *_terms(FILES))
    yield from (".SH ENVIRONMENT", *_terms(ENVIRONMENT))
    yield from _section("EXIT STATUS", "0: done; 1: it failed; 2: it was asked for wrongly.")
    yield from _section("SEE ALSO", "modelfs.toml(5), mount(8), systemctl(1)")


def _settings_page() -> Iterator[str]:
    from modelfs import config

    yield from _section("NAME", "modelfs.toml \\- the configuration of modelfs")
    yield from (".SH SYNOPSIS", ".nf", *map(_text, config.example().splitlines()), ".fi")
    yield ".SH SETTINGS"
    for table, settings in config.settings().items():
        yield f".SS {_text(table)}"
        yield from _terms(settings)
    yield from (".SH FILES", *_terms({"/etc/modelfs/modelfs.toml": "Where it is looked for."}))
    yield from _section("SEE ALSO", "modelfs(1)")


def _section(title: str, text: str) -> list[str]:
    return [f".SH {title}", text]


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    for param in command.get_params(context):
        record = param.get_help_record(context) if isinstance(param, click.Option) else None
        if record is not None:  # else it is hidden
            yield from _terms({record[0]: record[1]})


def _terms(terms: dict[str, str]) -> Iterator[str]:
    for term, text in terms.items():
        yield from (".TP", rf"\fB{_text(term)}\fR", _text(text))


def _prose(text: str) -> Iterator[str]:
    """Yield paragraphs, and examples as they stand."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith(EXAMPLE):
            lines = paragraph.removeprefix(EXAMPLE).strip("\n").split("\n")
            yield from (".PP", ".nf", *map(_text, lines), ".fi")
        else:
            yield from (".PP", _text(" ".join(paragraph.split())))


def _text(text: str) -> str:
    """Return text with nothing in it that troff would take for its own."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped
