"""What a verification finds, and who is told. Pure."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from modelfs.names import VersionId


class Problem(StrEnum):
    """What is wrong with a file of a version."""

    BYTES = "wrong bytes"
    SIZE = "wrong size"
    MISSING = "missing"
    EXTRA = "not in the manifest"
    UNREADABLE = "cannot be read"
    DENIED = "may not be read"
    MANIFEST = "damaged manifest"
    VERSION = "the whole version is missing"


@dataclass(frozen=True, slots=True)
class Finding:
    """A file that is not as its version's manifest says; `path` is '' for the version itself.

    `source` says where the right file came from: registry, another version, or here.
    """

    version: VersionId
    path: str
    problem: Problem
    detail: str
    quarantined: Path | None = None
    source: str | None = None
    error: str | None = None

    @property
    def is_repaired(self) -> bool:
        return self.source is not None


class Watcher(Protocol):
    """Is told how far a verification is; sizes in bytes."""

    def begin(self, total: int) -> None: ...

    def moved(self, count: int) -> None: ...

    def found(self, finding: Finding) -> None: ...


@dataclass(frozen=True, slots=True)
class Summary:
    """What a verification looked at; `read_bytes` were hashed."""

    versions: int
    files: int
    read_bytes: int
    findings: tuple[Finding, ...]

    @property
    def is_sound(self) -> bool:
        """Tell whether every file is right, or was put right."""
        return all(finding.is_repaired for finding in self.findings)
