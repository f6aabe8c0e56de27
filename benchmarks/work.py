"""What is done with a mount: one reader, in a process of its own that can be killed.

`python -m benchmarks.work KIND ARGUMENTS` does it and prints the seconds that it took, its own
start not counted. Every reader checks what it reads, as cheaply as it can.
"""

import contextlib
import json
import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import MIB

ROOT = Path(__file__).parent.parent
LIMIT_S = 120.0
KILL_LIMIT_S = 5.0
PAGE = 4096
SEED = 7


class TooSlow(Exception):
    """A reader was not done within its limit, and was ended."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"over {limit_s:g} s")
        self.limit_s = limit_s


def timed(kind: str, *arguments: str | Path | int, limit_s: float = LIMIT_S) -> float:
    """Run a reader; return its seconds. Raises TooSlow, or CalledProcessError."""
    return float(done(kind, *arguments, limit_s=limit_s)["seconds"])


def done(kind: str, *arguments: str | Path | int, limit_s: float = LIMIT_S) -> Any:
    """Run a reader; return all that it says."""
    words = [sys.executable, "-m", "benchmarks.work", kind, *map(str, arguments)]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        said, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that waits for its mount
            process.communicate(timeout=KILL_LIMIT_S)  # ends with that
        raise TooSlow(limit_s) from None
    if process.returncode:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        raise OSError(f"{kind}: {last}")
    return json.loads(said)


# ----------------------------------------------------------------------- readers


def sequential(path: str) -> None:
    """Read a file of numbered MiB from its beginning to its end."""
    buffer = bytearray(MIB)
    with open(path, "rb", buffering=0) as file:
        _read_numbered(lambda: file.readinto(buffer) or 0, buffer, os.stat(path).st_size)


def direct(path: str) -> None:
    """The same past the page cache: llama.cpp --direct-io reads so."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, MIB) as buffer:  # which begins at a page, as O_DIRECT wants it
            _read_numbered(lambda: os.readv(fd, [buffer]), buffer, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def _read_numbered(read: Callable[[], int], buffer: bytearray | mmap.mmap, size: int) -> None:
    for number in range(size // MIB):
        got = read()
        assert got == MIB, f"{got} bytes of MiB {number}"
        assert int.from_bytes(buffer[:8]) == number, f"MiB {number} holds something else"


def tensors(path: str, order: str) -> None:
    """Load every tensor, in the file's order or in another that is the same each time."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        names = sorted(file.keys())
        if order == "shuffled":
            random.Random(SEED).shuffle(names)
        for name in names:
            found = int(file.get_tensor(name)[0])
            assert found == int(name.split(".")[1]), f"{name} holds {found}"


def pages(path: str, count: str, first: str) -> None:
    """Read `count` pages here and there, by a list that is the same for each number `first`."""
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        numbers = random.Random(int(first)).choices(range(size // PAGE), k=int(count))
        begun = time.perf_counter()
        for number in numbers:
            data = os.pread(fd, PAGE, number * PAGE)
            if number * PAGE % MIB == 0:
                assert int.from_bytes(data[:8]) == number * PAGE // MIB
            assert len(data) == PAGE
        _Seconds.taken = time.perf_counter() - begun
    finally:
        os.close(fd)


def small(folder: str) -> None:
    """List a folder; open, read and close its files one after the other."""
    for number, name in enumerate(sorted(os.listdir(folder))):
        with open(os.path.join(folder, name), "rb", buffering=0) as file:
            data = file.read()
        assert int.from_bytes(data[:8]) == number, f"{name} holds something else"


def several(*paths: str) -> list[float]:
    """Read files at once, a thread each; return the seconds of each."""

    def read(path: str) -> float:
        begun = time.perf_counter()
        sequential(path)
        return time.perf_counter() - begun

    with ThreadPoolExecutor(len(paths)) as threads:
        return list(threads.map(read, paths))


def last_byte(path: str) -> None:
    """Read the last byte of a file."""
    with open(path, "rb", buffering=0) as file:
        file.seek(-1, os.SEEK_END)
        assert len(file.read(1)) == 1


def listing(folder: str, count: str) -> None:
    """`ls -lR`, and check that it showed so many files."""
    run = ["ls", "-lR", folder]
    said = subprocess.run(run, stdout=subprocess.PIPE, check=True, env={"LC_ALL": "C"}).stdout
    files = sum(line.startswith(b"-") for line in said.splitlines())
    assert files == int(count), f"{files} files of {count}"


class _Seconds:
    """What a reader has measured by itself, without what it needs before."""

    taken: float | None = None


READERS: dict[str, Callable[..., list[float] | None]] = {
    reader.__name__: reader
    for reader in (sequential, direct, tensors, pages, small, several, last_byte, listing)
}


def main() -> None:
    """Do the work that the command line names."""
    reader = READERS[sys.argv[1]]
    if sys.argv[1] == "tensors":
        import safetensors.numpy  # noqa: F401  # which takes longer than a fast read
    begun = time.perf_counter()
    each = reader(*sys.argv[2:])
    took = time.perf_counter() - begun
    print(json.dumps({"seconds": _Seconds.taken or took, "each": each}))


if __name__ == "__main__":
    main()
