"""The units: what systemd says of them, and that their sandbox leaves the mount visible."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelfs.daemon import HANDLERS_LIMIT_S
from modelfs.tables import RegistryConfig

UNITS = Path(__file__).parent.parent / "systemd"
# Each of these gives a service a mount namespace of its own (systemd.exec(5)): what it mounts in it
# is then seen by nobody else.
# fmt: off
HIDING = {
    "BindPaths", "BindReadOnlyPaths", "DynamicUser", "ExecPaths", "ExtensionDirectories",
    "ExtensionImages", "InaccessiblePaths", "MountAPIVFS", "MountFlags", "MountImages",
    "NoExecPaths", "PrivateDevices", "PrivateIPC", "PrivateMounts", "PrivateTmp", "PrivateUsers",
    "ProcSubset", "ProtectControlGroups", "ProtectHome", "ProtectKernelLogs",
    "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "ProtectSystem",
    "ReadOnlyPaths", "ReadWritePaths", "RootDirectory", "RootImage", "TemporaryFileSystem",
}
# fmt: on

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing (package systemd)"
)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as `make install` puts them, for a program that is there."""
    program = tmp_path / "bin" / "modelfs"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n")
    program.chmod(0o755)
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/modelfs/", f"{tmp_path}/")
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def analyze(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_systemd
def test_systemd_takes_the_units(units: Path) -> None:
    drop_in = units / "modelfs@hub.service.d"
    drop_in.mkdir()
    (drop_in / "store.conf").write_text("[Unit]\nWants=ceph.mount\nAfter=ceph.mount\n")
    names = ("modelfs@hub.service", "modelfs-verify@hub.service", "modelfs-verify@hub.timer")
    said = analyze(units, "verify", "--man=no", *(f"./{name}" for name in names))
    assert not [line for line in said.splitlines() if "modelfs" in line]


@needs_systemd
@pytest.mark.parametrize(
    ("unit", "most"), [("modelfs@.service", 4.5), ("modelfs-verify@.service", 2.5)]
)
def test_the_units_are_no_more_exposed_than_they_must_be(
    units: Path, unit: str, most: float
) -> None:
    said = analyze(units, "security", "--offline=true", unit)
    (found,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert float(found) <= most


def settings(unit: str) -> dict[str, str]:
    lines = (UNITS / unit).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_the_sandbox_of_a_mount_hides_it_from_nobody() -> None:
    found = settings("modelfs@.service")
    assert not HIDING & set(found)
    assert found["DeviceAllow"] == "/dev/fuse rw"
    assert "CAP_SYS_ADMIN" in found["CapabilityBoundingSet"]


def test_a_stop_has_the_time_to_upload_and_a_hang_is_noticed_after_a_busy_while() -> None:
    found = settings("modelfs@.service")
    config = RegistryConfig(name="hub", endpoint="http://h:1", bucket="models")
    assert seconds(found["TimeoutStopSec"]) > config.drain_timeout_s + HANDLERS_LIMIT_S
    assert seconds(found["WatchdogSec"]) > 2 * config.timeout_s
    assert found["Restart"] == "always"
    assert found["Type"] == "notify"


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))
