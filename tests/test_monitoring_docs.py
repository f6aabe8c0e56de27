"""The dashboard and the alerts of docs/ ask for metrics that there are, in words of PromQL."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelfs.counting import Histogram
from modelfs.mount.metrics import metrics
from modelfs.registry.objects import RequestStatistics
from tests.fake_store import FakeStore
from tests.prometheus import families, names_in
from tests.trio_tests import open_house, trio_test

DOCS = Path(__file__).parent.parent / "docs"
DASHBOARD = DOCS / "grafana" / "modelfs.json"
ALERTS = DOCS / "prometheus" / "alerts.yml"


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def rules() -> list[dict[str, Any]]:
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def expressions() -> Iterator[str]:
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"].replace("$__rate_interval", "5m")
    for rule in rules():
        yield rule["expr"]


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of all metrics, those of what has happened once included."""
    answered = RequestStatistics({("GetObject", "ok"): 1}, {"GetObject": Histogram([1.0])}, 1)
    monkeypatch.setattr(FakeStore, "statistics", lambda _: answered)
    texts: list[str] = []

    @trio_test
    async def make() -> None:
        async with open_house(tmp_path, FakeStore()) as made:
            monkeypatch.setattr(made.staging, "_max_bytes", 1)
            made.services.requests.end("read", made.services.requests.begin())
            made.services.requests.fail("read", 5)
            texts.append((await metrics(made.services)).decode())

    make()
    found = set()
    for name, family in families(texts[0]).items():
        found.add(f"{name}_total" if family.type == "counter" else name)
    return found


def test_every_metric_that_a_panel_or_an_alert_asks_for_exists(known: set[str]) -> None:
    asked = [names_in(expression) for expression in expressions()]
    assert len(asked) > 40
    assert set().union(*asked) - known == set()


def test_the_guide_names_every_metric_and_no_other(known: set[str]) -> None:
    named = set(
        re.findall(r"`((?:modelfs|process)_[a-z_]+)`", (DOCS / "OPERATIONS.md").read_text())
    )
    assert named - known == set()
    assert {name for name in known if name.startswith("modelfs_")} - named == set()


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) > 10
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "action"}
        assert rule["labels"]["severity"] in ("warning", "critical")


def test_no_two_panels_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
