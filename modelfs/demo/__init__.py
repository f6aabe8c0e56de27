"""The demo: a real registry, a real mount and a user's shell, in a throw-away folder.

It owns one temporary folder and two processes, the registry (moto's server on a loopback
port) and the daemon (`modelfs mount`). Whatever happens, it ends these and no others, and
removes the folder once nothing is mounted below it.
"""

import importlib.util
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from modelfs.demo.processes import mounted_below
from modelfs.demo.stage import Stage, StepFailed
from modelfs.demo.story import story
from modelfs.errors import ModelfsError, MountError
from modelfs.store.layout import remove_tree

if TYPE_CHECKING:
    from rich.console import Console


def run() -> int:
    """Tell the story; return 0 where every step did what it says, else 1."""
    check_needs()
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    with _signals_kept(), ExitStack() as stack:
        folder = Path(os.path.realpath(tempfile.mkdtemp(prefix="modelfs-demo-")))
        stack.callback(_remove, folder, console)
        stage = Stage(folder, console)
        stack.callback(stage.close)
        stack.callback(_ignore_signals)
        try:
            stage.open()
            for step in story(stage):
                stage.play(step)
        except (StepFailed, MountError) as error:
            console.print(f"\nThe demo failed: {error}", style="bold red")
            stage.print_logs()
            return 1
    console.print("\nThat was everything; the folder is removed.", style="bold")
    return 0


def check_needs() -> None:
    """Raise ModelfsError where something is missing that the demo cannot do without."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise ModelfsError(
            "the demo mounts for real and needs /dev/fuse: modprobe fuse; in a container, "
            "start it with --device /dev/fuse --cap-add SYS_ADMIN"
        )
    if shutil.which("fusermount3") is None:
        raise ModelfsError("the demo needs fusermount3: install the package fuse3")
    missing = [
        name
        for name in ("moto", "flask", "safetensors", "numpy")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ModelfsError(f'the demo needs {", ".join(missing)}: pip install "modelfs[demo]"')


def _remove(folder: Path, console: "Console") -> None:
    """Remove the folder; where something is still mounted in it, nothing is touched."""
    if mounted_below(folder):
        console.print(f"{folder} stays: something in it is still mounted", style="bold red")
    else:
        remove_tree(folder)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Let SIGTERM end the demo as ^C does: with everything cleaned up."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _ignore_signals() -> None:
    """Let nothing interrupt the cleaning up, which is bounded."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
