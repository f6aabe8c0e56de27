"""Places in a TOML file: how one is written, on which line it stands, what is there. Pure.

A place is the path of keys to a value: ("registries", "hub", "local_only", 0).
"""

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

Place = tuple[int | str, ...]

LINES_MAX = 2_000  # of a file whose places are looked for: each line costs a parse of those before

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def dotted(place: Place) -> str:
    """Write a place as the file would: registries.hub.local_only[0]."""
    text = ""
    for part in place:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." + (part if _BARE_KEY.fullmatch(part) else json.dumps(part))
    return text.removeprefix(".")


def found(place: Place, document: Mapping[str, Any]) -> str:
    """Show a value as the file has it, but nothing that could be a secret."""
    value: Any = document
    for part in place:
        if part == "[key]":
            return repr(place[-2])
        value = value[part]
    if isinstance(value, dict):
        return "a table" if value else "an empty table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return str(value).lower()
    if place[-1] == "credentials":
        return "no path"
    if isinstance(value, str):
        return repr(re.sub(r"//.*@", "//***@", value, flags=re.DOTALL))
    return str(value)


class Lines:
    """On which lines of a TOML text its values begin.

    Python's parser tells no lines. But a text that is cut after some line is TOML again, unless
    a value of several lines was cut: a value begins on the first line after the longest such
    text that lacks it.
    """

    def __init__(self, text: str) -> None:
        """Take a text that is TOML."""
        lines = text.splitlines(keepends=True)
        self._grown: list[tuple[int, dict[str, Any]]] = []  # first line of each growth, and all
        begin = 1
        for number in range(1, len(lines) + 1 if len(lines) <= LINES_MAX else 1):
            try:
                document = tomllib.loads("".join(lines[:number]))
            except ValueError:
                continue
            self._grown.append((begin, document))
            begin = number + 1

    def of(self, place: Place) -> int | None:
        """Return the line where the value at `place` begins, or its table's; None: not known."""
        for length in range(len(place), 0, -1):
            for line, document in self._grown:
                if _has(document, place[:length]):
                    return line
        return None


def _has(document: Any, place: Place) -> bool:
    for part in place:
        if isinstance(document, list) and isinstance(part, int):
            if part >= len(document):
                return False
        elif not isinstance(document, dict) or part not in document:
            return False
        document = document[part]
    return True
