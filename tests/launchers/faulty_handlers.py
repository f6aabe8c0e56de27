"""The command line, with a fault in the innermost code of any FUSE handler, on demand.

The file that MODELFS_TEST_FAULT names says which: `raise NAME` or `hang NAME`; nothing, or
another handler's name, is no fault. MODELFS_TEST_GRACE_S is added to the deadline.
"""

import inspect
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from modelfs.cli import main
from modelfs.mount import fuse
from modelfs.mount.tree import Tree

CONTROL = Path(os.environ["MODELFS_TEST_FAULT"])


def fault_of(name: str) -> str:
    verb, _, wanted = CONTROL.read_text().strip().partition(" ")
    return verb if wanted == name else ""


def with_fault(name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def faulty(*args: Any, **kwargs: Any) -> Any:
        verb = fault_of(name)
        if verb == "raise":
            raise RuntimeError(f"injected into {name}")
        if verb == "hang":
            await trio.sleep_forever()
        return await method(*args, **kwargs)

    return faulty


def put_faults_in() -> None:
    """Put a fault inside the decorator of each handler: what it wraps is in its closure."""
    for name, method in vars(fuse.Operations).items():
        if inspect.iscoroutinefunction(method) and hasattr(method, "__wrapped__"):
            cell = method.__closure__[method.__code__.co_freevars.index("method")]
            cell.cell_contents = with_fault(name, cell.cell_contents)
    forget = Tree.forget

    def faulty_forget(tree: Tree, inode: int, count: int) -> None:
        if fault_of("forget") == "raise":
            raise RuntimeError("injected into forget")
        forget(tree, inode, count)

    Tree.forget = faulty_forget  # type: ignore[method-assign]


put_faults_in()
fuse.DEADLINE_GRACE_S += float(os.environ.get("MODELFS_TEST_GRACE_S", "0"))
sys.exit(main())
