"""modelfs status --watch in a terminal: a freeze, an outage, a daemon that hangs, ^C."""

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy, is_data
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, wait_until
from tests.terminal import Terminal, why_no_tmux

pytestmark = [pytest.mark.mount, pytest.mark.timeout(120)]

MIB = 1 << 20
LABELS = ("hub at ", "registry ", "traffic ", "cache ", "store ", "freeze ", "staged ", "upload ")


@pytest.fixture
def proxy(moto_bucket: S3Endpoint) -> Iterator[FaultyProxy]:
    with FaultyProxy(moto_bucket.endpoint) as running:
        yield running


@pytest.fixture
def watched(moto_bucket: S3Endpoint, proxy: FaultyProxy, make_mount: MakeMount) -> Iterator[Mount]:
    """A mount of which a freeze takes its time."""
    mount = make_mount(moto_bucket, endpoint=proxy.endpoint, parallel_requests=1, part_size="1MiB")
    mount.model.mkdir(parents=True)
    moto_bucket.put(mount.key("model.bin"), os.urandom(24 * MIB))
    yield mount
    os.kill(mount.pid, signal.SIGCONT)


@pytest.fixture
def watch(tmp_path: Path, watched: Mount) -> Iterator[Terminal]:
    if reason := why_no_tmux():
        pytest.skip(reason)
    options = ["--config", str(watched.config), "status", str(watched.path), "--watch"]
    terminal = Terminal(tmp_path, [sys.executable, "-m", "modelfs", *options])
    yield terminal
    terminal.close()


def wait_for(terminal: Terminal, pattern: str, limit_s: float = 30) -> None:
    try:
        wait_until(shows(terminal, pattern), limit_s)
    except AssertionError:
        raise AssertionError(f"no {pattern!r} on the screen:\n{terminal.screen()}") from None


def shows(terminal: Terminal, pattern: str) -> Callable[[], bool]:
    return lambda: re.search(pattern, terminal.screen()) is not None


def test_it_shows_a_freeze_an_outage_and_a_daemon_that_hangs_and_ends_by_interrupt(
    watched: Mount, watch: Terminal, proxy: FaultyProxy
) -> None:
    wait_for(watch, r"registry +reachable since")
    with proxy.faulty(Fault.SLOW, is_data):
        (watched.model / "v1").mkdir()
        wait_for(watch, r"freeze +acme/llama@v1 .*[1-9][0-9]?% of 24\.0 MiB, \d+ s left")
        assert re.search(r"traffic +[0-9.]+ [KM]iB/s fetched, ", watch.screen())
        proxy.chosen, proxy.fault = lambda head: True, Fault.RESET
        wait_for(watch, r"registry +unreachable since")
        wait_for(watch, r"waits: .*does not answer")
    for line in watch.screen().splitlines():
        assert not line.strip() or line.startswith((*LABELS, " " * 11)), watch.screen()

    wait_for(watch, r"registry +reachable since")
    os.kill(watched.pid, signal.SIGSTOP)
    wait_for(watch, r"state +gives no answer in 5 s")
    watch.press("C-c")
    wait_for(watch, r"the end: 0")
    assert "gives no answer in 5 s" in watch.screen()  # what was seen last stays
    assert "Traceback" not in watch.screen(history=True)
