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

from modelfs.mount import mountpoints
from modelfs.names import VersionId
from modelfs.store.layout import Layout

log = logging.getLogger(__name__)

MOUNTS_MAX = 256  # versions mounted at once; the least recently wanted one goes first
WAITING_MAX = 1_000  # versions that wait to be mounted; more are served through FUSE
COMMAND_LIMIT_S = 10.0
HELD_OFF_S = 30.0  # how long a version that was let go (to be removed) is not mounted again


class NativeVersions:
    """The bind mounts of one mount.

    INVARIANT: at most MOUNTS_MAX versions are in `_mounted` (least recently wanted first).
    """

    def __init__(self, layout: Layout, mountpoint: Path, *, is_enabled: bool) -> None:
        self._layout = layout
        self._mountpoint = mountpoint
        self._is_enabled = is_enabled and os.getuid() == 0
        self._mounted: OrderedDict[VersionId, None] = OrderedDict()
        self._held_off: dict[VersionId, float] = {}
        self._failed: set[VersionId] = set()
        self._send, self._receive = trio.open_memory_channel[VersionId](WAITING_MAX)
        self._lock = trio.Lock()

    @property
    def mounted(self) -> list[VersionId]:
        return list(self._mounted)

    def want(self, version: VersionId) -> None:
        """Have a ready version mounted soon; never waits."""
        if version in self._mounted:
            self._mounted.move_to_end(version)
        elif self._is_enabled and version not in self._failed:
            try:
                self._send.send_nowait(version)
            except trio.WouldBlock:
                log.debug("%s is served through FUSE: too many wait to be mounted", version)

    async def run(self) -> None:
        """Mount what is wanted, one after the other; runs for ever."""
        async for version in self._receive:
            async with self._lock:
                if version not in self._mounted and not self._is_held_off(version):
                    await self._make_room()
                    await self._mount(version)

    def _is_held_off(self, version: VersionId) -> bool:
        until = self._held_off.get(version, 0.0)
        if until <= time.monotonic():
            self._held_off.pop(version, None)
            return False
        return True

    def _target(self, version: VersionId) -> Path:
        model = version.model
        return self._mountpoint / model.namespace / model.name / version.version

    async def _mount(self, version: VersionId) -> None:
        source, target = self._layout.version(version), self._target(version)
        said = await _command("mount", "--bind", "-o", "ro,nosuid,nodev", str(source), str(target))
        if said is None:
            self._mounted[version] = None
        elif source.is_dir():
            self._failed.add(version)
            log.warning("%s is served through FUSE, it cannot be mounted: %s", version, said)

    async def _make_room(self) -> None:
        """Take away the least recently wanted mounts that are not in use."""
        for version in list(self._mounted):
            if len(self._mounted) < MOUNTS_MAX:
                return
            await self._unmount(version)

    async def _unmount(self, version: VersionId, *options: str) -> bool:
        target = self._target(version)
        said = await _command("umount", "--no-canonicalize", *options, str(target))
        if said is not None and mountpoints.at(target) is not None:
            log.debug("%s stays mounted: %s", version, said)
            return False
        self._mounted.pop(version, None)
        return True

    async def release(self, version: VersionId) -> bool:
        """Take a version's mount away, to be removed; False where it is in use."""
        self._held_off[version] = time.monotonic() + HELD_OFF_S
        async with self._lock:
            return version not in self._mounted or await self._unmount(version)

    async def release_all(self) -> None:
        """Take every mount away: the daemon ends. One that is in use goes on for its users."""
        self._is_enabled = False
        async with self._lock:
            for version in list(self._mounted):
                await self._unmount(version, "--lazy")


async def _command(*words: str) -> str | None:
    """Run a command within a limit; return what it complained of, None where it succeeded."""
    with trio.move_on_after(COMMAND_LIMIT_S):
        done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
        return None if done.returncode == 0 else done.stderr.decode(errors="replace").strip()
    return f"no answer for {COMMAND_LIMIT_S:.0f} s"
