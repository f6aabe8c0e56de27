"""From an errno of the mount to a sentence: what is wrong, and what to do about it."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from modelfs.errors import ModelfsError

_ANYWHERE = {
    errno.EACCES: "permission denied (by the namespace's owner, the mount's, or the registry)",
    errno.EDQUOT: "the registry's quota is used up",
    errno.EIO: "the registry does not answer, or not as it should: see modelfs status",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ENOSPC: "the store has no room: delete versions (modelfs rm), see modelfs status",
    errno.ENOTCONN: "the daemon behind the mount is gone: modelfs umount the folder, then mount it",
    errno.EOPNOTSUPP: "the registry is mounted without a store: set `store` in the configuration",
    errno.EPERM: "this may not be done here",
    errno.EROFS: "the mount, or what is frozen in it, is read-only",
    errno.ETIMEDOUT: "no answer in time: see modelfs status",
}


@contextmanager
def explained(doing: str, sentences: Mapping[int, str] | None = None) -> Iterator[None]:
    """Turn an OSError into `cannot DOING: SENTENCE`; `sentences` go before the general ones."""
    try:
        yield
    except OSError as error:
        known = {**_ANYWHERE, **(sentences or {})}
        number = error.errno or errno.EIO
        raise ModelfsError(f"cannot {doing}: {known.get(number) or os.strerror(number)}") from error
