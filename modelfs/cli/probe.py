"""Ask a mount for its status within a time limit, and never hang with it.

A call on a mount whose daemon stands still cannot always be killed, and a process with
such a call cannot end. So the calls are made by children that are left behind if need be.
"""

import errno
import json
import os
from typing import Any

from modelfs.children import run_bounded
from modelfs.cli.mounts import Mount
from modelfs.errors import ModelfsError
from modelfs.names import CONTROL

LIMIT_S = 5.0
_GONE = (os.strerror(errno.ENOTCONN), os.strerror(errno.ECONNABORTED))


class DaemonGone(ModelfsError):
    """The mount is dead: its daemon ended without unmounting."""


class DaemonSilent(ModelfsError):
    """The mount gives no answer, or none that can be read."""


def read_status(mount: Mount, limit_s: float = LIMIT_S) -> dict[str, Any]:
    """Return the daemon's status.json, or raise DaemonGone or DaemonSilent."""
    code, out, err = run_bounded(["cat", "--", str(mount.path / CONTROL / "status.json")], limit_s)
    where = f"{mount.registry} at {mount.path}"
    if code is None:
        raise DaemonSilent(f"{where} gives no answer in {limit_s:g} s: see its log")
    if any(text in err for text in _GONE):
        raise DaemonGone(f"{where} is dead, its daemon is gone: modelfs umount {mount.path}")
    if code != 0:
        raise DaemonSilent(f"{where} cannot be read: {err.strip().rpartition(': ')[2]}")
    try:
        status = json.loads(out)
    except ValueError:
        status = None
    if not isinstance(status, dict):
        raise DaemonSilent(f"{where} gives a status that is no JSON: see its log")
    return status


def take_away(mount: Mount, limit_s: float = 10.0) -> None:
    """Detach a mount whose daemon is gone, with all that is mounted below it (lazily)."""
    for command in (
        ["fusermount3", "-uz", "--", str(mount.path)],
        ["umount", "-l", str(mount.path)],
    ):
        try:
            code, _, err = run_bounded(command, limit_s)
        except FileNotFoundError:  # an image without fuse3
            continue
        if code == 0:
            return
        problem = err.strip() or f"no answer in {limit_s:g} s"
        raise ModelfsError(f"cannot unmount {mount.path}: {problem.splitlines()[-1]}")
    raise ModelfsError(f"cannot unmount {mount.path}: neither fusermount3 nor umount is installed")
