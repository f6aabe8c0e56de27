"""`make bench-versions`: versions at native speed, frozen again, and by the thousand.

Runs on a Ceph cluster of its own (root), prints tables and writes the same as JSON. Ends with 1
where something is not as it was promised.
"""

import argparse
import sys
from pathlib import Path

from benchmarks import common, many, reading, refreeze

SECTIONS = {"reading": reading.run, "refreeze": refreeze.run, "many": many.run}
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Run the sections that are named, or all; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.versions", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--ceph", type=Path, help="a cluster that stays, in this folder")
    parser.add_argument("--disk", type=Path, default=Path("/tmp"), help="where else stores lie")
    chosen = parser.parse_args()
    if unknown := set(chosen.sections) - SECTIONS.keys():
        parser.error(f"there is no section {', '.join(unknown)}")
    with common.bench(chosen.ceph, chosen.disk) as bench:
        for name in chosen.sections or SECTIONS:
            SECTIONS[name](bench)
    written = bench.figures.write(RESULTS, "versions")
    broken = bench.figures.broken()
    print(f"\n{bench.figures.markdown()}\n{written}")
    print(f"{len(broken)} of the promises do not hold" if broken else "all promises hold")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
