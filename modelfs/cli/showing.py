"""The commands status and demo."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from modelfs.cli import mounts
from modelfs.cli.asking import EVERY_S, Answer, Asker, ask_all
from modelfs.cli.mounts import Mount
from modelfs.cli.options import Settings, as_json, in_registry, pass_settings
from modelfs.cli.output import (
    complain,
    is_terminal,
    print_json,
    print_table,
    say,
    size_text,
    time_text,
)
from modelfs.cli.telling import freeze_line, problems
from modelfs.errors import ConfigError, ModelfsError


@click.command(short_help="Is the registry there? What waits?")
@click.argument("mountpoint", required=False)
@click.option("--watch", is_flag=True, help="Show it again every second, until ^C.")
@in_registry
@as_json
@pass_settings
def status(settings: Settings, mountpoint: str | None, watch: bool, wants_json: bool) -> int:
    """Show each registry: is it there, the cache, the store, uploads and freezes under way.

    \b
      modelfs status                       every mount, and what is configured and not mounted
      modelfs status --watch               live: rates and bars
      modelfs -r hub status --watch        one registry; or by its folder:
      modelfs status /models/hub
      modelfs status --json | jq '.[].uploads'

    The exit status is 1 where a mount does not answer.
    """
    found, absent = ([mounts.at(mountpoint)], []) if mountpoint else _wanted(settings)
    if watch:
        return _watch(found, absent, wants_json)
    answers = [*ask_all(found), *absent]
    if wants_json:
        print_json(answers)
    elif is_terminal():
        from rich.console import Console

        from modelfs.cli.picture import picture

        Console().print(picture(answers, {}))
    else:
        _show(answers)
    return 1 if any(answer["mounted"] and not answer["answers"] for answer in answers) else 0


def _wanted(settings: Settings) -> tuple[list[Mount], list[Answer]]:
    """Return the mounts, and answers for what is configured and not mounted."""
    found = mounts.find()
    if settings.registry is not None:
        mounts.choose(settings.registry)  # raises where it is not mounted
        return [mount for mount in found if mount.registry == settings.registry], []
    known = {mount.registry for mount in found}
    absent = [_absent(n, place) for n, place in _configured(settings).items() if n not in known]
    if not found and not absent:
        mounts.choose(None)  # raises: nothing is mounted
    return found, absent


def _configured(settings: Settings) -> dict[str, Path | None]:
    """Return the registries of the configuration, with their mountpoints; none without a file."""
    from modelfs.config import file_of, load

    file = file_of(settings.config)
    if not os.path.exists(file):
        return {}
    try:
        config = load(file)
    except ConfigError as error:  # the mounts are shown all the same
        complain(str(error))
        return {}
    return {name: registry.mountpoint for name, registry in config.registries.items()}


def _absent(registry: str, mountpoint: Path | None) -> Answer:
    return {
        "registry": registry,
        "mountpoint": mountpoint and str(mountpoint),
        "mounted": False,
        "answers": False,
        "error": f"not mounted: modelfs mount {registry}",
    }


def _watch(found: list[Mount], absent: list[Answer], wants_json: bool) -> int:
    """Show it every second until ^C, which is the good end of this."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # leaves the screen
    askers = [Asker(mount) for mount in found]

    def look() -> list[Answer]:
        return [*(asker.latest() for asker in askers), *absent]

    for asker in askers:
        asker.first()
    try:
        if wants_json:
            _repeat(lambda: print_json(look()))
        elif is_terminal():
            _watch_live(look)
        else:
            _repeat(lambda: _show(look()))
    except KeyboardInterrupt:
        return 0


def _repeat(show: Callable[[], None]) -> NoReturn:
    while True:
        show()
        sys.stdout.flush()
        time.sleep(EVERY_S)


def _watch_live(look: Callable[[], list[Answer]]) -> NoReturn:
    from rich.console import Console
    from rich.live import Live

    from modelfs.cli.picture import Rates, picture

    console = Console()
    rates: dict[str, Rates] = {}
    shown: Any = ""
    try:
        with Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
            while True:
                answers = look()
                for answer in answers:
                    rates.setdefault(str(answer["mountpoint"]), Rates()).note(answer)
                shown = picture(answers, rates)
                live.update(shown, refresh=True)
                time.sleep(EVERY_S)
    finally:
        console.print(shown)  # what was seen last stays when the screen is as it was


def _show(answers: list[Answer]) -> None:
    columns = ("REGISTRY", "MOUNTPOINT", "STATE", "SINCE", "CACHE", "STORE FREE", "UPLOADS")
    print_table(columns, map(_row, answers))
    for answer in answers:
        if not answer["answers"]:
            if answer["mounted"]:
                complain(answer["error"])
            continue
        if not answer.get("reachable"):
            say(f"{answer['registry']} does not answer: {answer.get('reachable_error')}")
        for freeze in answer.get("freezes") or []:
            line = freeze_line(freeze)
            say(f"{line.kind} {line.text}")
        for line in problems(answer):
            say(f"{line.kind} {line.text}")


def _row(answer: Answer) -> tuple[str, ...]:
    if not answer["answers"]:
        state = "no answer" if answer["mounted"] else "not mounted"
        return (answer["registry"], answer["mountpoint"] or "", state, "", "", "", "")
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
