"""What the kernel has asked for, counted: times, errors, bytes, what is open and under way.

Touched by every request, so each thing here is an addition. Owned by the trio thread.
"""

import errno
import time
from collections import Counter, defaultdict

from modelfs.counting import HANDLER_BOUNDS_S, Histogram

# The errors that are named in metrics; each of the rest is `other`, of which most are no news.
NAMED_ERRORS = frozenset({"EIO", "EACCES", "EBUSY", "EDQUOT", "ENOSPC", "EROFS", "ESTALE"})


class FuseRequests:
    """See the module; operations have the names of pyfuse3's handlers."""

    def __init__(self) -> None:
        self.seconds: dict[str, Histogram] = defaultdict(lambda: Histogram(HANDLER_BOUNDS_S))
        self.errors: Counter[tuple[str, str]] = Counter()  # by operation and name of the error
        self.under_way = 0
        self.open_files = 0
        self.served_bytes = 0
        self.written_bytes = 0

    def begin(self) -> float:
        """Count a request that is being answered; return what `end` needs."""
        self.under_way += 1
        return time.perf_counter()

    def end(self, operation: str, begun: float) -> None:
        self.under_way -= 1
        self.seconds[operation].add(time.perf_counter() - begun)

    def fail(self, operation: str, number: int) -> None:
        """Count a request that is answered with an errno."""
        name = errno.errorcode.get(number, "")
        self.errors[operation, name if name in NAMED_ERRORS else "other"] += 1
