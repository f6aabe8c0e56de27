"""How the requests of one bucket end, counted by operation and outcome; any thread may call."""

import threading
from collections import Counter
from collections.abc import Mapping

from modelfs.counting import REQUEST_BOUNDS_S, Histogram
from modelfs.registry.objects import RequestStatistics

NO_ANSWER = "no_answer"
_OUTCOMES: Mapping[int, str] = {
    401: "denied",
    403: "denied",
    404: "not_found",
    412: "changed",
    429: "throttled",
    503: "throttled",
}
OUTCOMES = frozenset({"ok", "client_error", "server_error", NO_ANSWER, *_OUTCOMES.values()})


def outcome_of(status: int) -> str:
    """Return the outcome that an HTTP status stands for: one of OUTCOMES."""
    if status < 400:
        return "ok"
    return _OUTCOMES.get(status) or ("server_error" if status >= 500 else "client_error")


class RequestCounts:
    """See the module. Times are until the head of an answer was here, in seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: Counter[str] = Counter()
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, Histogram] = {}

    def begin(self, operation: str) -> None:
        """Count a request that is being sent."""
        with self._lock:
            self._sent[operation] += 1

    def end(self, operation: str, outcome: str, seconds: float) -> None:
        """Count how a request has ended."""
        with self._lock:
            self._outcomes[operation, outcome] += 1
            if operation not in self._seconds:
                self._seconds[operation] = Histogram(REQUEST_BOUNDS_S)
            self._seconds[operation].add(seconds)

    def sent(self) -> Mapping[str, int]:
        """Return how many requests were sent, by operation."""
        with self._lock:
            return dict(self._sent)

    def statistics(self, credentials_read_ns: int | None) -> RequestStatistics:
        """Return everything as it is now."""
        with self._lock:
            seconds = {name: known.copy() for name, known in self._seconds.items()}
            return RequestStatistics(dict(self._outcomes), seconds, credentials_read_ns)
