"""Which versions are bind-mounted, and which gives way to another: without mounting any."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from modelfs.mount import native
from modelfs.mount.native import NativeVersions
from modelfs.mountinfo import Mounted
from modelfs.names import VersionId
from modelfs.store.layout import Layout
from tests.trio_tests import trio_test, until, version

HUB = Path("/hub")
MOUNTS = 3


class Kernel:
    """mount(8) and umount(8), and what /proc/self/mountinfo would tell."""

    def __init__(self) -> None:
        self.mounted: list[Path] = []
        self.in_use: set[Path] = set()
        self.refused: set[Path] = set()
        self.commands: list[tuple[str, str]] = []

    async def command(self, *words: str) -> str | None:
        await trio.lowlevel.checkpoint()
        if words[0] == "mount":
            return self._do(*words, to=self.mounted.append)
        said = [
            self._do("umount", word, to=self.mounted.remove)
            for word in words
            if word.startswith(f"{HUB}/")
        ]
        return next(filter(None, said), None)

    def _do(self, *words: str, to: Callable[[Path], None]) -> str | None:
        target = Path(words[-1])
        self.commands.append((words[0], target.name))
        if target in self.refused | self.in_use:
            return "no"
        to(target)
        return None

    def at(self, path: Path) -> Mounted | None:
        return Mounted("0:1", path, "ext4", "disk") if path in self.mounted else None


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(native, "_command", kernel.command)
    monkeypatch.setattr(native.mountinfo, "at", kernel.at)
    monkeypatch.setattr(native.os, "getuid", lambda: 0)
    monkeypatch.setattr(native, "MOUNTS_MAX", MOUNTS)
    monkeypatch.setattr(native, "MOUNTED_MIN_S", 0.0)
    return kernel


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[NativeVersions]:
    versions = NativeVersions(Layout(folder, "node-a"), HUB, is_enabled=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(versions.run)
        yield versions
        nursery.cancel_scope.cancel()


def names(versions: NativeVersions) -> list[str]:
    return [version.version for version in versions.mounted]


def many(count: int) -> list[VersionId]:
    return [version(f"v{number}") for number in range(count)]


@trio_test
async def test_versions_that_are_offered_fill_what_there_is_and_never_each_other_s_place(
    kernel: Kernel, tmp_path: Path
) -> None:
    async with running(tmp_path) as versions:
        for offered in many(10):
            versions.offer(offered)
        await until(lambda: len(versions.mounted) == MOUNTS)
        for offered in many(10):
            versions.offer(offered)
        await trio.testing.wait_all_tasks_blocked()
    assert kernel.commands == [("mount", "v0"), ("mount", "v1"), ("mount", "v2")]


@trio_test
async def test_the_least_recently_used_version_gives_way_to_one_that_is_used(
    kernel: Kernel, tmp_path: Path
) -> None:
    async with running(tmp_path) as versions:
        v0, v1, v2, v3, v4 = many(5)
        for wanted in (v0, v1, v2):
            versions.want(wanted)
        await until(lambda: names(versions) == ["v0", "v1", "v2"])
        versions.touch(v0)
        versions.want(v3)
        await until(lambda: names(versions) == ["v2", "v0", "v3"])
        kernel.in_use.add(HUB / "acme/llama/v2")  # open somewhere: it cannot be unmounted
        versions.want(v4)
        await until(lambda: names(versions) == ["v3", "v2", "v4"])
    assert sorted(path.name for path in kernel.mounted) == ["v2", "v3", "v4"]


@trio_test
async def test_where_every_mount_is_in_use_no_more_are_tried_than_a_few(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "MOUNTS_MAX", 30)
    async with running(tmp_path) as versions:
        for wanted in many(30):
            versions.want(wanted)
        await until(lambda: len(versions.mounted) == 30)
        kernel.in_use |= set(kernel.mounted)
        kernel.commands.clear()
        versions.want(version("v99"))
        await until(lambda: kernel.commands)
        await trio.testing.wait_all_tasks_blocked()
    assert [word for word, _ in kernel.commands] == ["umount"] * native.BUSY_MAX


@trio_test
async def test_who_walks_through_all_versions_changes_few_mounts(
    kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "MOUNTED_MIN_S", 60.0)
    async with running(tmp_path) as versions:
        for visited in many(100):
            versions.want(visited)
            await trio.testing.wait_all_tasks_blocked()
    assert [word for word, _ in kernel.commands] == ["mount"] * MOUNTS


@trio_test
async def test_a_version_that_cannot_be_mounted_is_left_for_a_while(
    kernel: Kernel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = version("v1")
    Layout(tmp_path, "node-a").version(wanted).mkdir(parents=True)
    kernel.refused.add(HUB / "acme/llama/v1")
    async with running(tmp_path) as versions:
        versions.want(wanted)
        await until(lambda: "v1 is served through FUSE, it cannot be mounted: no" in caplog.text)
        versions.want(wanted)
        await trio.testing.wait_all_tasks_blocked()
    assert kernel.commands == [("mount", "v1")]


@trio_test
async def test_nothing_is_mounted_any_more_when_the_daemon_ends(
    kernel: Kernel, tmp_path: Path
) -> None:
    async with running(tmp_path) as versions:
        for wanted in many(MOUNTS):
            versions.want(wanted)
        await until(lambda: len(versions.mounted) == MOUNTS)
        versions.want(version("v8"))
        await versions.release_all()
        versions.want(version("v9"))
        await trio.testing.wait_all_tasks_blocked()
        assert versions.mounted == []
    assert kernel.mounted == []
