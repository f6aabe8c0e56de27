"""What every benchmark needs: a throw-away Ceph cluster, places for a store, clocks.

The cluster is the one of the tests (tests/tools/ceph-dev), in a folder of its own that is
removed at the end; the mounts are those of the tests too.
"""

import json
import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from benchmarks.figures import Figures
from modelfs import mountinfo
from tests import endpoints
from tests.endpoints import CephServer, S3Endpoint
from tests.mounting import Mount

MIB = 1 << 20
OSD_GB = 24  # a sparse file: what is written counts
CEPH_FUSE = "fuse.ceph-fuse"
LEFT_FREE_BYTES = 1 << 30  # about what the kernel keeps free
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Place:
    """A folder for stores, on one kind of disk."""

    name: str
    folder: Path

    @property
    def filesystem(self) -> str:
        return mountinfo.under(self.folder).filesystem


@dataclass(frozen=True)
class Bench:
    """What a benchmark is given: the registry, the places, and where its figures go."""

    ceph: CephServer
    folder: Path
    places: tuple[Place, ...]
    figures: Figures

    def bytes_sent_by_gateway(self) -> int:
        """Return how many bytes of objects the gateway has sent since it began."""
        said = ask_ceph(self.ceph.directory / "run" / "rgw.asok", "perf dump")
        return int(said["rgw"]["get_b"])

    def forget(self, place: Place) -> None:
        """Let everybody on this node forget what is in a place."""
        forget_all()
        if place.filesystem == CEPH_FUSE:  # which has a cache of its own
            self.ceph.run("umount-cephfs", str(place.folder))
            self.ceph.run("mount-cephfs", str(place.folder))

    @contextmanager
    def bucket(self) -> Iterator[S3Endpoint]:
        """A fresh bucket on the cluster's gateway."""
        with endpoints.fresh_bucket(self.ceph, self.folder) as bucket:
            yield bucket

    @contextmanager
    def mount(self, bucket: S3Endpoint, place: Place, name: str) -> Iterator[Mount]:
        """A mount whose store is `name` in a place; not started. The store goes at the end."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        store = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place.folder)) / "store"
        mount = Mount(
            folder, bucket, store=store, native_versions=True, metadata_ttl="5s", timeout="30s"
        )
        try:
            yield mount
        finally:
            mount.clean()
            subprocess.run(["rm", "-rf", store.parent], check=True)


# ------------------------------------------------------------------------ places


@contextmanager
def bench(keep: Path | None, disk: Path) -> Iterator[Bench]:
    """Start a cluster, mount its CephFS, and end all of it; `keep` names one that stays.

    `disk` is a folder on a local disk: the other place.
    """
    folder = Path(tempfile.mkdtemp(prefix="modelfs-bench-", dir=disk))
    directory = keep or folder / "ceph"
    os.environ.setdefault("CEPH_DEV_OSD_GB", str(OSD_GB))
    cephfs = folder / "cephfs"
    try:
        if not endpoints.ceph_serves(directory):
            endpoints.ceph_dev(directory, "up", port=endpoints.free_ceph_ports())
        server = endpoints.ceph_server(directory)
        server.run("mount-cephfs", str(cephfs))
        local = folder / "disk"
        local.mkdir()
        places = (Place("local disk", local), Place("CephFS", cephfs))
        yield Bench(server, folder, places, Figures())
    finally:
        if (directory / "settings").exists():
            endpoints.ceph_dev(directory, "umount-cephfs", str(cephfs))
            if keep is None:
                endpoints.ceph_dev(directory, "wipe")
        shutil.rmtree(folder)


def ask_ceph(socket_file: Path, command: str) -> Any:
    """Ask a daemon of Ceph through its admin socket."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.connect(str(socket_file))
        asked.sendall(json.dumps({"prefix": command}).encode() + b"\0")
        with asked.makefile("rb") as answer:
            size = int.from_bytes(answer.read(4))
            return json.loads(answer.read(size))


def forget_all() -> None:
    """Let the kernel forget every page, folder and inode that it need not hold.

    Memory is full again afterwards, of pages that nobody asks for, as on a node that has been up
    for a while. Free memory goes back to the hypervisor after 2 s, and whoever touches it next
    pays 1.2 s a GiB (10 times what copying costs): that would be measured, and nothing else.
    """
    os.sync()
    DROP_CACHES.write_text("3\n")
    _fill_memory()


def _fill_memory() -> None:
    global _filler
    _filler = tempfile.TemporaryFile()  # noqa: SIM115  # its pages are there while it is
    count = (_free_bytes() - LEFT_FREE_BYTES) // MIB
    _filler.truncate(max(0, count) * MIB)
    buffer = bytearray(MIB)
    for number in range(count):
        os.preadv(_filler.fileno(), [buffer], number * MIB)


def _free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("MemFree"))) * 1024


_filler: IO[bytes] | None = None


def forget_pages(path: Path) -> None:
    """Let the kernel forget the pages of one file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def disk_usage(folder: Path) -> int:
    """Return the bytes that a folder takes on its disk: files with several names once."""
    said = subprocess.run(["du", "-s", "-B1", folder], capture_output=True, text=True, check=True)
    return int(said.stdout.split()[0])


def is_native(folder: Path) -> bool:
    """Tell whether a folder is another file system than the one that it is in."""
    return folder.stat().st_dev != folder.parent.stat().st_dev


def upload_random(bucket: S3Endpoint, key: str, size: int) -> None:
    """Put an object of random bytes, in parts, as boto3 does it."""
    pattern = os.urandom(1 << 20)
    with tempfile.TemporaryFile() as file:
        for number in range(-(-size // len(pattern))):
            file.write(number.to_bytes(8) + pattern[8:])  # no two parts are equal
        file.truncate(size)
        file.seek(0)
        bucket.client.upload_fileobj(file, bucket.bucket, key)


# ------------------------------------------------------------------------ clocks


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call took."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def command(*words: str | Path) -> float:
    """Run a command whose output nobody reads; return how long it took."""
    run = [str(word) for word in words]
    return seconds(lambda: subprocess.run(run, stdout=subprocess.DEVNULL, check=True))


@dataclass(frozen=True)
class Pairs:
    """Two ways of doing the same, measured in turns."""

    first_s: list[float]
    second_s: list[float]

    @property
    def ratio(self) -> float:
        """The median of first / second: above 1 the second is faster."""
        return statistics.median(a / b for a, b in zip(self.first_s, self.second_s, strict=True))


def in_pairs(
    count: int, pieces: int, first: Callable[[int], float], second: Callable[[int], float]
) -> Pairs:
    """Measure two ways `count` times each, so that both meet the same noise of the machine.

    Each is asked for the seconds of every piece of the work, the two in turns piece by piece:
    what others do to the machine for some seconds befalls both.
    """
    pairs = Pairs([], [])
    for number in range(count):
        spent = [0.0, 0.0]
        for piece in range(pieces):
            for side in (0, 1) if (number + piece) % 2 == 0 else (1, 0):
                spent[side] += (first, second)[side](piece)
        pairs.first_s.append(spent[0])
        pairs.second_s.append(spent[1])
    return pairs


def memory_mib(pid: int) -> tuple[float, float]:
    """Return how much memory a process holds now, and the most that it ever held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    said = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return int(said["VmRSS"]) / 1024, int(said["VmHWM"]) / 1024


def processor_s(pid: int) -> float:
    """Return how many seconds of a processor a process has had: what others do is not in it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bytes_read_by(pid: int) -> int:
    """Return how many bytes a process has read, from files and from the kernel."""
    said = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(said["rchar"])
