"""The picture of the README, drawn from the JSON of a run: `python -m benchmarks.plot FILE`."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import streaming
from benchmarks.contest import DELAYS_MS
from benchmarks.race import MODELFS, PLAIN, RAW

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "performance.png"
SIZE_INCHES, DOTS = (12.0, 7.0), 100  # 1200 x 700
BAR_WIDTH = 0.21

# Each group: its words, and where its figures stand.
GROUPS = (
    *((f"cold,\n{ms} ms\na request", streaming.COLD, streaming.at_delay(ms)) for ms in DELAYS_MS),
    ("safetensors,\nmmap, in order\n(30 ms)", streaming.LOADERS, streaming.ORDERED),
    ("safetensors,\nmmap, shuffled\n(30 ms)", streaming.LOADERS, streaming.SHUFFLED),
    ("O_DIRECT,\n1 MiB, 1 thread\n(30 ms)", streaming.LOADERS, streaming.DIRECT),
    ("again, from\nthe disk cache", streaming.AGAIN, streaming.DROPPED),
)
# Each bar: its words, its colour, and whose figures; of several the best.
BARS = (
    ("limit: 8 parallel streams, plain file", "#c9ced6", (RAW, PLAIN)),
    ("modelfs", "#1f6feb", (MODELFS,)),
    ("rclone (the better of plain and tuned)", "#e0912f", ("rclone", "rclone, tuned")),
    ("s3fs", "#7d9b76", ("s3fs",)),
)


def draw(results: Path, picture: Path = PICTURE) -> Path:
    """Draw the medians of a run; return the picture's path."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    document = json.loads(results.read_text())
    figure, axes = pyplot.subplots(figsize=SIZE_INCHES, dpi=DOTS)
    for number, (words, colour, whos) in enumerate(BARS):
        left = [place + (number - (len(BARS) - 1) / 2) * BAR_WIDTH for place in range(len(GROUPS))]
        heights = [_best(document, section, what, whos) for _, section, what in GROUPS]
        bars = axes.bar(left, heights, BAR_WIDTH * 0.94, label=words, color=colour)
        labels = [f"{height:,.0f}" if height else "" for height in heights]
        axes.bar_label(bars, labels, padding=2, fontsize=8, color="#333333")
    axes.set_xticks(range(len(GROUPS)), [words for words, _, _ in GROUPS], fontsize=10)
    axes.set_ylabel("MiB/s (more is better)")
    axes.set_title("Reading a file of 1 GiB from a Ceph gateway", loc="left", fontsize=14)
    axes.legend(frameon=False, loc="upper left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", length=0)
    figure.text(0.99, 0.01, _footer(document["machine"]), ha="right", fontsize=8, color="#777777")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    pyplot.close(figure)
    return picture


def _best(document: Any, section: str, what: str, whos: tuple[str, ...]) -> float:
    found = [
        figure["value"]
        for figure in document["figures"]
        if (figure["section"], figure["what"]) == (section, what) and figure["place"] in whos
    ]
    return max(found, default=0.0)


def _footer(machine: Any) -> str:
    return (
        f"medians of one run on {machine['date']}: {machine['system']}, {machine['cores']} cores "
        f"that the gateway and its OSD share with the readers"
    )


if __name__ == "__main__":
    print(draw(Path(sys.argv[1])))
