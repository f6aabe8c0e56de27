"""Histograms of times: what is counted cheaply, again and again, to be shown as metrics.

No locks: one thread adds, or its caller holds a lock.
"""

from bisect import bisect_left
from collections.abc import Iterable

REQUEST_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
HANDLER_BOUNDS_S = (0.0001, 0.00025, 0.001, 0.0025, 0.01, 0.05, 0.25, 1.0, 5.0, 30.0)
LAG_BOUNDS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)


class Histogram:
    """How many times (seconds) passed no bound but the next; `counts` has one more, for the rest.

    INVARIANT: the sum of `counts` is how often `add` was called.
    """

    __slots__ = ("bounds_s", "counts", "sum_s")

    def __init__(self, bounds_s: Iterable[float]) -> None:
        self.bounds_s = tuple(bounds_s)
        self.counts = [0] * (len(self.bounds_s) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds_s, seconds)] += 1
        self.sum_s += seconds

    def copy(self) -> "Histogram":
        twin = Histogram(self.bounds_s)
        twin.counts = list(self.counts)
        twin.sum_s = self.sum_s
        return twin

    def cumulative(self) -> list[tuple[str, float]]:
        """Return each bound, `+Inf` last, and how many times were not above it."""
        found, total = [], 0
        for bound, count in zip((*map(str, self.bounds_s), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found
