"""`make bench`: reading and writing by modelfs and its peers, in turns, beside the limits.

Runs on a Ceph cluster of its own (root), prints tables, writes the same as JSON, and draws it.
Ends with 1 where something is not as it was promised.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import bounds, common, freezing, metadata, plot, streaming, work, writing
from benchmarks.contest import contest
from benchmarks.figures import Figure
from benchmarks.race import FAILURES, MODELFS, brief

SECTIONS = {
    "cold": streaming.cold,
    "again": streaming.again,
    "mmap": streaming.loaders,
    "random": streaming.here_and_there,
    "small": metadata.small,
    "listing": metadata.listing,
    "memory": bounds.memory,
    "freeze": freezing.freeze,
    "bounded": bounds.bounded,
    "sharing": bounds.sharing,
    "huge": metadata.huge,
    "large": writing.large,
    "growing": writing.growing,
    "pieces": writing.pieces,
}
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run the sections that are named, or all; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--rounds", type=int, default=3, help="how often each does it (3)")
    parser.add_argument("--ceph", type=Path, help="a cluster that stays, in this folder")
    parser.add_argument("--disk", type=Path, default=Path("/tmp"), help="where caches lie")
    chosen = parser.parse_args()
    if unknown := set(chosen.sections) - SECTIONS.keys():
        parser.error(f"there is no section {', '.join(unknown)}")
    with (
        common.bench(chosen.ceph, chosen.disk) as bench,
        contest(bench, chosen.rounds) as given,
    ):
        for name in chosen.sections or SECTIONS:
            try:
                SECTIONS[name](given)
            except (work.TooSlow, *FAILURES) as error:  # the other sections tell theirs
                bench.figures.note(f"{name}: {brief(error)}")
                bench.figures.add(Figure(name, "done", MODELFS, 0, "", "done", False))
    figures = bench.figures
    written = figures.write(RESULTS, "-".join(["bench", *chosen.sections]))
    broken = figures.broken()
    if not chosen.sections:
        print(plot.draw(written))
    print(f"\n{figures.markdown()}\n\n{written}")
    print(f"{len(broken)} of the promises do not hold" if broken else "all promises hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
