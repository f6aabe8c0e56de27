"""A new version costs what changed: its bytes, its space; all else is shared with the last one."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.faulty_proxy import FaultyProxy, is_data
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, content, put, wait_until

pytestmark = pytest.mark.mount

FILES = 20
FILE_BYTES = 2 << 20
CHANGED = "model-07.safetensors"
FOLDERS_AND_MANIFEST_BYTES = 64 << 10  # what a version takes at most, whatever its files

_RANGE = re.compile(rb"\r\nrange: *bytes=([0-9]+)-([0-9]+)", re.IGNORECASE)

PLACES = [
    "moto on a local disk",
    pytest.param("Ceph on a local disk", marks=pytest.mark.ceph),
    pytest.param("Ceph on CephFS", marks=pytest.mark.ceph),
]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[S3Endpoint, Path]:
    """A bucket with 20 files, and a folder for the store."""
    server, _, disk = str(request.param).partition(" on ")
    bucket: S3Endpoint = request.getfixturevalue(f"{server.lower()}_bucket")
    folder = request.getfixturevalue("cephfs_folder")[0] if disk == "CephFS" else tmp_path
    names = (f"model-{number:02d}.safetensors" for number in range(FILES))
    put(bucket, {name: os.urandom(FILE_BYTES) for name in names})
    return bucket, folder / "store"


@pytest.fixture
def proxy(place: tuple[S3Endpoint, Path]) -> Iterator[FaultyProxy]:
    """What counts the bytes that are asked for."""
    with FaultyProxy(place[0].endpoint) as proxy:
        yield proxy


@pytest.fixture
def mount(place: tuple[S3Endpoint, Path], proxy: FaultyProxy, make_mount: MakeMount) -> Mount:
    mount = make_mount(place[0], endpoint=proxy.endpoint, store=place[1])
    mount.freeze("v1")
    proxy.heads.clear()
    return mount


def bytes_asked(proxy: FaultyProxy) -> int:
    """Return how many bytes of objects were asked for."""
    ranges = [_RANGE.search(head) for head in proxy.heads if is_data(head)]
    return sum(int(found[2]) - int(found[1]) + 1 for found in ranges if found)


def disk_usage(mount: Mount) -> int:
    """Return the bytes that the store takes when nothing is pending; a file's names count once."""
    wait_until(lambda: not (mount.store / "pending/acme/llama").exists(), 30)
    done = subprocess.run(["du", "-s", "-B1", mount.store], capture_output=True, check=True)
    return int(done.stdout.split()[0])


def inodes(mount: Mount, version: str) -> dict[str, int]:
    folder = mount.store / "models/acme/llama" / version
    return {path.name: path.stat().st_ino for path in folder.iterdir()}


def test_a_version_of_which_one_file_changed_costs_that_file_alone(
    mount: Mount, proxy: FaultyProxy
) -> None:
    put(mount.bucket, {CHANGED: os.urandom(FILE_BYTES)})
    proxy.heads.clear()
    used = disk_usage(mount)
    mount.freeze("v2")
    assert bytes_asked(proxy) == FILE_BYTES
    assert 0 <= disk_usage(mount) - used - FILE_BYTES < FOLDERS_AND_MANIFEST_BYTES
    before, after = inodes(mount, "v1"), inodes(mount, "v2")
    assert {name for name in after if after[name] != before[name]} == {CHANGED}
    assert content(mount.model / "v2") == content(mount.main)


def test_a_version_of_which_nothing_changed_costs_nothing(mount: Mount, proxy: FaultyProxy) -> None:
    used = disk_usage(mount)
    begun = time.monotonic()
    with mount.counting() as sent:
        mount.freeze("v2")
    print(f"frozen again in {time.monotonic() - begun:.3f} s")
    assert bytes_asked(proxy) == 0
    assert "GetObject" not in sent
    assert disk_usage(mount) - used < FOLDERS_AND_MANIFEST_BYTES
    assert inodes(mount, "v2") == inodes(mount, "v1")
