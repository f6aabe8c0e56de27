"""The mount of a registry: is it there, does it answer, what does its daemon say?"""

import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from modelfs import __version__, mountinfo
from modelfs.doctor.outcome import Outcome, failed, ok, warning
from modelfs.doctor.running import Steps
from modelfs.errors import ModelfsError, MountError
from modelfs.mount import mountpoints
from modelfs.mountinfo import Mounted
from modelfs.tables import RegistryConfig
from modelfs.wording import age_text, count_text, size_text

NAMED_MAX = 3

Status = Mapping[str, Any]
AskStatus = Callable[[str, Path], Status]
"""Read the status of a registry's mount within a limit; raises ModelfsError."""


def examine(config: RegistryConfig, ask: AskStatus, step: Steps) -> None:
    """Check each mount of a registry on this node, or where it would be mounted."""
    found = [m for m in mountinfo.mounted() if is_of(config, m)]
    if not found:
        step("mount", partial(_absent, config))
    for mounted in found:
        _examine(config, mounted, ask, step)


def is_of(config: RegistryConfig, mounted: Mounted) -> bool:
    """Tell whether a mount is the registry's: at its mountpoint; anywhere where it has none."""
    is_there = config.mountpoint in (None, mounted.path)
    return is_there and mounted.is_ours and mounted.registry == config.name


def _absent(config: RegistryConfig) -> Outcome:
    if config.mountpoint is None:
        return warning(
            "mount",
            "not mounted, and no `mountpoint` in the configuration",
            f"modelfs mount {config.name} MOUNTPOINT",
        )
    try:
        mountpoints.check_free(config.mountpoint)
    except MountError as error:
        return failed("mount", f"not mounted, and cannot be: {error}")
    return warning("mount", f"not mounted at {config.mountpoint}", f"modelfs mount {config.name}")


def _examine(config: RegistryConfig, mounted: Mounted, ask: AskStatus, step: Steps) -> None:
    status: dict[str, Any] = {}

    def answers() -> Outcome:
        began_s = time.monotonic()
        try:
            status.update(ask(config.name, mounted.path))
        except ModelfsError as error:
            waiting = mountpoints.waiting_requests(mounted)
            stuck = f"; {count_text(waiting, 'request')} of programs wait for it" if waiting else ""
            return failed("mount", f"{error}{stuck}", _revive(config, mounted))
        took_ms = (time.monotonic() - began_s) * 1000
        up = age_text(time.time_ns() - int(status.get("started_ns") or 0))
        return ok("mount", f"{mounted.path} answers in {took_ms:.0f} ms, up for {up}")

    if step("mount", answers, _revive(config, mounted)):
        step("version", partial(_version, config, status))
        step("registry seen", partial(_reachable, status))
        step("waiting", partial(_waiting, status))
        step("hidden keys", partial(_hidden, status))
        step("damage", partial(_damage, status))
        step("requests", partial(_requests, mounted))
    step("kernel", partial(_knobs, mounted))


def _revive(config: RegistryConfig, mounted: Mounted) -> str:
    return (
        f"look at its log (journalctl -u modelfs@{config.name}); kill -USR1 shows there where it "
        f"stands; systemctl restart modelfs@{config.name}, or modelfs umount {mounted.path} and "
        "mount anew"
    )


def _version(config: RegistryConfig, status: Status) -> Outcome:
    theirs = str(status.get("modelfs"))
    if theirs != __version__:
        return warning(
            "version",
            f"the daemon is modelfs {theirs}, this command is {__version__}",
            f"systemctl restart modelfs@{config.name} when it suits",
        )
    return ok("version", f"daemon and command are modelfs {theirs}")


def _reachable(status: Status) -> Outcome:
    if not status.get("reachable"):
        since = age_text(time.time_ns() - int(status.get("reachable_since_ns") or 0))
        return failed(
            "registry seen",
            f"not answering the daemon since {since}: {status.get('reachable_error')}",
        )
    if error := (status.get("store") or {}).get("error"):
        return failed("registry seen", f"the daemon waits for its store: {error}")
    return ok("registry seen", "registry and store answer the daemon")


def _waiting(status: Status) -> list[Outcome]:
    """Tell uploads and freezes that cannot go on, with the daemon's own reason."""
    stuck = [
        f"upload of {entry.get('path')} ({size_text(entry.get('bytes'))}): {entry['error']}"
        for entry in status.get("uploads") or ()
        if entry.get("error") and entry.get("state") != "aside"  # that the store tells, too
    ]
    stuck += [
        f"freeze {entry.get('version')}: {entry['error']}"
        for entry in status.get("freezes") or ()
        if entry.get("error") and entry.get("state") != "failed"
    ]
    if stuck:
        return [warning("waiting", line, "it is tried again until it succeeds") for line in stuck]
    uploads = [entry for entry in status.get("uploads") or () if entry.get("state") != "aside"]
    freezes = status.get("freezes") or ()
    return [
        ok(
            "waiting",
            f"{count_text(len(uploads), 'upload')} and "
            f"{count_text(len(freezes), 'freeze')} under way, nothing is stuck",
        )
    ]


def _hidden(status: Status) -> Outcome:
    keys = status.get("hidden_keys") or []
    if not keys:
        return ok("hidden keys", "none met so far")
    named = ", ".join(f"{key.get('key')} ({key.get('reason')})" for key in keys[:NAMED_MAX])
    more = f" and {len(keys) - NAMED_MAX:,} more" if len(keys) > NAMED_MAX else ""
    return warning(
        "hidden keys",
        f"{named}{more}: not shown, and their models cannot be frozen",
        "rename or remove them with the tool that made them; modelfs status --json names all",
    )


def _damage(status: Status) -> Outcome:
    damaged = status.get("damaged") or []
    bugs = (status.get("counters") or {}).get("bugs") or 0
    if damaged:
        first = damaged[0]
        return failed(
            "damage",
            f"{count_text(len(damaged), 'version')} with wrong files, as "
            f"{first.get('version')}: {first.get('error')}",
            f"modelfs verify {first.get('version')} tries again to mend it",
        )
    if bugs:
        return warning(
            "damage",
            f"the daemon met {count_text(bugs, 'bug')} of its own",
            "its log has a traceback for each: report it",
        )
    return ok("damage", "no version is known to be wrong")


def _requests(mounted: Mounted) -> Outcome | None:
    waiting = mountpoints.waiting_requests(mounted)
    return None if waiting is None else ok("requests", f"{waiting} of programs under way")


def _knobs(mounted: Mounted) -> Outcome:
    low = [
        f"{path} is {found}, not {wanted}"
        for path, wanted in mountpoints.knobs(mounted).items()
        if (found := mountpoints.knob(path)) is not None and found < wanted
    ]
    if low:
        why = "" if os.geteuid() == 0 else " (a plain user's daemon cannot)"
        return warning(
            "kernel",
            f"reads are slower than they could be: {', '.join(low)}",
            f"write the second number there, as root{why}",
        )
    unknown = [path for path in mountpoints.knobs(mounted) if mountpoints.knob(path) is None]
    if unknown:
        return warning(
            "kernel",
            f"{unknown[0].name} cannot be seen or set",
            "mount -t fusectl none /sys/fs/fuse/connections, then mount anew",
        )
    return ok("kernel", "read_ahead_kb, max_background, congestion_threshold are set")
