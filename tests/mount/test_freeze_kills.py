"""kill -9 at every step of a freeze on CephFS: a version is complete or absent, never partial.

A step is what tests/launchers/serve.py counts: each fsync, rename, link, mkdir, symlink and unlink
of the daemon, each call of the registry. The first sweep takes every step, the second every other
one from a random first; both are shared out, so that no test takes long, and end where a freeze
was not killed any more.
"""

import contextlib
import errno
import hashlib
import json
import os
import random
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from modelfs.names import ModelId, VersionId
from modelfs.store import publishing
from modelfs.store.layout import synced
from modelfs.store.manifest import from_json
from tests.cephfs import MakeNodes, layout_of
from tests.mounting import Mount, check_sums, is_ready, put
from tests.mounting import wait_until as wait_at_leisure

pytestmark = [pytest.mark.mount, pytest.mark.ceph]

KIB = 1024
PART = 64 * KIB
LLAMA = ModelId("acme", "llama")
UNCHANGED = {"tokenizer.json": random.Random(0).randbytes(3 * KIB)}
FILES = {
    **UNCHANGED,  # a hard link to an earlier version
    "empty": b"",
    "folder/vocabulary": b"odd",
    "weights.bin": random.Random(1).randbytes(2 * PART + 5),
}
SHA256 = {path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()}
SHARES = 4
STEPS_AT_LEAST = 50  # of one freeze: fewer, and something is no longer counted
wait_until = partial(wait_at_leisure, limit_s=30.0, pause_s=0.01)  # in a hundred rounds
QUIET: dict[str, object] = {"patience": 3600}  # no steps that only look whether the disk answers
KILLED = (errno.ENOTCONN, errno.ECONNABORTED)  # of a mount whose daemon dies


@dataclass
class Scene:
    """A node that is killed in its freezes, the file that says at which step, another node.

    The store is looked at as plain files through the other node's ceph-fuse.
    """

    victim: Mount
    steps: Path
    other: Mount

    @property
    def models(self) -> Path:
        return self.other.store / "models" / "acme" / "llama"

    @property
    def pending(self) -> Path:
        return self.other.store / "pending" / "acme" / "llama"

    def begin(self) -> None:
        """Freeze v0, which holds what does not change, and put what the others will hold."""
        put(self.other.bucket, UNCHANGED)
        self.victim.freeze("v0")
        put(self.other.bucket, FILES)

    def freeze(self, version: str, verb: str, number: int) -> bool:
        """Make a version while the daemon is killed at a step; return whether it was.

        What mkdir made is there still, and what is in `models/` is whole.
        """
        print(f"{version}: {verb} at step {number}")  # shown where the test fails
        new = self.steps.with_suffix(".new")
        new.write_text(f"{verb} {number} {version}")
        new.replace(self.steps)
        was_made = self._mkdir(version)
        wait_until(lambda: not self.victim.is_running or self._has_finished(version))
        self.steps.unlink()
        sync_names(self.victim.store.parent)
        if (self.models / version).exists():
            self.check_whole(version)
        assert self.is_there(version) or not was_made
        return not self.victim.is_running

    def _mkdir(self, version: str) -> bool:
        try:
            (self.victim.model / version).mkdir()
        except OSError as error:
            if error.errno not in KILLED:
                raise
            return False
        return True

    def _has_finished(self, version: str) -> bool:
        """Tell whether the daemon has no step left to make for a version."""
        with contextlib.suppress(OSError):  # killed meanwhile
            return is_ready(self.victim, version) and not self.victim.status()["freezes"]
        return False

    def is_there(self, version: str, *, on: Mount | None = None) -> bool:
        """Tell whether a version is pending, or ready: in the order in which it moves.

        Through the other node's ceph-fuse, which may be behind for a moment, or that of `on`.
        """
        store = (on or self.other).store
        return any((store / w / "acme" / "llama" / version).exists() for w in ("pending", "models"))

    def left_over(self) -> list[str]:
        """Return what lies in the model's pending folder, but for claims that a kill left."""
        try:
            names = os.listdir(self.pending)
        except FileNotFoundError:
            return []
        return [name for name in names if not name.startswith(".made-")]

    def check_whole(self, version: str) -> None:
        """Compare the plain folder of a version, and what lies beside it, with FILES."""
        folder = self.models / version
        manifests = self.other.store / "manifests" / "acme" / "llama"
        text = (manifests / f"{version}.json").read_bytes()
        manifest = from_json(text, version)
        assert {entry.path: entry.sha256 for entry in manifest.files} == SHA256
        assert manifest.digest == json.loads(text)["digest"]
        assert (manifests / f"{version}.sha256").read_bytes() == manifest.to_checksums()
        found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
        assert set(found) == {*FILES, "folder"}
        for path, expected in FILES.items():
            assert found[path].read_bytes() == expected, path
            assert stat.S_IMODE(found[path].stat().st_mode) == 0o444
        for above in (folder, found["folder"]):
            assert stat.S_IMODE(above.stat().st_mode) == 0o555
        assert found["tokenizer.json"].samefile(self.models / "v0" / "tokenizer.json")

    def check_ready(self, version: str, on: Mount) -> None:
        """See that a version is ready on a node, as one that was never interrupted is.

        What is left may be waste: that is swept when a daemon starts.
        """
        wait_until(lambda: is_ready(on, version))
        wait_until(lambda: os.readlink(on.model / "latest") == version)
        wait_until(lambda: not (self.pending / version).exists())
        self.check_whole(version)
        assert len(check_sums(on.model / version)) == len(FILES)

    def remove(self, version: str) -> None:
        """Remove a version, so that the next freeze finds no file of it to link."""
        layout = layout_of(self.other)
        publishing.retire(layout, VersionId(LLAMA, version))
        publishing.sweep(layout, LLAMA)

    def check_the_rest_is_swept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """See that what daemons leave for an hour, claims and files without a name, goes then."""
        monkeypatch.setattr(publishing, "CLAIM_MAX_S", -1.0)
        publishing.sweep_claims(layout_of(self.other), LLAMA)
        assert list(self.other.store.rglob(".*")) == []


def sync_names(folder: Path) -> None:
    """Let CephFS write its journal now: what a killed daemon did not sync, others wait for."""
    probe = folder / "probe"
    with synced(folder):
        probe.mkdir()
        probe.rmdir()


@pytest.mark.timeout(200, func_only=True)
@pytest.mark.parametrize("share", range(SHARES))
def test_a_freeze_that_was_killed_at_any_step_is_finished_by_its_node(
    ceph_nodes: MakeNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    steps = tmp_path / "steps"
    victim, other = ceph_nodes(
        first={"steps": steps, **QUIET}, second={"orphans": 3600}, part_size=PART
    )
    scene = Scene(victim, steps, other)
    scene.begin()
    for number in range(1 + share, 1000, SHARES):
        version = f"v{number}"
        was_killed = scene.freeze(version, "kill", number)
        if was_killed:
            victim.kill()
            victim.start()
            if not scene.is_there(version, on=victim):
                (victim.model / version).mkdir()  # the name is not used up
        scene.check_ready(version, victim)
        wait_until(lambda: not scene.left_over())
        if not was_killed:
            break
        scene.remove(version)
    assert number > STEPS_AT_LEAST
    assert is_ready(other, version)
    scene.check_the_rest_is_swept(monkeypatch)


@pytest.mark.timeout(200, func_only=True)
@pytest.mark.parametrize("share", range(SHARES // 2))
def test_a_freeze_that_was_killed_after_any_step_is_finished_by_the_other_node(
    ceph_nodes: MakeNodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    steps = tmp_path / "steps"
    victim, other = ceph_nodes(first={"steps": steps, **QUIET}, part_size=PART)
    scene = Scene(victim, steps, other)
    scene.begin()
    for number in range(2 * share + random.randint(1, 2), 1000, SHARES):
        version = f"v{number}"
        was_killed = scene.freeze(version, "kill-after", number)
        if not scene.is_there(version):
            (other.model / version).mkdir()
        scene.check_ready(version, other)
        if not was_killed:
            break
        scene.remove(version)
        victim.kill()
        victim.start()
        wait_until(lambda: not scene.left_over())
    assert number > STEPS_AT_LEAST
    assert is_ready(victim, version)
    scene.check_the_rest_is_swept(monkeypatch)
