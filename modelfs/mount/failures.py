"""One line in the log for each request of the kernel that failed: what, where, why.

The record has these also apart (`fields`), for the journal.
"""

import errno
import logging
import os
from typing import Any

import trio

from modelfs.errors import ModelfsError

log = logging.getLogger(__name__)

# What tells of a fault; all else is an answer that programs expect, and is said at debug.
_FAULTS = frozenset({errno.EIO, errno.EACCES, errno.ENOSPC, errno.EDQUOT})


def log_failure(operation: str, place: str, error: Exception, limit_s: float) -> int:
    """Log the error that is being handled; return its errno for the kernel.

    `limit_s` is what a handler that was too slow had.
    """
    if isinstance(error, ModelfsError | OSError):
        return _log_refusal(operation, place, error)
    fields = _fields(operation, place, errno.EIO)
    if isinstance(error, trio.TooSlowError):
        log.error("%s gave up after %.0f s: EIO: %s", operation, limit_s, place, extra=fields)
    else:
        log.exception("%s failed by a bug: EIO: %s", operation, place, extra=fields)
    return errno.EIO


def _log_refusal(operation: str, place: str, error: ModelfsError | OSError) -> int:
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
