"""What an operator sees of a freeze of 2 GiB and an outage in the midst of it, as pictures.

`python -m benchmarks.observing` (root): a cluster of its own, a mount whose metrics are scraped
four times a second, `modelfs status --watch` in a terminal. Draws docs/images/observing.png from
the metrics and prints what was on the screen. Nothing is measured that is promised.
"""

import argparse
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import common
from benchmarks.common import MIB, Bench
from tests.endpoints import S3Endpoint, free_port
from tests.mounting import Mount, wait_until, xattr
from tests.prometheus import Series, scrape, series
from tests.terminal import Terminal

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "observing.png"
SIZE_INCHES, DOTS = (11.0, 8.0), 100
MODEL_FILES, FILE_BYTES = 8, 256 * MIB  # 2 GiB
SERVED_BYTES = 64 * MIB  # a version that a server reads all the time
EVERY_S = 0.25
SMOOTHED_S = 1.0  # over which a rate is taken
BEFORE_S, AFTER_S, OUTAGE_S = 3.0, 5.0, 12.0
OUTAGE_AT = 0.4  # of the freeze

FETCHED, SERVED = "modelfs_fetched_bytes_total", "modelfs_served_bytes_total"
LEFT, REACHABLE = "modelfs_freeze_left_bytes", "modelfs_registry_reachable"
WAITING, ERRORS = "modelfs_uploads", "modelfs_fuse_errors_total"


@dataclass
class Recording:
    """What was scraped, with the seconds since the start, and what was on the screen when."""

    started: float = field(default_factory=time.monotonic)
    scraped: list[tuple[float, Series]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    screens: list[tuple[str, str]] = field(default_factory=list)

    def now(self) -> float:
        return time.monotonic() - self.started

    def mark(self, words: str) -> None:
        self.marks.append((self.now(), words))

    def values(self, name: str, **labels: str) -> list[float]:
        """Return the sum of the series of these labels at each scrape."""
        wanted = labels.items()
        return [
            sum(v for known, v in found.get(name, {}).items() if wanted <= dict(known).items())
            for _, found in self.scraped
        ]

    def rates(self, name: str, **labels: str) -> list[float]:
        """Return how much a counter grew a second, at each scrape."""
        times, values = [at for at, _ in self.scraped], self.values(name, **labels)
        step = max(1, round(SMOOTHED_S / EVERY_S))
        pairs = ((max(0, i - step), i) for i in range(len(values)))
        return [(values[i] - values[j]) / (times[i] - times[j]) if i > j else 0.0 for j, i in pairs]


@contextmanager
def scraping(recording: Recording, port: int) -> Iterator[None]:
    """Scrape again and again inside the block."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(EVERY_S):
            at = recording.now()
            recording.scraped.append((at, series(scrape(port)[1])))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Let a process read a file, 16 MiB a second, as a server with little to do."""
    code = (
        "import sys, time, os\n"
        "while True:\n"
        "    fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "    while data := os.read(fd, 1 << 20):\n"
        "        time.sleep(1 / 16)\n"
        "    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)\n"
        "    os.close(fd)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def record(bench: Bench, mount: Mount, port: int) -> Recording:
    """Freeze, with an outage on the way; return what was to be seen of it."""
    served = mount.freeze("v1")
    for number in range(MODEL_FILES):
        common.upload_random(mount.bucket, mount.key(f"model-{number}.bin"), FILE_BYTES)
    wait_until(lambda: len(list(mount.main.iterdir())) == MODEL_FILES + 1, 30)
    options = ["--config", str(mount.config), "status", str(mount.path), "--watch"]
    terminal = Terminal(bench.folder, [sys.executable, "-m", "modelfs", *options])
    recording = Recording()
    try:
        with scraping(recording, port), reading(served / "small.bin"):
            time.sleep(BEFORE_S)
            _freeze(bench, mount, recording, terminal)
            time.sleep(AFTER_S)
            recording.screens.append(("When all is well again", terminal.screen()))
    finally:
        terminal.close()
    return recording


def _freeze(bench: Bench, mount: Mount, recording: Recording, terminal: Terminal) -> None:
    version = mount.model / "v2"
    version.mkdir()
    recording.mark("mkdir v2")

    def share() -> float:
        done, _, total = xattr(version, "progress").partition("/")
        return int(done) / int(total)

    wait_until(lambda: share() > OUTAGE_AT, 120)
    recording.screens.append(("In the midst of the freeze", terminal.screen()))
    recording.mark("gateway away")
    bench.ceph.run("stop-rgw")
    with contextlib.suppress(OSError):  # it is not in the registry, and stays staged
        (mount.main / "notes.md").write_text("written while the registry is away\n")
    time.sleep(OUTAGE_S)
    recording.screens.append(("In the outage", terminal.screen()))
    bench.ceph.run("start-rgw")
    recording.mark("gateway back")
    wait_until(lambda: xattr(version, "state") == "ready", 120)
    recording.mark("v2 ready")


def draw(recording: Recording, picture: Path) -> None:
    """Draw the rates, the freeze, and what waited, one below the other."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    times = [at for at, _ in recording.scraped]
    figure, rows = pyplot.subplots(3, 1, figsize=SIZE_INCHES, dpi=DOTS, sharex=True)
    for name, words, colour in (
        (FETCHED, "fetched from the registry", "#1f6feb"),
        (SERVED, "served from v1 (limited to 16 MiB/s by its reader)", "#2da44e"),
    ):
        rates = [rate / MIB for rate in recording.rates(name)]
        rows[0].plot(times, rates, label=words, color=colour)
    rows[0].set_ylabel("MiB/s")
    left = [value / MIB for value in recording.values(LEFT)]
    rows[1].fill_between(times, left, color="#1f6feb", alpha=0.35)
    rows[1].plot(times, left, label="left of the freeze of 2 GiB", color="#1f6feb")
    rows[1].set_ylabel("MiB")
    waiting = recording.values(WAITING, state="waiting")
    rows[2].step(times, waiting, where="post", label="uploads waiting", color="#e0912f")
    errors = recording.rates(ERRORS, error="EIO")
    rows[2].plot(times, errors, label="EIO a second", color="#cf222e")
    rows[2].set_ylabel("number")
    rows[2].set_xlabel("seconds")
    reachable = recording.values(REACHABLE)
    for axes in rows:
        away = [value == 0 for value in reachable]
        axes.fill_between(
            times,
            0,
            1,
            where=away,
            transform=axes.get_xaxis_transform(),
            color="#cf222e",
            alpha=0.08,
            step="post",
            linewidth=0,
        )
        axes.legend(frameon=False, loc="upper right", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylim(bottom=0)
        for at, _ in recording.marks:
            axes.axvline(at, color="#8c959f", linewidth=0.8, linestyle=":")
    for at, words in recording.marks:
        rows[0].annotate(
            words, (at, 1.0), xycoords=("data", "axes fraction"), rotation=20, fontsize=9
        )
    figure.suptitle("A freeze with an outage in its midst, by modelfs' own metrics", x=0.3)
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)
    pyplot.close(figure)


def small_model(bucket: S3Endpoint) -> None:
    common.upload_random(bucket, "models/acme/llama/small.bin", SERVED_BYTES)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.observing", description=__doc__)
    parser.add_argument("--ceph", type=Path, help="a cluster that stays, in this folder")
    parser.add_argument("--disk", type=Path, default=Path("/tmp"), help="where the store lies")
    chosen = parser.parse_args()
    with common.bench(chosen.ceph, chosen.disk) as bench, bench.bucket() as bucket:
        small_model(bucket)
        port, folder = free_port(), bench.folder / "observed"
        folder.mkdir()
        mount = Mount(folder, bucket, metrics_port=port, timeout="5s")
        try:
            recording = record(bench, mount.start(), port)
        finally:
            mount.clean()
    draw(recording, PICTURE)
    for title, screen in recording.screens:
        print(f"--- {title}\n{screen.rstrip()}\n")
    print(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
