"""Whether the registry is mounted again after a reboot: by systemd's unit, or by fstab."""

from pathlib import Path

from modelfs.children import run_bounded
from modelfs.doctor.outcome import Outcome, ok, warning
from modelfs.doctor.running import Steps
from modelfs.mountinfo import FILESYSTEM, SOURCE
from modelfs.tables import RegistryConfig

SYSTEMD = Path("/run/systemd/system")  # there where systemd runs (sd_booted(3))
FSTAB = Path("/etc/fstab")
LIMIT_S = 5.0


def examine(config: RegistryConfig, step: Steps) -> None:
    """Check what mounts the registry at the node's start; nothing where systemd does not run."""
    if SYSTEMD.is_dir():
        step("service", lambda: _service(config))


def _service(config: RegistryConfig) -> Outcome:
    if _is_in_fstab(config):
        return ok("service", f"{FSTAB} mounts it")
    unit = f"modelfs@{config.name}.service"
    _, said, _ = run_bounded(["systemctl", "is-enabled", unit], LIMIT_S)
    enabled = said.strip() or "not-found"
    _, said, _ = run_bounded(["systemctl", "is-active", unit], LIMIT_S)
    active = said.strip() or "unknown"
    if enabled == "not-found":
        return warning(
            "service",
            f"{unit} is not installed: nothing mounts it after a reboot",
            f"make install (in the sources) puts it there; systemctl enable --now {unit}",
        )
    if not enabled.startswith("enabled"):
        return warning(
            "service",
            f"{unit} is {enabled}: nothing mounts it after a reboot",
            f"systemctl enable --now {unit}",
        )
    if active != "active":
        return warning(
            "service",
            f"{unit} is enabled, and {active}",
            f"journalctl -u {unit} says why; systemctl restart {unit}",
        )
    return ok("service", f"{unit} is enabled and active")


def _is_in_fstab(config: RegistryConfig) -> bool:
    try:
        lines = FSTAB.read_text(errors="replace").splitlines()
    except OSError:
        return False
    fields = [line.split() for line in lines if not line.lstrip().startswith("#")]
    return any(
        words[0].removeprefix(SOURCE) == config.name and words[2] in ("modelfs", FILESYSTEM)
        for words in fields
        if len(words) > 2
    )
