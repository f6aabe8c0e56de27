"""What others did meanwhile to the object that a file written here replaces.

Theirs stays: ours goes beside it, under a name that tells of it. Owned by the trio thread.
"""

import logging
import time
from collections import deque
from dataclasses import dataclass

from modelfs.errors import NotFound
from modelfs.names import ModelId
from modelfs.registry.objects import ABSENT, ObjectInfo
from modelfs.registry.registry import Registry
from modelfs.store.stagedfile import StagedFile
from modelfs.store.staging import Staging

log = logging.getLogger(__name__)

CONFLICTS_SHOWN = 100  # the newest ones, in status.json


@dataclass(frozen=True)
class Conflict:
    """A file that was changed by someone else while it was written here; ours is kept beside it."""

    model: ModelId
    name: str
    kept_as: str
    time_ns: int


class Conflicts:
    """See the module. `count` is of all since the start, `newest` are the last of them."""

    def __init__(self, registry: Registry, staging: Staging, host: str) -> None:
        self._registry = registry
        self._staging = staging
        self._host = host
        self.count = 0
        self.newest: deque[Conflict] = deque(maxlen=CONFLICTS_SHOWN)

    async def look(self, staged: StagedFile) -> str:
        """Return the condition under which the file is put: the ETag of what is there, or ABSENT.

        Where someone else changed the object meanwhile, theirs stays: ours gets a new name.
        """
        while True:
            theirs = await self._head(staged)
            if theirs is None:
                if staged.base_etag is None:
                    return ABSENT
                if not staged.is_recovered:  # who saves a file that is open wants it to be there
                    name = f"{staged.model}/main/{staged.name}"
                    log.warning("%s was deleted by someone else: it is put again", name)
                    staged.replaces(None)
                    return ABSENT
            elif await self.is_ours(staged, theirs):
                return theirs.id.etag
            self._set_aside(staged, theirs)  # and see that its new name is free

    async def _head(self, staged: StagedFile) -> ObjectInfo | None:
        try:
            key = self._registry.keys.file(staged.model, staged.name)
            return await self._registry.call(self._registry.store.head, key)
        except NotFound:
            return None

    def _set_aside(self, staged: StagedFile, theirs: ObjectInfo | None) -> None:
        now_ns = time.time_ns()
        name = f"{staged.name}.conflict-{self._host}-{moment(now_ns)}"
        self.count += 1
        self.newest.append(Conflict(staged.model, staged.name, name, now_ns))
        log.error(
            "%s/main/%s was %s by someone else while it was written here: ours is kept as %s",
            *(staged.model, staged.name, "changed" if theirs else "deleted", name),
        )
        if theirs is not None:
            self._registry.note_put(staged.model, staged.name, theirs)
        staged.replaces(None)
        self._staging.move(staged, staged.model, name)

    async def is_ours(self, staged: StagedFile, theirs: ObjectInfo) -> bool:
        """Tell whether it is what the file replaces, or an earlier try that did arrive."""
        if theirs.id.etag in (staged.base_etag, *staged.sent_etags):
            return True
        return theirs.size == staged.size and await self._staging.is_content_of(staged, theirs)


def moment(time_ns: int) -> str:
    """Return a time in UTC, with milliseconds: conflicts of one file have names of their own."""
    seconds, fraction_ns = divmod(time_ns, 10**9)
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds)) + f".{fraction_ns // 10**6:03d}"
