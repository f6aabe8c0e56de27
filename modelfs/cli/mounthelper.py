"""What mount(8) and umount(8) call: mount.modelfs and umount.modelfs.

So `mount -t modelfs hub /models/hub`, a line of /etc/fstab, and `umount /models/hub` work.
umount(8) believes statfs(2), which says `fuse` for all of FUSE, and finds no helper then; where
mount(8) has noted anything of a mount (in /run/mount/utab) it takes the whole type, and finds
umount.fuse.modelfs. As a plain user it takes the noted `uhelper`, umount.modelfs.
Options that are for mount(8), systemd or init go no further; of ours there are `config=FILE`,
`log_file=FILE` and `verbose`; the rest is for FUSE.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from getopt import GetoptError, gnu_getopt

from modelfs import cli
from modelfs.children import run_bounded
from modelfs.cli.output import complain
from modelfs.mountinfo import FILESYSTEM, SOURCE

USAGE, FAILED = 1, 32  # as mount(8) has them
MOUNT, UMOUNT = "/bin/mount", "/bin/umount"
NOTE_LIMIT_S = 10.0

# fmt: off
_OTHERS = frozenset({
    "defaults", "auto", "noauto", "user", "nouser", "users", "nousers", "owner", "noowner",
    "group", "nogroup", "nofail", "fail", "_netdev", "relatime", "norelatime", "strictatime",
    "nostrictatime", "lazytime", "nolazytime", "silent", "loud", "nosymfollow",
})
# fmt: on
_OTHERS_BEGIN = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")
_REMOUNT = "cannot be remounted: change the configuration and `modelfs reload`, or umount and mount"


@dataclass(slots=True)
class _Wish:
    """What the options ask for: of the program, and of FUSE."""

    program: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    fuse: list[str] = field(default_factory=list)


def mount(arguments: Sequence[str] | None = None) -> int:
    """Serve as `mount.modelfs REGISTRY FOLDER [-sfnv] [-o OPTIONS]`; return its exit status."""
    try:
        flags, words = gnu_getopt(list(arguments or sys.argv[1:]), "sfnvwrN:o:t:")
    except GetoptError as error:
        return _usage(f"mount.modelfs: {error}")
    if len(words) != 2:
        return _usage("usage: mount.modelfs REGISTRY FOLDER [-o OPTIONS]")
    said = [word for flag, value in flags if flag == "-o" for word in value.split(",")]
    if any(word.partition("=")[0] == "remount" for word in said):
        return _usage(f"{words[1]} {_REMOUNT}")
    names = {flag for flag, _ in flags}
    if "-f" in names:  # only to be noted, and there is nothing to note it in
        return 0
    wish = _wish_of(said + (["ro"] if "-r" in names else []))
    options = ["-o", ",".join(wish.fuse)] if wish.fuse else []
    registry = words[0].removeprefix(SOURCE)
    status = cli.main(
        [
            *(*wish.program, "mount", *wish.command, *options, "--background", "--"),
            *(registry, words[1]),
        ]
    )
    if status:
        return FAILED
    _note_umount(registry, words[1])
    return 0


def _note_umount(registry: str, folder: str) -> None:
    """Have umount(8) call us; without that it unmounts, and the daemon uploads afterwards."""
    note = ["--internal-only", "--fake", "-t", FILESYSTEM, "-o", "uhelper=modelfs"]
    run_bounded([MOUNT, *note, f"{SOURCE}{registry}", folder], NOTE_LIMIT_S)


def _wish_of(options: Sequence[str]) -> _Wish:
    wish = _Wish()
    for option in filter(None, options):
        name, _, value = option.partition("=")
        if name == "config":
            wish.program += ["--config", value]
        elif option == "verbose":
            wish.program.append("--verbose")
        elif name in ("log_file", "log-file"):
            wish.command += ["--log-file", value]
        elif option not in _OTHERS and not option.startswith(_OTHERS_BEGIN):
            wish.fuse.append(option)
    return wish


def umount(arguments: Sequence[str] | None = None) -> int:
    """Serve as `umount.modelfs FOLDER [-flnrv]`; return its exit status.

    What waits is uploaded first; with -l or -f nothing is waited for.
    """
    try:
        flags, words = gnu_getopt(list(arguments or sys.argv[1:]), "flnrvN:t:")
    except GetoptError as error:
        return _usage(f"umount.modelfs: {error}")
    if len(words) != 1:
        return _usage("usage: umount.modelfs FOLDER [-fl]")
    if force := [flag for flag, _ in flags if flag in ("-f", "-l")]:
        os.execv(UMOUNT, [UMOUNT, "--internal-only", *force, "--", words[0]])
    return FAILED if cli.main(["umount", "--", words[0]]) else 0


def _usage(text: str) -> int:
    complain(text)
    return USAGE
