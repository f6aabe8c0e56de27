"""Mounts for a test: all in processes of their own, taken away whatever happens."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import cephfs as cephfs_room
from tests.endpoints import S3Endpoint
from tests.mounting import Mount, why_no_fuse

MakeMount = Callable[..., Mount]

cephfs = cephfs_room.cephfs
cephfs_folder = cephfs_room.cephfs_folder
ceph_nodes = cephfs_room.ceph_nodes


@pytest.fixture
def make_mount(tmp_path: Path) -> Iterator[MakeMount]:
    """Make mounts (started), each in a folder of its own; see Mount for the arguments."""
    if reason := why_no_fuse():
        pytest.skip(reason)
    made: list[Mount] = []

    def make(bucket: S3Endpoint, *, start: bool = True, **arguments: object) -> Mount:
        folder = tmp_path / f"mount-{len(made)}"
        folder.mkdir()
        mount = Mount(folder, bucket, **arguments)  # type: ignore[arg-type]
        made.append(mount)
        return mount.start() if start else mount

    yield make
    for mount in made:
        mount.clean()


@pytest.fixture
def mount(bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    """A mount with the empty model acme/llama, once on moto and once on Ceph's gateway."""
    mount = make_mount(bucket)
    mount.model.mkdir(parents=True)
    return mount


@pytest.fixture
def moto_mount(moto_bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    """The same on moto alone."""
    mount = make_mount(moto_bucket)
    mount.model.mkdir(parents=True)
    return mount


@pytest.fixture
def ceph_mount(ceph_bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    """The same on Ceph's gateway alone."""
    mount = make_mount(ceph_bucket)
    mount.model.mkdir(parents=True)
    return mount
