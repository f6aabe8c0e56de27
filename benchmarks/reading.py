"""A ready version read on the mounted path and in its plain folder, in turns.

One file of 2 GiB, in pieces of 128 MiB. While one side reads a piece, the other reads the one
that is half a file away: cold, neither finds what the other has left in a cache below the
kernel's pages (ceph-fuse keeps 200 MB, an OSD what it may).
"""

import mmap
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.common import (
    MIB,
    Bench,
    Place,
    bytes_read_by,
    forget_all,
    forget_pages,
    in_pairs,
    is_native,
    seconds,
    upload_random,
)
from benchmarks.figures import Figure
from tests.mounting import Mount, wait_until

SECTION = "Reading a ready version, mounted against plain"
PIECES = 16
PIECE_BYTES = 128 * MIB
READ_BYTES = MIB
PAIRS = 5
HOT_ROUNDS = 4  # in a pair: hot, 2 GiB are over too soon for what else the machine does
RATIO_MIN = 0.95

Reader = Callable[[Path, int], object]


def run(bench: Bench) -> None:
    """Measure read() and mmap, cold and hot, in each place."""
    with bench.bucket() as bucket:
        upload_random(bucket, "models/acme/llama/weights.safetensors", PIECES * PIECE_BYTES)
        for place in bench.places:
            with bench.mount(bucket, place, "reading") as mount:
                mount.start()
                version = mount.freeze("v1", limit_s=600)
                wait_until(lambda: is_native(version), 30)  # noqa: B023  # called here alone
                _measure(bench, place, mount)


def _measure(bench: Bench, place: Place, mount: Mount) -> None:
    mounted = mount.model / "v1/weights.safetensors"
    plain = mount.store / "models/acme/llama/v1/weights.safetensors"
    by_daemon = bytes_read_by(mount.pid)
    forget_all()

    for how, read in (("read()", read_piece), ("mmap", map_piece)):
        for heat, measure, rounds in (("cold", _cold, 1), ("hot", _hot, HOT_ROUNDS)):
            pairs = in_pairs(
                *(PAIRS, PIECES * rounds),
                partial(measure, read, plain, 0),
                partial(measure, read, mounted, PIECES // 2),
            )
            what, mib = f"{how}, {heat}", rounds * PIECES * PIECE_BYTES / MIB
            for side, samples in (("plain", pairs.first_s), ("mounted", pairs.second_s)):
                speeds = tuple(mib / s for s in samples)
                bench.figures.median(SECTION, f"{what}: {side}", place.name, speeds, "MiB/s")
            _add_ratio(bench, place, what, pairs.ratio)
    kib = (bytes_read_by(mount.pid) - by_daemon) / 1024
    bench.figures.add(
        Figure(
            SECTION, "read by the daemon meanwhile", place.name, kib, "KiB", "no data", kib < 1024
        )
    )


def _add_ratio(bench: Bench, place: Place, what: str, ratio: float) -> None:
    words = f"{what}: mounted / plain, median of {PAIRS} pairs"
    holds = ratio >= RATIO_MIN
    bench.figures.add(Figure(SECTION, words, place.name, ratio, "", f">= {RATIO_MIN}", holds))


def _cold(read: Reader, path: Path, shift: int, piece: int) -> float:
    forget_pages(path)
    return seconds(lambda: read(path, (piece + shift) % PIECES * PIECE_BYTES))


def _hot(read: Reader, path: Path, shift: int, piece: int) -> float:
    offset = (piece + shift) % PIECES * PIECE_BYTES
    read(path, offset)
    return seconds(lambda: read(path, offset))


def read_piece(path: Path, offset: int) -> None:
    """Read a piece of a file from its beginning, as cp does."""
    buffer = bytearray(READ_BYTES)
    with path.open("rb", buffering=0) as file:
        for at in range(offset, offset + PIECE_BYTES, READ_BYTES):
            os.preadv(file.fileno(), [buffer], at)


def map_piece(path: Path, offset: int) -> None:
    """Touch every page of a piece, as a loader of safetensors does."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for at in range(offset, offset + PIECE_BYTES, READ_BYTES):
            bytes(mapped[at : at + READ_BYTES])
