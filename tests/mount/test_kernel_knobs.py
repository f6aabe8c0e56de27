"""What the kernel is told about the mount, and what it therefore asks."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from modelfs import mountinfo
from modelfs.mount import mountpoints
from tests.mount.twins import fails_with
from tests.mounting import Mount, put, wait_until

pytestmark = pytest.mark.mount
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="the knobs are root's")


@needs_root
def test_the_kernel_asks_for_a_mib_at_once(mount: Mount) -> None:
    device = mountinfo.at(mount.path)
    assert device is not None
    knob = Path(f"/sys/class/bdi/{device.device}/read_ahead_kb")
    assert int(knob.read_text()) == mountpoints.READ_AHEAD_KIB


@needs_root
def test_the_kernel_asks_for_many_pieces_at_once_where_its_knobs_can_be_reached(
    mount: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = mountinfo.at(mount.path)
    assert device is not None
    monkeypatch.setattr(mountpoints, "_CONNECTIONS", tmp_path / "connections")
    assert not mountpoints.tune(mount.path)  # fusectl is not mounted: the rest is set all the same
    connection = tmp_path / "connections" / device.device.partition(":")[2]
    connection.mkdir(parents=True)
    assert mountpoints.tune(mount.path)
    assert (connection / "max_background").read_text() == f"{mountpoints.BACKGROUND_REQUESTS}\n"
    assert int((connection / "congestion_threshold").read_text()) < mountpoints.BACKGROUND_REQUESTS


def test_ls_asks_for_the_attributes_of_the_system_once(mount: Mount) -> None:
    put(mount.bucket, {"a": b"x", "b": b"y"})
    wait_until((mount.main / "b").exists)
    with fails_with(errno.EOPNOTSUPP):
        os.getxattr(mount.main / "a", "security.capability")
    with fails_with(errno.ENODATA):
        os.getxattr(mount.main / "a", "user.absent")
    listed = subprocess.run(
        ["ls", "-l", mount.main], capture_output=True, text=True, timeout=30, check=True
    )
    assert listed.stderr == ""
