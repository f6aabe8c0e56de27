"""The tables of the configuration: which settings each has, and what may stand there.

A field's description says that; it is what an error shows as expected. Names in the file are
those of the documentation; in Python they carry their unit. Frozen once they are made.
"""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from modelfs import units
from modelfs.errors import InvalidName
from modelfs.names import is_plain_name, relative_path
from modelfs.units import GIB, KIB, MIB

DEFAULT_STORES = Path("/var/lib/modelfs")
DEFAULT_LOCAL_ONLY = (  # of Jupyter; vim and nano; emacs; NFS
    *(".ipynb_checkpoints", ".~*", "*.swp", ".*.swpx", ".*.sw[a-o]", ".#*", "#*#", ".nfs*"),
)

UPLOAD_EXPIRES_MAX_S = 12 * 3600  # what STS gives at most
ID_MAX = (1 << 32) - 2  # the kernel keeps 2**32 - 1 for "no id"

_BUCKET = r"^[A-Za-z0-9._-]{3,255}$"

_NAME_WORDS = "a name of 1 to 100 of A-Z a-z 0-9 . _ + - with no dot, + or - first"
TABLE_WORDS = "a table"


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


class Table(BaseModel):
    """A table of the file: frozen, no unknown keys, no infinities."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, allow_inf_nan=False
    )


class CacheConfig(Table):
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


class NamespaceConfig(Table):
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


class RegistryConfig(Table):
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
    cache: CacheConfig = Field(default_factory=CacheConfig, description=TABLE_WORDS)
    namespaces: dict[PlainName, NamespaceConfig] = Field(
        default_factory=dict, description=_NAME_WORDS
    )

    def namespace_of(self, name: str) -> NamespaceConfig:
        """Return what the file says of namespace `name`, or the defaults."""
        return self.namespaces.get(name, _NAMESPACE_DEFAULTS)


_NAMESPACE_DEFAULTS = NamespaceConfig()


def said_name(field: str) -> str:
    """Return what the file calls a setting of a registry: metadata_ttl for metadata_ttl_s."""
    return str(RegistryConfig.model_fields[field].validation_alias or field)


def keys_of(table: type[Table]) -> dict[str, str]:
    """Return the keys of a table as the file has them, each with what may stand there."""
    return {
        str(field.validation_alias or name): field.description or ""
        for name, field in table.model_fields.items()
    }
