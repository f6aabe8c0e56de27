"""What a user's process does on a mount, in a process of its own: it may hang, a test may not."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 30.0

# The attempt is given `paths` (Path objects) and says `answer = …`.
_PROGRAM = """
import errno, hashlib, json, mmap, os, sys, time
from pathlib import Path
said = {"paths": [Path(text) for text in sys.argv[2:]], "answer": None}
started, number = time.monotonic(), 0
try:
    exec("import hashlib, mmap, os, time", said)
    exec(sys.argv[1], said)
except OSError as error:
    number = error.errno
answer = said["answer"]
print(json.dumps([number, time.monotonic() - started, answer]))
"""

READ = "answer = hashlib.sha256(paths[0].read_bytes()).hexdigest()"
WRITE = "paths[0].write_bytes(b'new')"
LIST = "answer = sorted(os.listdir(paths[0]))"


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: the errno (0 is success), the time, the answer."""

    errno: int
    seconds: float
    answer: object


class Attempt:
    """A process that tries something; `outcome` waits for its end."""

    def __init__(self, code: str, *paths: Path) -> None:
        self._code = code
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, code, *map(str, paths)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def outcome(self, limit_s: float = LIMIT_S) -> Outcome:
        """Return how it ended; one that does not end in time fails the test, with its state."""
        try:
            out, err = self._process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
            state = next(line for line in status.splitlines() if line.startswith("State"))
            self._process.kill()
            raise AssertionError(f"it hangs ({state}): {self._code}") from None
        assert self._process.returncode == 0, err.decode()
        number, seconds, answer = json.loads(out)
        return Outcome(number, seconds, answer)

    def end(self) -> None:
        """Kill it and wait until it is gone."""
        self._process.kill()
        self._process.communicate(timeout=LIMIT_S)


def attempt(code: str, *paths: Path, limit_s: float = LIMIT_S) -> Outcome:
    """Run `code` in a process of its own."""
    return Attempt(code, *paths).outcome(limit_s)
