"""The configuration: one TOML file, read, checked whole, and told line by line what is wrong.

What may stand in it is in tables.py.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError

from modelfs.errors import ConfigError
from modelfs.tables import (
    DEFAULT_STORES,
    TABLE_WORDS,
    CacheConfig,
    NamespaceConfig,
    RegistryConfig,
    Table,
    keys_of,
)
from modelfs.toml_places import Lines, Place, dotted, found

DEFAULT_FILE = Path("/etc/modelfs/modelfs.toml")

_TOML_PLACE = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)")

Problem = tuple[Place, str]
"""Where something is wrong in the file, and what."""


def settings() -> dict[str, dict[str, str]]:
    """Return the keys of each table of the file, each with what may stand there."""
    tables: dict[str, type[Table]] = {
        "[registries.NAME]": RegistryConfig,
        "[registries.NAME.cache]": CacheConfig,
        "[registries.NAME.namespaces.NAMESPACE]": NamespaceConfig,
    }
    found = {name: keys_of(table) for name, table in tables.items()}
    for key in ("name", "cache", "namespaces"):  # the tables themselves
        del found["[registries.NAME]"][key]
    return found


class Config(Table):
    """The whole file."""

    registries: dict[str, RegistryConfig] = Field(
        min_length=1, description="at least one table [registries.NAME]"
    )
    _file: Path | None = PrivateAttr(default=None)

    def read_again(self) -> "Config":
        """Read the same file anew; raises ConfigError."""
        return load(self._file)

    @property
    def file(self) -> Path | None:
        """The file that this was read from."""
        return self._file

    def registry(self, name: str) -> RegistryConfig:
        """Return the registry called `name`, or raise ConfigError with the names there are."""
        try:
            return self.registries[name]
        except KeyError:
            place = f"{self._file}: " if self._file else ""
            known = ", ".join(sorted(self.registries))
            raise ConfigError(
                f"{place}there is no registry {name!r}{_suggestion(name, self.registries)}"
                f" (known: {known})"
            ) from None


def load(path: Path | None = None) -> Config:
    """Read `path`, or the file of MODELFS_CONFIG, or /etc/modelfs/modelfs.toml.

    Raises ConfigError: one line for each problem of the file.
    """
    path = file_of(path)
    text = _read(path)
    document = _parse(path, text)
    problems = list(_named(document))
    try:
        config = Config.model_validate(
            document, by_alias=True, by_name=False, context={"file": path}
        )
    except ValidationError as error:
        problems += _problems(error, document)
    problems += _overlaps(document)
    problems += _shared_ports(document)
    if problems:
        raise ConfigError("\n".join(_placed(path, text, problems)))
    config._file = path
    return config


def _placed(path: Path, text: str, problems: Iterable[Problem]) -> Iterator[str]:
    """Yield each problem as a line with its file and line."""
    lines = Lines(text)
    for place, what in dict.fromkeys(problems):
        line = lines.of(place)
        yield f"{path}: {f'line {line}: ' if line else ''}{dotted(place)}: {what}"


def file_of(path: Path | None) -> Path:
    """Return the file that `load` reads."""
    return path or Path(os.environ.get("MODELFS_CONFIG") or DEFAULT_FILE)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: there is no such file; make it with the three lines [registries.hub], "
            'endpoint = "https://HOST" and bucket = "NAME", or name another file with '
            "--config or MODELFS_CONFIG"
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); make it a file that this user may "
            "read, or name another file with --config or MODELFS_CONFIG"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}: line {line}: not UTF-8, as TOML must be") from None


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or int() on thousands of digits
        what, line = str(error), text.count("\n") + 1
        if match := _TOML_PLACE.fullmatch(what):
            what, line = match["what"], int(match["line"] or line)
        raise ConfigError(f"{path}: line {line}: not TOML: {what}") from None


def _named(document: dict[str, Any]) -> Iterator[Problem]:
    """Write each registry's name into its table; yield a problem where a `name` is there."""
    for name, table in _registry_tables(document):
        if "name" in table:
            yield _unknown(("registries", name, "name"))
        table["name"] = name


def _registry_tables(document: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    registries = document.get("registries")
    if not isinstance(registries, dict):
        return []
    return [(name, table) for name, table in registries.items() if isinstance(table, dict)]


def _overlaps(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each two mount points or stores of which one lies in the other."""
    places = [
        (("registries", name, key), Path(os.path.normpath(place)))
        for name, table in _registry_tables(document)
        for key, default in (("mountpoint", None), ("store", str(DEFAULT_STORES / name)))
        if isinstance(place := table.get(key, default), str) and place.startswith("/")
    ]
    for (one, its), (other, others) in combinations(places, 2):
        if its.is_relative_to(others) or others.is_relative_to(its):
            yield other, f"found '{others}'; expected a folder apart from {dotted(one)}, '{its}'"


def _shared_ports(document: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each two registries whose metrics would be at one port."""
    known: dict[object, str] = {}
    for name, table in _registry_tables(document):
        port, place = table.get("metrics_port"), ("registries", name, "metrics_port")
        if isinstance(port, int) and (other := known.setdefault(port, dotted(place))) != dotted(
            place
        ):
            yield place, f"found {port}; expected another port than that of {other}"


def _problems(error: ValidationError, document: Mapping[str, Any]) -> Iterator[Problem]:
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        loc, kind = problem["loc"], problem["type"]
        if kind == "extra_forbidden":
            yield _unknown(loc)
        elif kind != "default_factory_not_called":  # the store's default, where the name is bad
            value = "nothing" if kind == "missing" else found(loc, document)
            yield _owner(loc), f"found {value}; expected {_expected(loc)}"


def _owner(loc: Place) -> Place:
    """Return the place of a setting; that of a bad name is its table's."""
    return loc[:-1] if loc[-1] in ("[key]", "name") else loc


def _table_of(loc: Place) -> tuple[type[Table], int | str] | None:
    """Return the class of the table that holds a setting, and the setting's key."""
    match loc:
        case ("registries", _, "cache", key, *_):
            return CacheConfig, key
        case ("registries", _, "namespaces", _, "[key]"):
            return RegistryConfig, "namespaces"
        case ("registries", _, "namespaces", _, key, *_):
            return NamespaceConfig, key
        case ("registries", _, "namespaces") | ("registries", _, "namespaces", _):
            return None
        case ("registries", _, key, *_):
            return RegistryConfig, key
        case ("registries", _):
            return None
        case (key, *_):
            return Config, key
    return None


def _expected(loc: Place) -> str:
    held = _table_of(loc)
    return keys_of(held[0])[str(held[1])] if held else TABLE_WORDS


def _unknown(loc: Place) -> Problem:
    held = _table_of(loc)
    known = keys_of(held[0]) if held else {}
    known.pop("name", None)
    key = str(loc[-1])
    hint = _suggestion(key, known) or f"; expected one of {', '.join(known)}"
    return loc, f"found an unknown key{hint}"


def _suggestion(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def example() -> str:
    """Return a commented file with every setting."""
    return resources.files("modelfs").joinpath("example.toml").read_text()
