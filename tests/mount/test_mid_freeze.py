"""Objects that are overwritten, deleted or added at every step of a freeze, on Ceph's gateway.

A version is the listing at mkdir, whole, or it is failed and says which key is to blame. On a
versioned bucket it is always the listing at mkdir.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, content, is_ready, launcher, put, xattr
from tests.mounting import wait_until as wait_at_leisure

pytestmark = [pytest.mark.mount, pytest.mark.ceph]

KIB = 1024
PART = 64 * KIB
FILES = {
    "empty": b"",
    "folder/vocabulary": b"odd",
    "tokenizer.json": b"linked from an earlier version",
    "weights.bin": random.Random(1).randbytes(2 * PART + 5),
}
TARGETS = ("weights.bin", "folder/vocabulary")  # changed by turns
LISTINGS = {"list_page", "list_versions_page"}
STEPS_AT_LEAST = 30  # of one freeze: fewer, and something is no longer counted

Files = dict[str, bytes]
wait_until = partial(wait_at_leisure, limit_s=30.0, pause_s=0.005)  # in hundreds of rounds


def overwrite(bucket: S3Endpoint, target: str) -> Files:
    """Put other bytes, of the same size; return what the model holds then."""
    data = FILES[target][::-1]
    put(bucket, {target: data})
    return {**FILES, target: data}


def delete(bucket: S3Endpoint, target: str) -> Files:
    bucket.client.delete_object(Bucket=bucket.bucket, Key=f"models/acme/llama/{target}")
    return {path: data for path, data in FILES.items() if path != target}


def add(bucket: S3Endpoint, target: str) -> Files:
    put(bucket, {f"{target}.added": b"new"})
    return {**FILES, f"{target}.added": b"new"}


@pytest.fixture
def versioned_bucket(ceph_bucket: S3Endpoint) -> Iterator[S3Endpoint]:
    """A bucket that keeps the versions of its objects."""
    client, name = ceph_bucket.client, ceph_bucket.bucket
    client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    yield ceph_bucket
    for page in client.get_paginator("list_object_versions").paginate(Bucket=name):
        for item in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
            client.delete_object(Bucket=name, Key=item["Key"], VersionId=item["VersionId"])


@dataclass
class Scene:
    """A mount whose freezes are held at a step while the bucket is changed."""

    mount: Mount
    steps: Path
    change: Callable[[S3Endpoint, str], Files]

    def begin(self) -> None:
        """Freeze v0, of which a file is linked, and put the others."""
        put(self.mount.bucket, {"tokenizer.json": FILES["tokenizer.json"]})
        self.mount.freeze("v0")
        put(self.mount.bucket, FILES)

    def freeze(self, number: int) -> tuple[str, Files] | None:
        """Freeze, changing the bucket at a step; return the key that was changed, what is pinned.

        None where the freeze had fewer steps.
        """
        version, target = f"v{number}", TARGETS[number % len(TARGETS)]
        new = self.steps.with_suffix(".new")
        new.write_text(f"pause {number} {version}")
        new.replace(self.steps)
        held = self.steps.with_name("steps.held")
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit((self.mount.model / version).mkdir)
            wait_until(lambda: held.exists() or (made.done() and self._is_over(version)))
            pinned = None
            if held.exists():
                *before, _ = json.loads(held.read_text())
                held.unlink()
                changed = self.change(self.mount.bucket, target)
                pinned = FILES if LISTINGS & {*before} else changed
            self.steps.unlink()
            made.result()
        return None if pinned is None else (target, pinned)

    def _is_over(self, version: str) -> bool:
        return is_ready(self.mount, version) and not self.mount.status()["freezes"]

    def end(self, version: str) -> str:
        """Wait until a version is ready or failed."""
        folder = self.mount.model / version
        wait_until(lambda: xattr(folder, "state") != "downloading")
        return xattr(folder, "state")

    def restore(self, target: str) -> None:
        """Put the bucket back."""
        put(self.mount.bucket, {target: FILES[target]})
        key = self.mount.key(f"{target}.added")
        self.mount.bucket.client.delete_object(Bucket=self.mount.bucket.bucket, Key=key)


@pytest.fixture
def make_scene(make_mount: MakeMount, tmp_path: Path) -> Callable[..., Scene]:
    """Make a scene on a bucket."""

    def make(bucket: S3Endpoint, change: Callable[[S3Endpoint, str], Files]) -> Scene:
        steps = tmp_path / "steps"
        said = launcher(steps=steps, patience=3600)  # no steps that only look at the disk
        mount = make_mount(bucket, launcher=said, part_size=PART, timeout=30)
        scene = Scene(mount, steps, change)
        scene.begin()
        return scene

    return make


@pytest.mark.timeout(120, func_only=True)
@pytest.mark.parametrize("change", [overwrite, delete, add])
def test_a_change_at_any_step_fails_the_freeze_by_name_or_is_not_in_the_version(
    make_scene: Callable[..., Scene], ceph_bucket: S3Endpoint, change: Callable[..., Files]
) -> None:
    scene = make_scene(ceph_bucket, change)
    seen: Counter[str] = Counter()
    for number in range(1, 1000):
        version = scene.mount.model / f"v{number}"
        if (done := scene.freeze(number)) is None:
            break
        target, pinned = done
        state = scene.end(version.name)
        seen[state] += 1
        if state == "ready":
            assert content(version) == pinned, number
        else:
            assert change is not add
            assert pinned is FILES
            assert scene.mount.key(target) in xattr(version, "error")
            assert not (scene.mount.store / "models" / "acme" / "llama" / version.name).exists()
        version.rmdir()
        scene.restore(target)
    print("steps:", number, seen)
    assert number > STEPS_AT_LEAST
    assert seen["ready"] > 10
    assert (seen["failed"] > 0) == (change is not add)


@pytest.mark.timeout(120, func_only=True)
@pytest.mark.parametrize("change", [overwrite, delete, add])
def test_a_change_at_any_step_does_not_matter_to_a_version_of_a_versioned_bucket(
    make_scene: Callable[..., Scene], versioned_bucket: S3Endpoint, change: Callable[..., Files]
) -> None:
    scene = make_scene(versioned_bucket, change)
    for number in range(1, 1000):
        version = scene.mount.model / f"v{number}"
        if (done := scene.freeze(number)) is None:
            break
        target, pinned = done
        assert scene.end(version.name) == "ready", xattr(version, "error")
        assert content(version) == pinned, number
        version.rmdir()
        scene.restore(target)
    print("steps:", number)
    assert number > STEPS_AT_LEAST
