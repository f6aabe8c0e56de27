"""Writing: a large file by cp until the registry has it, a file that grows, and small pieces.

raw is boto3's own upload by eight threads, from the same file. Everybody is asked for the same:
the object is there, whole, when the clock stops. Peers that answer before are waited for.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from benchmarks import data, limits
from benchmarks.common import MIB, ask_ceph, forget_all, memory_mib, processor_s, seconds
from benchmarks.contenders import Contender, Mounted
from benchmarks.contest import Contest
from benchmarks.race import MODELFS, RAW, Measured, Race, at_least, at_most, entrants
from tests.endpoints import S3Endpoint

LARGE = "`cp` of a file of 6 GiB, until the registry has it"
GROWING = "A file grown by 100 rounds of open, append 1 MiB, close"
PIECES = "A file of 64 MiB, written in pieces of 4 KiB"

LARGE_BYTES = 6 << 30
NAME = "large.bin"
STREAMS = 8
LIMIT_S = 900.0
POLL_S = 0.05
ROUNDS, ROUND_BYTES = 100, MIB
PIECE_COUNT, PIECE_BYTES = 16_384, 4 << 10
MEMORY_MAX_MIB = 300
SPEED, PEAK, PROCESSOR = "speed", "peak memory of the daemon", "processor time of the daemon"
LEFT = "staged afterwards"
UPLOADED = "modelfs_uploaded_bytes_total{"
SENT, TIME = "bytes sent / bytes of the file", "time"


def large(contest: Contest) -> None:
    """Copy a large file into each mount."""
    with source(contest, LARGE_BYTES) as file, contest.bench.bucket() as bucket:

        def raw() -> Measured:
            client = limits.client_of(bucket, bucket.endpoint)
            config = TransferConfig(max_concurrency=STREAMS, multipart_chunksize=8 * MIB)
            upload = (str(file), bucket.bucket, f"{data.PREFIX}{NAME}")
            forget_all()
            took = seconds(lambda: client.upload_file(*upload, Config=config))
            _remove(bucket, NAME)
            return {SPEED: LARGE_BYTES / MIB / took}

        def copy(contender: Contender) -> Measured:
            _put_model(bucket)
            with contest.mounted(contender, bucket) as mount:
                begun = processor_s(mount.pid)
                took = seconds(lambda: _copy(file, mount, bucket))
                found = {
                    SPEED: LARGE_BYTES / MIB / took,
                    PEAK: memory_mib(mount.pid)[1],
                    PROCESSOR: processor_s(mount.pid) - begun,
                }
                if contender.name == MODELFS:
                    found[LEFT] = float(len(list(mount.cache.parent.glob("staged/*/*"))))
            _remove(bucket, NAME)
            return found

        race = Race(contest, LARGE)
        ours, *peers = contest.contenders()
        race.run({RAW: raw, **entrants((ours,), copy)})
        race.run(entrants(tuple(peers), copy), rounds=1)  # 6 GiB each: the disk is small
    race.row(SPEED, "MiB/s")
    race.ratio(SPEED, RAW, at_least(0.9))
    race.ratio_to_peers(SPEED, at_least(1.0))
    race.row(PROCESSOR, "s")
    race.worst(PEAK, "MiB", at_most(MEMORY_MAX_MIB, "MiB"))
    race.worst(LEFT, "files", at_most(0))


def _copy(file: Path, mount: Mounted, bucket: S3Endpoint) -> None:
    """Copy, and wait until the object is there: for modelfs it must be when cp returns."""
    words = ["cp", str(file), str(mount.main / NAME)]
    subprocess.run(words, check=True, timeout=LIMIT_S)
    is_ours = (mount.cache.parent / "format").exists()
    end = time.monotonic() + LIMIT_S
    while not _is_there(bucket, LARGE_BYTES):
        assert not is_ours, "cp has returned, and the registry does not have the file"
        assert time.monotonic() < end, "the object does not come"
        time.sleep(POLL_S)


def growing(contest: Contest) -> None:
    """Append to a file again and again, as an upload in pieces, a log or a checkpoint does."""
    with contest.bench.bucket() as bucket:

        def grow(contender: Contender) -> Measured:
            _put_model(bucket)
            with contest.mounted(contender, bucket) as mount:
                path, expected = mount.main / NAME, b""
                path.touch()
                received = partial(_bytes_sent_to, contest, contender, mount)
                before = received()
                begun = time.perf_counter()
                for number in range(ROUNDS):
                    piece = bytes([number]) * ROUND_BYTES
                    expected += piece
                    with path.open("ab", buffering=0) as opened:
                        assert opened.write(piece) == len(piece)
                took = time.perf_counter() - begun
                end = time.monotonic() + LIMIT_S
                while not _is_there(bucket, len(expected)):
                    assert time.monotonic() < end, "the object does not come"
                    time.sleep(POLL_S)
                sent = received() - before
                assert bucket.get(f"{data.PREFIX}{NAME}") == expected
            _remove(bucket, NAME)
            return {SENT: sent / len(expected), TIME: took}

        race = Race(contest, GROWING)
        race.run(entrants(contest.contenders(), grow), rounds=1)
    race.row(SENT, "", at_most(3))
    race.row(TIME, "s")


def pieces(contest: Contest) -> None:
    """Write a file in pages, as a program without a buffer of its own does."""
    with contest.bench.bucket() as bucket:

        def write(folder: Path) -> float:
            piece = os.urandom(PIECE_BYTES)
            fd = os.open(folder / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

            def write_all() -> None:
                for _ in range(PIECE_COUNT):
                    os.write(fd, piece)

            took = seconds(write_all)
            os.close(fd)
            return PIECE_COUNT / took

        def by_mount(contender: Contender) -> Measured:
            _put_model(bucket)
            with contest.mounted(contender, bucket) as mount:
                begun = processor_s(mount.pid)
                found = {SPEED: write(mount.main), PROCESSOR: processor_s(mount.pid) - begun}
            _remove(bucket, NAME)
            return found

        race = Race(contest, PIECES)
        race.run(entrants(contest.contenders(), by_mount))
    race.row(SPEED, "writes/s")
    race.row(PROCESSOR, "s")


# ------------------------------------------------------------------------ the registry


@contextmanager
def source(contest: Contest, size: int) -> Iterator[Path]:
    """A file of numbered MiB on the local disk."""
    rest = data.pattern()[8:]
    with contest.folder() as folder:
        path = folder / "source"
        with path.open("wb") as file:
            for number in range(size // MIB):
                file.write(number.to_bytes(8) + rest)
            os.fsync(file.fileno())
        yield path


def _put_model(bucket: S3Endpoint) -> None:
    bucket.put(data.PREFIX)


def _remove(bucket: S3Endpoint, name: str) -> None:
    bucket.client.delete_object(Bucket=bucket.bucket, Key=f"{data.PREFIX}{name}")


def _is_there(bucket: S3Endpoint, size: int) -> bool:
    try:
        found: Any = bucket.client.head_object(Bucket=bucket.bucket, Key=f"{data.PREFIX}{NAME}")
    except ClientError:
        return False
    return bool(found["ContentLength"] == size)


def _bytes_sent_to(contest: Contest, contender: Contender, mount: Mounted) -> int:
    """Return how many bytes of objects a contender has sent to the gateway.

    The gateway's own counter takes in what it copies by itself, which modelfs alone asks for:
    of that its metrics tell.
    """
    if contender.name == MODELFS:
        text = (mount.main.parents[2] / ".modelfs" / "metrics").read_text()
        lines = [line for line in text.splitlines() if line.startswith(UPLOADED)]
        return int(float(lines[0].rpartition(" ")[2]))
    socket = contest.bench.ceph.directory / "run" / "rgw.asok"
    return int(ask_ceph(socket, "perf dump")["rgw"]["put_b"])
