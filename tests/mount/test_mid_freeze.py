"""Objects that others change in the middle of a freeze, at each of its steps.

The daemon is held at the step (tests/launchers/serve.py, Steps), the bucket is changed, and
the daemon goes on. A version is the listing at mkdir, whole, or it has failed and says why.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, content, launcher, put, wait_until, xattr

pytestmark = [pytest.mark.mount, pytest.mark.ceph, pytest.mark.timeout(150, func_only=True)]

MIB = 1 << 20
PARTS = 3  # of the large file
STEPS_MIN = 15  # a sweep of fewer has not met the freeze
LISTINGS = ("list_page", "list_versions_page")

Change = Callable[[S3Endpoint], None]


class Sweep:
    """Freezes of a model anew, each held at a later step; see `round`."""

    def __init__(self, mount: Mount, file: Path) -> None:
        self.mount = mount
        self._file = file
        self._held = file.with_name(f"{file.name}.held")

    def round(self, number: int, change: Change) -> tuple[Path, list[str] | None]:
        """Freeze version `number`, changing the bucket at its step `number`.

        Return the version's folder when it is over, and the steps up to where it was held:
        None where it was over before.
        """
        version = self.mount.model / f"v{number}"
        self._file.write_text(f"pause {number} {version.name}")
        freezing = threading.Thread(target=version.mkdir)
        freezing.start()
        while not self._held.exists() and (freezing.is_alive() or not self._is_over(version)):
            time.sleep(0.005)
        steps = json.loads(self._held.read_text()) if self._held.exists() else None
        if steps is not None:
            change(self.mount.bucket)
        self._file.unlink()
        self._held.unlink(missing_ok=True)
        freezing.join()
        wait_until(lambda: xattr(version, "state") != "downloading", 30)
        return version, steps

    def _is_over(self, version: Path) -> bool:
        """Tell whether a version is ready or has failed: by its files, since all may be held."""
        store = self.mount.store
        ready = store / "models" / "acme" / "llama" / version.name
        pending = store / "pending" / "acme" / "llama" / version.name
        return (pending / "failed").exists() or (ready.exists() and not pending.exists())


@pytest.fixture
def sweep(ceph_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path) -> Sweep:
    file = tmp_path / "steps"
    mount = make_mount(ceph_bucket, launcher=launcher(steps=file), part_size=MIB)
    mount.model.mkdir(parents=True)
    return Sweep(mount, file)


def files_of(round_number: int) -> dict[str, bytes]:
    """Return a model all of whose objects are others than in the rounds before."""
    mark = b"%d " % round_number
    return {
        "config.json": mark,
        "deep/weights": mark + os.urandom(PARTS * MIB - 5),
        "last": mark + os.urandom(1000),
    }


def delete(bucket: S3Endpoint, path: str) -> None:
    bucket.client.delete_object(Bucket=bucket.bucket, Key=f"models/acme/llama/{path}")


def was_listed(steps: list[str]) -> bool:
    """Tell whether the listing had been taken: it is held before the step that is named last."""
    return any(name in LISTINGS for name in steps[:-1])


def check(
    sweep: Sweep,
    version: Path,
    steps: list[str],
    before: dict[str, bytes],
    after: dict[str, bytes],
    key: str,
) -> str:
    """Assert that a version is one state, or has failed because of `key`; return which."""
    state = xattr(version, "state")
    if state == "failed":
        assert was_listed(steps), steps
        assert key in xattr(version, "error")
        version.rmdir()
    else:
        assert state == "ready"
        assert content(version) == (before if was_listed(steps) else after), steps
    return state


@pytest.mark.parametrize("path", ["deep/weights", "last"])
def test_an_object_that_is_overwritten_in_mid_freeze_is_never_mixed_in(
    sweep: Sweep, path: str
) -> None:
    seen: set[str] = set()
    for number in count(1):
        before, after = files_of(number), files_of(-number)
        changed = {path: after[path]}
        put(sweep.mount.bucket, before)
        version, steps = sweep.round(number, lambda bucket, new=changed: put(bucket, new))
        if steps is None:
            break
        seen.add(check(sweep, version, steps, before, {**before, **changed}, path))
    assert seen == {"ready", "failed"}
    assert number > STEPS_MIN


def test_an_object_that_is_deleted_in_mid_freeze_is_in_the_version_or_the_reason(
    sweep: Sweep,
) -> None:
    seen: set[str] = set()
    for number in count(1, 2):
        before = files_of(number)
        after = {path: data for path, data in before.items() if path != "last"}
        put(sweep.mount.bucket, before)
        version, steps = sweep.round(number, lambda bucket: delete(bucket, "last"))
        if steps is None:
            break
        seen.add(check(sweep, version, steps, before, after, "last"))
    assert seen == {"ready", "failed"}
    assert number > STEPS_MIN


def test_an_object_that_is_added_in_mid_freeze_is_in_no_version(sweep: Sweep) -> None:
    added = {"new": b"new"}
    for number in count(1, 2):
        before = files_of(number)
        delete(sweep.mount.bucket, "new")
        put(sweep.mount.bucket, before)
        version, steps = sweep.round(number, lambda bucket: put(bucket, added))
        if steps is None:
            break
        assert check(sweep, version, steps, before, {**before, **added}, "") == "ready"
    assert number > STEPS_MIN


def test_on_a_versioned_bucket_a_version_is_always_the_listing_at_mkdir(sweep: Sweep) -> None:
    bucket = sweep.mount.bucket
    bucket.client.put_bucket_versioning(
        Bucket=bucket.bucket, VersioningConfiguration={"Status": "Enabled"}
    )

    def change(bucket: S3Endpoint) -> None:
        put(bucket, {"deep/weights": b"overwritten", "new": b"added"})
        delete(bucket, "last")

    for number in count(1, 2):
        before = files_of(number)
        delete(bucket, "new")
        put(bucket, before)
        version, steps = sweep.round(number, change)
        if steps is None:
            break
        after = {"config.json": before["config.json"], "new": b"added"}
        after["deep/weights"] = b"overwritten"
        assert check(sweep, version, steps, before, after, "") == "ready"
    assert number > STEPS_MIN
