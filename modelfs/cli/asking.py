"""Ask mounts how they are: all at once, each within a limit, and no mount twice at a time.

A mount that hangs must neither hang the command nor gather questions that cannot be killed, so
each has a thread of its own, which asks again later and later while there is no answer.
"""

import threading
import time
from collections.abc import Sequence
from typing import Any

from modelfs.cli.mounts import Mount
from modelfs.cli.probe import LIMIT_S, DaemonGone, DaemonSilent, read_status

EVERY_S = 1.0
SILENT_PAUSE_MAX_S = 15.0
GRACE_S = 2.0  # beyond the limit of one question, until it is given up by us too

Answer = dict[str, Any]


def ask(mount: Mount) -> Answer:
    """Return a mount's status, or that it gives none and why."""
    known = {"registry": mount.registry, "mountpoint": str(mount.path), "mounted": True}
    try:
        return {**known, **read_status(mount), "answers": True}
    except (DaemonGone, DaemonSilent, OSError) as error:  # no process more can be begun
        return {**known, "answers": False, "error": str(error)}


def ask_all(mounts: Sequence[Mount]) -> list[Answer]:
    """Return the answer of each; it takes as long as the slowest, which has a limit."""
    asked = [Asker(mount, once=True) for mount in mounts]
    return [each.first() for each in asked]


class Asker:
    """Asks one mount, again and again, and keeps its latest answer."""

    def __init__(self, mount: Mount, *, once: bool = False) -> None:
        self.mount = mount
        self._once = once
        self._answered = threading.Event()
        self._began = time.monotonic()
        self._latest: Answer | None = None
        threading.Thread(target=self._run, name=f"ask {mount.registry}", daemon=True).start()

    def _run(self) -> None:
        pause_s = EVERY_S
        while True:
            self._began = time.monotonic()
            answer = ask(self.mount)
            self._latest = answer
            self._answered.set()
            if self._once:
                return
            pause_s = EVERY_S if answer["answers"] else min(2 * pause_s, SILENT_PAUSE_MAX_S)
            time.sleep(pause_s)

    def first(self) -> Answer:
        """Return the first answer, waited for at most a limit."""
        self._answered.wait(LIMIT_S + GRACE_S)
        return self.latest()

    def latest(self) -> Answer:
        """Return the latest answer, or that there is none."""
        if self._latest is not None:
            return self._latest
        waited_s = time.monotonic() - self._began
        return {
            "registry": self.mount.registry,
            "mountpoint": str(self.mount.path),
            "mounted": True,
            "answers": False,
            "error": f"{self.mount.registry} at {self.mount.path} gives no answer yet, "
            f"{waited_s:.0f} s now",
        }
