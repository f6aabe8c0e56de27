"""Turns: in every round everybody does the same once, one after the other.

Each round begins with the next one, so that nobody always finds what another has left in the
caches of the cluster. Ratios are of one round, and the median of them counts: what the machine
does besides befalls both sides.
"""

import statistics
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from botocore.exceptions import BotoCoreError, ClientError

from benchmarks.contenders import Contender
from benchmarks.contest import Contest
from benchmarks.figures import Figure
from benchmarks.work import TooSlow

RAW, PLAIN, MODELFS = "raw", "plain file", "modelfs"

Measured = Mapping[str, float]
Samples = dict[int, float]  # by the number of the round

FAILURES = (OSError, AssertionError, subprocess.SubprocessError, BotoCoreError, ClientError)


@dataclass(frozen=True)
class Promise:
    """What a figure must be, in words and as a check."""

    words: str
    holds: Callable[[float], bool]


def at_least(limit: float, unit: str = "") -> Promise:
    return Promise(f">= {limit:g} {unit}".strip(), lambda value: value >= limit)


def at_most(limit: float, unit: str = "") -> Promise:
    return Promise(f"<= {limit:g} {unit}".strip(), lambda value: value <= limit)


def brief(error: BaseException) -> str:
    """Return what an error says last, after the log that it may bring."""
    lines = [line for line in str(error).splitlines() if line.strip(" ^")]
    return f"{type(error).__name__}: {lines[-1].strip()[:200]}" if lines else type(error).__name__


def entrants(
    contenders: tuple[Contender, ...], measure: Callable[[Contender], Measured]
) -> dict[str, Callable[[], Measured]]:
    """Return what each contender does, by its name."""
    return {contender.name: partial(measure, contender) for contender in contenders}


class Race:
    """What everybody did in one section, round by round."""

    def __init__(self, contest: Contest, section: str) -> None:
        self._contest = contest
        self._figures = contest.bench.figures
        self._section = section
        self._samples: dict[str, dict[str, Samples]] = {}  # what was measured -> who
        self._bounds: set[tuple[str, str]] = set()  # what, who: too slow to be waited for

    def run(
        self,
        entrants: Mapping[str, Callable[[], Measured]],
        *,
        rounds: int | None = None,
        if_slow: Callable[[float], Measured] = lambda limit_s: {},
    ) -> None:
        """Let everybody measure in each round.

        Who fails once, or takes too long, is not asked again; `if_slow` says what the latter
        means for the figures, which are then bounds.
        """
        names, out = list(entrants), set[str]()
        count = self._contest.rounds if rounds is None else rounds
        for number in range(count):
            turn = number % len(names)
            for who in names[turn:] + names[:turn]:
                if who in out:
                    continue
                try:
                    found = entrants[who]()
                except TooSlow as slow:
                    out.add(who)
                    found = if_slow(slow.limit_s)
                    self._figures.note(f"{self._section}, {who}: {', '.join(found)}: {slow}")
                    for what, value in found.items():
                        self._bounds.add((what, who))
                        self._of(what, who).update(dict.fromkeys(range(count), value))
                except FAILURES as error:
                    out.add(who)
                    self._figures.note(f"{self._section}, {who}: failed: {brief(error)}")
                else:
                    self._keep(number, who, found)

    def _keep(self, number: int, who: str, found: Measured) -> None:
        shown = ", ".join(f"{what} {value:,.2f}" for what, value in found.items())
        print(f"  {self._section}, round {number + 1}, {who}: {shown}", flush=True)
        for what, value in found.items():
            self._of(what, who)[number] = value

    def _of(self, what: str, who: str) -> Samples:
        return self._samples.setdefault(what, {}).setdefault(who, {})

    # -------------------------------------------------------------------- figures

    def row(self, what: str, unit: str, promise: Promise | None = None) -> None:
        """Add the median of everybody who measured it; a promise is for modelfs."""
        for who, samples in self._samples.get(what, {}).items():
            self._add(what, who, samples, unit, promise if who == MODELFS else None)
        if promise and MODELFS not in self._samples.get(what, {}):
            self._add(what, MODELFS, {}, unit, promise)

    def worst(self, what: str, unit: str, promise: Promise | None = None) -> None:
        """Add the largest that each has measured."""
        for who, samples in self._samples.get(what, {}).items():
            largest = {0: max(samples.values())}
            self._add(what, who, largest, unit, promise if who == MODELFS else None)

    def ratio(self, what: str, other: str, promise: Promise) -> None:
        """Add modelfs / another."""
        self._add_ratio(f"{what}: modelfs / {other}", what, self._of(what, other), promise)

    def difference(self, what: str, other: str, unit: str, promise: Promise) -> None:
        """Add modelfs - another."""
        ours, others = self._of(what, MODELFS), self._of(what, other)
        found = {number: ours[number] - others[number] for number in ours.keys() & others.keys()}
        self._add(f"{what}: {MODELFS} - {other}", MODELFS, found, unit, promise)

    def ratio_to_peers(
        self, what: str, promise: Promise, *, best: Callable[[list[float]], float] = max
    ) -> None:
        """Add modelfs / the best peer of each round; `best` is min for seconds."""
        peers = [self._samples.get(what, {}).get(p.name, {}) for p in self._contest.peers]
        others = {
            number: best([samples[number] for samples in peers if number in samples])
            for number in set[int]().union(*peers)
        }
        if others:
            self._add_ratio(f"{what}: modelfs / best peer", what, others, promise)

    def _add_ratio(self, words: str, what: str, others: Samples, promise: Promise) -> None:
        ours = self._of(what, MODELFS)
        found = {number: ours[number] / others[number] for number in ours.keys() & others.keys()}
        self._add(words, MODELFS, found, "", promise)

    def _add(
        self, what: str, who: str, samples: Samples, unit: str, promise: Promise | None
    ) -> None:
        values = tuple(samples.values())
        if not values:  # it failed: so does what was promised
            words = promise.words if promise else ""
            self._figures.add(Figure(self._section, what, who, 0, "(failed)", words, False))
            return
        value = statistics.median(values)
        words, holds = (promise.words, promise.holds(value)) if promise else ("", None)
        is_bound = (what, who) in self._bounds
        self._figures.add(
            Figure(self._section, what, who, value, unit, words, holds, values, is_bound)
        )
