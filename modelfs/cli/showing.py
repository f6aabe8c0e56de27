"""The commands status and demo."""

import time
from collections.abc import Iterator
from typing import Any

import click

from modelfs.cli import mounts
from modelfs.cli.mounts import Mount
from modelfs.cli.options import Settings, as_json, in_registry, pass_settings
from modelfs.cli.output import (
    complain,
    is_terminal,
    print_json,
    print_table,
    say,
    share_text,
    size_text,
    time_text,
)
from modelfs.cli.probe import DaemonGone, DaemonSilent, read_status
from modelfs.errors import ModelfsError

WATCH_EVERY_S = 1.0
LISTED_MAX = 20  # uploads, freezes, hidden keys of a person's table; --json has all


@click.command(short_help="Is the registry there? What waits?")
@click.option("--watch", is_flag=True, help="Show it again every second, until ^C.")
@in_registry
@as_json
@pass_settings
def status(settings: Settings, watch: bool, wants_json: bool) -> int:
    """Show each mount: the registry, the cache, the store, uploads and freezes under way.

    \b
      modelfs status
      modelfs -r hub status --watch
      modelfs status --json | jq '.[].uploads'

    The exit status is 1 where a mount does not answer.
    """
    while True:
        answers = [_ask(mount) for mount in _wanted(settings.registry)]
        if watch and not wants_json and is_terminal():
            click.clear()
        if wants_json:
            print_json(answers)
        else:
            _show(answers)
        if not watch:
            return 0 if all(answer["answers"] for answer in answers) else 1
        time.sleep(WATCH_EVERY_S)


def _wanted(registry: str | None) -> list[Mount]:
    found = mounts.find()
    if registry is None and found:
        return found
    mounts.choose(registry)  # raises where it is not mounted
    return [mount for mount in found if mount.registry == registry]


def _ask(mount: Mount) -> dict[str, Any]:
    known = {"registry": mount.registry, "mountpoint": str(mount.path)}
    try:
        return {**known, **read_status(mount), "answers": True}
    except (DaemonGone, DaemonSilent) as error:
        return {**known, "answers": False, "error": str(error)}


def _show(answers: list[dict[str, Any]]) -> None:
    columns = ("REGISTRY", "MOUNTPOINT", "STATE", "SINCE", "CACHE", "STORE FREE", "UPLOADS")
    print_table(columns, map(_row, answers))
    for answer in answers:
        if not answer["answers"]:
            complain(answer["error"])
        for line in _details(answer):
            say(line)


def _row(answer: dict[str, Any]) -> tuple[str, ...]:
    if not answer["answers"]:
        return (answer["registry"], answer["mountpoint"], "no answer", "", "", "", "")
    cache, store = answer.get("cache") or {}, answer.get("store") or {}
    return (
        answer["registry"],
        answer["mountpoint"],
        "reachable" if answer.get("reachable") else "unreachable",
        time_text(answer.get("reachable_since_ns")),
        f"{size_text(cache.get('bytes'))} of {size_text(cache.get('max_bytes'))}",
        f"{size_text(store.get('free_bytes'))} of {size_text(store.get('total_bytes'))}",
        str(len(answer.get("uploads") or [])),
    )


def _details(answer: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each thing that waits or is wrong."""
    if answer.get("reachable_error") and not answer.get("reachable"):
        yield f"{answer['registry']} does not answer: {answer['reachable_error']}"
    if error := (answer.get("store") or {}).get("error"):
        yield str(error)
    yield from _first(map(_upload_line, answer.get("uploads") or []), "uploads")
    yield from _first(map(_freeze_line, answer.get("freezes") or []), "freezes")
    yield from _first(map(_damage_line, answer.get("damaged") or []), "damaged versions")
    yield from _first(
        (
            f"hidden key {key.get('key')}: {key.get('reason')}"
            for key in answer.get("hidden_keys") or []
        ),
        "hidden keys",
    )


def _first(lines: Iterator[str], what: str) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number == LISTED_MAX:
            yield f"... and more {what}: modelfs status --json"
            return
        yield line


def _upload_line(upload: dict[str, Any]) -> str:
    error = f": {upload['error']}" if upload.get("error") else ""
    size = size_text(upload.get("bytes"))
    return f"upload {upload.get('path')} ({size}) {upload.get('state')}{error}"


def _freeze_line(freeze: dict[str, Any]) -> str:
    done, total = freeze.get("done_bytes") or 0, freeze.get("total_bytes") or 0
    error = f": {freeze['error']}" if freeze.get("error") else ""
    share = share_text(done, total)
    return (
        f"freeze {freeze.get('version')} {freeze.get('state')} {share} of {size_text(total)}{error}"
    )


def _damage_line(damaged: dict[str, Any]) -> str:
    version = damaged.get("version")
    return f"damaged {version}: {damaged.get('error')}; modelfs verify {version} tries again"


@click.command(short_help="Show everything, in a throw-away folder.")
def demo() -> int:
    """Tell what modelfs does, with a real registry and a real mount, in a throw-away folder.

    Needs /dev/fuse, fusermount3 and `pip install "modelfs[demo]"`; takes seconds.

    \b
      modelfs demo
    """
    try:
        from modelfs.demo import run
    except ImportError as error:
        raise ModelfsError(
            f'the demo cannot start ({error}): pip install "modelfs[demo]"'
        ) from error
    return run()
