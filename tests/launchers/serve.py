"""`modelfs` with faults of a test's choice before its own arguments.

    serve.py slow-get=0.1 gate=FILE host=NAME orphans=0.2 patience=1 steps=FILE -- ARGUMENTS

slow-get is the least time of a GET; with gate, a GET waits until FILE is there; host is
what the node calls itself; orphans is how often freezes of dead nodes are looked for;
patience is how long the store may take to answer; steps counts what is done to the disk and the
registry, and ends or holds the daemon (see Steps).
"""

import functools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelfs import cli, daemon
from modelfs.registry.objects import ObjectId, ObjectInfo, ObjectStore, Progress
from modelfs.store import health, library


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
        self._wait(progress)
        return self._store.get_range(object_id, offset, length, fd, at, progress, version_id)

    def get_whole(
        self, infos: Sequence[ObjectInfo], at_once: int, progress: Progress
    ) -> Generator[tuple[ObjectInfo, memoryview], None, None]:
        self._wait(progress)
        return self._store.get_whole(infos, at_once, progress)

    def _wait(self, progress: Progress) -> None:
        time.sleep(self._slow_s)
        while self._gate is not None and not self._gate.exists():
            progress(0)  # slow, and not dead
            time.sleep(0.02)


class Steps:
    """Counts steps from when FILE is there, and does what FILE says at one of them.

    FILE holds a verb, the number of a step and a word: another word counts anew from 1.
    `kill 7 v1` ends the process just before the 7th step, as kill -9 does, `kill-after 7 v1`
    just after it. `pause 7 v1` holds the daemon there: the names of the steps so far, this
    one last, are in FILE.held, and nothing goes on until FILE is gone.

    A step changes the names or the durability of the store, or asks the registry.
    """

    DISK = ("fsync", "fdatasync", "rename", "replace", "link", "symlink", "mkdir", "unlink")
    REGISTRY = tuple(
        name
        for name, value in vars(ObjectStore).items()
        if callable(value) and not name.startswith("_") and name not in ("requests", "statistics")
    )

    def __init__(self, file: Path) -> None:
        self._file = file
        self._held = file.with_name(f"{file.name}.held")
        self._lock = threading.RLock()  # one step at a time decides; while one is held, all are
        self._word = ""
        self._names: list[str] = []
        self._replace = os.replace
        for name in self.DISK:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def of_store(self, store: ObjectStore) -> ObjectStore:
        """Return the store with its methods counted."""
        for name in self.REGISTRY:
            setattr(store, name, self._counted(name, getattr(store, name)))
        return store

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def step(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                verb = self._verb_at(name)
                if verb is not None:
                    print(verb, len(self._names), name, *args, file=sys.stderr, flush=True)
                if verb == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                elif verb == "kill-after":
                    try:
                        call(*args, **kwargs)
                    finally:  # also after a step that was refused
                        os.kill(os.getpid(), signal.SIGKILL)
                elif verb == "pause":
                    self._hold()
            return call(*args, **kwargs)

        return step

    def _verb_at(self, name: str) -> str | None:
        """Count a step; return what is to happen at it."""
        try:
            verb, number, word = self._file.read_text().split()
        except FileNotFoundError:
            return None
        if word != self._word:
            self._word, self._names = word, []
        self._names.append(name)
        return verb if len(self._names) == int(number) else None

    def _hold(self) -> None:
        made = self._held.with_suffix(".made")
        made.write_text(json.dumps(self._names))
        self._replace(made, self._held)
        while self._file.exists():
            time.sleep(0.002)


def main() -> int:
    end = sys.argv.index("--")
    said: Mapping[str, str] = dict(word.split("=", 1) for word in sys.argv[1:end])
    del sys.argv[1 : end + 1]
    if "host" in said:
        socket.gethostname = lambda: said["host"]
    if "orphans" in said:
        library.ORPHANS_INTERVAL_S = float(said["orphans"])
    if "patience" in said:
        health.ANSWER_LIMIT_S = health.INTERVAL_S = float(said["patience"])
    gate = Path(said["gate"]) if "gate" in said else None
    steps = Steps(Path(said["steps"])) if "steps" in said else None

    def wrap(store: ObjectStore) -> ObjectStore:
        counted = steps.of_store(store) if steps else store
        return Hindered(counted, slow_s=float(said.get("slow-get", "0")), gate=gate)  # type: ignore[return-value]

    daemon.run = functools.partial(daemon.run, wrap_store=wrap)  # type: ignore[assignment]
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
