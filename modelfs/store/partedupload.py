"""A multipart upload of a staged file: which parts the registry has, which are on their way.

It begins while the file is written, or when it is closed, and outlives a try that failed: the
next one sends what is missing. Owned by the trio thread.
"""

import trio

from modelfs.concurrency import Progress
from modelfs.errors import WrongBytes
from modelfs.registry.objects import ObjectInfo, UploadedPart
from modelfs.registry.registry import Registry
from modelfs.store.cuts import Cut, Piece

NO_END = 1 << 62  # a size that no file has
PART_TRIES = 3  # of a part of which the registry says that it came wrong


class PartedUpload:
    """See the module.

    `key`, `id` and `mtime_ns` are what it was begun with. `source` is the object of which the
    copied pieces are.

    INVARIANT: a part in `_stale` was written since it was sent, and is sent again.
    """

    def __init__(
        self,
        registry: Registry,
        progress: Progress,
        key: str,
        upload_id: str,
        mtime_ns: int,
        cut: Cut,
        source: ObjectInfo | None = None,
    ) -> None:
        self._registry = registry
        self._progress = progress
        self.key = key
        self.id = upload_id
        self.mtime_ns = mtime_ns
        self._cut = cut
        self._source = source
        self._parts: dict[int, tuple[Piece, UploadedPart]] = {}
        self._stale: set[int] = set()
        self._flights: dict[int, trio.Event] = {}
        self._next_ahead = 1
        self.sends_ahead = True

    @property
    def flights(self) -> int:
        """Return how many parts are on their way."""
        return len(self._flights)

    @property
    def is_sparing(self) -> bool:
        """Tell whether parts of it are copies of an object that may change."""
        return self._source is not None

    def change(self, start: int, end: int | None) -> None:
        """Note that bytes [start, end), or all from `start` on, are written just now."""
        first = self._cut.number_at(start)
        if end is None:
            self._stale.update(n for n in (*self._parts, *self._flights) if n >= first)
        else:
            self._stale.update(range(first, self._cut.number_at(max(start, end - 1)) + 1))

    def _has(self, piece: Piece) -> bool:
        found = self._parts.get(piece.number)
        return found is not None and found[0] == piece and piece.number not in self._stale

    def take_ahead(self, written_until: int) -> Piece | None:
        """Return the next part that is written whole, as being on its way; None for none yet."""
        while self.sends_ahead:
            piece = self._cut.piece(self._next_ahead, written_until)
            if piece.length < self._cut.piece(piece.number, NO_END).length:
                return None
            self._next_ahead += 1
            if not self._has(piece) and piece.number not in self._flights:
                self._flights[piece.number] = trio.Event()
                return piece
        return None

    async def send(self, fd: int, piece: Piece) -> None:
        """See that the registry has a part as it is now; one on its way is waited for."""
        while not self._has(piece):
            flight = self._flights.get(piece.number)
            if flight is None:
                self._flights[piece.number] = trio.Event()
                await self.fly(fd, piece)
                return
            await flight.wait()

    async def fly(self, fd: int, piece: Piece) -> None:
        """Send a part that is noted as being on its way."""
        try:
            for tries_left in reversed(range(PART_TRIES)):
                self._stale.discard(piece.number)
                try:
                    self._parts[piece.number] = piece, await self._request(fd, piece)
                    return
                except WrongBytes:  # as where it was written in this moment
                    if not tries_left:
                        raise
        finally:
            self._flights.pop(piece.number).set()

    async def _request(self, fd: int, piece: Piece) -> UploadedPart:
        registry, span = self._registry, (piece.offset, piece.length)
        if piece.is_copied:
            copied = (self._source, *span, self.key, self.id, piece.number)
            part = await registry.call_upload(registry.store.copy_part, *copied)
            self._progress(0)  # the registry has moved them
            return part
        sent = (self.key, self.id, piece.number, fd, *span, self._progress)
        return await registry.call_upload(registry.store.upload_part, *sent)

    async def landed(self) -> None:
        """Return when no part is on its way."""
        while self._flights:
            await next(iter(self._flights.values())).wait()

    def parts(self, size: int) -> list[UploadedPart]:
        """Return the parts of a file of `size` bytes, all of which were sent, in order."""
        return [self._parts[number][1] for number in range(1, self._cut.count(size) + 1)]
