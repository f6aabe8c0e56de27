"""What the documents name is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
SEMANTICS = ROOT / "docs" / "SEMANTICS.md"

_NAMED = re.compile(r"`(test_[a-z0-9_]+)`")
_DEFINED = re.compile(r"^(?:async )?def (test_[a-z0-9_]+)\(", re.MULTILINE)


def test_every_test_that_semantics_names_exists() -> None:
    named = set(_NAMED.findall(SEMANTICS.read_text()))
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in _DEFINED.findall(path.read_text())
    }
    assert len(named) > 40
    assert named - defined == set()


def test_every_row_of_semantics_is_whole_and_shown_by_a_test() -> None:
    rows = [line for line in SEMANTICS.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) > 25
    for row in rows:
        cells = row.strip().strip("|").split("|")
        assert len(cells) == 6, row
        assert cells[0].strip() == "operation" or _NAMED.search(cells[-1]), row
