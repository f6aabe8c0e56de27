"""What several commands share: the settings of one call, and the options -r and --json."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelfs.errors import ModelfsError

if TYPE_CHECKING:
    from modelfs.tables import RegistryConfig


@dataclass(slots=True)
class Settings:
    """The options before the command, and -r after it."""

    config: Path | None
    registry: str | None
    is_verbose: bool

    def configured(self) -> "RegistryConfig":
        """Return the registry of the configuration that is meant, mounted or not."""
        from modelfs.config import load  # slow to load: for the commands that need it alone

        config = load(self.config)
        if self.registry is None and len(config.registries) > 1:
            known = ", ".join(config.registries)
            raise ModelfsError(f"which registry? Say -r NAME; known: {known}")
        return config.registry(self.registry or next(iter(config.registries)))


pass_settings = click.make_pass_decorator(Settings)


def _choose(context: click.Context, _option: click.Parameter, name: str | None) -> None:
    settings = context.find_object(Settings)
    if name is not None and settings is not None:
        settings.registry = name


def in_registry(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let -r stand after the command too, where people write it."""
    return click.option(
        "-r",
        "--registry",
        metavar="NAME",
        callback=_choose,
        expose_value=False,
        help="Which mount, where there are several.",
    )(command)


def as_json(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --json, the argument `wants_json`."""
    return click.option("--json", "wants_json", is_flag=True, help="Print JSON, for programs.")(
        command
    )
