"""What systemd is told of the daemon (sd_notify(3)), and the watchdog that it is owed.

Where nothing listens ($NOTIFY_SOCKET is not set) all of it is silent. With `WatchdogSec=` in
the unit systemd kills a daemon from which it has heard nothing for so long, and starts it anew:
so it is told `WATCHDOG=1` by the event loop alone, and only when the mount was seen to answer.
"""

import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from modelfs.concurrency import Threads
from modelfs.mount.tree import Services

log = logging.getLogger(__name__)

REPORT_EVERY_S = 10.0  # without a watchdog
REPORTS_PER_WATCHDOG = 4  # a turn may wait that part of it for the mount: two in a row may fail

_GONE = (errno.ENOTCONN, errno.ECONNABORTED)


def notify(*states: str) -> None:
    """Send a datagram to $NOTIFY_SOCKET: one assignment a line."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)  # a systemd that is stuck must not hold the event loop
        try:
            sender.sendto("\n".join(states).encode(), address)
        except OSError as error:
            log.warning("systemd cannot be told %s: %s", states[0], error)


def notify_reloading() -> None:
    """Say that the configuration is being read again; READY=1 ends that."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """Return within how many seconds systemd wants to hear of this process; None: it does not."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environment.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() and int(microseconds) else None


class Report:
    """Tells systemd what the mount does, again and again, and that it is alive while it is.

    `answered` counts the kernel's requests that were answered: a mount that is too busy to
    answer us in time, and answers others, is alive.
    """

    def __init__(
        self,
        mountpoint: Path,
        services: Services,
        answered: Callable[[], int],
        limit_s: float | None,
    ) -> None:
        self._mountpoint = mountpoint
        self._services = services
        self._answered = answered
        self._owes_watchdog = limit_s is not None
        self._pause_s = REPORT_EVERY_S if limit_s is None else limit_s / REPORTS_PER_WATCHDOG
        self._thread = Threads(1)  # one that hangs is the only one
        self._said = ""

    async def run(self) -> None:
        """Report until cancelled; nothing to do where nobody listens."""
        while os.environ.get("NOTIFY_SOCKET"):
            if self._owes_watchdog and await self._is_alive():
                notify("WATCHDOG=1")
            self.say()
            await trio.sleep(self._pause_s)

    async def _is_alive(self) -> bool:
        before = self._answered()
        with trio.move_on_after(self._pause_s):
            try:
                await self._thread.run_or_leave(os.stat, self._mountpoint)
            except OSError as error:
                return error.errno not in _GONE
            return True
        if self._answered() != before:
            return True
        log.error("the mount does not answer: systemd is not told that it is alive")
        return False

    def say(self, *states: str) -> None:
        """Send these states, and the line of `systemctl status` where it has changed."""
        line = status_line(self._services)
        if states or line != self._said:
            self._said = line
            notify(*states, f"STATUS={line}")


def status_line(services: Services) -> str:
    """Return in a line what an administrator wants to know first."""
    config = services.config
    words = [f"{config.name} at {services.mountpoint}"]
    if not services.registry.reachability.reachable:
        words.append("the registry does not answer, versions are served")
    if services.health.state.error is not None:
        words.append("the store is away")
    if waiting := services.writeback.waiting():
        words.append(f"uploads waiting: {len(waiting)}")
    if freezes := list(services.library.freezes):
        words.append(f"freezes running: {len(freezes)}")
    if services.reloaded.error is not None:
        words.append("the new configuration was refused")
    return ", ".join(words)
