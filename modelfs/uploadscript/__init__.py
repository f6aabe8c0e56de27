"""The upload script: written as modules, given out as one file that needs Python alone.

Each module is code of the script, in the order of PARTS; they import nothing of modelfs but each
other. `script` puts them together: the imports, once, then the modules, and in the first one the
grant, which is data (JSON) and never code.
"""

import ast
import json
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

SHEBANG = "#!/usr/bin/env python3"
PARTS = (
    *("grant", "troubles", "files", "xmltext", "wire", "answers", "temporary", "signed"),
    *("planning", "showing", "sending", "main"),
)
EMPTY = 'r"""null"""'  # what `grant` has in place of the grant


def script(grant: Mapping[str, Any]) -> bytes:
    """Return the script with this grant in it, and the grant's note as its first lines."""
    note = textwrap.wrap(
        " ".join(grant["note"].split()), 98, break_long_words=False, break_on_hyphens=False
    )
    text = json.dumps(grant, indent=1, ensure_ascii=True)  # never has three quotes in a row
    head, code = _joined().split(EMPTY)
    first = "".join(f"# {line}\n" for line in note)
    return f'{SHEBANG}\n{first}{head}r"""\n{text}\n"""{code}'.encode()


@cache
def _joined() -> str:
    imports: dict[str, set[str]] = {}
    docstring, first, *others = (part for name in PARTS for part in _split(name, imports))
    bodies = [
        f"\n\n# {title} {'-' * (96 - len(title))}\n\n\n{body}"
        for title, body in zip(others[::2], others[1::2], strict=True)
    ]
    head = "\n".join(["from __future__ import annotations\n", *_import_lines(imports)])
    return f'"""{docstring}\n"""\n\n{head}\n\n{first}{"".join(bodies)}\n\n{START}'


START = """if __name__ == "__main__":
    main(sys.argv[1:])
"""


def _split(name: str, imports: dict[str, set[str]]) -> tuple[str, str]:
    """Return a module's docstring, of others than the first its title, and its code.

    What it imports of Python's own library is added to `imports`: module -> names of it.
    """
    text = resources.files(__name__).joinpath(f"{name}.py").read_text("utf-8")
    tree, lines = ast.parse(text), text.splitlines()
    for node in reversed(tree.body[1:]):
        if isinstance(node, ast.Import):
            for module in node.names:
                imports.setdefault(ast.unparse(node).removeprefix("import "), set())
                assert len(node.names) == 1, module
        elif isinstance(node, ast.ImportFrom):
            if not (node.module or "").startswith((__name__, "__future__")):
                names = imports.setdefault(node.module or "", set())
                names.update(alias.name for alias in node.names)
        else:
            continue
        del lines[node.lineno - 1 : node.end_lineno]
    docstring = ast.get_docstring(tree) or ""
    code = "\n".join(lines[tree.body[0].end_lineno or 0 :]).strip("\n") + "\n"
    return docstring if name == PARTS[0] else docstring.partition("\n")[0].rstrip("."), code


def _import_lines(imports: Mapping[str, set[str]]) -> Iterator[str]:
    for module, names in sorted(imports.items(), key=lambda item: (bool(item[1]), item[0])):
        yield f"from {module} import {', '.join(sorted(names))}" if names else f"import {module}"
