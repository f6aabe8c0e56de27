"""One run: who takes part, and where the registry seems to be."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import delay
from benchmarks.common import Bench, forget_all
from benchmarks.contenders import PEERS, Contender, Modelfs, Mounted
from benchmarks.gateway_log import GatewayLog
from tests.endpoints import S3Endpoint

DELAYS_MS = (0, 5, 30)
SMALL_KIB = 64


@dataclass(frozen=True)
class Contest:
    """What a section is given."""

    bench: Bench
    rounds: int
    peers: tuple[Contender, ...]
    endpoints: Mapping[int, str]  # by the milliseconds that a request waits
    log: GatewayLog

    @property
    def disk(self) -> Path:
        """A folder on the local disk."""
        return self.bench.places[0].folder

    def contenders(self, **settings: object) -> tuple[Contender, ...]:
        """Return modelfs, with these settings, and its peers."""
        return (Modelfs(settings), *self.peers)

    @contextmanager
    def mounted(self, contender: Contender, bucket: S3Endpoint, ms: int = 0) -> Iterator[Mounted]:
        """Mount with an empty cache, nothing known to the kernel."""
        forget_all()
        with self.folder() as folder:  # noqa: SIM117  # it goes after the mount
            with contender.mount(bucket, self.endpoints[ms], folder) as mounted:
                yield mounted

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A fresh folder on the local disk; of its files the small ones stay until the end.

        A disk without a journal looks at each file that was removed in the last minute before it
        makes another: a thousand that one contender leaves would slow down the next.
        """
        folder = Path(tempfile.mkdtemp(dir=self.disk))
        try:
            yield folder
        finally:
            # Never into a mount that did not go: what is in there is the registry's.
            assert not os.path.ismount(folder / "hub"), f"{folder}/hub is mounted yet"
            large = ("-type", "f", "-size", f"+{SMALL_KIB}k")
            subprocess.run(["find", folder, "-xdev", *large, "-delete"], check=True)


@contextmanager
def contest(bench: Bench, rounds: int) -> Iterator[Contest]:
    """Look who is here, and start the proxies."""
    for peer in PEERS:
        if not peer.is_here():
            bench.figures.note(f"{peer.name} is not installed, and left out")
    here = tuple(peer for peer in PEERS if peer.is_here())
    with ExitStack() as stack:
        endpoints = {0: bench.ceph.endpoint}
        for ms in DELAYS_MS[1:]:
            proxy = delay.delayed(bench.ceph.endpoint, ms / 1000)
            endpoints[ms] = stack.enter_context(proxy)
        yield Contest(bench, rounds, here, endpoints, GatewayLog(bench.ceph.directory))
