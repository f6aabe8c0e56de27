"""How far it is."""

from __future__ import annotations

import sys
import threading
import time

from modelfs.uploadscript.troubles import note, size_text

LINE_EVERY_S, DRAW_EVERY_S = 30.0, 0.2


class Show:
    """How far it is, on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._done = self._total = 0
        self._began = self._shown_at = time.monotonic()

    def begin(self, total: int) -> None:
        self._total = total
        self._began = self._shown_at = time.monotonic()
        if self._is_terminal:
            self._draw(self._began)

    def moved(self, count: int) -> None:
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._shown_at >= (DRAW_EVERY_S if self._is_terminal else LINE_EVERY_S):
                self._shown_at = now
                self._draw(now)

    def _draw(self, now: float) -> None:
        done, total = self._done, max(self._total, 1)
        rate = done / max(now - self._began, 0.001)
        text = (
            f"{size_text(done)} of {size_text(total)}, {100 * done // total}%, {size_text(rate)}/s"
        )
        if self._is_terminal:
            bar = "#" * (20 * done // total)
            print(f"\r[{bar:<20}] {text}\x1b[K", end="", file=sys.stderr, flush=True)
        else:
            note(text)

    def line(self, text: str) -> None:
        """Print a line, above the bar."""
        with self._lock:
            self._clear()
            note(text)

    def end(self) -> None:
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
