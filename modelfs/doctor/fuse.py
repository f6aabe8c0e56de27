"""What a node needs to mount at all: FUSE's device and tools; mounts of modelfs that are dead."""

import os
import shutil
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

from modelfs import mountinfo
from modelfs.doctor.outcome import Outcome, failed, ok, warning
from modelfs.doctor.running import Steps
from modelfs.mount import mountpoints
from modelfs.mountinfo import Mounted

DEVICE = Path("/dev/fuse")
CONF = Path("/etc/fuse.conf")
INSTALL = "install the package fuse3"


def examine(is_known: Callable[[Mounted], bool], step: Steps) -> None:
    """Check what any mount on this node needs, and the mounts that are not `is_known`."""
    step("/dev/fuse", _device)
    step("fusermount3", _tool)
    if os.geteuid() != 0:
        step("fuse.conf", _conf)
    for mounted in mountinfo.mounted():
        if mounted.is_ours and not is_known(mounted):
            step("dead mounts", partial(_dead, mounted))


def _device() -> Outcome:
    if not DEVICE.exists():
        return failed("/dev/fuse", "missing", "modprobe fuse; in a container: --device /dev/fuse")
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        return failed("/dev/fuse", f"not for this user (uid {os.getuid()})", f"chmod 666 {DEVICE}")
    return ok("/dev/fuse", "there, for this user")


def _tool() -> Outcome:
    found = shutil.which("fusermount3")
    if found is None:
        return failed("fusermount3", "missing in PATH", INSTALL)
    if os.geteuid() != 0 and not os.stat(found).st_mode & stat.S_ISUID:
        return failed(
            "fusermount3",
            f"{found} is not setuid: plain users cannot mount",
            f"{INSTALL} again, or chmod u+s {found}",
        )
    return ok("fusermount3", found)


def _conf() -> Outcome:
    """Only a plain user's daemon needs it: root's shows its mount to everyone."""
    lines = CONF.read_text().splitlines() if CONF.exists() else []
    if any(line.strip() == "user_allow_other" for line in lines):
        return ok("fuse.conf", "user_allow_other: -o allow_other shows a mount to others")
    return warning(
        "fuse.conf",
        f"no user_allow_other in {CONF}: others do not see the mount",
        "add the line, and mount with -o allow_other",
    )


def _dead(mounted: Mounted) -> Outcome | None:
    if not mountpoints.is_dead(mounted.path):
        return None
    name = mounted.registry
    return failed(
        "dead mounts",
        f"{mounted.path}: the daemon of {name} is gone",
        f"modelfs umount {mounted.path}, then modelfs mount {name}",
    )
