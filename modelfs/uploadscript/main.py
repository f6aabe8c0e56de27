"""From the command line to the exit status."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

from modelfs.uploadscript.files import Source
from modelfs.uploadscript.grant import GRANT
from modelfs.uploadscript.planning import Plan, wrong_name
from modelfs.uploadscript.sending import Upload
from modelfs.uploadscript.showing import Show
from modelfs.uploadscript.signed import Signed
from modelfs.uploadscript.temporary import Memory, Temporary
from modelfs.uploadscript.troubles import (
    FAILED,
    INTERRUPTED,
    USAGE,
    Misuse,
    Trouble,
    files_text,
    note,
    shown,
    size_text,
)
from modelfs.uploadscript.wire import Wire


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="upload.py",
        description=GRANT["note"],
        epilog=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a file or a folder")
    parser.add_argument("--to", metavar="FOLDER", default="", help="the folder of main/ to fill")
    parser.add_argument("--follow", action="store_true", help="send what symlinks point at")
    parser.add_argument("--dry-run", action="store_true", help="say what would be sent")
    return parser.parse_args(argv)


def planned(args: argparse.Namespace, rights: Temporary | Signed) -> tuple[Plan, dict[str, Any]]:
    """Return what to send and what is there: key -> (size, ETag)."""
    plan = Plan(GRANT["prefix"], GRANT["local_only"], args.follow)
    folder = args.to.strip("/")
    if folder and (wrong := wrong_name(folder, plan.prefix)):
        raise Misuse(f"--to {shown(args.to)}: {wrong}")
    for path in args.paths:
        plan.add(path, f"{folder}/" if folder else "")
    there = {key: (size, etag) for key, size, etag in rights.listing()}
    plan.refuse_clashes(there)
    for line in plan.refused:
        note(line)
    for reason, names in plan.skipped.items():
        more = ", ..." if len(names) > 3 else ""
        note(f"skipped {len(names):,} {reason}: {', '.join(map(shown, names[:3]))}{more}")
    return plan, there


def run(argv: list[str], stop: threading.Event) -> int:
    """Do what was asked; return the exit status. Raises Trouble where nothing can be done."""
    args = arguments(argv)
    wire = Wire(GRANT, stop)
    rights: Temporary | Signed
    if GRANT["token"]["kind"] == "temporary":
        rights = Temporary(wire, GRANT, Memory(GRANT["url"]))
    else:
        rights = Signed(wire, GRANT)
    plan, there = planned(args, rights)
    show = Show()
    upload = Upload(rights, GRANT["cut"], show, stop)
    sources = list(plan.sources.values())
    show.begin(sum(source.size for source in sources))
    began = time.monotonic()
    upload.compare(sources, there)
    if args.dry_run:
        show.end()
        return dry_run(sources, upload, plan)
    try:
        upload.send(sources)
    finally:
        show.end()
    report(upload, time.monotonic() - began)
    if upload.fatal is not None:
        raise upload.fatal
    return FAILED if upload.failures or plan.refused else 0


def dry_run(sources: list[Source], upload: Upload, plan: Plan) -> int:
    for source in sources:
        word = "there" if source.name in upload.same else "send "
        print(f"{word}  {shown(source.name)}  {size_text(source.size)}")
    return FAILED if upload.failures or plan.refused else 0


def report(upload: Upload, took_s: float) -> None:
    rate = size_text(upload.sent_bytes / max(took_s, 0.001))
    line = f"{GRANT['model']}: {files_text(upload.files)} sent, {size_text(upload.sent_bytes)} in "
    line += f"{took_s:.1f} s ({rate}/s)"
    if upload.same:
        line += f"; {files_text(len(upload.same))} there already"
    if upload.failures:
        line += f"; {files_text(len(upload.failures))} not sent"
    print(line, flush=True)


def leave(status: int) -> NoReturn:
    """End at once: threads may be waiting for the registry."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(argv: list[str]) -> NoReturn:
    if GRANT is None:
        note("this is the template: modelfs upload-script NAMESPACE/MODEL makes a script of it")
        leave(USAGE)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = run(argv, stop)
    except KeyboardInterrupt:
        stop.set()
        note("interrupted: start this again to go on")
        status = INTERRUPTED
    except Trouble as error:
        note(str(error))
        status = error.status
    except BrokenPipeError:  # who read what was printed has enough
        os._exit(FAILED)
    leave(status)
