"""`modelfs` with faults of a test's choice before its own arguments.

    serve.py slow-get=0.1 gate=FILE host=NAME orphans=0.2 -- ARGUMENTS OF MODELFS

slow-get is the least time of a GET; with gate, a GET waits until FILE is there; host is
what the node calls itself; orphans is how often freezes of dead nodes are looked for.
"""

import functools
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from modelfs import cli, daemon
from modelfs.registry.objects import ObjectId, ObjectInfo, ObjectStore, Progress
from modelfs.store import library


class Hindered:
    """An ObjectStore whose GETs take their time; all else is that of the store inside."""

    def __init__(self, store: ObjectStore, slow_s: float, gate: Path | None) -> None:
        self._store, self._slow_s, self._gate = store, slow_s, gate

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def get_range(
        self,
        object_id: ObjectId,
        offset: int,
        length: int,
        fd: int,
        at: int,
        progress: Progress,
        version_id: str | None = None,
    ) -> ObjectInfo:
        time.sleep(self._slow_s)
        while self._gate is not None and not self._gate.exists():
            progress(0)  # slow, and not dead
            time.sleep(0.02)
        return self._store.get_range(object_id, offset, length, fd, at, progress, version_id)


def main() -> int:
    end = sys.argv.index("--")
    said: Mapping[str, str] = dict(word.split("=", 1) for word in sys.argv[1:end])
    del sys.argv[1 : end + 1]
    if "host" in said:
        socket.gethostname = lambda: said["host"]
    if "orphans" in said:
        library.ORPHANS_INTERVAL_S = float(said["orphans"])
    gate = Path(said["gate"]) if "gate" in said else None
    hindered = functools.partial(Hindered, slow_s=float(said.get("slow-get", "0")), gate=gate)
    daemon.run = functools.partial(daemon.run, wrap_store=hindered)  # type: ignore[assignment]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
