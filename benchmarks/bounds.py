"""What modelfs holds at most: memory, and a small cache; and what several readers share."""

import statistics

from benchmarks import data, work
from benchmarks.common import MIB, memory_mib
from benchmarks.contenders import Contender, Modelfs
from benchmarks.contest import Contest
from benchmarks.race import MODELFS, Measured, Race, at_most, entrants
from tests.mounting import watched_disk

MEMORY = "Eight cold files of 1 GiB, read at once"
BOUNDED = "A cache of 64 MiB"
SHARING = "Readers of one cold file of 1 GiB"

MEMORY_MAX_MIB = 300
MEMORY_LIMIT_S = 240.0
CACHE_MIB = 64
IN_FLIGHT_MIB = 300  # what is in flight is part of the memory that is promised
FAIR = 3.0  # the slowest of the readers against the median
PARTS = data.BIG_BYTES // (8 * MIB)
SPEED, PEAK = "all together", "peak memory of the daemon"


def memory(contest: Contest) -> None:
    """Read eight files at once, a thread each."""
    bucket = data.eight(contest.bench)

    def read(contender: Contender) -> Measured:
        with contest.mounted(contender, bucket) as mount:
            paths = [mount.main / name for name in data.eight_names()]
            took = work.timed("several", *paths, limit_s=MEMORY_LIMIT_S)
            mib = data.EIGHT * data.BIG_BYTES / MIB
            return {SPEED: mib / took, PEAK: memory_mib(mount.pid)[1]}

    race = Race(contest, MEMORY)
    race.run(entrants(contest.contenders(), read), rounds=1)
    race.row(SPEED, "MiB/s")
    race.row(PEAK, "MiB", at_most(MEMORY_MAX_MIB, "MiB"))


def bounded(contest: Contest) -> None:
    """Read more than the cache may hold, by one reader and by twenty."""
    big, twenty = data.big(contest.bench), data.twenty(contest.bench)
    contender = Modelfs({"cache": {"max_size": f"{CACHE_MIB}MiB"}})
    one, all_of_them = "1 GiB by one reader", "20 files of 64 MiB by 20 readers"
    largest, spread = "most on the disk", "slowest reader / median"

    def read() -> Measured:
        with contest.mounted(contender, big) as mount, watched_disk(mount.cache) as seen:
            took = work.timed("sequential", mount.main / data.WEIGHTS)
        return {one: data.BIG_BYTES / MIB / took, f"{one}: {largest}": max(seen) / MIB}

    def read_at_once() -> Measured:
        with (
            contest.log.counting(twenty.bucket) as requests,
            contest.mounted(contender, twenty) as mount,
            watched_disk(mount.cache) as seen,
        ):
            said = work.done("several", *(mount.main / name for name in data.twenty_names()))
        each = said["each"]
        return {
            all_of_them: data.TWENTY * data.TWENTY_BYTES / MIB / said["seconds"],
            f"{all_of_them}: {largest}": max(seen) / MIB,
            f"{all_of_them}: GETs": requests["GET"],
            f"{all_of_them}: {spread}": max(each) / statistics.median(each),
        }

    race = Race(contest, BOUNDED)
    race.run({MODELFS: read})
    race.run({MODELFS: read_at_once})
    for what in (one, all_of_them):
        race.row(what, "MiB/s")
        race.worst(f"{what}: {largest}", "MiB", at_most(CACHE_MIB + IN_FLIGHT_MIB, "MiB"))
    race.row(f"{all_of_them}: GETs", "")
    race.row(f"{all_of_them}: {spread}", "", at_most(FAIR))


def sharing(contest: Contest) -> None:
    """Two readers of one file, and one who wants its last byte alone."""
    bucket = data.big(contest.bench)
    gets, waited, share = "two readers: GETs", "the last byte alone", "of the time of the file"

    def read() -> Measured:
        with (
            contest.log.counting(bucket.bucket) as requests,
            contest.mounted(Modelfs(), bucket) as mount,
        ):
            took = work.timed("several", *(mount.main / data.WEIGHTS for _ in range(2)))
        with contest.mounted(Modelfs(), bucket) as mount:
            last = work.timed("last_byte", mount.main / data.WEIGHTS)
        return {gets: requests["GET"], waited: last, share: last / took}

    race = Race(contest, SHARING)
    race.run({MODELFS: read})
    race.row(gets, "", at_most(PARTS))  # adjacent parts come by one
    race.row(waited, "s")
    race.row(share, "", at_most(0.1))
