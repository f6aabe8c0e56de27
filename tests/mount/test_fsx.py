"""One file of main/ in random use (tests/mount/fsx.py): as on a disk, byte for byte.

The suite does little of it. MODELFS_FSX="50000 5" does that many operations on as many seeds.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mount import fsx, usedfile
from tests.mounting import Mount, wait_until

pytestmark = pytest.mark.mount

OPERATIONS, SEEDS = map(int, os.environ.get("MODELFS_FSX", "1500 2").split())
LIMIT_S = 60 + OPERATIONS * 0.2


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder of this disk."""
    folder = tmp_path / "plain"
    folder.mkdir()
    return folder


def test_a_file_of_a_disk_is_that_of_a_disk(plain: Path) -> None:
    command = [sys.executable, "-m", "tests.mount.fsx", plain / "f", "--operations", "500"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=40)
    assert done.stdout == "501 operations, and no difference\n", done.stderr


def test_a_wrong_byte_is_found_and_the_log_leads_to_it_again(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(handle: usedfile.Handle, offset: int, data: bytes) -> int:
        wrong = len(data) > 100_000
        return os.pwrite(handle.fd, data[:-1] + b"?" if wrong else data, offset)

    monkeypatch.setattr(usedfile.Handle, "write", write)
    log = tmp_path / "log"
    file = usedfile.File(plain / "f")
    with log.open("w") as out, pytest.raises(usedfile.Difference) as first:
        fsx.exercise(file, fsx.plan(file, 1, 1000), out)
    with (tmp_path / "again").open("w") as out, pytest.raises(usedfile.Difference) as again:
        fsx.exercise(usedfile.File(plain / "f"), fsx.logged(log), out)
    assert str(again.value) == str(first.value)
    assert '["write", ' in str(first.value)
    assert (tmp_path / "again").read_text() == log.read_text()


def file_of(mount: Mount) -> usedfile.File:
    """Return a file of main/ that is compared with its object, and whose mount can be made anew."""

    def check_object(path: Path, data: bytes) -> None:
        """What was opened with O_TRUNC and closed without a write comes in the background."""
        wait_until(lambda: mount.bucket.get(mount.key(path.name)) == data)

    def remount() -> None:
        assert mount.stop() == 0
        mount.start()

    return usedfile.File(mount.main / "f", check_object, remount)


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
