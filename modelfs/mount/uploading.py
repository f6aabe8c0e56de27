"""`MODEL/.modelfs/upload.py`: a fresh upload script for each open.

Who may read it: who may write the model, by the mode of its namespace, which the kernel checks.
Read, it is a script as the configuration says. Opened to read and write, it answers a wish that
was written to it (JSON: `expires_s`, `large`) with such a script, as files of the kernel's do.
"""

import json
import logging
import re
from functools import partial
from typing import Any

from modelfs.errors import InvalidName, ModelfsError, NotPermitted, ReadOnly
from modelfs.mount.tree import Attributes, Folder, Node, Opened, Services, Tree
from modelfs.names import ModelId, check_component
from modelfs.registry.rights import UploadRights, UploadWish
from modelfs.store.cuts import UPLOAD_CUT
from modelfs.store.etags import SINGLE_PUT_MAX
from modelfs.store.localreads import Buffer
from modelfs.tables import UPLOAD_EXPIRES_MAX_S
from modelfs.units import utc_text
from modelfs.uploadscript import script

log = logging.getLogger(__name__)

UPLOAD_SCRIPT = "upload.py"
LARGE_MAX = 50  # names of large files in one wish
WISH_MAX_BYTES = 64 << 10

_CERTIFICATES = re.compile(
    r"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----.*?-----END [A-Z0-9 ]*CERTIFICATE-----",
    re.DOTALL,
)


class UploadScript(Node):
    """The file. Nothing of a script is kept but the size of the last one, for stat."""

    def __init__(self, tree: Tree, parent: Folder, name: str, model: ModelId) -> None:
        super().__init__(tree, parent, name)
        self._model = model
        self._size = 0

    def attributes(self) -> Attributes:
        writers = self.owner()[2] & 0o222
        return self._attributes(mode=writers | writers << 1 | 0o600, size=self._size, ttl_s=0.0)

    async def open(self, *, write: bool, truncate: bool) -> Opened:
        if truncate:
            raise NotPermitted("a script is made, not written")
        handle = ScriptHandle(self)
        if not write:
            await handle.make({})
        return Opened(handle, is_direct=True)

    async def make(self, wish: dict[str, Any]) -> bytes:
        """Return a script; raises ModelfsError, which the log has too."""
        try:
            content = await _script(self.services, self._model, wish)
        except ModelfsError as error:
            log.warning("no upload script for %s: %s", self._model, error)
            raise
        self._size = len(content)
        return content


class ScriptHandle:
    """An open script."""

    def __init__(self, node: UploadScript) -> None:
        self._node = node
        self._content: bytes | None = None

    async def make(self, wish: dict[str, Any]) -> None:
        self._content = await self._node.make(wish)

    async def read(self, offset: int, size: int) -> Buffer:
        if self._content is None:
            raise InvalidName("no wish was written")
        return self._content[offset : offset + size]

    async def write(self, offset: int, data: bytes) -> int:
        if self._content is not None or offset:
            raise NotPermitted("a wish is written once, whole")
        await self.make(_parsed(data))
        return len(data)

    async def flush(self) -> None:
        pass

    async def fsync(self) -> None:
        pass

    async def release(self) -> None:
        self._node.tree.drop_unused(self._node)


def _parsed(data: bytes) -> dict[str, Any]:
    """Return what a person wishes; raises InvalidName."""
    try:
        wish = json.loads(data[:WISH_MAX_BYTES])
    except ValueError:
        wish = None
    if not isinstance(wish, dict) or wish.keys() - {"expires_s", "large"}:
        raise InvalidName('a wish is JSON: {"expires_s": 1800, "large": ["NAME"]}')
    expires_s, large = wish.get("expires_s", 1), wish.get("large", [])
    if not isinstance(expires_s, int | float) or not 1 <= expires_s <= UPLOAD_EXPIRES_MAX_S:
        raise InvalidName(f"a script lasts from 1 s to {UPLOAD_EXPIRES_MAX_S // 3600} h")
    if not isinstance(large, list) or len(large) > LARGE_MAX:
        raise InvalidName(f"of large files up to {LARGE_MAX} may be named")
    for name in large:
        if not isinstance(name, str):
            raise InvalidName("a name of a large file is a text")
        for component in name.split("/"):
            check_component(component)
    return wish


async def _script(services: Services, model: ModelId, wish: dict[str, Any]) -> bytes:
    config, keys = services.config, services.registry.keys
    if config.read_only:
        raise ReadOnly("this mount is read-only")
    asked = UploadWish(
        prefix=keys.model(model),
        expires_s=int(wish.get("expires_s", config.upload_expires_s)),
        label=f"{model.namespace}-{model.name}",
        role=config.upload_role,
        large=[keys.file(model, name) for name in wish.get("large", [])],
    )
    rights = await services.registry.call(services.registry.store.upload_rights, asked)
    ca_bundle = None
    if config.ca_bundle is not None:
        found = await services.disk.run(partial(config.ca_bundle.read_text, errors="replace"))
        ca_bundle = "\n".join(_CERTIFICATES.findall(found)) + "\n"
    log.info("an upload script for %s, until %s", model, utc_text(rights.expires_at))
    return script(_grant(services, model, rights, ca_bundle))


def _grant(
    services: Services, model: ModelId, rights: UploadRights, ca_bundle: str | None
) -> dict[str, Any]:
    config, another = services.config, f"modelfs upload-script {model}"
    until = utc_text(rights.expires_at)
    return {
        "note": f"This script uploads files into the model {model} of the registry {config.name} "
        f"({config.endpoint}, bucket {config.bucket}), and can do nothing else. It works until "
        f"{until}; another one: {another}, or cat {model}/.modelfs/{UPLOAD_SCRIPT} in the mount. "
        "It holds a token: give it to nobody who may not write the model.",
        "model": str(model),
        "registry": config.name,
        "expires": until,
        "another": another,
        "url": rights.url,
        "prefix": services.registry.keys.model(model),
        "local_only": list(config.local_only),
        "timeout_s": config.timeout_s,
        "single_max": SINGLE_PUT_MAX,
        "cut": UPLOAD_CUT.runs,
        "ca_bundle": ca_bundle,
        "token": dict(rights.token),
    }
