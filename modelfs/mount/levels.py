"""The levels above the files: the root, namespaces, models, aliases.

What is here is the union of the registry and the store: a version is found with the
registry down, without a request, since the store is asked first.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from modelfs.errors import (
    AlreadyExists,
    Busy,
    CrossDevice,
    InvalidName,
    IsAFolder,
    NoData,
    NotEmpty,
    NotFound,
    NotPermitted,
    ReadOnly,
    RegistryUnavailable,
    Stale,
)
from modelfs.mount import control
from modelfs.mount.frozen import VersionFolder
from modelfs.mount.trash import Trash, is_trash
from modelfs.mount.tree import NAMES_TTL_S, Attributes, Folder, Maker, Node, Tree
from modelfs.mount.working import WorkFolder
from modelfs.names import (
    CONTROL,
    LATEST,
    MAIN,
    RESERVED,
    ModelId,
    VersionId,
    check_alias_name,
    check_name,
    check_version_name,
    is_plain_name,
    is_version_name,
)
from modelfs.store.sources import SOURCE, Caller
from modelfs.store.versions import main_link

DESCRIPTIONS = ("description", SOURCE)
CACHED = "cached"
RELEASE = "release"  # set on a model to a version's name, before that is removed
DESCRIPTION_MAX_BYTES = 2048  # S3's limit of all user metadata of an object


class Level(Folder):
    """A folder above the files."""

    def attributes(self) -> Attributes:
        return self._attributes(mode=0o755 & self.owner()[2] | 0o500)

    def refuse_change(self) -> None:
        if self.services.config.read_only:
            raise ReadOnly("this mount is read-only")

    def _refuse(self, name: str) -> NoReturn:
        self.refuse_change()
        raise NotPermitted(f"{name}: a plain file belongs in the main/ of a model")

    async def rename(
        self, name: str, into: Folder, new_name: str, caller: Caller, *, replace: bool
    ) -> None:
        self.refuse_change()
        raise NotPermitted(f"{name} keeps its name: copy main/ into a new model instead")


class RootFolder(Level):
    """The mount itself: namespaces."""

    def owner(self) -> tuple[int, int, int]:
        return self.services.uid, self.services.gid, 0o755

    async def lookup(self, name: str) -> Node:
        if name == CONTROL:
            return self.child(name, control.RootControl)
        if is_trash(name):
            return self.child(name, Trash)
        if is_plain_name(name) and (
            await self.services.library.has_namespace(name)
            or any(model.namespace == name for model in self.services.staging.models())
            or await self.services.registry.has_namespace(name)
        ):
            return self.child(name, NamespaceFolder)
        raise NotFound(f"there is no namespace {name}")

    async def entries(self) -> list[tuple[str, Maker]]:
        names = await self.services.library.namespaces()
        try:
            names |= await self.services.registry.namespaces()
        except RegistryUnavailable:
            if not names:
                raise
        return [(name, partial(self.child, name, NamespaceFolder)) for name in sorted(names)]

    async def mkdir(self, name: str, caller: Caller) -> Node:
        self.refuse_change()
        await self.services.registry.create_namespace(check_name(name, "namespace"))
        return self.child(name, NamespaceFolder)

    async def rmdir(self, name: str, caller: Caller) -> None:
        self.refuse_change()
        node = await self.lookup(name)
        if not isinstance(node, NamespaceFolder):
            self._refuse(name)
        if await node.entries():
            raise NotEmpty(f"the namespace {name} has models")
        await self.services.registry.remove_namespace(name)
        await self.services.library.forget_empty(name)
        self.tree.detach(node)


class NamespaceFolder(Level):
    """A namespace: models."""

    def owner(self) -> tuple[int, int, int]:
        namespace = self.services.config.namespace_of(self.name)
        uid = self.services.uid if namespace.uid is None else namespace.uid
        gid = self.services.gid if namespace.gid is None else namespace.gid
        return uid, gid, namespace.mode

    def attributes(self) -> Attributes:
        return self._attributes(mode=self.owner()[2])

    async def _registered(self) -> set[str]:
        try:
            return await self.services.registry.models(self.name)
        except NotFound:
            return set()

    async def lookup(self, name: str) -> Node:
        if is_plain_name(name) and (
            await self.services.library.has_model(ModelId(self.name, name))
            or ModelId(self.name, name) in self.services.staging.models()
            or name in await self._registered()
        ):
            return self.child(name, ModelFolder)
        raise NotFound(f"there is no model {self.name}/{name}")

    async def entries(self) -> list[tuple[str, Maker]]:
        library = self.services.library
        try:
            registered = await self._registered()
            names = registered | await library.models(self.name, registered)
        except RegistryUnavailable:
            names = await library.models(self.name)
            if not names:
                raise
        return [(name, partial(self.child, name, ModelFolder)) for name in sorted(names)]

    async def mkdir(self, name: str, caller: Caller) -> Node:
        self.refuse_change()
        model = ModelId(self.name, check_name(name, "model"))
        if await self.services.library.has_model(model):
            raise AlreadyExists(f"the model {model} exists")
        await self.services.registry.create_model(model, {})
        return self.child(name, ModelFolder)

    async def rmdir(self, name: str, caller: Caller) -> None:
        self.refuse_change()
        node = await self.lookup(name)
        assert isinstance(node, ModelFolder)
        if (await self.services.library.shelves.of(node.model)).has_versions:
            raise NotEmpty(f"the model {node.model} has versions or aliases")
        if await WorkFolder(self.tree, node, MAIN, node.model).entries():
            raise NotEmpty(f"{node.model}/main is not empty")
        await self.services.registry.remove_model(node.model)
        await self.services.library.sources.forget(node.model)
        self.tree.detach(node)


class ModelFolder(Level):
    """A model: `main/` or a link to its source's, versions, aliases, the control directory."""

    @property
    def model(self) -> ModelId:
        assert self.parent is not None
        return ModelId(self.parent.name, self.name)

    def attributes(self) -> Attributes:
        return self._attributes(mode=self.owner()[2])

    async def lookup(self, name: str) -> Node:
        if name == MAIN:
            return (await self._main())()
        if name == CONTROL:
            return self.child(name, control.ModelControl, self.model)
        shelf = await self.services.library.shelves.of(self.model)
        if name in shelf.aliases:
            return self.child(name, AliasLink, shelf.aliases[name])
        if name in shelf.ready or name in shelf.pending:
            version = VersionId(self.model, name)
            view = await self.services.library.view(version)
            self.services.native.touch(version)
            return self.child(name, VersionFolder, version, "", view)
        raise NotFound(f"{self.model} has no {name}")

    async def entries(self) -> list[tuple[str, Maker]]:
        shelf = await self.services.library.shelves.of(self.model)
        found: list[tuple[str, Maker]] = [
            (MAIN, await self._main()),
            *(
                (a, partial(self.child, a, AliasLink, target))
                for a, target in shelf.aliases.items()
            ),
        ]
        names = shelf.ready | shelf.pending
        views = await self.services.library.views(VersionId(self.model, name) for name in names)
        for version, view in views.items():
            name = version.version
            found.append((name, partial(self.child, name, VersionFolder, version, "", view)))
        return sorted(found, key=lambda item: item[0])

    async def _main(self) -> Callable[[], Node]:
        """Return what makes the node of `main`: a folder, or a link to the source's."""
        source = await self.services.library.sources.find(self.model)
        if source is None:
            return partial(self.child, MAIN, WorkFolder, self.model)
        return partial(self.child, MAIN, SourceLink, main_link(source))

    async def mkdir(self, name: str, caller: Caller) -> Node:
        """Freeze the model as it is in the registry now."""
        self.refuse_change()
        if name in RESERVED:
            raise AlreadyExists(f"{name} is reserved")
        version = VersionId(self.model, check_version_name(name))
        await self.services.library.freezes.begin(version, caller)
        view = await self.services.library.view(version)
        return self.child(name, VersionFolder, version, "", view)

    async def rmdir(self, name: str, caller: Caller) -> None:
        self.refuse_change()
        node = await self.lookup(name)
        if isinstance(node, VersionFolder):
            await self.services.library.remove(node.version)
        elif isinstance(node, WorkFolder):
            if await node.entries():
                raise NotEmpty(f"{self.model}/main is not empty")
        else:
            self._refuse(name)
        self.tree.detach(node)

    async def symlink(self, name: str, target: str, caller: Caller) -> Node:
        self.refuse_change()
        if name in RESERVED:
            raise AlreadyExists(f"{name} is kept by modelfs")
        alias = check_alias_name(name)
        await self.services.library.make_alias(self.model, alias, target, caller.uid)
        return await self.lookup(name)

    async def unlink(self, name: str, caller: Caller) -> None:
        self.refuse_change()
        node = await self.lookup(name)
        if isinstance(node, SourceLink):
            await self._set_source("", caller)
            return
        if not isinstance(node, AliasLink):
            raise IsAFolder(f"{name} is a folder")
        if name == LATEST:
            raise Busy("latest is kept by modelfs: it points at the newest ready version")
        await self.services.library.remove_alias(self.model, name, caller.uid)
        self.tree.detach(node)

    async def rename(
        self, name: str, into: Folder, new_name: str, caller: Caller, *, replace: bool
    ) -> None:
        self.refuse_change()
        node = await self.lookup(name)
        if isinstance(node, VersionFolder):
            raise ReadOnly("a version keeps its name")
        if not isinstance(node, AliasLink) or name == LATEST:
            raise NotPermitted(f"{name} keeps its name")
        if into is not self:
            raise CrossDevice("an alias stays with its model")
        if new_name in RESERVED or is_version_name(new_name):
            raise InvalidName(f"{new_name!r} cannot be an alias")
        if not replace and new_name in (await self.services.library.shelves.of(self.model)).aliases:
            raise AlreadyExists(f"the alias {new_name} exists")
        await self.services.library.rename_alias(self.model, name, new_name, caller.uid)
        self.tree.move(node, self, new_name)

    # ----------------------------------------------------------- attributes

    async def xattrs(self) -> dict[str, str]:
        found = await self.services.registry.description(self.model)
        shown = {name: found[name] for name in DESCRIPTIONS if name in found}
        shown.pop(SOURCE, None)
        source = await self.services.library.sources.find(self.model)
        return shown if source is None else {**shown, SOURCE: str(source)}

    async def xattr(self, name: str) -> str:
        if name == CACHED:
            return await self._cached()
        if name not in DESCRIPTIONS:
            raise NoData(f"no attribute {name}")
        return await super().xattr(name)

    async def _cached(self) -> str:
        """Return the bytes of main/ that are in the cache / all; it is not in `xattrs`: it lists.

        Of another's main/, and of a model too large to be listed whole, there is none.
        """
        services = self.services
        source = await services.library.sources.find(self.model)
        files = await services.registry.files(self.model) if source is None else None
        if files is None:
            raise NoData(f"no attribute {CACHED}")
        here = sum(services.cache.cached_bytes(info.id) for info in files)
        return f"{here}/{sum(info.size for info in files)}"

    async def set_xattr(self, name: str, value: str, caller: Caller) -> None:
        self.refuse_change()
        if name == RELEASE:
            await self._release(value)
            return
        if name not in DESCRIPTIONS:
            raise NotPermitted(f"of a model, only {' and '.join(DESCRIPTIONS)} can be set")
        if len(value.encode()) > DESCRIPTION_MAX_BYTES:
            raise InvalidName(f"the most is {DESCRIPTION_MAX_BYTES} bytes")
        if name == SOURCE:
            await self._set_source(value, caller)
            return
        found = await self.services.registry.description(self.model, is_now=True)
        await self.services.registry.describe(self.model, {**found, name: value})

    async def _set_source(self, value: str, caller: Caller) -> None:
        await self.services.library.sources.set(self.model, value, caller)
        if (shown := self.children.get(MAIN)) is not None:
            self.tree.detach(shown)
        self.tree.forget_name(self.inode, MAIN)

    async def _release(self, name: str) -> None:
        """Take the native mount of a version away, so that rmdir can reach it."""
        version = VersionId(self.model, check_version_name(name))
        if not await self.services.native.release(version):
            raise Busy(f"{version} is in use")


class Link(Node):
    """A symlink in a model: where it points is asked again each time."""

    kind = 0o120000  # stat.S_IFLNK

    def __init__(self, tree: Tree, parent: Folder, name: str, target: str) -> None:
        super().__init__(tree, parent, name)
        self._target = target

    def is_same(self, *args: object) -> bool:
        self._target = str(args[0])
        return True

    @property
    def model(self) -> ModelId:
        assert isinstance(self.parent, ModelFolder)
        return self.parent.model

    @abstractmethod
    async def readlink(self) -> str:
        """Return where it points now; raises NotFound, Stale."""

    async def refresh(self) -> None:
        if not self.is_detached:
            self._target = await self.readlink()

    def attributes(self) -> Attributes:
        return self._attributes(mode=0o777, size=len(self._target), ttl_s=NAMES_TTL_S)


class AliasLink(Link):
    """An alias of a model, `latest` among them: it points at a version."""

    async def readlink(self) -> str:
        shelf = await self.services.library.shelves.of(self.model)
        if self.name not in shelf.aliases:
            raise NotFound(f"there is no alias {self.name}")
        return shelf.aliases[self.name]


class SourceLink(Link):
    """The `main` of a model that has another's: what is done below it is done to the other."""

    async def readlink(self) -> str:
        shelf = await self.services.library.shelves.of(self.model)
        if shelf.source is None:  # on ESTALE the kernel looks main up anew, and finds a folder
            raise Stale(f"{self.model} has a main/ of its own now")
        return main_link(shelf.source)
