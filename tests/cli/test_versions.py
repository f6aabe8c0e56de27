"""modelfs path and modelfs rm."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Hub, Run, mountinfo_line


@pytest.fixture
def llama(hub: Hub) -> Hub:
    folder = hub.model("acme/llama")
    hub.version("acme/llama", "v1")
    (folder / "production").symlink_to("v1")
    return hub


@pytest.mark.parametrize(
    "version", ["acme/llama@v1", "acme/llama@production", "acme/llama/v1", "acme/llama/production/"]
)
def test_path_prints_the_plain_folder(modelfs: Run, llama: Hub, version: str) -> None:
    assert modelfs("path", version).out == "/store/acme/llama/v1\n"


def test_path_takes_a_path_in_the_mount(
    modelfs: Run, llama: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert modelfs("path", f"{llama.path}/acme/llama/production").out == "/store/acme/llama/v1\n"
    monkeypatch.chdir(llama.path / "acme/llama")
    assert modelfs("path", "production").out == "/store/acme/llama/v1\n"


def test_path_in_json_names_the_version(modelfs: Run, llama: Hub) -> None:
    assert modelfs("path", "acme/llama@production", "--json").json == {
        "model": "acme/llama",
        "version": "v1",
        "path": "/store/acme/llama/v1",
    }


def test_path_of_a_store_without_attributes_is_known_from_manifest_and_status(
    modelfs: Run, llama: Hub
) -> None:
    (llama.path / "acme/llama/v2").mkdir()
    manifest = {"files": [{"path": "a", "size": 5}], "ready_ns": 1}
    (llama.path / "acme/llama/.modelfs/versions/v2.json").write_text(json.dumps(manifest))
    llama.status()
    assert modelfs("path", "acme/llama@v2").out == "/store/models/acme/llama/v2\n"


def test_path_of_a_version_that_is_not_whole_is_refused(modelfs: Run, llama: Hub) -> None:
    llama.version("acme/llama", "v2", state="downloading", error="no answer")
    result = modelfs("path", "acme/llama@v2")
    assert result.status == 1
    assert "is downloading (no answer)" in result.err
    assert "modelfs wait acme/llama@v2" in result.err


def test_path_of_main_or_nothing_is_refused(modelfs: Run, llama: Hub) -> None:
    assert "no version or alias 'main'" in modelfs("path", "acme/llama@main").err
    assert "no version or alias 'nothing'" in modelfs("path", "acme/llama@nothing").err
    assert "there is no version" in modelfs("path", "acme/llama@v9").err


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store with acme/llama@v1 and an alias, and a configuration that names it."""
    folder = tmp_path / "store"
    (folder / "models/acme/llama/v1").mkdir(parents=True)
    (folder / "models/acme/llama/production").symlink_to("v1")
    configuration = tmp_path / "modelfs.toml"
    configuration.write_text(
        f'[registries.hub]\nendpoint = "http://h:1"\nbucket = "models"\nstore = "{folder}"\n'
    )
    monkeypatch.setenv("MODELFS_CONFIG", str(configuration))
    return folder


@pytest.mark.parametrize("version", ["v1", "production"])
def test_path_without_a_mount_is_found_in_the_store(
    modelfs: Run, store: Path, version: str
) -> None:
    result = modelfs("path", f"acme/llama@{version}")
    assert result.out == f"{store}/models/acme/llama/v1\n"


def test_path_without_a_mount_of_what_the_store_has_not_is_told(modelfs: Run, store: Path) -> None:
    for version in ("v9", "nothing"):
        result = modelfs("path", f"acme/llama@{version}")
        assert result.status == 1
        assert "hub is not mounted: modelfs mount hub" in result.err


def test_rm_deletes_a_version_without_a_question(modelfs: Run, llama: Hub) -> None:
    llama.version("acme/llama", "v2")
    result = modelfs("rm", "acme/llama@v2")
    assert result.status == 0
    assert result.out == "acme/llama@v2 is deleted\n"
    assert not (llama.path / "acme/llama/v2").exists()


def test_rm_names_the_aliases_that_are_in_the_way(
    modelfs: Run, llama: Hub, refuse: Callable[[str, int], None]
) -> None:
    refuse("rmdir", errno.EBUSY)
    result = modelfs("rm", "acme/llama@v1")
    assert result.status == 1
    assert "cannot delete acme/llama@v1: production points at it" in result.err
    assert "modelfs alias acme/llama production ANOTHER" in result.err


def test_rm_says_that_a_file_is_open(
    modelfs: Run, llama: Hub, refuse: Callable[[str, int], None]
) -> None:
    llama.version("acme/llama", "v2")
    refuse("rmdir", errno.EBUSY)
    assert "a file of it is open" in modelfs("rm", "acme/llama@v2").err


@pytest.mark.parametrize(
    ("version", "says"),
    [
        ("acme/llama@main", "is the working tree"),
        ("acme/llama@production", "modelfs alias acme/llama --delete production"),
        ("acme/llama@nothing", "is no version's name"),
        ("acme/llama@v9", "there is no version acme/llama@v9"),
        ("acme/gpt@v1", "there is no such model"),
        ("acme", "is not inside a mount"),
    ],
)
def test_rm_refuses(modelfs: Run, llama: Hub, version: str, says: str) -> None:
    result = modelfs("rm", version)
    assert result.status == 1
    assert says in result.err
    assert result.err.count("\n") == 1


def test_rm_takes_the_native_mount_away_first(
    modelfs: Run, llama: Hub, mount_list: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = llama.version("acme/llama", "v2")
    listed = mount_list.read_text()
    mount_list.write_text(listed + mountinfo_line(version, "ext4", "/dev/vda"))
    real_rmdir = os.rmdir

    def rmdir(path: os.PathLike[str]) -> None:
        if str(version) in mount_list.read_text():
            raise OSError(errno.EBUSY, "mounted")
        real_rmdir(path)

    def release(path: os.PathLike[str], name: str, value: bytes) -> None:
        assert (Path(path).name, name, value) == ("llama", "user.modelfs.release", b"v2")
        mount_list.write_text(listed)

    monkeypatch.setattr(os, "rmdir", rmdir)
    monkeypatch.setattr(os, "setxattr", release)
    assert modelfs("rm", "acme/llama@v2").status == 0
    assert not version.exists()


def test_rm_leaves_the_native_mount_of_a_version_with_an_alias(
    modelfs: Run,
    llama: Hub,
    mount_list: Path,
    refuse: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with mount_list.open("a") as listed:
        listed.write(mountinfo_line(llama.path / "acme/llama/v1", "ext4", "/dev/vda"))
    monkeypatch.setattr(os, "setxattr", lambda *_: pytest.fail("it was unmounted"))
    refuse("rmdir", errno.EBUSY)
    assert "production points at it" in modelfs("rm", "acme/llama@v1").err


def test_rm_of_a_model_that_has_something_is_refused_and_says_what(
    modelfs: Run, llama: Hub
) -> None:
    (llama.path / "acme/llama/main/config.json").write_text("{}")
    result = modelfs("rm", "acme/llama")
    assert result.status == 1
    assert "acme/llama has 1 version and 1 alias and files in main/" in result.err
    assert "modelfs rm acme/llama --everything" in result.err
    assert result.err.count("\n") == 1
    assert (llama.path / "acme/llama/v1").is_dir()


def test_rm_everything_is_of_a_model_alone(modelfs: Run, llama: Hub) -> None:
    assert modelfs("rm", "acme/llama@v1", "--everything").status == 2
    assert "there is no such model" in modelfs("rm", "acme/gpt").err
