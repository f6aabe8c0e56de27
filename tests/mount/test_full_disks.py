"""Stores that are too small: a small disk (a loop device), and a quota of CephFS."""

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cephfs import MakeNodes, layout_of
from tests.endpoints import S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, content, launcher, put, refused, wait_until, xattr

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.getuid() != 0, reason="mounting a disk needs root"),
]

MIB = 1 << 20
DISK_MIB = 48
QUOTA = "ceph.quota.max_bytes"
LIMIT_S = 45.0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own of 48 MiB: ext4 in a file; in memory where there are no loop devices."""
    image, disk = tmp_path / "disk.img", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_MIB * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", image, disk], check=False).returncode:
        size = ["-o", f"size={DISK_MIB}m"]
        subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", disk], check=True)
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def files_of(count: int, each_mib: int) -> dict[str, bytes]:
    return {f"part-{n}": os.urandom(each_mib * MIB) for n in range(count)}


def reason(version: Path) -> str:
    """Return why a version waits, '' where it does not say."""
    try:
        return xattr(version, "error")
    except OSError:
        return ""


def use_up(disk: Path, leave: int) -> Path:
    """Write a file that leaves `leave` bytes of a disk free."""
    filler, found = disk / "filler", os.statvfs(disk)
    with filler.open("wb") as file:
        file.write(bytes(found.f_bavail * found.f_frsize - leave))
    return filler


def gated(make_mount: MakeMount, bucket: S3Endpoint, store: Path, gate: Path) -> Mount:
    mount = make_mount(bucket, launcher=launcher(gate=gate), store=store)
    mount.model.mkdir(parents=True)
    return mount


def test_a_version_that_does_not_fit_on_its_disk_is_enospc_at_mkdir(
    moto_bucket: S3Endpoint, make_mount: MakeMount, small_disk: Path
) -> None:
    mount = make_mount(moto_bucket, store=small_disk / "store")
    mount.model.mkdir(parents=True)
    first = files_of(2, 10)
    put(moto_bucket, first)
    assert content(mount.freeze("v1")) == first
    put(moto_bucket, more := {"more": os.urandom(40 * MIB)})
    with mount.counting() as sent, refused(errno.ENOSPC):
        (mount.model / "v2").mkdir()
    assert "GetObject" not in sent
    assert sorted(os.listdir(mount.model)) == ["latest", "main", "v1"]
    assert not list(layout_of(mount).pending_root.rglob("*.json"))
    moto_bucket.client.delete_object(Bucket=moto_bucket.bucket, Key=mount.key("more"))
    put(moto_bucket, less := {"less": more["more"][: 5 * MIB]})
    assert content(mount.freeze("v2")) == {**first, **less}  # what is unchanged needs no space


def test_space_that_a_freeze_will_need_is_not_given_to_another(
    moto_bucket: S3Endpoint, make_mount: MakeMount, small_disk: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    mount = gated(make_mount, moto_bucket, small_disk / "store", gate)
    files = files_of(3, 8)
    put(moto_bucket, files)
    for path, data in files.items():
        moto_bucket.put(f"models/acme/other/{path}", data)
    wait_until((mount.path / "acme" / "other").exists)  # within metadata_ttl
    (mount.model / "v1").mkdir()
    with refused(errno.ENOSPC):
        (mount.path / "acme" / "other" / "v1").mkdir()
    gate.touch()
    wait_until(lambda: xattr(mount.model / "v1", "state") == "ready", LIMIT_S)
    assert content(mount.model / "v1") == files


def test_a_disk_that_fills_on_the_way_is_waited_for_and_said(
    moto_bucket: S3Endpoint, make_mount: MakeMount, small_disk: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    mount = gated(make_mount, moto_bucket, small_disk / "store", gate)
    files = files_of(3, 8)
    put(moto_bucket, files)
    version = mount.model / "v1"
    version.mkdir()
    filler = use_up(small_disk, leave=12 * MIB)
    gate.touch()
    wait_until(lambda: "disk is full" in reason(version), LIMIT_S)
    assert xattr(version, "state") == "downloading"
    assert "disk is full" in str(mount.status()["freezes"])
    assert not layout_of(mount).models.joinpath("acme", "llama", "v1").exists()
    filler.unlink()
    wait_until(lambda: xattr(version, "state") == "ready", LIMIT_S)
    assert not reason(version)
    assert content(version) == files


@pytest.mark.ceph
def test_a_version_that_does_not_fit_into_a_quota_of_cephfs_is_enospc_at_mkdir(
    ceph_nodes: MakeNodes, ceph_bucket: S3Endpoint
) -> None:
    node, _ = ceph_nodes(start=False)
    node.store.mkdir()
    os.setxattr(node.store, QUOTA, str(20 * MIB).encode())
    node.start()
    put(ceph_bucket, files_of(3, 8))
    wait_until(lambda: os.statvfs(node.path).f_blocks * 4096 <= 20 * MIB)  # df knows the quota
    with node.counting() as sent, refused(errno.ENOSPC):
        (node.model / "v1").mkdir()
    assert "GetObject" not in sent
    assert os.listdir(node.model) == ["main"]
    os.setxattr(node.store, QUOTA, b"0")
    node.freeze("v1", LIMIT_S)


@pytest.mark.ceph
@pytest.mark.timeout(120, func_only=True)
def test_a_quota_of_cephfs_that_is_reached_on_the_way_is_waited_for_and_said(
    ceph_nodes: MakeNodes, ceph_bucket: S3Endpoint, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    node, _ = ceph_nodes({"gate": gate}, start=False)
    node.start()
    files = files_of(3, 8)
    put(ceph_bucket, files)
    version = node.model / "v1"
    version.mkdir()
    os.setxattr(node.store, QUOTA, b"1000000")
    (node.store / "filler").write_bytes(bytes(900_000))
    wait_until(lambda: int(os.getxattr(node.store, "ceph.dir.rbytes")) >= 900_000, LIMIT_S)
    gate.touch()
    wait_until(lambda: "quota exceeded" in reason(version), LIMIT_S)
    assert xattr(version, "state") == "downloading"
    os.setxattr(node.store, QUOTA, b"0")
    end = time.monotonic() + LIMIT_S
    while xattr(version, "state") != "ready":
        assert time.monotonic() < end, (reason(version), node.log())
        time.sleep(0.1)
    assert content(version) == files
