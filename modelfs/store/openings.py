"""In which order the small files of a folder are opened, and which come next. Pure."""

from bisect import bisect_left

from modelfs.registry.listing import Folder
from modelfs.store.formats import CONFIG_SUFFIXES

SMALL_FIRST = 8  # files after the first one that is opened in a folder
SMALL_MAX = 64  # files ahead; doubled up to this


class Openings:
    """In which order the files of one folder are opened; names, as its listing is made anew."""

    def __init__(self) -> None:
        self._folder: Folder | None = None
        self._names: list[str] = []
        self._last: str | None = None
        self._until = ""  # the names before this one were wanted already
        self._window = 0

    def after(self, name: str, folder: Folder) -> list[str]:
        """Note that a file was opened; return the names worth bringing now."""
        if folder is not self._folder or len(folder.files) != len(self._names):
            self._folder, self._names = folder, sorted(folder.files)
        names, last = self._names, self._last
        at, self._last = bisect_left(names, name), name
        if last is None and name.endswith(CONFIG_SUFFIXES):  # a model is being loaded
            self._want(at, SMALL_FIRST)
            return [*names[at + 1 : at + SMALL_MAX], *names[max(0, at - SMALL_MAX) : at]]
        goes_on = at == 0 if last is None else 0 <= at - bisect_left(names, last) <= 1
        if not goes_on:
            self._want(at, 0)
            return []
        wanted_to = bisect_left(names, self._until)
        if wanted_to - at > self._window // 2:  # half of what was wanted is still to come
            return []
        self._want(at, min(max(2 * self._window, SMALL_FIRST), SMALL_MAX))
        return names[max(at + 1, wanted_to) : at + 1 + self._window]

    def stop_before(self, name: str) -> None:
        """Note that what was wanted is not brought from this name on: it was too much at once."""
        at, stop = bisect_left(self._names, self._last or ""), bisect_left(self._names, name)
        if stop > at:
            self._until, self._window = name, stop - at - 1

    def _want(self, at: int, window: int) -> None:
        self._window = window
        after = at + 1 + window
        self._until = self._names[after] if after < len(self._names) else "\U0010ffff"
