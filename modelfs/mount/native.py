"""Ready versions at native speed: their plain folders, bind-mounted read-only in the tree.

Reads of such a version never reach the daemon, and go on when it dies. Only root may
mount; elsewhere, and until a mount is made, the same files are served through FUSE. The
mounts are made and taken away by mount(8) and umount(8): a process that is not the
daemon, which could not answer the kernel's lookups while it waits for them itself.

Owned by the trio thread. One task makes them, so that none is made twice.
"""

import logging
import os
import time
from collections import OrderedDict
from pathlib import Path

import trio
from cachetools import TTLCache

from modelfs import mountinfo
from modelfs.names import VersionId
from modelfs.store.layout import Layout

log = logging.getLogger(__name__)

MOUNTS_MAX = 256  # versions mounted at once; the least recently used one goes first
MOUNTED_MIN_S = 60.0  # how long one stays after its last use: who walks a tree changes few mounts
BUSY_MAX = 8  # mounts in use that are met before one more version is served through FUSE
WAITING_MAX = 1_000  # versions that wait to be mounted; more are served through FUSE
COMMAND_LIMIT_S = 10.0
UNMOUNTED_AT_ONCE = 32  # by one umount(8), when the daemon ends
HELD_OFF_S = 30.0  # how long a version that was let go (to be removed) is not mounted again
HELD_OFF_MAX = 10_000
FAILED_S = 600.0  # how long one that could not be mounted is not tried again
FAILED_MAX = 10_000
LOOKED_AT_S = 60.0  # how often it is checked that one, used through FUSE, is mounted still


class NativeVersions:
    """The bind mounts of one mount.

    INVARIANT: at most MOUNTS_MAX versions are in `_mounted`, each with the time of its last
    use, the least recently used one first.
    """

    def __init__(self, layout: Layout, mountpoint: Path, *, is_enabled: bool) -> None:
        self._layout = layout
        self._mountpoint = mountpoint
        self._is_enabled = is_enabled and os.getuid() == 0
        self._mounted: OrderedDict[VersionId, float] = OrderedDict()
        self._held_off: TTLCache[VersionId, None] = TTLCache(HELD_OFF_MAX, HELD_OFF_S)
        self._failed: TTLCache[VersionId, None] = TTLCache(FAILED_MAX, FAILED_S)
        self._looked_at: TTLCache[VersionId, None] = TTLCache(MOUNTS_MAX, LOOKED_AT_S)
        self._waiting: dict[VersionId, bool] = {}  # whether it may take another's place
        self._has_work = trio.Event()
        self._lock = trio.Lock()

    @property
    def mounted(self) -> list[VersionId]:
        return list(self._mounted)

    def touch(self, version: VersionId) -> None:
        """Note that a version is used, where it is mounted."""
        if version in self._mounted:
            self._mounted[version] = time.monotonic()
            self._mounted.move_to_end(version)

    def want(self, version: VersionId) -> None:
        """Have a ready version mounted soon, as it is used through FUSE; never waits."""
        self.touch(version)
        if len(self._waiting) < WAITING_MAX or version in self._waiting:
            self._wait(version, may_replace=True)
        else:
            log.debug("%s is served through FUSE: too many wait to be mounted", version)

    def offer(self, version: VersionId) -> None:
        """Have a ready version mounted soon where there is room: it may be used one day."""
        if len(self._mounted) + len(self._waiting) < MOUNTS_MAX and version not in self._waiting:
            self._wait(version, may_replace=False)

    def _wait(self, version: VersionId, *, may_replace: bool) -> None:
        is_known = version in self._mounted and version in self._looked_at
        if not is_known and version not in self._failed and self._is_enabled:
            self._waiting[version] = may_replace
            self._has_work.set()

    async def run(self) -> None:
        """Mount what is wanted, one after the other; runs for ever."""
        while True:
            await self._has_work.wait()
            self._has_work = trio.Event()
            while self._waiting:
                version = next(iter(self._waiting))
                may_replace = self._waiting.pop(version)
                async with self._lock:
                    if self._needs_mount(version) and await self._has_room(may_replace):
                        await self._mount(version)

    def _needs_mount(self, version: VersionId) -> bool:
        """Tell whether a version is to be mounted: not yet, or not any more.

        The kernel takes a mount away when a lookup of its folder fails, an administrator may.
        """
        if not self._is_enabled or version in self._held_off or version in self._failed:
            return False
        if version in self._mounted:
            self._looked_at[version] = None
            if mountinfo.at(self._target(version)) is not None:
                return False
            log.info("%s was unmounted by others", version)
            del self._mounted[version]
        return True

    def _target(self, version: VersionId) -> Path:
        model = version.model
        return self._mountpoint / model.namespace / model.name / version.version

    async def _mount(self, version: VersionId) -> None:
        source, target = self._layout.version(version), self._target(version)
        said = await _command("mount", "--bind", "-o", "ro,nosuid,nodev", str(source), str(target))
        if said is None:
            self._mounted[version] = time.monotonic()
        elif await trio.to_thread.run_sync(source.is_dir):
            self._failed[version] = None
            log.warning("%s is served through FUSE, it cannot be mounted: %s", version, said)

    async def _has_room(self, may_replace: bool) -> bool:
        """Tell whether one more may be mounted; where it may, one is taken away for it.

        That is the least recently used one that is not open anywhere; one that is, is in use.
        """
        for _ in range(BUSY_MAX):
            if len(self._mounted) < MOUNTS_MAX:
                return True
            version, used_at = next(iter(self._mounted.items()))
            if not may_replace or time.monotonic() - used_at < MOUNTED_MIN_S:
                return False
            if not await self._unmount(version):
                self.touch(version)
        return len(self._mounted) < MOUNTS_MAX

    async def _unmount(self, version: VersionId) -> bool:
        target = self._target(version)
        said = await _command("umount", "--no-canonicalize", str(target))
        if said is not None and mountinfo.at(target) is not None:
            log.debug("%s stays mounted: %s", version, said)
            return False
        self._mounted.pop(version, None)
        return True

    async def release(self, version: VersionId) -> bool:
        """Take a version's mount away, to be removed; False where it is in use."""
        self._held_off[version] = None
        async with self._lock:
            return version not in self._mounted or await self._unmount(version)

    async def release_all(self) -> None:
        """Take every mount away: the daemon ends. One that is in use goes on for its users."""
        self._is_enabled = False
        self._waiting.clear()
        async with self._lock:
            targets = [str(self._target(version)) for version in self._mounted]
            for start in range(0, len(targets), UNMOUNTED_AT_ONCE):
                some = targets[start : start + UNMOUNTED_AT_ONCE]
                said = await _command("umount", "--no-canonicalize", "--lazy", *some)
                if said is not None:
                    log.debug("unmounting at the end: %s", said)
            self._mounted.clear()


async def _command(*words: str) -> str | None:
    """Run a command within a limit; return what it complained of, None where it succeeded."""
    with trio.move_on_after(COMMAND_LIMIT_S):
        done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
        return None if done.returncode == 0 else done.stderr.decode(errors="replace").strip()
    return f"no answer for {COMMAND_LIMIT_S:.0f} s"
