"""Random use of one file, in many ways at once, compared with its bytes in memory.

    python -m tests.mount.fsx FILE --seed 1 --operations 1000
    python -m tests.mount.fsx FILE --replay LOG

FILE is made anew. Up to four descriptors and two mappings are open at once; they read, write,
append, cut, extend, map, copy, sync, close and open while the file is renamed, and everything
that comes back must be what a file has. Every operation is a line of the log, with all that it
needs, written before it is done: the log does the same again, also with lines taken out.
"""

import argparse
import collections
import itertools
import json
import os
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from tests.mount.usedfile import PAGE, Difference, File, Operation

KIB, MIB = 1 << 10, 1 << 20
SMALL_MAX = 300 * KIB  # where the file usually ends: bytes cost time
LARGE = 16 * MIB  # beyond this a file of main/ goes into its registry in parts
SHOWN = 30  # operations that are printed when something differs

# How often what is done, of about 100.
WEIGHTS = {
    "read": 22,
    "write": 22,
    "cut": 4,
    "cut_by_name": 2,
    "allocate": 1,
    "punch": 1,
    "copy": 2,
    "seek": 2,
    "map": 4,
    "unmap": 2,
    "peek": 7,
    "poke": 7,
    "flush": 2,
    "open": 8,
    "dup": 1,
    "close": 6,
    "sync": 1,
    "datasync": 1,
    "forget": 2,
    "rename": 2,
    "check": 1,
    "large": 0.12,
    "remount": 0.03,
}


def plan(file: File, seed: int, count: int) -> Iterator[Operation]:
    """Yield operations for the file as it is by then: where it has bytes, and where it ends."""
    chance = random.Random(seed)
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    for _ in range(count):
        (name,) = chance.choices(names, weights)
        if not file.handles and chance.random() < 0.5:
            name = "open"
        size = len(file.data)
        if size > SMALL_MAX and name not in ("check", "remount") and chance.random() < 0.1:
            yield "cut_by_name", chance.randrange(SMALL_MAX)  # a large file is a slow one
            continue
        yield _operation(chance, name, size)


def _operation(chance: random.Random, name: str, size: int) -> Operation:
    number = chance.randrange(12)
    end = max(size, SMALL_MAX)
    offset = _place(chance, end if chance.random() < 0.1 else min(size, end))
    length = chance.choice([1, chance.randrange(1, PAGE), chance.randrange(1, 150 * KIB)])
    seed = chance.randrange(1 << 30)
    if end == SMALL_MAX:
        offset = min(offset, SMALL_MAX - 1)
        length = min(length, SMALL_MAX - offset)
    match name:
        case "write" | "poke":
            return name, number, offset, length, seed
        case "large":  # beyond what one PUT takes, with a hole before it
            where = LARGE + _place(chance, MIB)
            written = ("write", number, where, length, seed)
            return chance.choice([written, written, ("cut", number, where)])
        case "read" | "punch" | "allocate" | "map" | "peek":
            return name, number, offset, length
        case "copy":
            return name, number, offset, _place(chance, min(size, SMALL_MAX)), length
        case "seek" | "cut":
            return name, number, offset
        case "cut_by_name":
            return name, offset
        case "check" | "remount":
            return (name,)
        case _:
            return name, number


def _place(chance: random.Random, end: int) -> int:
    """Return an offset up to `end`: often the end itself, or where a page begins."""
    place = chance.choice([end, chance.randrange(end + 1), chance.randrange(end + 1)])
    return place // PAGE * PAGE if chance.random() < 0.3 else place


def exercise(file: File, operations: Iterable[Operation], log: TextIO) -> int:
    """Do operations, each logged before, and compare everything at the end; return their number.

    Raises Difference, with the last of them.
    """
    last: collections.deque[str] = collections.deque(maxlen=SHOWN)
    count = 0
    try:
        for operation in itertools.chain(operations, [("check",)]):
            last.append(json.dumps(operation))
            print(last[-1], file=log, flush=True)
            file.do(operation)
            count += 1
    except (Difference, OSError) as error:
        said = "\n".join(last)
        raise Difference(
            f"{error}\nafter {count} operations, of which the last:\n{said}"
        ) from error
    finally:
        file.do_close_all()
    return count


def logged(log: Path) -> list[Operation]:
    """Return the operations of a log."""
    return [tuple(json.loads(line)) for line in log.read_text().splitlines()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mount.fsx", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--operations", type=int, default=1000)
    parser.add_argument("--replay", type=Path, help="the log of a run, or lines of it")
    said = parser.parse_args(arguments)
    file = File(said.file)
    if said.replay:
        operations: Iterable[Operation] = logged(said.replay)
    else:
        operations = plan(file, said.seed, said.operations)
    with tempfile.NamedTemporaryFile("w", prefix="fsx-", suffix=".log", delete=False) as log:
        try:
            count = exercise(file, operations, log)
        except Difference as error:
            print(f"{error}\nagain: --replay {log.name}", file=sys.stderr)
            return 1
    os.unlink(log.name)
    print(f"{count} operations, and no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
