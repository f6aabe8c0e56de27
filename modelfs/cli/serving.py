"""The commands mount and umount: the daemon's beginning and its end."""

import os
import sys
from pathlib import Path

import click

from modelfs import logs
from modelfs.cli import completing, mounts
from modelfs.cli.background import start
from modelfs.cli.options import Settings, pass_settings
from modelfs.cli.output import say
from modelfs.cli.unmounting import unmount
from modelfs.errors import ModelfsError, MountError


@click.command(short_help="Mount a registry.")
@click.argument("registry", shell_complete=completing.registries)
@click.argument("mountpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "options",
    metavar="OPTIONS",
    multiple=True,
    help="Options for FUSE, separated by commas, as mount(8) takes them.",
)
@click.option("--background", is_flag=True, help="Return when the mount answers.")
@click.option(
    "--log-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --background: the daemon's log.  [default: modelfs/REGISTRY.log in /var/log or "
    "in ~/.local/state]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much the daemon's log says.  [default: log_level of the configuration, or info]",
)
@click.option("--ready-fd", type=int, hidden=True)
@pass_settings
def mount(
    settings: Settings,
    registry: str,
    mountpoint: Path | None,
    options: tuple[str, ...],
    background: bool,
    log_file: Path | None,
    log_level: str | None,
    ready_fd: int | None,
) -> int:
    """Mount a registry of the configuration, in the foreground until it is unmounted.

    \b
      modelfs mount hub                           where the configuration says
      modelfs mount hub /models/hub --background
      modelfs mount hub /mnt -o ro,allow_other
    """
    from modelfs.config import load

    file = load(settings.config)
    config = file.registry(registry)
    folder = mountpoint or config.mountpoint
    if folder is None:
        raise ModelfsError(
            f"where shall {registry} be mounted? modelfs mount {registry} MOUNTPOINT, or set "
            f"`mountpoint` in [registries.{registry}] of the configuration"
        )
    folder = Path(os.path.abspath(folder))
    words = [word for option in options for word in option.split(",") if word]
    if background:
        command = _same_command(settings, registry, folder, words, log_level)
        started = start(command, registry, log_file)
        say(f"{registry} is mounted at {folder} (pid {started.pid}, log {started.log_file})")
        return 0
    logs.set_up(log_level or ("debug" if settings.is_verbose else config.log_level), registry)
    try:
        from modelfs import daemon
    except ImportError as error:  # pyfuse3 without libfuse3
        raise MountError(f"FUSE cannot be loaded ({error}): install the package fuse3") from error
    return daemon.run(config, folder, options=words, ready_fd=ready_fd, file=file)


def _same_command(
    settings: Settings, registry: str, folder: Path, words: list[str], log_level: str | None
) -> list[str]:
    """Return the command that serves in the foreground, whatever the current folder."""
    command = [sys.executable, "-m", "modelfs"]
    if settings.is_verbose:
        command.append("--verbose")
    if settings.config is not None:
        command += ["--config", str(settings.config.absolute())]
    command += ["mount", registry, str(folder)]
    if log_level is not None:
        command += ["--log-level", log_level]
    return command + (["-o", ",".join(words)] if words else [])


@click.command(short_help="Upload what waits, then unmount.")
@click.argument("mountpoint", shell_complete=completing.mountpoints)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for uploads and for the daemon's end.",
)
def umount(mountpoint: str, timeout: float) -> None:
    """Let the daemon upload what waits, and unmount; take a dead mount away.

    \b
      modelfs umount /models/hub
      modelfs umount /models/hub --timeout 600    much waits to be uploaded
    """
    mount = mounts.at(mountpoint)
    unmount(mount, timeout)
    say(f"{mount.registry} is unmounted from {mount.path}")
