"""modelfs status."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import Hub, Run


def test_it_shows_each_mount(modelfs: Run, make_hub: Callable[[str], Hub]) -> None:
    for registry in ("hub", "lab"):
        make_hub(registry).status(reachable=registry == "hub", reachable_error="no route")
    result = modelfs("status")
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[1].split()[0] == "hub"
    assert "  reachable " in lines[1]
    assert "1.0 KiB of 4.0 KiB" in lines[1]
    assert "  unreachable " in lines[2]
    assert "lab does not answer: no route" in result.out


def test_it_shows_one_mount(modelfs: Run, make_hub: Callable[[str], Hub]) -> None:
    for registry in ("hub", "lab"):
        make_hub(registry).status()
    assert [mount["registry"] for mount in modelfs("status", "-r", "lab", "--json").json] == ["lab"]


def test_it_names_what_waits_and_what_is_wrong(modelfs: Run, hub: Hub) -> None:
    hub.status(
        uploads=[
            {"path": "acme/llama/main/x", "bytes": 2048, "state": "waiting", "error": "no answer"}
        ],
        freezes=[
            {
                "version": "acme/llama@v3",
                "state": "downloading",
                "done_bytes": 1024,
                "total_bytes": 4096,
                "error": None,
            }
        ],
        hidden_keys=[{"key": "models/acme/llama/../x", "reason": "a component '..'"}],
        damaged=[{"version": "acme/llama@v1", "error": "config.json: missing: it is gone"}],
    )
    out = modelfs("status").out
    assert "upload acme/llama/main/x (2.0 KiB) waiting: no answer" in out
    assert "freeze acme/llama@v3 downloading 25% of 4.0 KiB" in out
    assert "hidden key models/acme/llama/../x: a component '..'" in out
    assert "damaged acme/llama@v1: config.json: missing: it is gone; modelfs verify" in out


def test_it_says_that_the_store_is_away(modelfs: Run, hub: Hub) -> None:
    hub.status(store={"path": "/ceph/hub", "error": "the store /ceph/hub does not answer"})
    assert "the store /ceph/hub does not answer" in modelfs("status").out


def test_json_is_what_the_daemon_says(modelfs: Run, hub: Hub) -> None:
    hub.status(counters={"stalled": 3})
    [document] = modelfs("status", "--json").json
    assert document["counters"] == {"stalled": 3}
    assert document["answers"] is True


def test_a_mount_that_hangs_is_told_in_bounded_time(
    modelfs: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelfs.cli.probe.read_status.__defaults__", (0.2,))
    (hub.path / ".modelfs").mkdir()
    os.mkfifo(hub.path / ".modelfs" / "status.json")  # whoever opens it waits
    result = modelfs("status")
    assert result.status == 1
    assert "no answer" in result.out
    assert "gives no answer in 0.2 s" in result.err


def test_a_mount_without_a_status_does_not_answer(modelfs: Run, hub: Hub) -> None:
    result = modelfs("status", "--json")
    assert result.status == 1
    assert result.json[0]["answers"] is False
    assert "No such file or directory" in result.json[0]["error"]


def test_nothing_mounted_is_told(modelfs: Run) -> None:
    assert "no registry is mounted here" in modelfs("status").err


def test_what_is_configured_and_not_mounted_is_shown(
    modelfs: Run, hub: Hub, tmp_path: Path
) -> None:
    hub.status()
    file = tmp_path / "modelfs.toml"
    place = 'endpoint = "http://h:1"\nbucket = "abc"\n'
    file.write_text(f"[registries.hub]\n{place}[registries.far]\n{place}")
    result = modelfs("--config", str(file), "status")
    assert result.status == 0
    assert "far" in result.out.splitlines()[2]
    assert "not mounted" in result.out.splitlines()[2]
    file.write_text("nonsense")
    result = modelfs("--config", str(file), "status")  # the mount is shown all the same
    assert "reachable" in result.out
    assert "not TOML" in result.err


def test_one_mount_is_shown_by_its_folder(modelfs: Run, make_hub: Callable[[str], Hub]) -> None:
    for registry in ("hub", "lab"):
        make_hub(registry).status()
    lab = next(m for m in modelfs("status", "--json").json if m["registry"] == "lab")
    [shown] = modelfs("status", lab["mountpoint"], "--json").json
    assert shown["registry"] == "lab"


def test_mounts_that_hang_are_waited_for_together(
    modelfs: Run, make_hub: Callable[[str], Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelfs.cli.probe.read_status.__defaults__", (2.0,))
    for number in range(5):
        hub = make_hub(f"hub{number}")
        (hub.path / ".modelfs").mkdir()
        os.mkfifo(hub.path / ".modelfs" / "status.json")
    begun = time.monotonic()
    result = modelfs("status")
    assert time.monotonic() - begun < 8  # one after the other it would be 10
    assert result.out.count("no answer") == 5


def test_conflicts_failed_versions_and_bugs_are_named(modelfs: Run, hub: Hub) -> None:
    hub.status(
        conflicts=[{"path": "acme/llama/main/x", "kept_as": "x.conflict-n-1", "time_ns": 1}],
        versions={"ready": 1, "failed": {"acme/llama@v9": "x is gone"}},
        counters={"bugs": 1, "failed_tasks": 1},
        uploads=[
            {"path": f"acme/llama/main/{n}", "bytes": 1, "state": "waiting", "error": "no"}
            for n in range(25)
        ],
    )
    out = modelfs("status").out
    assert "conflict acme/llama/main/x was changed by someone else" in out
    assert "failed acme/llama@v9: x is gone" in out
    assert "bugs 2 errors that nobody expected" in out
    assert "... and 5 more uploads: modelfs status --json" in out
