"""What a run has measured: printed as it comes, a Markdown table and JSON at the end."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One thing that was measured; `promised` says what it must be, `holds` whether it is."""

    section: str
    what: str
    place: str
    value: float
    unit: str
    promised: str = ""
    holds: bool | None = None
    samples: tuple[float, ...] = ()
    is_bound: bool = False  # it was not waited for: a speed is lower, a time is longer

    def text(self) -> str:
        digits = 0 if self.value >= 1000 or self.value == int(self.value) else 2
        digits = min(digits, 1) if self.value >= 100 else digits
        words = f"{self.value:,.{digits}f} {self.unit}".strip()
        if self.is_bound:
            words = f"{'<' if self.unit.endswith('/s') else '>'} {words}"
        return f"**{words}**" if self.holds is False else words


@dataclass
class Figures:
    """What a run has measured, in its order."""

    all: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep what a reader of the figures must know besides."""
        self.notes.append(text)
        print(f"note: {text}", flush=True)

    def add(self, figure: Figure) -> None:
        self.all.append(figure)
        mark = {True: "  holds", False: "  DOES NOT HOLD", None: ""}[figure.holds]
        promised = f"  (promised: {figure.promised})" if figure.promised else ""
        print(
            f"{figure.section}, {figure.place}: {figure.what}: {figure.text()}{promised}{mark}",
            flush=True,
        )

    def median(
        self,
        section: str,
        what: str,
        place: str,
        samples: Sequence[float],
        unit: str,
        *,
        promised: str = "",
        holds: Callable[[float], bool] | None = None,
    ) -> None:
        """Add the median of several measurements, which are kept beside it."""
        value = statistics.median(samples)
        is_held = None if holds is None else holds(value)
        self.add(Figure(section, what, place, value, unit, promised, is_held, tuple(samples)))

    def broken(self) -> list[Figure]:
        """Return what is not as it was promised."""
        return [figure for figure in self.all if figure.holds is False]

    def markdown(self) -> str:
        """One table a section: a row for each thing, a column for each place."""
        tables = [self._table(section) for section in _once(f.section for f in self.all)]
        return "\n".join(tables + [f"* {note}" for note in self.notes])

    def _table(self, section: str) -> str:
        figures = [figure for figure in self.all if figure.section == section]
        places = _once(figure.place for figure in figures)
        lines = [f"### {section}", "", f"| | {' | '.join(places)} | promised |"]
        lines.append("|---|" + "--:|" * len(places) + "---|")
        for what in _once(figure.what for figure in figures):
            row = {f.place: f for f in figures if f.what == what}
            cells = [row[place].text() if place in row else "" for place in places]
            promised = next((f.promised for f in row.values() if f.promised), "")
            lines.append(f"| {what} | {' | '.join(cells)} | {promised} |")
        return "\n".join([*lines, ""])

    def write(self, folder: Path, benchmark: str) -> Path:
        """Write everything as JSON; return the file."""
        folder.mkdir(parents=True, exist_ok=True)
        host, day = platform.node(), time.strftime("%Y-%m-%d")
        path = folder / f"{benchmark}-{host}-{day}.json"
        figures = [asdict(figure) for figure in self.all]
        document = {"machine": machine(), "figures": figures, "notes": self.notes}
        path.write_text(json.dumps(document, indent=1) + "\n")
        return path


def _once(words: Iterator[str]) -> list[str]:
    return list(dict.fromkeys(words))


def machine() -> dict[str, Any]:
    """Tell where this was measured."""
    system = platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "system": system,
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / (1 << 30)),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
