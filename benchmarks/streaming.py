"""One file of 1 GiB: cold, again from the disk and from memory, by mmap, here and there.

raw is eight streams of boto3 into a file, the plain file is that file.
"""

import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from benchmarks import data, limits, work
from benchmarks.common import MIB, forget_all, memory_mib, processor_s
from benchmarks.contenders import Contender, Mounted
from benchmarks.contest import DELAYS_MS, Contest
from benchmarks.race import FAILURES, PLAIN, RAW, Measured, Race, at_least, brief, entrants
from benchmarks.work import TooSlow
from tests.endpoints import S3Endpoint

COLD = "Cold sequential read of 1 GiB"
AGAIN = "Read again"
LOADERS = "Cold load of 1 GiB, 30 ms a request"
RANDOM = "4 KiB random reads of a cached file of 1 GiB"

LOADERS_MS = 30
PAGES = 10_000
PASSES = 3  # with nothing dropped
ORDERED, SHUFFLED = "safetensors, in file order", "safetensors, shuffled"
DIRECT = "O_DIRECT, 1 MiB, one thread"
DROPPED, KEPT = "page cache dropped", "nothing dropped"


def at_delay(ms: int) -> str:
    """Return the row's name of a delay."""
    return f"{ms} ms a request"


def _speed(seconds: float, size: int = data.BIG_BYTES) -> float:
    return size / MIB / seconds


def _raw(contest: Contest, bucket: S3Endpoint, name: str, size: int, ms: int) -> float:
    """Download a file with nothing in the page cache; return MiB/s."""
    with contest.folder() as folder:
        forget_all()
        return _speed(limits.download(bucket, contest.endpoints[ms], {name: size}, folder), size)


# ------------------------------------------------------------------------- cold


def cold(contest: Contest) -> None:
    """Read a file from its beginning to its end, at each delay."""
    bucket = data.big(contest.bench)
    race = Race(contest, COLD)
    for ms in DELAYS_MS:
        _cold_at(contest, race, bucket, ms)
    for ms in DELAYS_MS:
        race.row(at_delay(ms), "MiB/s")
        race.ratio(at_delay(ms), RAW, at_least(0.9))
        race.ratio_to_peers(at_delay(ms), at_least(1.0))
    race.row("GETs", "")
    race.row("processor time of the daemon", "s")
    race.worst("peak memory of the daemon", "MiB")


def _cold_at(contest: Contest, race: Race, bucket: S3Endpoint, ms: int) -> None:
    what = at_delay(ms)

    def raw() -> Measured:
        return {what: _raw(contest, bucket, data.WEIGHTS, data.BIG_BYTES, ms)}

    def read(contender: Contender) -> Measured:
        with (
            contest.log.counting(bucket.bucket) as requests,
            contest.mounted(contender, bucket, ms) as mount,
        ):
            begun = processor_s(mount.pid)
            found = {what: _speed(work.timed("sequential", mount.main / data.WEIGHTS))}
            if ms == 0:
                found["processor time of the daemon"] = processor_s(mount.pid) - begun
                found["peak memory of the daemon"] = memory_mib(mount.pid)[1]
        return {**found, "GETs": requests["GET"]} if ms == 0 else found

    race.run(
        {RAW: raw, **entrants(contest.contenders(), read)},
        if_slow=lambda limit_s: {what: _speed(limit_s)},
    )


# ------------------------------------------------------------------------ again


@contextmanager
def _filled(contest: Contest) -> Iterator[dict[str, Path]]:
    """Mount everybody, and let each read the file once; yield its path in each mount."""
    bucket = data.big(contest.bench)
    sizes = {data.WEIGHTS: data.BIG_BYTES}
    with ExitStack() as stack:
        folder = stack.enter_context(contest.folder())
        limits.download(bucket, bucket.endpoint, sizes, folder)
        paths = {PLAIN: folder / data.WEIGHTS}
        for contender in contest.contenders():
            try:
                mount: Mounted = stack.enter_context(contest.mounted(contender, bucket))
                work.timed("sequential", mount.main / data.WEIGHTS)
            except (TooSlow, *FAILURES) as error:
                contest.bench.figures.note(f"{contender.name} left out: {brief(error)}")
            else:
                paths[contender.name] = mount.main / data.WEIGHTS
        yield paths


def again(contest: Contest) -> None:
    """Read a file that is in the cache on the disk, and then one that is in memory."""

    def read(path: Path) -> Measured:
        forget_all()
        dropped = _speed(work.timed("sequential", path))
        # The first time again the kernel also notes of each page that it was wanted twice.
        kept = statistics.median(_speed(work.timed("sequential", path)) for _ in range(PASSES))
        return {DROPPED: dropped, KEPT: kept}

    race = Race(contest, AGAIN)
    with _filled(contest) as paths:
        race.run({who: partial(read, path) for who, path in paths.items()})
    for what, limit in ((DROPPED, 0.6), (KEPT, 0.8)):
        race.row(what, "MiB/s")
        race.ratio(what, PLAIN, at_least(limit))
    race.ratio_to_peers(DROPPED, at_least(2))


def here_and_there(contest: Contest) -> None:
    """Read pages here and there of a file that is in the cache on the disk."""

    def read(path: Path) -> Measured:
        work.timed("sequential", path)
        kept = PAGES / work.timed("pages", path, PAGES, work.SEED)
        forget_all()
        return {KEPT: kept, DROPPED: PAGES / work.timed("pages", path, PAGES, work.SEED + 1)}

    race = Race(contest, RANDOM)
    with _filled(contest) as paths:
        race.run({who: partial(read, path) for who, path in paths.items()})
    for what in (KEPT, DROPPED):
        race.row(what, "reads/s")
        race.ratio_to_peers(what, at_least(2))


# ---------------------------------------------------------------------- loaders


def loaders(contest: Contest) -> None:
    """Load a model as model servers do, from a registry that is far away."""
    models, weights = data.tensors(contest.bench), data.big(contest.bench)
    race = Race(contest, LOADERS)
    for what, bucket, words, limit in (
        (ORDERED, models, ("tensors", data.TENSORS, "ordered"), 0.8),
        (SHUFFLED, models, ("tensors", data.TENSORS, "shuffled"), 0.5),
        (DIRECT, weights, ("direct", data.WEIGHTS), 0.8),
    ):
        _load(contest, race, what, bucket, words)
        race.row(what, "MiB/s")
        race.ratio(what, RAW, at_least(limit))


def _load(
    contest: Contest, race: Race, what: str, bucket: S3Endpoint, words: tuple[str, ...]
) -> None:
    kind, name, *more = words

    def raw() -> Measured:
        return {what: _raw(contest, bucket, name, data.BIG_BYTES, LOADERS_MS)}

    def read(contender: Contender) -> Measured:
        with contest.mounted(contender, bucket, LOADERS_MS) as mount:
            return {what: _speed(work.timed(kind, mount.main / name, *more))}

    race.run(
        {RAW: raw, **entrants(contest.contenders(), read)},
        if_slow=lambda limit_s: {what: _speed(limit_s)},
    )
