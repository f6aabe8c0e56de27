"""What the documents name is there."""

import ast
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
ARCHITECTURE = ROOT / "docs" / "ARCHITECTURE.md"
SEMANTICS = ROOT / "docs" / "SEMANTICS.md"

_NAMED = re.compile(r"`(test_[a-z0-9_]+)`")
_ROOM = re.compile(r"`((?:[a-z]+/)?(?:[a-z0-9_]+\.py)?)`")
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


def modules() -> set[str]:
    """Return the modules that say something, below modelfs/; a package's own as `cli/`."""
    package = ROOT / "modelfs"
    found = {path.relative_to(package) for path in package.rglob("*.py") if path.stat().st_size}
    rooms = {path for path in found if path.name not in ("__init__.py", "__main__.py")}
    packages = {path.parent for path in found - rooms if path.name == "__init__.py"}
    return {str(path) for path in rooms} | {f"{path}/" for path in packages if path.name}


def test_the_table_of_rooms_names_every_module_once_and_no_other() -> None:
    rows = [row for row in ARCHITECTURE.read_text().splitlines() if row.startswith("| `")]
    named: Counter[str] = Counter()
    for row in rows:
        folder = ""
        for name in _ROOM.findall(row.split("|")[1]):
            folder = name.rpartition("/")[0] or folder
            named[name if "/" in name or not folder else f"{folder}/{name}"] += 1
    assert modules() - named.keys() == set()
    assert named.keys() - modules() == set()
    assert [name for name, count in named.items() if count > 1] == []


def test_every_module_that_the_architecture_names_exists() -> None:
    named = set(re.findall(r"`([a-z0-9_/]+\.py)`", ARCHITECTURE.read_text())) - {"upload.py"}
    known = {name.rpartition("/")[2] for name in modules()}
    of_tests = {name for name in named if name.startswith("tests/")}
    assert all((ROOT / name).exists() for name in of_tests)
    assert {name.rpartition("/")[2] for name in named - of_tests} - known == set()


def test_the_architecture_tells_the_order_of_imports_as_the_contract_holds_it() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    text = " ".join(ARCHITECTURE.read_text().split())
    told = re.findall(r"`(cli → [^`]*)`", text)
    assert told == [" → ".join(layers).replace("modelfs.", "").replace(" |", ",")]


def names_of_classes() -> dict[str, set[str]]:
    """Return class -> names of its functions and fields, those of its bases in modelfs too."""
    found: dict[str, tuple[list[str], set[str]]] = {}
    for path in (ROOT / "modelfs").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
                found[node.name] = bases, set(_names_in(node))

    def all_of(name: str) -> set[str]:
        bases, own = found.get(name, ([], set()))
        return own.union(*map(all_of, bases))

    return {name: all_of(name) for name in found}


def _names_in(node: ast.ClassDef) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inner.name
        elif isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            yield inner.attr


def test_the_functions_and_fields_that_the_architecture_names_are_in_the_code() -> None:
    named = re.findall(r"`([A-Z]\w+)\.([a-z_]\w*)`", ARCHITECTURE.read_text())
    known = names_of_classes()
    assert len(named) > 15
    assert [one for one in named if one[1] not in known.get(one[0], ())] == []
