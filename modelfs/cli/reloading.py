"""The command reload: a mount reads its configuration again, and says what became of it."""

import signal
import time
from typing import Any

import click

from modelfs.cli import completing, mounts
from modelfs.cli.mounts import Mount
from modelfs.cli.options import Settings, pass_settings
from modelfs.cli.output import say
from modelfs.cli.probe import DaemonGone, read_status
from modelfs.cli.unmounting import process_of
from modelfs.errors import ModelfsError

LIMIT_S = 30.0
LOOK_EVERY_S = 0.1


@click.command(short_help="Have a mount read its configuration again.")
@click.argument(
    "mount", metavar="[REGISTRY|MOUNTPOINT]", required=False, shell_complete=completing.registries
)
@pass_settings
def reload(settings: Settings, mount: str | None) -> None:
    """Have a mount read its configuration again, without a remount.

    What may change while mounted (credentials, times, limits of the cache, owners of namespaces,
    ...) changes at once; what wants a restart is named. A configuration that is wrong is refused:
    the command fails with the reason, and the mount goes on with the old one.

    \b
      modelfs reload              the only mount here, or that of the current folder
      modelfs reload hub          as `systemctl reload modelfs@hub` does
      modelfs reload /models/hub
    """
    chosen = _chosen(mount or settings.registry)
    found = _read_again(chosen)
    if found.get("error"):
        raise ModelfsError(f"refused, the old configuration goes on: {found['error']}")
    applied = ", ".join(found.get("applied") or ()) or "nothing that a mount can change"
    say(f"{chosen.registry} has read its configuration again; new is {applied}")
    if restart := ", ".join(found.get("needs_restart") or ()):
        say(f"a restart is wanted by {restart}: systemctl restart modelfs@{chosen.registry}")


def _chosen(name: str | None) -> Mount:
    """Return the mount of a registry or on a folder, or raise ModelfsError."""
    if name is None:
        return mounts.choose(None)
    if "/" in name:
        return mounts.at(name)
    found = [mount for mount in mounts.find() if mount.registry == name]
    if len(found) > 1:
        places = " and ".join(str(mount.path) for mount in found)
        raise ModelfsError(f"{name} is mounted at {places}: modelfs reload MOUNTPOINT")
    return mounts.choose(name)


def _read_again(mount: Mount) -> dict[str, Any]:
    """Send SIGHUP and return what status.json says of the configuration afterwards."""
    status = read_status(mount)
    before = _read_ns(status)
    with process_of(status.get("pid"), mount) as process:
        if process is None:
            raise DaemonGone(f"{mount.registry} at {mount.path} has just ended")
        signal.pidfd_send_signal(process, signal.SIGHUP)
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        status = read_status(mount)
        if _read_ns(status) != before:
            return dict(status["configuration"])
        time.sleep(LOOK_EVERY_S)
    raise ModelfsError(
        f"{mount.registry} has not read its configuration again in {LIMIT_S:g} s: see its log"
    )


def _read_ns(status: dict[str, Any]) -> int:
    return int((status.get("configuration") or {}).get("read_ns") or 0)
