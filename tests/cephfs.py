"""CephFS as two nodes have it: two ceph-fuse mounts of one file system, and a mount on each."""

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from modelfs.store.layout import Layout, synced
from tests.endpoints import CephServer, S3Endpoint
from tests.mounting import Mount, launcher

ORPHANS_S = 0.2  # a node that died is found this often, not every ten seconds


class MakeNodes(Protocol):
    """Make node-a and node-b; `first` and `second` are options of their launchers."""

    def __call__(
        self,
        first: dict[str, object] | None = None,
        second: dict[str, object] | None = None,
        **settings: object,
    ) -> tuple[Mount, Mount]: ...


@pytest.fixture(scope="session")
def cephfs(
    ceph: CephServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, Path]]:
    """A fresh folder of CephFS as two nodes see it: each through a ceph-fuse of its own."""
    folder, name = tmp_path_factory.mktemp("cephfs"), f"t{uuid.uuid4().hex[:16]}"
    here, there = folder / "A", folder / "B"
    try:
        for path in (here, there):
            ceph.run("mount-cephfs", str(path))
        (here / name).mkdir()
        yield here / name, there / name
    finally:
        ceph.run("umount-cephfs", str(there))  # first: what another mount knows is slow to remove
        shutil.rmtree(here / name, ignore_errors=True)
        ceph.run("umount-cephfs", str(here))


@pytest.fixture
def cephfs_folder(cephfs: tuple[Path, Path]) -> tuple[Path, Path]:
    """A fresh folder of CephFS for one test, as each of two nodes sees it."""
    name = f"t{uuid.uuid4().hex[:16]}"
    here, there = (path / name for path in cephfs)
    with synced(here.parent):
        here.mkdir()
    return here, there


@pytest.fixture
def ceph_nodes(
    cephfs_folder: tuple[Path, Path], ceph_bucket: S3Endpoint, make_mount: Callable[..., Mount]
) -> MakeNodes:
    """Make two nodes with one store on CephFS, each with its own ceph-fuse, on Ceph's gateway."""

    def make(
        first: dict[str, object] | None = None,
        second: dict[str, object] | None = None,
        **settings: object,
    ) -> tuple[Mount, Mount]:
        nodes = [
            make_mount(
                ceph_bucket,
                launcher=launcher(**{"host": name, "orphans": ORPHANS_S, **(options or {})}),
                store=folder / "store",
                store_filesystem=["fuse.ceph-fuse"],
                **settings,
            )
            for name, folder, options in zip(
                ("node-a", "node-b"), cephfs_folder, (first, second), strict=True
            )
        ]
        return nodes[0], nodes[1]

    return make


def layout_of(mount: Mount) -> Layout:
    """Return the paths in a mount's store, to look at it and change it without the daemon."""
    return Layout(mount.store, "test")
