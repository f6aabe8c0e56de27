"""A model of twelve files, 1 GiB, frozen: from `mkdir` until it is ready, hashed and synced."""

import os
import subprocess
import time
from pathlib import Path

from benchmarks import contenders, data, limits
from benchmarks.common import forget_all, seconds
from benchmarks.contenders import Modelfs, Rclone
from benchmarks.contest import Contest
from benchmarks.race import MODELFS, RAW, Measured, Race, at_most
from tests.mounting import Mount, xattr

SECTION = "A model of 12 files, 1 GiB, onto the local disk"
TIME = "time"
COPY = "rclone copy"
TRANSFERS = 8
POLL_S = 0.01
LIMIT_S = 120.0


def freeze(contest: Contest) -> None:
    """Freeze a model beside those who only download it."""
    bucket = data.twelve(contest.bench)

    def raw() -> Measured:
        forget_all()
        with contest.folder() as folder:
            return {TIME: limits.download(bucket, bucket.endpoint, data.twelve_sizes(), folder)}

    def copy() -> Measured:
        forget_all()
        environment = contenders.rclone_environment(bucket, bucket.endpoint)
        with contest.folder() as folder:
            words = [
                *(contenders.program("rclone"), "copy", "--transfers", str(TRANSFERS)),
                *("--config", str(folder / "rclone.conf")),
                *(f"bench:{bucket.bucket}/{data.PREFIX}", str(folder / "copy")),
            ]
            run = lambda: subprocess.run(  # noqa: E731
                words, env={**os.environ, **environment}, check=True, timeout=LIMIT_S
            )
            took = seconds(run)
            _check(folder / "copy")
            return {TIME: took}

    def frozen() -> Measured:
        forget_all()
        with (
            contest.folder() as folder,
            Modelfs().started(bucket, bucket.endpoint, folder) as mount,
        ):
            took = seconds(lambda: _freeze(mount))
            _check(mount.store / "models/acme/llama/v1")
            return {TIME: took}

    race = Race(contest, SECTION)
    is_here = Rclone().is_here()
    race.run({RAW: raw, MODELFS: frozen, **({COPY: copy} if is_here else {})})
    race.row(TIME, "s")
    race.ratio(TIME, RAW, at_most(1.3))
    if is_here:
        race.ratio(TIME, COPY, at_most(1))


def _freeze(mount: Mount) -> None:
    folder = mount.model / "v1"
    end = time.monotonic() + LIMIT_S
    folder.mkdir()
    while (state := xattr(folder, "state")) == "downloading":
        assert time.monotonic() < end, "the freeze is not over"
        time.sleep(POLL_S)
    assert state == "ready", mount.log()


def _check(folder: Path) -> None:
    found = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert found == data.twelve_sizes(), found
