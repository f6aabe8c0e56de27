"""What came of a check: a verdict, what was found, what to do about it. Pure."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """`warning`: it works, but not as it should, or not for long; `failed`: it does not."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """`advice` is what to do, None where all is well or `found` says it already."""

    check: str
    verdict: Verdict
    found: str
    advice: str | None = None

    @property
    def line(self) -> str:
        """What was found and what to do, as one line."""
        return f"{self.found}: {self.advice}" if self.advice else self.found


def ok(check: str, found: str) -> Outcome:
    return Outcome(check, Verdict.OK, found)


def warning(check: str, found: str, advice: str | None = None) -> Outcome:
    return Outcome(check, Verdict.WARNING, found, advice)


def failed(check: str, found: str, advice: str | None = None) -> Outcome:
    return Outcome(check, Verdict.FAILED, found, advice)
