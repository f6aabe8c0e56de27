"""modelfs rollback, on plain folders that stand for the mount."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelfs.cli import rolling
from tests.cli.conftest import Hub, Run
from tests.cli.test_diff import entry, put_in_main, write_manifest

FILES = {"config.json": b"{}", "w/a.bin": b"a" * 3000, "w/deep/b": b"b", "same": b"same"}
TIME_NS = 1_600_000_000_123_456_789


@pytest.fixture
def llama(hub: Hub) -> Hub:
    """acme/llama with v1, and a main/ that went on."""
    folder = hub.model("acme/llama")
    version = hub.version("acme/llama", "v1")
    (folder / "production").symlink_to("v1")
    for path, data in FILES.items():
        (version / path).parent.mkdir(parents=True, exist_ok=True)
        (version / path).write_bytes(data)
    entries = [entry(path, data) | {"mtime_ns": TIME_NS} for path, data in FILES.items()]
    folders = ["w", "w/deep", "w/empty"]
    write_manifest(hub, "v1", *entries, folders=folders)
    put_in_main(hub, "config.json", b'{"new": 1}')
    put_in_main(hub, "same", b"same")
    put_in_main(hub, "new/x/y", b"y")
    put_in_main(hub, "extra", b"extra")
    return hub


def tree(folder: Path) -> dict[str, Any]:
    """Return every path below a folder: the bytes of a file, None for a folder."""
    found = {}
    for path in folder.rglob("*"):
        found[str(path.relative_to(folder))] = path.read_bytes() if path.is_file() else None
    return found


def main_of(hub: Hub) -> Path:
    return hub.path / "acme/llama/main"


WHOLE = {**FILES, "w": None, "w/deep": None, "w/empty": None}


@pytest.mark.parametrize("version", ["v1", "production"])
def test_main_becomes_what_the_version_is(modelfs: Run, llama: Hub, version: str) -> None:
    untouched = (main_of(llama) / "same").stat()
    result = modelfs("rollback", "acme/llama", version)
    assert result.status == 0, result.err
    assert tree(main_of(llama)) == WHOLE
    assert (main_of(llama) / "w/a.bin").stat().st_mtime_ns == TIME_NS
    assert (main_of(llama) / "same").stat().st_ino == untouched.st_ino
    assert result.out.splitlines() == [
        "written: config.json (2 B)",
        "written: w/a.bin (2.9 KiB)",
        "written: w/deep/b (1 B)",
        "removed: extra",
        "removed: new/x/y",
        "made: w/",
        "made: w/deep/",
        "made: w/empty/",
        "removed: new/x/",
        "removed: new/",
        "acme/llama/main is equal to v1: 3 files (2.9 KiB) written, 2 files removed",
    ]


def test_a_dry_run_changes_nothing(modelfs: Run, llama: Hub) -> None:
    before = tree(main_of(llama))
    result = modelfs("rollback", "acme/llama", "v1", "--dry-run", "--json")
    assert result.json == {
        "model": "acme/llama",
        "version": "v1",
        "dry_run": True,
        "written": [
            {"path": "config.json", "size": 2},
            {"path": "w/a.bin", "size": 3000},
            {"path": "w/deep/b", "size": 1},
        ],
        "removed": ["extra", "new/x/y"],
        "made_folders": ["w", "w/deep", "w/empty"],
        "removed_folders": ["new/x", "new"],
        "equal_before": 1,
    }
    assert tree(main_of(llama)) == before
    assert (
        "would be written: config.json" in modelfs("rollback", "acme/llama", "v1", "--dry-run").out
    )


def test_nobody_sees_half_a_file_and_what_is_new_comes_first(
    modelfs: Run, llama: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    copy = rolling._copy

    def look(plan: Any, path: str, target: Path, bar: Any) -> None:
        copy(plan, path, target, bar)
        assert target.parent == (main_of(llama) / path).parent
        seen.append(tree(main_of(llama)).get(path))
        assert (main_of(llama) / "extra").exists()

    monkeypatch.setattr(rolling, "_copy", look)
    assert modelfs("rollback", "acme/llama", "v1").status == 0
    assert seen == [b'{"new": 1}', None, None]


@pytest.mark.parametrize("number", range(1, 12))
def test_it_is_said_again_after_an_interruption(
    modelfs: Run, llama: Hub, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calls = [0]

    def interrupting(call: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **options: Any) -> Any:
            calls[0] += 1
            if calls[0] == number:
                raise KeyboardInterrupt
            return call(*arguments, **options)

        return made

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "mkdir", "rmdir"):
            patch.setattr(Path, name, interrupting(getattr(Path, name)))
        status = modelfs("rollback", "acme/llama", "v1").status
    assert status == 130 or calls[0] < number
    assert modelfs("rollback", "acme/llama", "v1").status == 0
    assert tree(main_of(llama)) == WHOLE


def test_what_a_killed_rollback_left_is_removed(modelfs: Run, llama: Hub) -> None:
    put_in_main(llama, f"{rolling.TEMPORARY}0123", b"half")
    assert modelfs("rollback", "acme/llama", "v1").status == 0
    assert tree(main_of(llama)) == WHOLE


def test_a_folder_where_a_file_must_be_and_the_other_way_round(modelfs: Run, llama: Hub) -> None:
    (main_of(llama) / "config.json").unlink()
    put_in_main(llama, "config.json/in/it", b"x")
    put_in_main(llama, "w", b"a file")
    assert modelfs("rollback", "acme/llama", "v1").status == 0
    assert tree(main_of(llama)) == WHOLE


def test_equal_bytes_with_another_etag_are_not_written_where_they_are_cached(
    modelfs: Run, llama: Hub
) -> None:
    put_in_main(llama, "config.json", b"{}", etag="other-2", cached="2/2")
    put_in_main(llama, "same", b"SAME", etag="other", cached="4/4")
    written = modelfs("rollback", "acme/llama", "v1", "--dry-run", "--json").json["written"]
    assert [file["path"] for file in written] == ["same", "w/a.bin", "w/deep/b"]


def test_wrong_bytes_of_the_version_never_reach_main(modelfs: Run, llama: Hub) -> None:
    (llama.path / "acme/llama/v1/config.json").write_bytes(b"[]")
    result = modelfs("rollback", "acme/llama", "v1")
    assert result.status == 1
    assert "config.json of acme/llama@v1 has wrong bytes: modelfs verify" in result.err
    assert (main_of(llama) / "config.json").read_bytes() == b'{"new": 1}'
    assert not list(main_of(llama).rglob(f"{rolling.TEMPORARY}*"))
    (llama.path / "acme/llama/v1/config.json").unlink()
    result = modelfs("rollback", "acme/llama", "v1")
    assert "cannot read config.json of acme/llama@v1" in result.err
    assert (main_of(llama) / "extra").exists()


def test_a_version_that_is_not_ready_is_refused(modelfs: Run, llama: Hub) -> None:
    llama.version("acme/llama", "v2", state="downloading", error="no answer")
    result = modelfs("rollback", "acme/llama", "v2")
    assert result.status == 1
    assert "acme/llama@v2 is downloading (no answer): modelfs wait" in result.err
    assert (main_of(llama) / "extra").exists()


def test_the_main_of_another_model_is_refused(modelfs: Run, llama: Hub) -> None:
    local = llama.model("team-b/llama")
    llama.version("team-b/llama", "v1")
    (local / "main").rmdir()
    (local / "main").symlink_to("../../acme/llama/main")
    before = main_of(llama).stat().st_mtime_ns
    result = modelfs("rollback", "team-b/llama", "v1")
    assert result.status == 1
    assert "its main/ is acme/llama's; modelfs rollback acme/llama changes it" in result.err
    assert result.err.count("\n") == 1
    assert main_of(llama).stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("version", "says"),
    [("v9", "there is no version"), ("main", "no version or alias"), ("x", "no version or alias")],
)
def test_what_is_no_version_is_refused(modelfs: Run, llama: Hub, version: str, says: str) -> None:
    result = modelfs("rollback", "acme/llama", version)
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert says in result.err


def test_what_the_mount_refuses_is_a_sentence(
    modelfs: Run, llama: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(Path, "rename", refuse)
    result = modelfs("rollback", "acme/llama", "v1")
    assert result.status == 1
    assert "cannot write acme/llama/main/config.json" in result.err
    assert result.err.count("\n") == 1
