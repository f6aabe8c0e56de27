"""The picture of a status on a terminal: rates, bars, what waits and why. Of what was asked."""

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from modelfs.cli.output import count_text, printable, share_text, size_text, time_text
from modelfs.cli.telling import BAD, BUSY, GOOD, problems, since_text

LABEL_WIDTH = 10
BAR_WIDTH = 20
WINDOW_S = 5.0
LISTED_MAX = 5  # of each kind that waits or is wrong: the screen has an end
FREEZES_MAX = 10
TRAFFIC = (
    ("fetched_bytes", "fetched"),
    ("uploaded_bytes", "uploaded"),
    ("served_bytes", "served"),
)


class Rates:
    """Bytes a second of a mount's counters, over its answers of the last WINDOW_S."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, dict[str, float]]] = deque()

    def note(self, answer: dict[str, Any]) -> None:
        """Take in an answer; one that was seen before changes nothing."""
        now_s = (answer.get("now_ns") or 0) / 1e9
        if self._seen and now_s <= self._seen[-1][0]:
            return
        self._seen.append((now_s, dict(_counters(answer))))
        while self._seen[-1][0] - self._seen[0][0] > WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()

    def get(self, name: str) -> float | None:
        """Return bytes a second; None where only one answer has it."""
        known = [(at, values[name]) for at, values in self._seen if name in values]
        if len(known) < 2:
            return None
        (begin, first), (end, last) = known[0], known[-1]
        return max(0.0, last - first) / (end - begin)


def _counters(answer: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, _ in TRAFFIC:
        yield name, (answer.get("traffic") or {}).get(name) or 0
    for freeze in answer.get("freezes") or []:
        yield f"freeze {freeze.get('version')}", freeze.get("done_bytes") or 0


def picture(answers: Iterable[dict[str, Any]], rates: dict[str, Rates]) -> RenderableType:
    """Return what to show of mounts, those in trouble first; `rates` by mountpoint."""
    parts: list[RenderableType] = []
    for answer in sorted(answers, key=_is_well):
        if parts:
            parts.append(Text())
        parts += _mount(answer, rates.get(str(answer["mountpoint"])) or Rates())
    return Group(*parts)


def _is_well(answer: dict[str, Any]) -> bool:
    return bool(answer.get("reachable") or not answer.get("mounted"))


def _mount(answer: dict[str, Any], rates: Rates) -> Iterator[RenderableType]:
    title = Text(f"{answer['registry']}", style="bold", no_wrap=True, overflow="ellipsis")
    if place := answer.get("mountpoint"):
        title.append(f" at {printable(str(place))}", style="not bold")
    yield title
    grid = Table.grid(padding=(0, 1), expand=True)
    grid.add_column(width=LABEL_WIDTH, style="dim", no_wrap=True)
    grid.add_column(ratio=1, overflow="fold")
    if not answer["answers"]:
        said = str(answer.get("error")).removeprefix(f"{answer['registry']} at {place} ")
        _add(grid, "state", said, BAD if answer.get("mounted") else BUSY)
        yield grid
        return
    _add_state(grid, answer)
    _add(grid, "traffic", _traffic_text(answer, rates))
    grid.add_row("cache", _cache(answer))
    _add_disk(grid, answer)
    _add_freezes(grid, answer, rates)
    for line in problems(answer, LISTED_MAX):
        _add(grid, line.kind, line.text, line.style)
    yield grid


def _add(grid: Table, label: str, text: str, style: str = "") -> None:
    grid.add_row(label, Text(printable(text), style=style))


def _add_state(grid: Table, answer: dict[str, Any]) -> None:
    now_ns, since_ns = answer.get("now_ns"), answer.get("reachable_since_ns")
    since = f"since {time_text(since_ns)}, {since_text(since_ns, now_ns)}"
    up = f"up {since_text(answer.get('started_ns'), now_ns)}"
    if answer.get("reachable"):
        _add(grid, "registry", f"reachable {since}; {up}", GOOD)
    else:
        reason = answer.get("reachable_error")
        _add(grid, "registry", f"unreachable {since}; {up}", BAD)
        _add(grid, "", f"{answer['registry']} does not answer: {reason}", BAD)


def _traffic_text(answer: dict[str, Any], rates: Rates) -> str:
    totals = answer.get("traffic") or {}
    words = []
    for name, verb in TRAFFIC:
        rate = rates.get(name)
        amount = size_text(totals.get(name)) if rate is None else f"{size_text(int(rate))}/s"
        words.append(f"{amount} {verb}")
    return ", ".join(words)


def _cache(answer: dict[str, Any]) -> RenderableType:
    cache = answer.get("cache") or {}
    used, most = cache.get("bytes") or 0, cache.get("max_bytes") or 0
    opened = (cache.get("hits") or 0) + (cache.get("misses") or 0)
    hits = f", {share_text(cache.get('hits') or 0, opened)} hits" if opened else ""
    row = Table.grid(padding=(0, 1))
    row.add_row(
        _bar(used, most),
        Text(f"{size_text(used)} of {size_text(most)}{hits}"),
    )
    return row


def _bar(done: int, total: int) -> Text:
    """Return a bar that is one without colours, too."""
    filled = BAR_WIDTH if done >= total else int(BAR_WIDTH * done / total)
    return Text("█" * filled).append("░" * (BAR_WIDTH - filled), style="dim")


def _add_disk(grid: Table, answer: dict[str, Any]) -> None:
    store, staged = answer.get("store") or {}, answer.get("staged") or {}
    versions = answer.get("versions") or {}
    free = f"{size_text(store.get('free_bytes'))} free of {size_text(store.get('total_bytes'))}"
    ready = f", {count_text(versions['ready'], 'version')} ready" if versions.get("ready") else ""
    _add(grid, "store", free + ready)
    if staged.get("files"):
        most = f" of {size_text(staged['max_bytes'])}" if staged.get("max_bytes") else ""
        files = count_text(staged["files"], "file")
        _add(grid, "staged", f"{size_text(staged.get('bytes'))}{most} in {files}")


def _add_freezes(grid: Table, answer: dict[str, Any], rates: Rates) -> None:
    freezes = answer.get("freezes") or []
    for freeze in freezes[:FREEZES_MAX]:
        done, total = freeze.get("done_bytes") or 0, freeze.get("total_bytes") or 0
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        row.add_column(width=BAR_WIDTH)
        row.add_column(width=29, no_wrap=True)
        row.add_row(
            Text(printable(str(freeze.get("version")))),
            _bar(done, total),
            Text(_freeze_text(done, total, rates.get(f"freeze {freeze.get('version')}"))),
        )
        grid.add_row("freeze", row)
        if freeze.get("error"):
            _add(grid, "", f"waits: {freeze['error']}", BUSY)
    if len(freezes) > FREEZES_MAX:
        _add(grid, "...", f"and {len(freezes) - FREEZES_MAX} more freezes: modelfs status --json")


def _freeze_text(done: int, total: int, rate: float | None) -> str:
    text = f"{share_text(done, total):>4} of {size_text(total)}"
    if done >= total:
        return f"{text}, being checked"
    if not rate:
        return text
    return f"{text}, {_left_text((total - done) / rate)}"


def _left_text(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 6000 else f"{seconds / 3600:.0f} h left"
