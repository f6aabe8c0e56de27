"""modelfs diff."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Hub, Run, set_attributes


def entry(path: str, data: bytes, etag: str = "", sha256: str | None = "") -> dict[str, Any]:
    """A file as a manifest has it; its ETag and SHA-256 are of `data` unless they are given."""
    return {
        "path": path,
        "key": f"models/acme/llama/{path}",
        "etag": etag or hashlib.md5(data).hexdigest(),
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest() if sha256 == "" else sha256,
        "modified_ns": 10**18,
        "mtime_ns": None,
    }


def write_manifest(hub: Hub, version: str, *files: dict[str, Any], **more: Any) -> None:
    manifest = {"files": list(files), "folders": [], "ready_ns": 1} | more
    path = hub.path / "acme/llama/.modelfs/versions" / f"{version}.json"
    path.write_text(json.dumps(manifest))


def put_in_main(hub: Hub, path: str, data: bytes, **attributes: str) -> Path:
    file = hub.path / "acme/llama/main" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    set_attributes(file, {"etag": hashlib.md5(data).hexdigest()} | attributes)
    return file


@pytest.fixture
def llama(hub: Hub) -> Hub:
    """acme/llama with v1, v2 that differs, and an alias of v1."""
    folder = hub.model("acme/llama")
    for version in ("v1", "v2"):
        hub.version("acme/llama", version)
    (folder / "production").symlink_to("v1")
    write_manifest(hub, "v1", entry("a", b"one"), entry("old", b"12345"), entry("w/b", b"same"))
    write_manifest(hub, "v2", entry("a", b"three"), entry("new", b""), entry("w/b", b"same"))
    return hub


def test_versions_that_differ_are_shown_file_by_file(modelfs: Run, llama: Hub) -> None:
    result = modelfs("diff", "acme/llama@v1", "acme/llama@v2")
    assert result.status == 1
    assert result.err == ""
    assert result.out.splitlines() == [
        "CHANGE   FILE  acme/llama@v1  acme/llama@v2",
        "added    new   -              0 B",
        "removed  old   5 B            -",
        "changed  a     3 B            5 B",
    ]


def test_the_same_in_json(modelfs: Run, llama: Hub) -> None:
    result = modelfs("diff", "acme/llama@production", "v2", "--json")
    assert result.status == 1
    assert result.json == {
        "one": "acme/llama@v1",
        "other": "acme/llama@v2",
        "equal": False,
        "added": [{"path": "new", "size": 0}],
        "removed": [{"path": "old", "size": 5}],
        "changed": [{"path": "a", "size": 5, "size_before": 3}],
    }


def test_equal_versions_are_exit_status_0(modelfs: Run, llama: Hub) -> None:
    result = modelfs("diff", "acme/llama@v1", "acme/llama@production")
    assert result.status == 0
    assert result.out == "acme/llama@v1 and acme/llama@v1: 3 files, 12 B, equal\n"
    assert modelfs("diff", "acme/llama@v1", "v1", "--json").json["equal"] is True


def test_equal_bytes_with_other_etags_are_equal(modelfs: Run, llama: Hub) -> None:
    write_manifest(llama, "v1", entry("a", b"one", etag="e1-2"))
    write_manifest(llama, "v2", entry("a", b"one", etag="e2-3"))
    assert modelfs("diff", "acme/llama@v1", "v2").status == 0


def test_a_version_that_downloads_is_compared_by_its_etags(modelfs: Run, llama: Hub) -> None:
    write_manifest(llama, "v2", entry("a", b"one", sha256=None))
    write_manifest(llama, "v1", entry("a", b"one"))
    assert modelfs("diff", "acme/llama@v1", "v2").status == 0
    write_manifest(llama, "v1", entry("a", b"two"))
    assert modelfs("diff", "acme/llama@v1", "v2").status == 1


def test_main_is_compared_by_size_and_etag_and_never_read(
    modelfs: Run, llama: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_main(llama, "a", b"one")
    put_in_main(llama, "old", b"54321")
    put_in_main(llama, "w/b", b"same").chmod(0)
    put_in_main(llama, "w/c", b"c")
    (llama.path / "acme/llama/main/empty").mkdir()
    result = modelfs("diff", "acme/llama@v1", "main", "--json")
    assert result.status == 1
    assert result.json["other"] == "acme/llama/main"
    assert result.json["added"] == [{"path": "w/c", "size": 1}]
    assert result.json["changed"] == [{"path": "old", "size": 5, "size_before": 5}]
    assert modelfs("diff", "acme/llama@main", "v1", "--json").json["removed"] == [
        {"path": "w/c", "size": 1}
    ]


def test_main_that_is_equal_is_told(modelfs: Run, llama: Hub) -> None:
    for path, data in (("a", b"one"), ("old", b"12345"), ("w/b", b"same")):
        put_in_main(llama, path, data)
    assert modelfs("diff", "acme/llama@v1", "acme/llama@main").status == 0
    put_in_main(llama, "a", b"one", dirty="1")
    assert modelfs("diff", "acme/llama@v1", "main").status == 1


def test_a_path_names_a_version(modelfs: Run, llama: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama.path / "acme/llama"
    assert modelfs("diff", f"{model}/v1", f"{model}/v2").status == 1
    monkeypatch.chdir(model)
    assert modelfs("diff", "v1", "production").status == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("acme/llama@v1", "acme/llama@v9"), "there is no version acme/llama@v9"),
        (("acme/llama@v1", "nothing"), "no version or alias 'nothing'"),
        (("acme/gpt@v1", "main"), "there is no such model"),
        (("acme/gpt@main", "main"), "there is no such model"),
        (("acme/llama", "v1"), "names no version"),
    ],
)
def test_what_cannot_be_compared_is_exit_status_2(
    modelfs: Run, llama: Hub, arguments: tuple[str, ...], says: str
) -> None:
    result = modelfs("diff", *arguments)
    assert result.status == 2
    assert says in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 1}'])
def test_a_damaged_manifest_is_told(modelfs: Run, llama: Hub, text: str) -> None:
    (llama.path / "acme/llama/.modelfs/versions/v2.json").write_text(text)
    result = modelfs("diff", "acme/llama@v1", "v2")
    assert result.status == 2
    assert "the manifest of acme/llama@v2 is damaged" in result.err


def test_a_main_that_cannot_be_listed_is_told(
    modelfs: Run, llama: Hub, refuse: Callable[[str, int], None]
) -> None:
    refuse("scandir", 5)
    result = modelfs("diff", "acme/llama@v1", "main")
    assert result.status == 2
    assert "cannot list acme/llama/main: the registry does not answer" in result.err
