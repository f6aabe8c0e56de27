"""What of a mount's status a caller may see: nothing of namespaces that he may not list. Pure.

Who may list what is said by owner, group and mode of namespaces, as for their folders. Names of
namespaces themselves are seen by everyone, as those of homes in /home.
"""

from collections.abc import Callable
from typing import Any

from modelfs.store.sources import Caller
from modelfs.tables import RegistryConfig

NAMING = ("path", "version", "model", "key")  # what holds the name of a model or of more of it

MaySee = Callable[[str], bool]


def confined(status: dict[str, Any], may_see: MaySee) -> dict[str, Any]:
    """Return the status without what names a model of a namespace that may not be seen."""
    prefix = repr(str(status.get("prefix", "")))[1:-1]  # keys are shown as they are in Python

    def may_be_shown(name: str) -> bool:
        return may_see(name.removeprefix(prefix).partition("/")[0])

    return {name: _confined(value, may_be_shown) for name, value in status.items()}


def _confined(value: Any, may_be_shown: MaySee) -> Any:
    if isinstance(value, list):
        return [_confined(item, may_be_shown) for item in value if _is_shown(item, may_be_shown)]
    if isinstance(value, dict):
        return {
            name: _confined(item, may_be_shown)
            for name, item in value.items()
            if "/" not in name or may_be_shown(name)
        }
    return value


def _is_shown(item: Any, may_be_shown: MaySee) -> bool:
    """Tell whether an item of a list may be shown: all that it names may be."""
    if isinstance(item, dict):
        return all(may_be_shown(str(item[key])) for key in NAMING if key in item)
    return not isinstance(item, str) or "/" not in item or may_be_shown(item)


def sees_all(caller: Caller, uid: int) -> bool:
    """Tell whether a caller is root, or the user of the daemon."""
    return caller.uid in (0, uid)


def namespaces_seen(config: RegistryConfig, caller: Caller, uid: int, gid: int) -> MaySee:
    """Return what tells whether a caller may list a namespace; `uid` and `gid` are the daemon's."""

    def may_see(name: str) -> bool:
        namespace = config.namespace_of(name)
        return caller.may_read(
            uid if namespace.uid is None else namespace.uid,
            gid if namespace.gid is None else namespace.gid,
            namespace.mode,
        )

    return may_see
