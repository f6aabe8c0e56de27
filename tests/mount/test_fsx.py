"""One file of main/ in random use (tests/mount/fsx.py): as on a disk, byte for byte.

The suite does little of it. MODELFS_FSX="50000 5" does that many operations on as many seeds.
"""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount import fsx
from tests.mounting import Mount, wait_until

pytestmark = pytest.mark.mount

OPERATIONS, SEEDS = map(int, os.environ.get("MODELFS_FSX", "1500 2").split())
LIMIT_S = 60 + OPERATIONS * 0.2


def file_of(mount: Mount) -> fsx.File:
    """Return a file of main/ that is compared with its object, and whose mount can be made anew."""

    def check_object(path: Path, data: bytes) -> None:
        """What was opened with O_TRUNC and closed without a write comes in the background."""
        wait_until(lambda: mount.bucket.get(mount.key(path.name)) == data)

    def remount() -> None:
        assert mount.stop() == 0
        mount.start()

    return fsx.File(mount.main / "f", check_object, remount)


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("seed", range(1, SEEDS + 1))
def test_a_file_in_random_use_is_that_of_a_disk(mount: Mount, tmp_path: Path, seed: int) -> None:
    file = file_of(mount)
    with (tmp_path / "log").open("w") as log:
        assert fsx.exercise(file, fsx.plan(file, seed, OPERATIONS), log) == OPERATIONS + 1
    assert "Traceback" not in mount.log(), mount.log()
    assert mount.status()["counters"]["bugs"] == 0
    files = {path.name for path in mount.main.iterdir()}
    assert files == set(mount.objects()) - {""}
