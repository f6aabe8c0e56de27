"""Which mount a command means."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.cli import mounts
from modelfs.errors import ModelfsError
from tests.cli.conftest import Hub, Run, mountinfo_line


def test_mounts_are_found_in_the_kernels_list(hub: Hub) -> None:
    assert mounts.find() == [mounts.Mount("hub", hub.path)]


def test_a_mountpoint_with_a_space_is_found(mount_list: Path) -> None:
    mount_list.write_text(mountinfo_line(Path("/my models/hub")))
    assert mounts.find()[0].path == Path("/my models/hub")


def test_other_file_systems_and_parts_of_a_tree_are_no_mounts(mount_list: Path) -> None:
    part = mountinfo_line(Path("/srv/llama")).replace(" / ", " /acme/llama ", 1)
    mount_list.write_text(mountinfo_line(Path("/mnt"), "fuse.rclone", "remote:") + part)
    assert mounts.find() == []


def test_a_mount_that_another_covers_is_not_there(mount_list: Path) -> None:
    covered = mountinfo_line(Path("/mnt"))
    mount_list.write_text(covered + mountinfo_line(Path("/mnt"), "tmpfs", "none"))
    assert mounts.find() == []


def test_one_mount_needs_no_name(modelfs: Run, hub: Hub) -> None:
    assert modelfs("ls").status == 0


def test_of_several_mounts_one_must_be_named(modelfs: Run, make_hub: Callable[[str], Hub]) -> None:
    for registry in ("hub", "lab"):
        make_hub(registry).model(f"{registry}/llama")
    result = modelfs("ls")
    assert result.status == 1
    assert "hub at " in result.err
    assert "lab at " in result.err
    for arguments in (("-r", "lab", "ls"), ("ls", "-r", "lab")):
        assert "lab/llama" in modelfs(*arguments).out


def test_the_environment_names_the_mount(
    modelfs: Run, make_hub: Callable[[str], Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry in ("hub", "lab"):
        make_hub(registry).model(f"{registry}/llama")
    monkeypatch.setenv("MODELFS_REGISTRY", "lab")
    assert "lab/llama" in modelfs("ls").out
    assert "hub/llama" in modelfs("ls", "-r", "hub").out


def test_the_current_folder_names_the_mount(
    modelfs: Run, make_hub: Callable[[str], Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    for registry in ("hub", "lab"):
        make_hub(registry).model(f"{registry}/llama")
    monkeypatch.chdir(make_hub("third").path.parent / "lab" / "lab")
    assert "lab/llama" in modelfs("ls").out


def test_a_registry_that_is_not_mounted_is_told_with_those_that_are(modelfs: Run, hub: Hub) -> None:
    result = modelfs("-r", "nowhere", "ls")
    assert result.status == 1
    assert f"'nowhere' is not mounted here; mounted: hub at {hub.path}" in result.err


@pytest.mark.parametrize("suffix", ["", "/", "/."])
def test_a_mountpoint_is_known_by_its_path(hub: Hub, suffix: str) -> None:
    assert mounts.at(f"{hub.path}{suffix}").registry == "hub"


def test_a_mountpoint_is_known_through_symlinks(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "folder").symlink_to(tmp_path)
    (tmp_path / "models").symlink_to("hub")
    assert mounts.at(str(tmp_path / "folder" / "hub")).registry == "hub"
    assert mounts.at(str(tmp_path / "folder" / "models")).registry == "hub"


def test_a_symlink_to_itself_is_no_mount(tmp_path: Path) -> None:
    os.symlink("loop", tmp_path / "loop")
    with pytest.raises(ModelfsError, match="no mount of modelfs"):
        mounts.at(str(tmp_path / "loop"))
