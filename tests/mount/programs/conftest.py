"""One mount of each kind for all tests of programs; each test has a model of its own on it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endpoints import CephServer, S3Server
from tests.mount.twins import Twins, shared_mount
from tests.mounting import Mount


@pytest.fixture(scope="session")
def moto_programs(
    moto_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    with shared_mount(moto_server, tmp_path_factory.mktemp("moto")) as mount:
        yield mount


@pytest.fixture(scope="session")
def ceph_programs(ceph: CephServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with shared_mount(ceph, tmp_path_factory.mktemp("ceph")) as mount:
        yield mount


@pytest.fixture
def twins(moto_programs: Mount, tmp_path: Path) -> Twins:
    """A folder of this disk and a main/ on moto."""
    return Twins(tmp_path / "plain", moto_programs)


@pytest.fixture
def ceph_twins(ceph_programs: Mount, tmp_path: Path) -> Twins:
    """A folder of this disk and a main/ on Ceph's gateway."""
    return Twins(tmp_path / "plain", ceph_programs)


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def everywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Twins:
    """Both, one after the other."""
    return Twins(tmp_path / "plain", request.getfixturevalue(f"{request.param}_programs"))
