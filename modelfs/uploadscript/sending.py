"""Sending: which files are there already, whole files, files in parts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from modelfs.uploadscript.files import Cut, Source, cuts_of
from modelfs.uploadscript.showing import Show
from modelfs.uploadscript.signed import Signed
from modelfs.uploadscript.temporary import Temporary
from modelfs.uploadscript.troubles import Fatal, Stopped, Trouble, shown
from modelfs.uploadscript.wire import Body

PARALLEL = 8


class Parts:
    """A file on its way in parts.

    INVARIANT: `_left` is the number of parts of which `etags` has none.
    """

    def __init__(
        self, spans: list[tuple[int, int]], upload: str, there: dict[int, tuple[int, str]]
    ) -> None:
        self.spans = spans
        self.upload = upload
        self.there = there
        self.etags = [""] * len(spans)
        self.has_failed = False
        self._left = len(spans)
        self._lock = threading.Lock()

    def done(self, number: int, etag: str) -> bool:
        """Note the ETag of a part; tell whether it was the last."""
        with self._lock:
            self.etags[number - 1] = etag
            self._left -= 1
            return self._left == 0

    def fail(self) -> bool:
        """Note that the file cannot be sent; tell whether that is news."""
        with self._lock:
            is_news, self.has_failed = not self.has_failed, True
            return is_news


class Upload:
    """Sends files by a bounded number of threads; what each came to is counted under a lock."""

    def __init__(
        self, rights: Temporary | Signed, cut: Cut, show: Show, stop: threading.Event
    ) -> None:
        self._rights = rights
        self._cut = cut
        self._show = show
        self._stop = stop
        self._pool = ThreadPoolExecutor(PARALLEL)
        self._places = threading.BoundedSemaphore(2 * PARALLEL)
        self._lock = threading.Lock()
        self.files = self.sent_bytes = 0
        self.same: set[str] = set()
        self.failures: set[str] = set()
        self.fatal: Fatal | None = None

    def compare(self, sources: Iterable[Source], there: Mapping[str, tuple[int, str]]) -> None:
        """Find out which files are there already with equal content: `same`."""
        for source in sources:
            size, etag = there.get(source.key, (-1, ""))
            if size == source.size:
                self._start(source, partial(self._compare, source, etag))
        self._wait()

    def _compare(self, source: Source, etag: str) -> None:
        if source.has_etag(etag, self._cut):
            with self._lock:
                self.same.add(source.name)
            self._show.moved(source.size)

    def send(self, sources: Iterable[Source]) -> None:
        """Send files, but those that are there."""
        for source in sources:
            if self._stop.is_set():
                break
            if source.name in self.same or source.name in self.failures:
                continue
            if source.size <= self._rights.single_max:
                self._start(source, partial(self._send_whole, source))
            else:
                self._begin(source)
        self._wait()

    def _start(self, source: Source, job: Callable[[], None], parts: Parts | None = None) -> None:
        def guarded() -> None:
            try:
                if not self._stop.is_set() and not (parts and parts.has_failed):
                    job()
            except Stopped:
                pass
            except Trouble as error:
                if parts is None or parts.fail():
                    self._fail(source, error)
            except Exception as error:  # a bug: the other files are sent all the same
                self._fail(source, Trouble(f"{type(error).__name__}: {error}"))
            finally:
                self._places.release()

        self._places.acquire()
        self._pool.submit(guarded)

    def _wait(self) -> None:
        """Wait until nothing is under way."""
        for _ in range(2 * PARALLEL):
            self._places.acquire()
        for _ in range(2 * PARALLEL):
            self._places.release()

    def _fail(self, source: Source, error: Trouble) -> None:
        with self._lock:
            if isinstance(error, Fatal):
                self.fatal = self.fatal or error
                self._stop.set()
                return
            self.failures.add(source.name)
        self._show.line(f"{shown(source.name)}: {error}")

    def _send_whole(self, source: Source) -> None:
        md5 = source.md5(0, source.size)
        body = Body(source, 0, source.size, self._show.moved)
        self._rights.put(source, body, md5).check_md5(md5)
        source.check_unchanged()
        self._count(source.size, 1)

    def _begin(self, source: Source) -> None:
        """Begin a file of several parts, and start each."""
        try:
            most = self._rights.parts_max(source)
            likely = map(source.spans, cuts_of(source.size, self._cut))
            spans = next(spans for spans in likely if len(spans) <= most)
            parts = Parts(spans, *self._rights.begin(source, len(spans)))
        except Stopped:
            return
        except Trouble as error:
            self._fail(source, error)
            return
        for number, (offset, length) in enumerate(parts.spans, 1):
            if parts.has_failed or self._stop.is_set():
                return
            job = partial(self._send_part, source, parts, number, offset, length)
            self._start(source, job, parts)

    def _send_part(
        self, source: Source, parts: Parts, number: int, offset: int, length: int
    ) -> None:
        md5 = source.md5(offset, length)
        size, etag = parts.there.get(number, (-1, ""))
        if (size, etag) == (length, md5.hex()):
            self._show.moved(length)
        else:
            body = Body(source, offset, length, self._show.moved)
            answer = self._rights.part(source, parts.upload, number, body, md5)
            answer.check_md5(md5)
            etag = answer.etag
            self._count(length, 0)
        if parts.done(number, etag):
            source.check_unchanged()
            self._rights.finish(source, parts.upload, parts.etags)
            self._count(0, 1)

    def _count(self, sent_bytes: int, files: int) -> None:
        with self._lock:
            self.sent_bytes += sent_bytes
            self.files += files
