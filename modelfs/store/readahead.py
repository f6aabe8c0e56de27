"""The window: given the offsets that one reader asks for, which parts to bring next. Pure."""

from dataclasses import dataclass

WINDOW_START = 1  # parts brought ahead of a reader at its second sequential read
WINDOW_MAX = 8  # parts; with 8 MiB parts, 64 MiB ahead of each sequential reader
NEAR_BYTES = 2 * 1024 * 1024  # two of the kernel's requests of 1 MiB that swap their places


@dataclass(slots=True)
class ReadAhead:
    """One reader's window: doubled as the reader goes on, closed when it jumps."""

    part_size: int
    file_size: int
    _next: int | None = None  # where the reader would go on; None before its first read
    _window: int = 0

    def after(self, offset: int, size: int) -> range:
        """Note a read and return the parts worth bringing now, the reader's own excluded."""
        end = min(offset + size, self.file_size)
        before, self._next = self._next, end
        if before is None or abs(offset - before) > NEAR_BYTES:
            self._window = 0
            return range(0)
        self._next = max(end, before)
        if self._window == 0:
            self._window = WINDOW_START
        elif self._next // self.part_size != before // self.part_size:
            self._window = min(self._window * 2, WINDOW_MAX)
        first = max(0, self._next - 1) // self.part_size + 1
        last = (self.file_size - 1) // self.part_size
        return range(first, min(first + self._window, last + 1))
