"""modelfs ls."""

import errno
import json
import os
import re
from typing import Any

import pytest

from tests.cli.conftest import Hub, Run


@pytest.fixture
def filled(hub: Hub) -> Hub:
    """Two namespaces; acme/llama has three versions and an alias."""
    folder = hub.model("acme/llama", description="chat, 8B", cached="768/3072")
    hub.model("acme/whisper")
    hub.model("team-b/llama", source="acme/llama")
    for name in ("v2", "v10"):
        hub.version("acme/llama", name)
    hub.version("acme/llama", "v11", state="downloading", progress="512/2048", error="waits")
    (folder / "latest").symlink_to("v10")
    (folder / "production").symlink_to("v2")
    (folder / "main" / "weights").mkdir()
    (folder / "main" / "weights" / "model.bin").write_bytes(bytes(3000))
    (folder / "main" / "config.json").write_bytes(bytes(72))
    manifest = {"files": [{"path": "a"}, {"path": "b"}], "pinned_ns": 1_790_000_000_000_000_000}
    (folder / ".modelfs" / "versions" / "v2.json").write_text(json.dumps(manifest))
    return hub


def test_it_lists_the_models(modelfs: Run, filled: Hub) -> None:
    result = modelfs("ls")
    assert result.status == 0
    lines = result.out.splitlines()
    columns = ["MODEL", "MAIN", "CACHED", "VERSIONS", "SIZE", "LATEST", "ALIASES", "DESCRIPTION"]
    assert lines[0].split() == [*columns, "SOURCE"]
    words = re.split("  +", lines[1])
    assert words[:6] == ["acme/llama", "3.0 KiB", "25%", "3 (1 downloading)", "6.0 KiB", "v10"]
    assert "production->v2  chat, 8B" in lines[1]
    assert lines[3].endswith("acme/llama")
    assert [line.split()[0] for line in lines[2:]] == ["acme/whisper", "team-b/llama"]


def test_it_lists_one_namespace(modelfs: Run, filled: Hub) -> None:
    assert "acme" not in modelfs("ls", "team-b").out.replace("acme/llama\n", "")
    assert [model["model"] for model in modelfs("ls", "team-b", "--json").json] == ["team-b/llama"]


def test_it_lists_a_models_versions_by_number(modelfs: Run, filled: Hub) -> None:
    lines = modelfs("ls", "acme/llama").out.splitlines()
    names = ["NAME", "main", "v2", "v10", "v11", "description:"]
    assert [line.split()[0] for line in lines] == names
    assert "3.0 KiB  25%     2" in lines[1]
    assert lines[5] == "description: chat, 8B"
    assert "ready" in lines[2]
    assert lines[2].endswith("production")
    assert "downloading 25%: waits" in lines[4]


def test_json_has_all_that_is_known(modelfs: Run, filled: Hub) -> None:
    [model] = modelfs("ls", "acme/llama", "--json").json
    assert model["description"] == "chat, 8B"
    assert model["aliases"] == {"latest": "v10", "production": "v2"}
    assert model["main"] == {"files": 2, "bytes": 3072}
    assert (model["main_bytes"], model["cached_bytes"]) == (3072, 768)
    assert model["versions"][0] == {
        "version": "v2",
        "state": "ready",
        "done_bytes": 2048,
        "total_bytes": 2048,
        "digest": "digest-of-v2",
        "error": None,
        "path": "/store/acme/llama/v2",
        "files": 2,
        "pinned_ns": 1_790_000_000_000_000_000,
    }


def test_a_path_inside_the_mount_will_do(
    modelfs: Run, filled: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_name = modelfs("ls", "acme/llama").out
    assert modelfs("ls", f"{filled.path}/acme/llama/").out == by_name
    monkeypatch.chdir(filled.path / "acme" / "llama")
    assert modelfs("ls", ".").out == by_name
    monkeypatch.chdir(filled.path / "acme")
    assert modelfs("ls", "./llama").out == by_name
    assert len(modelfs("ls", str(filled.path)).out.splitlines()) == 4
    assert len(modelfs("ls", ".").out.splitlines()) == 3


def test_a_path_outside_is_refused(modelfs: Run, filled: Hub) -> None:
    result = modelfs("ls", "/etc/passwd")
    assert result.status == 1
    assert "not inside a mount" in result.err


def test_what_is_not_there_is_told(modelfs: Run, filled: Hub) -> None:
    assert "there is no such model in hub" in modelfs("ls", "acme/gpt").err
    assert "there is no such namespace in hub" in modelfs("ls", "nobody").err


def test_an_empty_registry_is_a_table_without_rows(modelfs: Run, hub: Hub) -> None:
    header = "MODEL  MAIN  CACHED  VERSIONS  SIZE  LATEST  ALIASES  DESCRIPTION"
    assert modelfs("ls").out.splitlines() == [header]
    assert modelfs("ls", "--json").json == []


def test_while_the_registry_is_down_it_lists_what_is_here(
    modelfs: Run, filled: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.getxattr

    def getxattr(path: Any, name: str, **options: Any) -> bytes:
        if str(path) == str(filled.path / "acme/llama"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, name, **options)

    monkeypatch.setattr(os, "getxattr", getxattr)
    result = modelfs("ls")
    assert result.status == 0
    words = re.split("  +", result.out.splitlines()[1])
    assert words[:6] == ["acme/llama", "-", "-", "3 (1 downloading)", "6.0 KiB", "v10"]


def test_a_version_that_is_damaged_is_told(modelfs: Run, filled: Hub) -> None:
    error = b"config.json: missing"
    os.setxattr(filled.path / "acme/llama/v2", "user.modelfs.error", error)
    assert "3 (1 damaged, 1 downloading)" in modelfs("ls").out
    assert "damaged: config.json: missing" in modelfs("ls", "acme/llama").out
