"""Servers for a session, buckets for a test."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import endpoints
from tests.endpoints import CephServer, S3Endpoint, S3Server

CEPH_REQUIRED = os.environ.get("MODELFS_REQUIRE_CEPH") == "1"
CEPH_DIRECTORY = Path(os.environ.get("MODELFS_CEPH_DIR") or f"/tmp/modelfs-ceph-{os.getuid()}")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what tests start can be interrupted


def pytest_itemcollected(item: pytest.Item) -> None:
    """Leave the start of a cluster, which has its own limit, out of a test's time.

    With pytest-xdist all that need the cluster run in one process: some stop its daemons.
    """
    if item.get_closest_marker("ceph"):
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(60, func_only=True))
        if item.config.pluginmanager.hasplugin("xdist"):
            item.add_marker(pytest.mark.xdist_group("ceph"))


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """moto's server, in a process of its own. It believes every key and forgets everything."""
    with endpoints.running_moto() as server:
        yield server


@pytest.fixture(scope="session")
def ceph() -> Iterator[CephServer]:
    """A Ceph cluster of one node in a folder of its own; one that is up already is used as it is.

    MODELFS_CEPH_DIR names another folder, MODELFS_REQUIRE_CEPH=1 makes a missing Ceph fail.
    """
    if reason := _why_no_ceph():
        (pytest.fail if CEPH_REQUIRED else pytest.skip)(reason)
    was_up = endpoints.ceph_serves(CEPH_DIRECTORY)
    if not was_up:  # what was cut off or stopped is made anew: its ports may be another's by now
        endpoints.ceph_dev(CEPH_DIRECTORY, "wipe")
        endpoints.ceph_dev(CEPH_DIRECTORY, "up", port=endpoints.free_ceph_ports())
    server = endpoints.ceph_server(CEPH_DIRECTORY)
    yield server
    server.client.close()
    if not was_up:
        endpoints.ceph_dev(CEPH_DIRECTORY, "down")


def _why_no_ceph() -> str | None:
    missing = [tool for tool in endpoints.CEPH_TOOLS if not shutil.which(tool)]
    if missing:
        return f"Ceph is not installed ({missing[0]} is missing): tests/tools/ceph-dev install"
    return None if os.getuid() == 0 else "starting a Ceph cluster needs root"


@pytest.fixture
def moto_bucket(moto_server: S3Server, tmp_path: Path) -> Iterator[S3Endpoint]:
    """A fresh bucket on moto."""
    with endpoints.fresh_bucket(moto_server, tmp_path) as bucket:
        yield bucket


@pytest.fixture
def ceph_bucket(ceph: CephServer, tmp_path: Path) -> Iterator[S3Endpoint]:
    """A fresh bucket on Ceph's gateway."""
    with endpoints.fresh_bucket(ceph, tmp_path) as bucket:
        yield bucket


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def bucket(request: pytest.FixtureRequest) -> S3Endpoint:
    """A fresh bucket, once on moto and once on Ceph's gateway."""
    endpoint: S3Endpoint = request.getfixturevalue(f"{request.param}_bucket")
    return endpoint
