"""What Prometheus would say of a text of metrics: its own parser, and promtool's rules of names.

`promtool check metrics` is of Go; its rules are few and are written down here, with those of
https://prometheus.io/docs/practices/naming/.
"""

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import promql_parser
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

Series = dict[str, dict[tuple[tuple[str, str], ...], float]]

_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_NO_BASE_UNITS = re.compile(
    r"(milli|micro|nano|kilo|mega|giga|kibi|mebi|gibi)|_(ms|us|ns|minutes|hours|days|kb|mb|gb|percent)\b"
)
_TYPES = re.compile(r"(^|_)(counter|gauge|histogram|summary)(_|$)")
_SELECTED = re.compile(r"\b((?:modelfs|process)_[a-z0-9_]+)")


def families(text: str) -> dict[str, Metric]:
    """Return the metrics of a text by name; a counter's has no `_total`."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def series(text: str) -> Series:
    """Return the value of each series, by name and by labels without `registry`."""
    found: Series = {}
    for family in families(text).values():
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "registry"))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def problems(text: str) -> Iterator[str]:
    """Yield what promtool, or Prometheus' rules for names, have against a text of metrics."""
    if not text.endswith("\n"):
        yield "the text does not end with a newline"
    names: set[str] = set()
    for family in text_string_to_metric_families(text):
        name = family.name
        if name in names:
            yield f"{name}: twice"
        names.add(name)
        if not family.documentation.strip():
            yield f"{name}: no HELP"
        if family.type not in ("counter", "gauge", "histogram"):
            yield f"{name}: no TYPE, or an odd one: {family.type}"
        if not _NAME.fullmatch(name):
            yield f"{name}: not in snake_case"
        is_reserved = re.search(r"_(total|count|sum|bucket)$", name)
        if family.type != "counter" and is_reserved:
            yield f"{name}: a suffix of another type"
        if _NO_BASE_UNITS.search(name):
            yield f"{name}: not in base units"
        if _TYPES.search(name):
            yield f"{name}: its type is in its name"
        if family.type == "histogram" and not name.endswith("_seconds"):
            yield f"{name}: no unit at its end"
        for sample in family.samples:
            if family.type == "counter" and not sample.name.endswith("_total"):
                yield f"{sample.name}: a counter without _total"
            for label in sample.labels:
                if not _NAME.fullmatch(label) or label in ("job", "instance"):
                    yield f"{sample.name}: an odd label {label}"


def names_in(expression: str) -> set[str]:
    """Return the metrics that an expression of PromQL selects; raises ValueError where it is none.

    Names of buckets, sums and counts are those of their histogram.
    """
    promql_parser.parse(expression)
    found = _SELECTED.findall(expression)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def scrape(port: int, path: str = "/metrics") -> tuple[int, str]:
    """Return status and text of what a port of this host says."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def metrics_of(mountpoint: Path) -> str:
    return (mountpoint / ".modelfs" / "metrics").read_text()
