"""The store: is its disk there, does it do what modelfs needs of it, has it room?"""

import fcntl
import os
import time
import uuid
from functools import partial
from pathlib import Path

from modelfs import mountinfo
from modelfs.doctor.outcome import Outcome, failed, ok, warning
from modelfs.doctor.running import Steps
from modelfs.mount import mountpoints
from modelfs.store.layout import Layout, free_bytes, quotas, remove_tree
from modelfs.tables import DEFAULT_STORES, RegistryConfig
from modelfs.wording import size_text

TRIAL = ".modelfs-doctor-"
OLD_TRIAL_S = 3600.0  # what a killed doctor left
_MEND = "mount its disk, or find out why it does not answer"


def examine(config: RegistryConfig, layout: Layout, step: Steps) -> None:
    """Check the disk under the store of a registry; what is tried there is removed again."""
    if not step("store", partial(_place, config, layout), _MEND):
        return
    if layout.models.is_dir():
        with _Trial(layout, step) as trial:
            trial.run()
    step("space", partial(_space, config), _MEND)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _place(config: RegistryConfig, layout: Layout) -> Outcome:
    is_default = config.store == DEFAULT_STORES / config.name
    mountpoints.check_store(config.store, config.store_filesystem, is_default=is_default)
    existing = _existing(config.store)
    disk = mountinfo.under(existing.resolve())
    on = f"{disk.filesystem} ({disk.source} at {disk.path})"
    if existing == config.store and layout.models.is_dir():
        layout.check()
    elif not os.access(existing, os.W_OK | os.X_OK):
        return failed(
            "store",
            f"{config.store} cannot be made: {existing} is not writable",
            "let the user who mounts write there, or set another `store`",
        )
    else:
        on += ", made by the first mount"
    if disk.path == Path("/") and not config.store_filesystem:
        return warning(
            "store",
            f"{config.store} is on the root disk: {on}",
            "give it a disk of its own, and name its kind in store_filesystem",
        )
    return ok("store", f"{config.store} on {on}")


class _Trial:
    """What the daemon does to the store, done to a file and a folder that nobody sees.

    INVARIANT: what was made is removed when the block is left.
    """

    def __init__(self, layout: Layout, step: Steps) -> None:
        self._step = step
        self._roots = (layout.pending_root, layout.models)
        name = TRIAL + uuid.uuid4().hex
        self._pending, self._models = (root / name for root in self._roots)
        self._linked = layout.models / f"{name}.link"

    def __enter__(self) -> "_Trial":
        return self

    def __exit__(self, *_: object) -> None:
        self._step("store cleaned", self._remove, f"remove {self._pending.parent}/{TRIAL}*")

    def run(self) -> None:
        user = f"let this user (uid {os.getuid()}) write there, or run as the one who mounts"
        if not self._step("store writes", self._write, user):
            return
        self._step("store links", self._link, "put all of the store on one disk, in one quota")
        self._step("store renames", self._rename, "put all of the store on one disk, in one quota")
        self._step("store locks", self._lock, "mount the disk with locks (flock) over all nodes")

    def _write(self) -> Outcome:
        self._pending.mkdir()
        began_s = time.monotonic()
        with (self._pending / "file").open("wb") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
        took_ms = (time.monotonic() - began_s) * 1000
        return ok("store writes", f"written and synced in {took_ms:.0f} ms")

    def _link(self) -> Outcome:
        os.link(self._pending / "file", self._linked)
        return ok("store links", "a file is linked from pending/ into models/")

    def _rename(self) -> Outcome:
        self._pending.rename(self._models)
        return ok("store renames", "a folder is renamed from pending/ into models/")

    def _lock(self) -> Outcome:
        folder = self._models if self._models.exists() else self._pending
        with (folder / "file").open() as one, (folder / "file").open() as other:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return ok("store locks", "flock keeps a second one out")
        return failed(
            "store locks",
            "two hold one lock (flock) at once",
            "mount the disk with working locks: nodes would work on one freeze",
        )

    def _remove(self) -> None:
        self._linked.unlink(missing_ok=True)
        for folder in (self._pending, self._models):
            remove_tree(folder) if folder.exists() else None
        for root in self._roots:
            for left in root.glob(f"{TRIAL}*"):
                if time.time() - left.lstat().st_mtime > OLD_TRIAL_S:
                    remove_tree(left) if left.is_dir() else left.unlink()


def _space(config: RegistryConfig) -> Outcome:
    folder = _existing(config.store)
    free, total = free_bytes(folder)
    kept, wanted = config.cache.min_free_bytes(total), config.cache.max_size
    found = f"{size_text(free)} of {size_text(total)} free"
    found += "".join(f", by the quota of {path}" for path, quota, _ in quotas(folder))
    room = "make room (modelfs rm, modelfs evict), or give the store a larger disk"
    if free < config.part_size:
        return failed("space", f"{found}: not even a part of {size_text(config.part_size)}", room)
    if free < kept:
        return warning(
            "space",
            f"{found}, less than cache.min_free ({size_text(kept)})",
            f"nothing new stays in the cache: {room}",
        )
    if wanted > total - kept:
        return warning(
            "space",
            f"{found}; cache.max_size ({size_text(wanted)}) is more than the disk has beside "
            f"cache.min_free ({size_text(kept)})",
            "set it to what the cache may take beside the versions",
        )
    return ok(
        "space", f"{found}; the cache takes up to {size_text(wanted)} and leaves {size_text(kept)}"
    )
