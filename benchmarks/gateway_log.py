"""How many requests a bucket has had, by the gateway's own log: no client counts for itself."""

import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

QUIET_S = 0.3  # the gateway writes its log a moment after it has answered
LIMIT_S = 5.0

_REQUEST = re.compile(rb' beast: .*? "([A-Z]+) (/[^ ]*) HTTP/[0-9.]+" ([0-9]{3}) ')


class GatewayLog:
    """The log of the gateway of the cluster in a folder."""

    def __init__(self, cluster: Path) -> None:
        self._path = cluster / "log" / "rgw.log"

    @contextmanager
    def counting(self, bucket: str) -> Iterator[Counter[str]]:
        """Fill a counter with the bucket's requests inside the block, by kind."""
        begun = self._settled()
        counts: Counter[str] = Counter()
        yield counts
        end = self._settled()
        with self._path.open("rb") as file:
            file.seek(begun)
            counts.update(_kinds(file.read(end - begun), bucket))

    def _settled(self) -> int:
        """Return the log's size when it has stood still for a moment."""
        deadline = time.monotonic() + LIMIT_S
        size = self._path.stat().st_size
        while True:
            time.sleep(QUIET_S)
            before, size = size, self._path.stat().st_size
            if size == before or time.monotonic() > deadline:
                return size


def _kinds(log: bytes, bucket: str) -> Iterator[str]:
    """Yield GET, HEAD, PUT, LIST or another method for each request to a bucket."""
    itself = f"/{bucket}".encode()
    for match in _REQUEST.finditer(log):
        method, (path, _, query) = match[1].decode(), match[2].partition(b"?")
        if path.rstrip(b"/") == itself and method == "GET":
            # A GET of the bucket with `location`, `acl`, ... lists nothing.
            is_list = not query or re.search(rb"(list-type|prefix|delimiter|marker)=", query)
            yield "LIST" if is_list else "OTHER"
        elif path.startswith(itself + b"/") or path == itself:
            yield method
