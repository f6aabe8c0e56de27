"""What is wrong is said: at the command line in one line, through the mount by an errno."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.endpoints import CephServer, S3Endpoint, free_port, write_credentials
from tests.mount.conftest import MakeMount
from tests.mount.twins import fails_with
from tests.mounting import TIMEOUT_S, Mount, wait_until

pytestmark = pytest.mark.mount

MIB = 1 << 20
GRACE_S = 6.0  # of a handler above the registry's time limit, on a busy machine
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounting a disk needs root")


def refusal(mount: Mount) -> str:
    """Mount, which is refused: return the one line that says why."""
    done = subprocess.run(
        [sys.executable, "-m", "modelfs", "--config", str(mount.config), "mount", "hub"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    (said,) = [line for line in lines if line.startswith("modelfs: ")]
    assert lines[-1] == said
    assert done.stdout == ""
    return said


def run_mount(*command: str | Path) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------- what is configured


def test_where_nothing_listens_the_mount_comes_up_and_answers_eio_in_time(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(moto_bucket, endpoint=f"http://127.0.0.1:{free_port()}")
    for path in (mount.path, mount.model, mount.main / "f"):
        began_s = time.monotonic()
        with fails_with(errno.EIO):
            os.listdir(path)
        with fails_with(errno.EIO):
            mount.model.mkdir()
        assert time.monotonic() - began_s < TIMEOUT_S + GRACE_S
    status = mount.status()
    assert not status["reachable"]
    assert "127.0.0.1" in status["reachable_error"]
    assert status["counters"]["bugs"] == 0


def test_versions_are_served_while_main_answers_eio_where_the_endpoint_is_wrong(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(moto_bucket)
    mount.model.mkdir(parents=True)
    (mount.main / "f").write_text("frozen")
    mount.freeze("v1")
    assert mount.stop() == 0
    text = mount.config.read_text()
    mount.config.write_text(text.replace(moto_bucket.endpoint, f"http://127.0.0.1:{free_port()}"))
    mount.start()
    assert (mount.model / "v1" / "f").read_text() == "frozen"
    assert (mount.model / "latest" / "f").read_text() == "frozen"
    with fails_with(errno.EIO):
        os.listdir(mount.main)
    with fails_with(errno.EIO):
        (mount.main / "new").write_text("x")


def test_a_wrong_bucket_is_said(bucket: S3Endpoint, make_mount: MakeMount) -> None:
    mount = make_mount(replace(bucket, bucket="not-there"), start=False)
    said = refusal(mount)
    assert "not-there" in said
    assert "no such bucket" in said


@pytest.mark.ceph
@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
def test_wrong_keys_are_said_without_showing_them(
    ceph_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path, wrong: str
) -> None:
    keys = {"access_key": ceph_bucket.access_key, "secret_key": ceph_bucket.secret_key}
    file = write_credentials(tmp_path / "wrong", **{**keys, wrong: "WRONGWRONGWRONG"})
    said = refusal(make_mount(replace(ceph_bucket, credentials_file=file), start=False))
    assert "check 'credentials'" in said
    assert ceph_bucket.secret_key not in said


@pytest.mark.ceph
def test_a_certificate_that_nobody_vouches_for_is_said(
    ceph_bucket: S3Endpoint, ceph: CephServer, make_mount: MakeMount
) -> None:
    said = refusal(make_mount(ceph_bucket, endpoint=ceph.tls_endpoint, start=False))
    assert "certificate" in said
    assert "ca_bundle" in said
    mount = make_mount(ceph_bucket, endpoint=ceph.tls_endpoint, ca_bundle=str(ceph.ca))
    assert mount.status()["reachable"]


def test_a_config_with_an_unknown_key_is_said(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(moto_bucket, start=False, part_sise="8MiB")
    assert "registries.hub.part_sise" in refusal(mount)
    assert "did you mean 'part_size'" in refusal(mount)


def test_a_config_that_is_none_is_said(moto_bucket: S3Endpoint, make_mount: MakeMount) -> None:
    mount = make_mount(moto_bucket, start=False)
    text = mount.config.read_text()
    mount.config.write_text("[registries.hub")
    assert "line 1: not TOML" in refusal(mount)
    mount.config.write_text("")
    assert "expected at least one table [registries.NAME]" in refusal(mount)
    mount.config.write_text(text.replace("registries.hub", "registries.other"))
    assert "other" in refusal(mount)
    mount.config.unlink()
    assert str(mount.config) in refusal(mount)


def test_missing_or_broken_credentials_are_said(
    moto_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path
) -> None:
    file = tmp_path / "none"
    mount = make_mount(replace(moto_bucket, credentials_file=file), start=False)
    assert str(file) in refusal(mount)
    file.write_text("no credentials")
    assert "not in AWS credentials format" in refusal(mount)


# --------------------------------------------------------------------- mountpoints


def test_a_mountpoint_that_is_ours_and_alive_is_said(moto_mount: Mount) -> None:
    said = refusal(moto_mount)
    assert f"modelfs umount {moto_mount.path}" in said
    assert moto_mount.main.exists()


@needs_root
def test_a_mountpoint_with_another_file_system_is_said(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(moto_bucket, start=False)
    run_mount("mount", "-t", "tmpfs", "tmpfs", mount.path)
    try:
        assert "a tmpfs file system" in refusal(mount)
    finally:
        run_mount("umount", mount.path)


def test_a_mountpoint_that_is_no_empty_folder_is_said(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(moto_bucket, start=False)
    (mount.path / "precious").write_text("x")
    assert "not empty (it has 'precious')" in refusal(mount)
    (mount.path / "precious").unlink()
    mount.path.rmdir()
    assert f"mkdir -p {mount.path}" in refusal(mount)
    mount.path.write_text("a file")
    assert "Not a directory" in refusal(mount)


def test_a_dead_mount_of_ours_is_taken_away(moto_mount: Mount) -> None:
    (moto_mount.main / "f").write_text("x")
    moto_mount.kill()
    with fails_with(errno.ENOTCONN):
        os.listdir(moto_mount.path)
    moto_mount.start()
    assert (moto_mount.main / "f").read_text() == "x"


def test_two_mounts_of_one_store_on_a_node_are_refused(
    moto_mount: Mount, moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    other = make_mount(moto_bucket, start=False)
    text = other.config.read_text()
    other.config.write_text(text.replace(str(other.store), str(moto_mount.store)))
    assert "is used by another modelfs" in refusal(other)


# ---------------------------------------------------------------------- the store


@needs_root
def test_a_store_on_a_read_only_disk_is_said(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(moto_bucket, start=False)
    mount.store.mkdir()
    run_mount("mount", "--bind", mount.store, mount.store)
    try:
        run_mount("mount", "-o", "remount,ro,bind", mount.store)
        assert "Read-only file system" in refusal(mount)
    finally:
        run_mount("umount", mount.store)


def test_a_store_without_its_parent_folder_is_said(
    moto_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path
) -> None:
    store = tmp_path / "not-mounted" / "store"
    mount = make_mount(moto_bucket, start=False, store=str(store))
    assert f"mkdir -p {store.parent}" in refusal(mount)
    assert not store.parent.exists()


def test_a_store_on_another_file_system_than_configured_is_said(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(moto_bucket, start=False, store_filesystem=["ceph", "fuse.ceph-fuse"])
    said = refusal(mount)
    assert "ceph or fuse.ceph-fuse" in said
    assert not mount.store.exists()


def test_a_store_of_another_format_is_said(moto_bucket: S3Endpoint, make_mount: MakeMount) -> None:
    mount = make_mount(moto_bucket, start=False)
    mount.store.mkdir()
    (mount.store / "format").write_text("2\n")
    assert "format 2" in refusal(mount)


@pytest.fixture
def small_mount(moto_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path) -> Iterator[Mount]:
    """A mount whose store is a disk of 16 MiB."""
    if os.getuid() != 0:
        pytest.skip("mounting a disk needs root")
    image, disk = tmp_path / "disk.img", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(16 * MIB)
    run_mount("mkfs.ext4", "-q", "-F", "-O", "^has_journal", image)
    run_mount("mount", "-o", "loop", image, disk)
    try:
        mount = make_mount(
            moto_bucket,
            store=str(disk / "store"),
            part_size="1MiB",
            parallel_requests=4,
            cache={"min_free": "5MiB"},  # more than the parts that are on their way at once
        )
        mount.model.mkdir(parents=True)
        yield mount
        mount.clean()
    finally:
        run_mount("umount", "-l", disk)


def test_a_write_on_a_full_disk_is_enospc_and_the_object_stays(small_mount: Mount) -> None:
    main = small_mount.main
    (main / "f").write_bytes(b"good")
    with fails_with(errno.ENOSPC), (main / "f").open("wb", buffering=0) as file:
        for _ in range(24):
            file.write(bytes(MIB))
    wait_until(lambda: not small_mount.status()["uploads"])
    assert small_mount.objects()["f"] == b"good"
    wait_until(lambda: (main / "f").stat().st_size == 4)
    assert (main / "f").read_bytes() == b"good"
    (main / "g").write_bytes(bytes(4 * MIB))  # the room was given back
    assert small_mount.objects()["g"] == bytes(4 * MIB)


def test_a_new_file_that_does_not_fit_is_enospc_and_leaves_no_object(small_mount: Mount) -> None:
    with fails_with(errno.ENOSPC):
        (small_mount.main / "big").write_bytes(bytes(24 * MIB))
    wait_until(lambda: not small_mount.status()["uploads"])
    assert "big" not in small_mount.objects()
    wait_until(lambda: not (small_mount.main / "big").exists())
    done = subprocess.run(
        ["dd", "if=/dev/zero", f"of={small_mount.main}/big", "bs=1M", "count=24"],
        capture_output=True,
        check=False,
    )
    assert b"No space left on device" in done.stderr


def test_a_freeze_that_does_not_fit_is_enospc_at_once(small_mount: Mount) -> None:
    for n in range(3):
        small_mount.bucket.put(small_mount.key(f"{n}"), bytes(8 * MIB))
    with fails_with(errno.ENOSPC):
        (small_mount.model / "v1").mkdir()
    assert not (small_mount.model / "v1").exists()
    small_mount.bucket.client.delete_object(
        Bucket=small_mount.bucket.bucket, Key=small_mount.key("0")
    )
    small_mount.bucket.client.delete_object(
        Bucket=small_mount.bucket.bucket, Key=small_mount.key("1")
    )
    small_mount.freeze("v1")  # the name is free still


def test_a_file_larger_than_the_disk_is_read_all_the_same(small_mount: Mount) -> None:
    content = os.urandom(MIB) * 40
    small_mount.bucket.put(small_mount.key("f"), content)
    assert (small_mount.main / "f").read_bytes() == content
    assert small_mount.status()["counters"]["bugs"] == 0
