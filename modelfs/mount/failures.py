"""One line in the log for each request of the kernel that failed: what, where, why.

The record has these also apart (`fields`), for the journal.
"""

import errno
import logging
import os
from typing import Any

from modelfs.errors import ModelfsError

log = logging.getLogger(__name__)

# What tells of a fault; all else is an answer that programs expect, and is said at debug.
_FAULTS = frozenset({errno.EIO, errno.EACCES, errno.ENOSPC, errno.EDQUOT})


def log_refusal(operation: str, place: str, error: ModelfsError | OSError) -> int:
    """Log an error that is understood; return its errno for the kernel."""
    if isinstance(error, ModelfsError):
        number, reason = error.errno, str(error)
        level = logging.WARNING if number in _FAULTS else logging.DEBUG
    else:
        number, level = _errno_of(error), logging.WARNING
        reason = f"{error.strerror or error}{_file_of(error)}"
    name = errno.errorcode.get(number, str(number))
    fields = _fields(operation, place, number)
    log.log(level, "%s %s: %s: %s", operation, place, name, reason, extra=fields)
    return number


def log_late(operation: str, place: str, limit_s: float) -> None:
    """Log a handler that has not ended within its limit."""
    fields = _fields(operation, place, errno.EIO)
    log.error("%s gave up after %.0f s: EIO: %s", operation, limit_s, place, extra=fields)


def log_bug(operation: str, place: str) -> None:
    """Log the exception that is being handled, with its traceback."""
    fields = _fields(operation, place, errno.EIO)
    log.exception("%s failed by a bug: EIO: %s", operation, place, extra=fields)


def _fields(operation: str, place: str, number: int) -> dict[str, Any]:
    fields = {"ERRNO": str(number), "MODELFS_OPERATION": operation, "MODELFS_PATH": place}
    if place.count("/") >= 1:
        fields["MODELFS_MODEL"] = "/".join(place.split("/")[:2])
    return {"fields": fields}


def _errno_of(error: OSError) -> int:
    """Return the errno for the kernel: that the store's mount died would read as if ours had."""
    found = error.errno or errno.EIO
    return errno.EIO if found in (errno.ENOTCONN, errno.ESHUTDOWN) else found


def _file_of(error: OSError) -> str:
    return f" ({os.fsdecode(error.filename)})" if error.filename else ""
