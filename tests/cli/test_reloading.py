"""modelfs reload: which mount is meant. What it does to a mount: tests/mount/test_reload.py."""

from pathlib import Path

from tests.cli.conftest import Hub, Run, mountinfo_line


def test_without_a_mount_it_says_so(modelfs: Run) -> None:
    result = modelfs("reload", "hub")
    assert result.status == 1
    assert "'hub' is not mounted here" in result.err


def test_of_two_mounts_of_one_registry_none_is_guessed(
    modelfs: Run, hub: Hub, mount_list: Path
) -> None:
    with mount_list.open("a") as listed:
        listed.write(mountinfo_line(Path("/other")))
    result = modelfs("reload", "hub")
    assert result.status == 1
    assert f"hub is mounted at {hub.path} and /other: modelfs reload MOUNTPOINT" in result.err


def test_a_process_that_is_no_daemon_gets_no_signal(modelfs: Run, hub: Hub) -> None:
    """As where the mount was made in a container, which counts its processes anew."""
    hub.status(pid=2)
    result = modelfs("reload", str(hub.path))
    assert result.status == 1
    assert "is no daemon of modelfs" in result.err or "has just ended" in result.err
