"""The configuration: read from one TOML file, validated once, frozen afterwards.

A field's description says what may stand there; it is what an error shows as expected.
Names in the file are those of the documentation; in Python they carry their unit.
"""

import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
)

from modelfs import units
from modelfs.errors import ConfigError, InvalidName
from modelfs.names import is_plain_name, relative_path
from modelfs.toml_places import Lines, Place, dotted, found
from modelfs.units import GIB, KIB, MIB

DEFAULT_FILE = Path("/etc/modelfs/modelfs.toml")
DEFAULT_STORES = Path("/var/lib/modelfs")
DEFAULT_LOCAL_ONLY = (  # of Jupyter; vim and nano; emacs; NFS
    *(".ipynb_checkpoints", ".~*", "*.swp", ".*.swpx", ".*.sw[a-o]", ".#*", "#*#", ".nfs*"),
)

UPLOAD_EXPIRES_MAX_S = 12 * 3600  # what STS gives at most
ID_MAX = (1 << 32) - 2  # the kernel keeps 2**32 - 1 for "no id"

_BUCKET = r"^[A-Za-z0-9._-]{3,255}$"
_TOML_PLACE = re.compile(r"(?P<what>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)")

Problem = tuple[Place, str]
"""Where something is wrong in the file, and what."""

_NAME_WORDS = "a name of 1 to 100 of A-Z a-z 0-9 . _ + - with no dot, + or - first"
_TABLE_WORDS = "a table"


def _mode(value: object, info: ValidationInfo) -> int:
    """Read an octal string; a number only from Python: 770 in a file would not mean 0o770."""
    if isinstance(value, int) and info.context is not None:
        raise ValueError
    return units.mode(value)


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or "\0" in str(path):
        raise ValueError
    return Path(os.path.normpath(path))


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError
    if "@" in parts.netloc or re.search(r"\s", value):
        raise ValueError
    return value.rstrip("/")


def _ip_address(value: str) -> str:
    return str(ipaddress.ip_address(value))


def _prefix(value: str) -> str:
    try:
        relative_path(value, "")
    except InvalidName:
        raise ValueError from None
    return value if value.endswith("/") or not value else value + "/"


def _plain_name(value: str) -> str:
    if not is_plain_name(value):
        raise ValueError
    return value


def _pattern(value: str) -> str:
    if not value or "/" in value:
        raise ValueError
    return value


Bytes = Annotated[int, BeforeValidator(units.size)]
Seconds = Annotated[float, BeforeValidator(units.seconds)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
PlainName = Annotated[str, AfterValidator(_plain_name)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Words = Annotated[str, Field(min_length=1)]


class _Table(BaseModel):
    """A table of the file: frozen, no unknown keys, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, allow_inf_nan=False
    )


class CacheConfig(_Table):
    """How much of the disk this node's cache may take."""

    max_size: Bytes = Field(
        default=50 * GIB, ge=0, description="a size like '500GiB', or a number of bytes"
    )
    min_free: Annotated[int | str, BeforeValidator(units.size_or_percentage)] = Field(
        default="5%",
        description="a share of the disk like '5%' (under 100%), or a size like '20GiB'",
    )

    def min_free_bytes(self, total_bytes: int) -> int:
        """Return how much of a disk of `total_bytes` the cache leaves free."""
        if isinstance(self.min_free, int):
            return self.min_free
        return int(total_bytes * units.share(self.min_free))


class NamespaceConfig(_Table):
    """Who owns a namespace's folders, in the mount and in the store; None: the daemon's."""

    uid: int | None = Field(
        default=None, strict=True, ge=0, le=ID_MAX, description="a numeric user id like 1000"
    )
    gid: int | None = Field(
        default=None, strict=True, ge=0, le=ID_MAX, description="a numeric group id like 2001"
    )
    mode: Annotated[int, BeforeValidator(_mode)] = Field(
        default=0o755, description="octal digits in quotes like '0770'"
    )

    @property
    def ids(self) -> tuple[int, int]:
        """uid and gid for os.chown: -1 leaves one as it is."""
        return -1 if self.uid is None else self.uid, -1 if self.gid is None else self.gid


class RegistryConfig(_Table):
    """One registry: where it is, where it is mounted, where its versions are kept."""

    name: PlainName = Field(description=_NAME_WORDS)
    endpoint: Annotated[str, AfterValidator(_url)] = Field(
        description="a URL like 'https://rgw.cluster.local:8443', with no path or user name in it"
    )
    bucket: str = Field(
        pattern=_BUCKET, description="a bucket's name: 3 to 255 of A-Z a-z 0-9 . _ -"
    )
    prefix: Annotated[str, AfterValidator(_prefix)] = Field(
        default="models/",
        description="the part before NAMESPACE/MODEL in the keys, like 'models/', or ''; "
        "with no / first, no empty, . or .. component",
    )
    region: Words = Field(default="us-east-1", description="a region's name like 'us-east-1'")
    credentials: AbsolutePath | None = Field(
        default=None, description="the absolute path of a file in AWS credentials format"
    )
    ca_bundle: AbsolutePath | None = Field(
        default=None, description="the absolute path of a file of PEM certificates"
    )
    addressing: Literal["path", "virtual", "auto"] = Field(
        default="path", description="'path', 'virtual' or 'auto'"
    )
    mountpoint: AbsolutePath | None = Field(
        default=None, description="the absolute path of a folder"
    )
    store: AbsolutePath = Field(
        default_factory=lambda valid: DEFAULT_STORES / valid["name"],
        description="the absolute path of a folder",
    )
    store_filesystem: tuple[Words, ...] = Field(
        default=(),
        description="a list of file system types as in /proc/mounts, like "
        "['ceph', 'fuse.ceph-fuse']",
    )
    upload_role: str | None = Field(
        default=None,
        pattern=r"^arn:\S+$",
        description="a role's ARN like 'arn:aws:iam:::role/modelfs-upload'",
    )
    upload_expires_s: Seconds = Field(
        default=1800.0,
        validation_alias="upload_expires",
        ge=1,
        le=UPLOAD_EXPIRES_MAX_S,
        description="a time from '1s' to '12h', or a number of seconds",
    )
    read_only: bool = Field(default=False, strict=True, description="true or false")
    native_versions: bool = Field(default=True, strict=True, description="true or false")
    metadata_ttl_s: Seconds = Field(
        default=5.0,
        validation_alias="metadata_ttl",
        ge=0,
        le=86400,
        description="a time like '5s' or '500ms', up to '24h', or a number of seconds",
    )
    timeout_s: Seconds = Field(
        default=30.0,
        validation_alias="timeout",
        ge=0.1,
        le=3600,
        description="a time from '100ms' to '1h', or a number of seconds",
    )
    drain_timeout_s: Seconds = Field(
        default=60.0,
        validation_alias="drain_timeout",
        ge=0,
        le=86400,
        description="a time like '60s', up to '24h', or a number of seconds",
    )
    part_size: Bytes = Field(
        default=8 * MIB,
        ge=64 * KIB,
        le=GIB,
        description="a size from '64KiB' to '1GiB', or a number of bytes",
    )
    parallel_requests: int = Field(
        default=16, strict=True, ge=1, le=128, description="a number from 1 to 128"
    )
    read_ahead: Bytes = Field(
        default=128 * MIB,
        ge=0,
        le=GIB,
        description="a size like '128MiB', up to '1GiB'; 0 is none",
    )
    read_ahead_formats: bool = Field(default=True, strict=True, description="true or false")
    local_only: tuple[Pattern, ...] = Field(
        default=DEFAULT_LOCAL_ONLY,
        description="a list of patterns for names, like ['*.swp', '.~*'], with no / in them",
    )
    staged_max: Bytes | None = Field(
        default=None, ge=1, description="a size like '200GiB', or a number of bytes"
    )
    metrics_port: int | None = Field(
        default=None, strict=True, ge=1, le=65535, description="a port's number like 9464"
    )
    metrics_listen: Annotated[str, AfterValidator(_ip_address)] = Field(
        default="127.0.0.1", description="an IP address like '127.0.0.1' or '0.0.0.0'"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="'debug', 'info', 'warning' or 'error'"
    )
    cache: CacheConfig = Field(default_factory=CacheConfig, description=_TABLE_WORDS)
    namespaces: dict[PlainName, NamespaceConfig] = Field(
        default_factory=dict, description=_NAME_WORDS
    )

    def namespace_of(self, name: str) -> NamespaceConfig:
        """Return what the file says of namespace `name`, or the defaults."""
        return self.namespaces.get(name, _NAMESPACE_DEFAULTS)


_NAMESPACE_DEFAULTS = NamespaceConfig()


def settings() -> dict[str, dict[str, str]]:
    """Return the keys of each table of the file, each with what may stand there."""
    tables: dict[str, type[_Table]] = {
        "[registries.NAME]": RegistryConfig,
        "[registries.NAME.cache]": CacheConfig,
        "[registries.NAME.namespaces.NAMESPACE]": NamespaceConfig,
    }
    found = {name: _keys(table) for name, table in tables.items()}
    for key in ("name", "cache", "namespaces"):  # the tables themselves
        del found["[registries.NAME]"][key]
    return found


def said_name(field: str) -> str:
    """Return what the file calls a setting of a registry: metadata_ttl for metadata_ttl_s."""
    return str(RegistryConfig.model_fields[field].validation_alias or field)


class Config(_Table):
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


def _table_of(loc: Place) -> tuple[type[_Table], int | str] | None:
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


def _keys(table: type[_Table]) -> dict[str, str]:
    """Return the keys of a table as the file has them, each with what may stand there."""
    return {
        str(field.validation_alias or name): field.description or ""
        for name, field in table.model_fields.items()
    }


def _expected(loc: Place) -> str:
    held = _table_of(loc)
    return _keys(held[0])[str(held[1])] if held else _TABLE_WORDS


def _unknown(loc: Place) -> Problem:
    held = _table_of(loc)
    known = _keys(held[0]) if held else {}
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
