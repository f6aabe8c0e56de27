"""Many small things: files of 4 KiB read one after the other, and long listings."""

from collections.abc import Mapping

from benchmarks import data, limits, work
from benchmarks.common import forget_all, memory_mib
from benchmarks.contenders import Contender, Modelfs
from benchmarks.contest import Contest
from benchmarks.race import MODELFS, RAW, Measured, Promise, Race, at_most, entrants

SMALL = "1,000 files of 4 KiB, listed, then read one after the other"
LISTING = "`ls -lR` of 10,000 files"
HUGE = "`ls -lR` of 100,000 files"

TIME, COLD, AGAIN = "time", "cold", "again"
AGE = "300s"  # the peers' own listings are good for 300 s (rclone) and 900 s (s3fs)
RAW_SLACK_S = 1.0
PAGE_KEYS = 1_000


def small(contest: Contest) -> None:
    """Read many small files, as a loader of a tokenizer and configurations does."""
    bucket = data.small(contest.bench)

    def raw() -> Measured:
        forget_all()
        return {TIME: limits.read_small(bucket, data.small_names())}

    def read(contender: Contender) -> Measured:
        with (
            contest.log.counting(bucket.bucket) as requests,
            contest.mounted(contender, bucket) as mount,
        ):
            took = work.timed("small", mount.main)
        return {TIME: took, **_counts(requests)}

    race = Race(contest, SMALL)
    race.run(
        {RAW: raw, **entrants(contest.contenders(), read)}, if_slow=lambda limit_s: {TIME: limit_s}
    )
    race.row(TIME, "s")
    race.ratio(TIME, RAW, at_most(1.3))
    race.ratio_to_peers(TIME, at_most(0.5), best=min)
    for kind in ("GET", "HEAD", "LIST"):
        race.row(kind, "")


def listing(contest: Contest) -> None:
    """List a large model with everything that `ls -l` shows, and list it again."""
    bucket, pages = data.many(contest.bench), data.MANY_COUNT // PAGE_KEYS

    def raw() -> Measured:
        return {COLD: limits.list_all(bucket, data.MANY_COUNT)}

    def walk(contender: Contender) -> Measured:
        found: dict[str, float] = {}
        with contest.mounted(contender, bucket) as mount:
            mount.main.parent.stat()  # what namespaces and models there are is asked apart
            for when in (COLD, AGAIN):
                with contest.log.counting(bucket.bucket) as requests:
                    found[when] = work.timed("listing", mount.main, data.MANY_COUNT)
                found |= {f"{when}: {kind}": n for kind, n in _counts(requests).items()}
        return found

    race = Race(contest, LISTING)
    race.run(
        {RAW: raw, **entrants(contest.contenders(metadata_ttl=AGE), walk)},
        if_slow=lambda limit_s: {COLD: limit_s},
    )
    race.row(COLD, "s")
    race.difference(COLD, RAW, "s", at_most(RAW_SLACK_S, "s"))
    race.row(f"{COLD}: LIST", "", Promise(f"{pages}", lambda count: count == pages))
    race.row(f"{COLD}: HEAD", "", at_most(0))
    race.row(AGAIN, "s")
    for kind in ("LIST", "HEAD"):
        race.row(f"{AGAIN}: {kind}", "", at_most(0))


def huge(contest: Contest) -> None:
    """List a model of 100,000 keys: what modelfs needs for it."""
    bucket = data.huge(contest.bench)

    def walk() -> Measured:
        with contest.mounted(Modelfs({"metadata_ttl": AGE}), bucket) as mount:
            before = memory_mib(mount.pid)[1]
            took = work.timed("listing", mount.main, data.HUGE_COUNT)
            peak = memory_mib(mount.pid)[1]
        kib = (peak - before) * 1024 / data.HUGE_COUNT
        return {TIME: took, "peak memory of the daemon": peak, "memory for a key": kib}

    race = Race(contest, HUGE)
    race.run({MODELFS: walk}, rounds=1)
    race.row(TIME, "s")
    race.row("peak memory of the daemon", "MiB", at_most(300, "MiB"))
    race.row("memory for a key", "KiB")


def _counts(requests: Mapping[str, int]) -> dict[str, float]:
    return {kind: requests.get(kind, 0) for kind in ("GET", "HEAD", "LIST")}
