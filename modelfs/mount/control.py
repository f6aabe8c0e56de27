"""`.modelfs`: hidden folders whose files are made when they are looked at.

Never listed by the folder that they are in, so `cp -r`, `find` and `rm -r` do not meet
them; a listing of them names what is there.
"""

import json
import os
import time
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from modelfs import __version__
from modelfs.errors import NotFound
from modelfs.mount.confining import confined, namespaces_seen, sees_all
from modelfs.mount.handles import TextHandle
from modelfs.mount.metrics import metrics
from modelfs.mount.status import status
from modelfs.mount.tree import Attributes, Folder, Maker, Node, Opened, Services, Tree
from modelfs.mount.uploading import UPLOAD_SCRIPT, UploadScript
from modelfs.names import ModelId, VersionId
from modelfs.store.sources import Caller

STATUS = "status.json"

Content = Callable[[], Awaitable[bytes]]

README = """modelfs {version}: the registry {name} ({endpoint}, bucket {bucket}) as folders

  NAMESPACE/MODEL/main/     the model in the registry, read and write: close() uploads
  NAMESPACE/MODEL/v1/       a version: frozen by `mkdir v1`, read-only, complete
  NAMESPACE/MODEL/latest    the newest version that is ready
  NAMESPACE/MODEL/ALIAS     made and moved by `ln -sfn v1 ALIAS`

  rmdir NAMESPACE/MODEL/v1                      delete a version, whole
  getfattr -d NAMESPACE/MODEL/v1                its state, progress, digest, plain folder
  cat NAMESPACE/MODEL/.modelfs/versions/v1.json its manifest
  cat NAMESPACE/MODEL/.modelfs/upload.py        a script that uploads into it from elsewhere
  cat .modelfs/status.json                      this mount: registry, cache, uploads, freezes
  cat .modelfs/metrics                          the same in numbers, for Prometheus

The store is {store}. The log is where the daemon (pid {pid}) writes it: the journal of
modelfs@{name}, or standard error.
"""


class ControlFolder(Folder):
    """A folder of control files."""

    def attributes(self) -> Attributes:
        return self._attributes(mode=self.owner()[2] & 0o555 | 0o500)

    @abstractmethod
    async def names(self) -> list[str]:
        """Return what is here now."""

    async def has(self, name: str) -> bool:
        """Tell whether a name is here now."""
        return name in await self.names()

    @abstractmethod
    def make(self, name: str) -> Node:
        """Return the node of a name that is here."""

    async def lookup(self, name: str) -> Node:
        if not await self.has(name):
            raise NotFound(f"there is no {name} here")
        node = self.make(name)
        await node.refresh()
        return node

    async def entries(self) -> list[tuple[str, Maker]]:
        return [(name, partial(self.make, name)) for name in await self.names()]


class RootControl(ControlFolder):
    """`.modelfs` of the root."""

    async def names(self) -> list[str]:
        return ["README", "metrics", STATUS]

    def make(self, name: str) -> Node:
        kind = StatusFile if name == STATUS else ControlFile
        return self.child(name, kind, partial(_ROOT_FILES[name], self.services))


class ModelControl(ControlFolder):
    """`.modelfs` of a model."""

    def __init__(self, tree: Tree, parent: Folder, name: str, model: ModelId) -> None:
        super().__init__(tree, parent, name)
        self.model = model

    async def names(self) -> list[str]:
        script = [UPLOAD_SCRIPT] if await self.has(UPLOAD_SCRIPT) else []
        return ["aliases.jsonl", *script, "versions"]

    async def has(self, name: str) -> bool:
        """Tell whether a name is here now; of the script alone the registry may be asked."""
        if name == UPLOAD_SCRIPT:  # else main/ is another's
            return await self.services.library.sources.find(self.model) is None
        return name in ("aliases.jsonl", "versions")

    def make(self, name: str) -> Node:
        if name == "versions":
            return self.child(name, VersionsControl, self.model)
        if name == UPLOAD_SCRIPT:
            return self.child(name, UploadScript, self.model)
        return self.child(name, ControlFile, partial(_alias_log, self.services, self.model))


class VersionsControl(ControlFolder):
    """`.modelfs/versions`: the manifests of a model."""

    def __init__(self, tree: Tree, parent: Folder, name: str, model: ModelId) -> None:
        super().__init__(tree, parent, name)
        self.model = model

    async def names(self) -> list[str]:
        shelf = await self.services.library.shelves.of(self.model)
        names = [f"{name}.json" for name in shelf.ready | shelf.pending]
        return sorted([*names, *(f"{name}.sha256" for name in shelf.ready)])

    def make(self, name: str) -> Node:
        version, _, suffix = name.rpartition(".")
        content = partial(_manifest, self.services, VersionId(self.model, version), suffix)
        return self.child(name, ControlFile, content)


class ControlFile(Node):
    """A file that is made when it is looked at, and stays so for whoever opened it."""

    def __init__(self, tree: Tree, parent: Folder, name: str, content: Content) -> None:
        super().__init__(tree, parent, name)
        self._make = content
        self._content = b""

    async def refresh(self) -> None:
        self._content = await self._make()

    def attributes(self) -> Attributes:
        return self._attributes(
            mode=self.owner()[2] & 0o444 | 0o400,
            size=len(self._content),
            mtime_ns=time.time_ns(),
            ttl_s=0.0,
        )

    async def open(self, *, write: bool, truncate: bool) -> Opened:
        if write:
            self.refuse_change()
        await self.refresh()
        return Opened(TextHandle(self._content), is_direct=True)


class StatusFile(ControlFile):
    """status.json: it names no model of a namespace that who opens it may not list."""

    async def open_for(self, caller: Caller, *, write: bool, truncate: bool) -> Opened:
        services = self.services
        if write or sees_all(caller, services.uid):
            return await self.open(write=write, truncate=truncate)
        may_see = namespaces_seen(services.config, caller, services.uid, services.gid)
        content = confined(status(services), may_see)
        return Opened(TextHandle(_as_json(content)), is_direct=True)


async def _readme(services: Services) -> bytes:
    config = services.config
    return README.format(
        version=__version__,
        name=config.name,
        endpoint=config.endpoint,
        bucket=config.bucket,
        store=config.store,
        pid=os.getpid(),
    ).encode()


async def _status(services: Services) -> bytes:
    return _as_json(status(services))


def _as_json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


_ROOT_FILES = {"README": _readme, "metrics": metrics, STATUS: _status}


async def _alias_log(services: Services, model: ModelId) -> bytes:
    path = services.library.layout.alias_log(model)
    return await services.disk.run(lambda: path.read_bytes() if path.exists() else b"")


async def _manifest(services: Services, version: VersionId, suffix: str) -> bytes:
    view = await services.library.view(version)
    if suffix == "sha256":
        return view.manifest.to_checksums()
    content = json.loads(view.manifest.to_json())
    error = view.error or await services.library.damage(version)
    return (json.dumps({**content, "state": str(view.state), "error": error}) + "\n").encode()
