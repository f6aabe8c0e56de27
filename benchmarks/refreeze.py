"""A model of 20 files, 2 GiB: frozen, frozen again with one file changed, and with none.

The files are of 102.4 MiB. The full freeze stands beside a plain download by eight streams of
boto3 into the same place, which neither checks nor syncs what it writes.
"""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from boto3.s3.transfer import TransferConfig

from benchmarks.common import (
    MIB,
    Bench,
    Place,
    disk_usage,
    seconds,
    upload_random,
)
from benchmarks.figures import Figure
from tests.endpoints import S3Endpoint
from tests.mounting import Mount, wait_until, xattr

SECTION = "A model of 20 files, 2 GiB, frozen again"
FILES = 20
FILE_BYTES = (2 << 30) // FILES
STREAMS = 8
UNCHANGED_MAX_S = 1.0
UNCHANGED_ROUNDS = 5
POLL_S = 0.01
SETTLE_LIMIT_S = 120.0  # a disk that has gigabytes to write makes everybody wait


def run(bench: Bench) -> None:
    """Measure three freezes of one model in each place."""
    for place in bench.places:
        with bench.bucket() as bucket:
            _upload(bucket)
            _download(bench, place, bucket)
            with bench.mount(bucket, place, "refreeze") as mount:
                mount.start()
                _measure(bench, place, mount)


def _measure(bench: Bench, place: Place, mount: Mount) -> None:
    def add(what: str, value: float, unit: str, promised: str = "", *, holds: bool | None) -> None:
        bench.figures.add(Figure(SECTION, what, place.name, value, unit, promised, holds))

    add("full freeze, checked and durable", _freeze(mount, "v1"), "s", holds=None)
    changed = FILE_BYTES / MIB

    _change_one(mount.bucket)
    before = _Spent.of(bench, mount)
    add("again, one file changed: time", _freeze(mount, "v2"), "s", holds=None)
    spent = _Spent.of(bench, mount).since(before)
    for what, found in (("fetched", spent.fetched), ("new space (du)", spent.space)):
        holds = abs(found - changed) < changed / 100  # the gateway counts a byte less a request
        add(f"again, one file changed: {what}", found, "MiB", f"{changed:.1f} MiB", holds=holds)
    shared = _shared_inodes(mount, "v1", "v2")
    is_right = shared == FILES - 1
    add("again, one file changed: files shared", shared, "", f"{FILES - 1}", holds=is_right)

    before, times = _Spent.of(bench, mount), []
    for number in range(3, 3 + UNCHANGED_ROUNDS):
        times.append(_freeze(mount, f"v{number}"))
    spent = _Spent.of(bench, mount).since(before)
    bench.figures.median(
        *(SECTION, "again, nothing changed: time", place.name, times, "s"),
        promised=f"< {UNCHANGED_MAX_S:g} s",
        holds=lambda value: value < UNCHANGED_MAX_S,
    )
    add("again, nothing changed: fetched", spent.fetched, "MiB", "0", holds=spent.fetched == 0)
    kib = spent.space * 1024 / UNCHANGED_ROUNDS
    add("again, nothing changed: new space (folder, manifest)", kib, "KiB", holds=None)


@dataclass(frozen=True)
class _Spent:
    """MiB that the gateway has sent, and that the store takes, until now."""

    fetched: float
    space: float

    @staticmethod
    def of(bench: Bench, mount: Mount) -> "_Spent":
        wait_until(lambda: not (mount.store / "pending/acme/llama").exists(), SETTLE_LIMIT_S)
        return _Spent(bench.bytes_sent_by_gateway() / MIB, disk_usage(mount.store) / MIB)

    def since(self, before: "_Spent") -> "_Spent":
        return _Spent(self.fetched - before.fetched, self.space - before.space)


def _freeze(mount: Mount, version: str) -> float:
    """Freeze acme/llama; return the seconds from mkdir until it is ready."""

    def freeze() -> None:
        folder = mount.model / version
        folder.mkdir()
        while (state := xattr(folder, "state")) == "downloading":
            time.sleep(POLL_S)
        assert state == "ready", mount.log()

    return seconds(freeze)


def _shared_inodes(mount: Mount, one: str, other: str) -> int:
    plain = mount.store / "models/acme/llama"
    names = os.listdir(plain / one)
    return sum((plain / one / n).stat().st_ino == (plain / other / n).stat().st_ino for n in names)


# ------------------------------------------------------------------ the registry


def _key(number: int) -> str:
    return f"models/acme/llama/model-{number:05d}-of-{FILES:05d}.safetensors"


def _upload(bucket: S3Endpoint) -> None:
    for number in range(FILES):
        upload_random(bucket, _key(number), FILE_BYTES)


def _change_one(bucket: S3Endpoint) -> None:
    upload_random(bucket, _key(FILES // 2), FILE_BYTES)


def _download(bench: Bench, place: Place, bucket: S3Endpoint) -> None:
    """Download everything as a script would: a stream a file, eight at once."""
    folder = place.folder / "download"
    folder.mkdir()
    config = TransferConfig(use_threads=False)

    def fetch(number: int) -> None:
        target = folder / str(number)
        bucket.client.download_file(bucket.bucket, _key(number), str(target), Config=config)

    def fetch_all() -> None:
        with ThreadPoolExecutor(STREAMS) as threads:
            for _ in threads.map(fetch, range(FILES)):
                pass

    took = seconds(fetch_all)
    bench.figures.add(
        Figure(SECTION, f"plain download, {STREAMS} streams of boto3", place.name, took, "s")
    )
    shutil.rmtree(folder)
