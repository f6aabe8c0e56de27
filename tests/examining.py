"""`modelfs doctor` run as a command, and what it found."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mounting import Mount

EXAMINE = Path(__file__).parent / "launchers" / "examine.py"
LIMIT_S = 50.0
OF_OTHERS = "dead mounts"  # tests that run beside this one kill daemons


@dataclass(frozen=True)
class Found:
    """One check of one run."""

    check: str
    verdict: str
    found: str
    advice: str | None

    @property
    def line(self) -> str:
        return f"{self.found}: {self.advice}" if self.advice else self.found


@dataclass(frozen=True)
class Report:
    """All checks of one run, but for what tests beside this one leave about."""

    checks: tuple[Found, ...]

    def of(self, check: str) -> Found:
        """Return the one outcome of a check."""
        found = [one for one in self.checks if one.check == check]
        assert len(found) == 1, self
        return found[0]

    def names(self, verdict: str) -> set[str]:
        return {one.check for one in self.checks if one.verdict == verdict}


def command(mount: Mount, *words: str, **options: object) -> list[str]:
    """Return the command; _ stands for - in the names of the launcher's options."""
    said = [f"{name.replace('_', '-')}={value}" for name, value in options.items()]
    return [sys.executable, str(EXAMINE), *said, "--", "--config", str(mount.config), *words]


def examine(
    mount: Mount,
    *,
    before: Sequence[str] = (),
    environment: dict[str, str] | None = None,
    **options: object,
) -> Report:
    """Run `modelfs doctor --json` on a mount's configuration, after the words `before`."""
    done = subprocess.run(
        [*before, *command(mount, "doctor", "--json", **options)],
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=LIMIT_S,
        check=False,
    )
    assert not done.stderr, done.stderr
    document = json.loads(done.stdout)
    failures = any(one["verdict"] == "failed" for one in document["checks"])
    assert (done.returncode, document["ok"]) == (int(failures), not failures)
    checks = tuple(
        Found(one["check"], one["verdict"], one["found"], one["advice"])
        for one in document["checks"]
        if one["check"] != OF_OTHERS
    )
    assert all("\n" not in one.line for one in checks)
    assert all("bug" not in one.found for one in checks), checks
    return Report(checks)
