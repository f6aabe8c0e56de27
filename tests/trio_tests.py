"""Tests that run in trio, and the rooms below the mount, in this process on a fake registry."""

import functools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

import pytest
import trio

from modelfs.concurrency import Background, Threads
from modelfs.mount.levels import RootFolder
from modelfs.mount.native import NativeVersions
from modelfs.mount.tree import Services, Tree
from modelfs.names import Keys, ModelId, VersionId
from modelfs.registry import calls
from modelfs.registry.objects import ObjectId
from modelfs.registry.registry import Registry
from modelfs.store import freeze as freezing
from modelfs.store import warming
from modelfs.store import writeback as writebacks
from modelfs.store.cache import Cache
from modelfs.store.freeze import State
from modelfs.store.health import StoreHealth
from modelfs.store.layout import Layout
from modelfs.store.library import Library
from modelfs.store.manifest import Provenance
from modelfs.store.parts import Fetcher
from modelfs.store.prefetch import Prefetcher
from modelfs.store.sources import Caller
from modelfs.store.staging import Staging
from modelfs.store.views import VersionView
from modelfs.store.warming import Warmer
from modelfs.store.writeback import Writeback
from modelfs.tables import RegistryConfig
from tests.fake_store import FakeStore

P = ParamSpec("P")

LIMIT_S = 40.0
PART = 64 * 1024
LLAMA = ModelId("acme", "llama")
PREFIX = "models/acme/llama/"
ROOT = Caller(0, 0)

QUICK = [
    (calls, "RETRY_PAUSE_S", 0.001),
    (calls, "PROBE_INTERVAL_S", 0.01),
    (freezing, "RETRY_FIRST_S", 0.005),
    (freezing, "RETRY_MAX_S", 0.02),
    (writebacks, "RETRY_FIRST_S", 0.005),
    (writebacks, "RETRY_MAX_S", 0.02),
    (warming, "PATIENCE_S", 0.05),
    (warming, "PATIENCE_PAUSE_S", 0.005),
]


def trio_test(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Run an async test, with pauses before retries that take no time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def within_limit() -> None:
            with trio.fail_after(LIMIT_S):
                await test(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            for module, name, value in QUICK:
                patch.setattr(module, name, value)
            trio.run(within_limit)

    return run


async def until(condition: Callable[[], object], limit_s: float = 10.0) -> None:
    """Return when the condition holds."""
    with trio.fail_after(limit_s):
        while not condition():  # noqa: ASYNC110  # what is waited for has no event
            await trio.sleep(0.002)


def version(name: str, model: ModelId = LLAMA) -> VersionId:
    return VersionId(model, name)


@dataclass
class House:
    """What a daemon holds: its services and its tree. `wrong` are objects with wrong bytes."""

    services: Services
    tree: Tree
    store: FakeStore
    background: Background
    wrong: list[ObjectId]

    @property
    def registry(self) -> Registry:
        return self.services.registry

    @property
    def cache(self) -> Cache:
        return self.services.cache

    @property
    def fetcher(self) -> Fetcher:
        return self.services.fetcher

    @property
    def warmer(self) -> Warmer:
        return self.services.warmer

    @property
    def staging(self) -> Staging:
        return self.services.staging

    @property
    def writeback(self) -> Writeback:
        return self.services.writeback

    @property
    def library(self) -> Library:
        return self.services.library

    @property
    def layout(self) -> Layout:
        return self.services.library.layout

    def check(self) -> None:
        self.cache.check_invariants()
        self.warmer.check_invariants()
        self.tree.check_invariants()

    async def read(self, key: str, offset: int = 0, size: int | None = None) -> bytes:
        """Read an object through the cache."""
        info = self.store._info(key)
        file = await self.cache.open(info)
        try:
            length = info.size if size is None else size
            return bytes(await self.fetcher.read(file, offset, length))
        finally:
            self.cache.close(file)
            if file.is_complete:
                await until(lambda: not file.users)  # it has been checked

    async def freeze(self, name: str, model: ModelId = LLAMA) -> VersionView:
        """Freeze a model and return the version when it is ready or has failed."""
        await self.library.freezes.begin(version(name, model), ROOT)
        return await self.ended(name, model)

    async def ended(self, name: str, model: ModelId = LLAMA) -> VersionView:
        """Return a version when its freeze is over."""
        wanted = version(name, model)
        while (view := await self.library.view(wanted)).state is State.DOWNLOADING:
            self.library.shelves.changed(model)
            await trio.sleep(0.002)
        await until(
            lambda: wanted not in self.library.freezes._under_way or view.state is State.FAILED
        )
        self.library.shelves.changed(model)
        return await self.library.view(wanted)

    def plain(self, name: str, model: ModelId = LLAMA) -> dict[str, bytes]:
        """Return path -> bytes of a ready version's plain folder."""
        folder = self.layout.version(version(name, model))
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


@asynccontextmanager
async def open_house(
    folder: Path,
    store: FakeStore,
    *,
    host: str = "node-a",
    part_size: int = PART,
    parallel: int = 4,
    request_parts: int = 1,
    max_bytes: int = 1 << 30,
    min_free: int = 0,
    ttl_s: float = 0.0,
    timeout_s: float = 5.0,
    read_ahead: int = 64 << 20,
    read_ahead_formats: bool = True,
    is_crash: bool = False,
    watches: bool = True,
) -> AsyncIterator[House]:
    """Build the rooms on the store in `folder` and load what lies there, as a daemon does.

    At the end invariants are checked and sidecars are saved, or, as by a crash, not.
    """
    config = RegistryConfig(
        name="hub",
        endpoint="http://127.0.0.1:1",
        bucket="bucket",
        store=folder,
        part_size=part_size,
        parallel_requests=parallel,
        metadata_ttl_s=ttl_s,
        timeout_s=timeout_s,
        read_ahead=read_ahead,
        read_ahead_formats=read_ahead_formats,
    )
    layout = Layout(folder, host)
    layout.make()
    disk = Threads(16)
    wrong: list[ObjectId] = []
    async with trio.open_nursery() as nursery:
        background = Background(nursery)
        registry = Registry(
            store,
            Keys("models/"),
            background,
            metadata_ttl_s=ttl_s,
            timeout_s=timeout_s,
            parallel_requests=parallel,
        )
        cache = Cache(
            layout.cache,
            disk,
            background,
            part_size=part_size,
            max_bytes=max_bytes,
            min_free=lambda total: min_free,
            on_wrong_bytes=wrong.append,
        )
        staging = Staging(layout.staged, disk)
        fetcher = Fetcher(registry, background, disk, parallel, request_parts=request_parts)
        prefetcher = Prefetcher(
            *(cache, fetcher, registry, background, disk),
            window_bytes=config.read_ahead,
            knows_formats=config.read_ahead_formats,
        )
        writeback = Writeback(registry, staging, cache, background, host=host)
        health = StoreHealth(layout)
        library = Library(
            *(layout, registry, staging, cache, fetcher, disk, background, health),
            part_size=part_size,
            provenance=Provenance("hub", config.endpoint, config.bucket, config.prefix, host, "0"),
        )
        services = Services(
            *(config, registry, cache, fetcher, prefetcher, staging, writeback, library),
            NativeVersions(layout, folder / "mountpoint", is_enabled=False),
            disk,
            health,
            uid=os.getuid(),
            gid=os.getgid(),
            started_ns=time.time_ns(),
            mountpoint=folder / "mountpoint",
            warmer=Warmer(cache, fetcher, background),
            background=background,
        )
        tree = Tree(services, lambda made: RootFolder(made, None, ""))
        house = House(services, tree, store, background, wrong)
        await cache.load()
        for staged in await staging.load():
            writeback.start(staged)
        if watches:
            nursery.start_soon(registry.watch)
            await library.freezes.resume()
        try:
            yield house
            house.check()
            if not is_crash:
                await cache.save_all()
        finally:
            nursery.cancel_scope.cancel()
