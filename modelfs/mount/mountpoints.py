"""Where a mount may be made, what lies under the store, and the kernel's knobs of a mount."""

import errno
import logging
import os
import re
from pathlib import Path

from modelfs.children import run_bounded
from modelfs.errors import MountError, StoreError
from modelfs.mountinfo import FILESYSTEM, Mounted, at, under

log = logging.getLogger(__name__)

PROBE_LIMIT_S = 5.0
BACKGROUND_REQUESTS = 64  # of read-ahead, over all readers; the kernel's 12 are one reader's
READ_AHEAD_KIB = 1024  # with 1 MiB requests pyfuse3 reads twice as fast as with 128 KiB

DIRECT_WRITES_FROM = 6, 6  # Linux, from which on a direct write drops the pages that it changes

_CONNECTIONS = Path("/sys/fs/fuse/connections")
_HINTS = {
    errno.ENOENT: "make it with mkdir -p {}",
    errno.ENOTDIR: "name a folder, not a file",
    errno.EACCES: "let this user read it, or mount as its owner",
}


def prepare(mountpoint: Path) -> None:
    """See that `mountpoint` is an empty folder; a dead mount of ours is taken away.

    Raises MountError: one line with what to do.
    """
    found = at(mountpoint)
    if found is not None:
        if found.filesystem != FILESYSTEM:
            raise MountError(
                f"{mountpoint}: a {found.filesystem} file system ({found.source}) is mounted "
                "there; choose another folder, or unmount it"
            )
        if not is_dead(mountpoint):
            raise MountError(
                f"{mountpoint}: {found.source} is mounted there already; "
                f"end it first: modelfs umount {mountpoint}"
            )
        unmount_lazily(mountpoint)
    check_free(mountpoint)


def check_free(mountpoint: Path) -> None:
    """See that `mountpoint` is an empty folder, or raise MountError: one line with what to do."""
    try:
        names = os.listdir(mountpoint)
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "choose another folder").format(mountpoint)
        raise MountError(f"{mountpoint}: {os.strerror(error.errno or 0)}: {hint}") from None
    if names:
        raise MountError(
            f"{mountpoint} is not empty (it has {names[0]!r}): choose an empty folder, "
            "so that nothing is hidden by the mount"
        )


def is_dead(mountpoint: Path) -> bool:
    """Tell whether the daemon of a mount is gone.

    Another process is asked, within a limit: the answer of a mount that hangs is no. A statfs
    is asked of the daemon every time; a stat of a mount whose daemon was killed a moment ago is
    still answered from the kernel's memory.
    """
    _, _, said = run_bounded(["stat", "-f", "-c", "", str(mountpoint)], PROBE_LIMIT_S)
    return os.strerror(errno.ENOTCONN) in said


def unmount_lazily(mountpoint: Path) -> None:
    """Take a mount away whoever uses it; raises MountError."""
    code, _, said = run_bounded(["fusermount3", "-u", "-z", str(mountpoint)], PROBE_LIMIT_S)
    if code != 0:
        raise MountError(
            f"{mountpoint}: a dead mount is there and cannot be taken away "
            f"({said.strip()}): try umount -l {mountpoint} as root"
        )


def check_store(store: Path, filesystems: tuple[str, ...], *, is_default: bool) -> None:
    """See that the store's disk is there, or raise StoreError: nothing else gets filled."""
    try:
        existing = _existing(store)
    except OSError as error:  # its mount has died
        raise StoreError(f"the store {store} cannot be used: {error.strerror}") from error
    if filesystems:
        found = under(existing)
        if found.filesystem not in filesystems:
            raise StoreError(
                f"the store {store} is on {found.filesystem} ({found.path}), not on "
                f"{' or '.join(filesystems)}: mount that first (store_filesystem)"
            )
    if not existing.is_dir():
        raise StoreError(
            f"the store {store} cannot be made: {existing} is no folder; set another `store`"
        )
    if not is_default and not store.parent.is_dir():
        raise StoreError(
            f"the store {store} cannot be made: {store.parent} does not exist; mount its disk, "
            f"or mkdir -p {store.parent}"
        )


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path.resolve()


def tune(mountpoint: Path) -> bool:
    """Let the kernel ask the mount for larger pieces, and for more of them at once.

    Returns False where that could not be set (it takes root, and fusectl for the second).
    """
    found = at(mountpoint)
    if found is None:
        return False
    done = [_set(path, value) for path, value in knobs(found).items()]  # each is tried
    return all(done)


def knobs(mounted: Mounted) -> dict[Path, int]:
    """Return the kernel's settings of a mount, and what is written there."""
    return {
        Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb"): READ_AHEAD_KIB,
        _connection(mounted) / "max_background": BACKGROUND_REQUESTS,
        _connection(mounted) / "congestion_threshold": BACKGROUND_REQUESTS * 3 // 4,
    }


def knob(path: Path) -> int | None:
    """Return what a setting of the kernel is; None where it cannot be seen."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def waiting_requests(mounted: Mounted) -> int | None:
    """Return how many requests of programs wait for the daemon; None without fusectl."""
    return knob(_connection(mounted) / "waiting")


def _connection(mounted: Mounted) -> Path:
    return _CONNECTIONS / mounted.device.rpartition(":")[2]


def _set(knob: Path, value: int) -> bool:
    try:
        knob.write_text(f"{value}\n")
    except OSError as error:
        log.debug("%s stays as it is: %s", knob, error.strerror)
        return False
    return True


def has_direct_writes() -> bool:
    """Tell whether a file may be written past the kernel's pages while others read them."""
    version = [int(part) for part in re.findall(r"\d+", os.uname().release)[:2]]
    return tuple(version) >= DIRECT_WRITES_FROM
