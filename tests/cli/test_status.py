"""modelfs status."""

import os
from collections.abc import Callable

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
