"""The window: given the offsets that are asked for, which parts to bring next. Pure."""

from dataclasses import dataclass, field

AHEAD_FACTOR = 16  # bytes brought ahead for each byte that was read in sequence
BATCH_PARTS = 4  # asked for together, where one is still to come
NEAR_BYTES = 2 << 20  # two of the kernel's requests of 1 MiB that swap their places
BULK_BYTES = 512 << 10  # who asks for so much at a file's beginning will read on
STREAMS_MAX = 16  # places in one file that threads read on from side by side


@dataclass(slots=True)
class _Stream:
    """Where a reader would go on, and how much it has read in sequence; bytes."""

    next: int
    read: int = 0
    asked: int = 0  # the parts before this one were asked for


@dataclass(slots=True)
class ReadAhead:
    """The windows of one open file: each grows with what was read on from there.

    At least one part ahead, at most `window_bytes`; none before the second read of a stream. An
    `is_eager` one takes BULK_BYTES at the file's beginning for two reads: a registry that is far
    away would let that reader wait twice.
    """

    part_size: int
    file_size: int
    window_bytes: int
    is_eager: bool = True
    _streams: list[_Stream] = field(default_factory=list)  # the most recently used last

    def after(self, offset: int, size: int) -> range:
        """Note a read and return the parts worth bringing now, the reader's own excluded."""
        end = min(offset + size, self.file_size)
        stream = self._find(offset)
        if stream is None:
            stream = _Stream(end)
            self._streams = [*self._streams[1 - STREAMS_MAX :], stream]
            if offset > 0 or size < BULK_BYTES or not self.is_eager:
                return range(0)
        stream.next = max(stream.next, end)
        stream.read += size
        wanted = min(AHEAD_FACTOR * stream.read, self.window_bytes)
        last = (self.file_size - 1) // self.part_size
        first = max(0, stream.next - 1) // self.part_size + 1
        end_part = min(first - (-wanted // self.part_size), last + 1)
        few = end_part - max(first, stream.asked) < BATCH_PARTS and end_part <= last
        if few and stream.asked > first:
            return range(0)
        first, stream.asked = max(first, stream.asked), max(end_part, stream.asked)
        return range(first, end_part)

    def _find(self, offset: int) -> _Stream | None:
        for stream in reversed(self._streams):
            if abs(offset - stream.next) <= NEAR_BYTES:
                self._streams.remove(stream)
                self._streams.append(stream)
                return stream
        return None
