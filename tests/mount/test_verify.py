"""verify, diff and rollback beside a daemon, as commands of their own on a real mount."""

import errno
import json
import os
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.frozen_store import flip_a_bit
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, wait_until, xattr

pytestmark = pytest.mark.mount

BIG = os.urandom(3 << 20)
SERVE = str(Path(__file__).parent.parent / "launchers" / "serve.py")


def plain(mount: Mount, version: str, path: str) -> Path:
    return mount.store / "models/acme/llama" / version / path


def test_a_flipped_bit_of_a_shared_file_is_repaired_beside_the_daemon(mount: Mount) -> None:
    (mount.main / "w").mkdir()
    (mount.main / "w/big").write_bytes(BIG)
    (mount.main / "a").write_bytes(b"one")
    mount.freeze("v1")
    (mount.main / "a").write_bytes(b"two")
    mount.freeze("v2")
    mtime_ns = plain(mount, "v1", "w/big").stat().st_mtime_ns
    wrong = flip_a_bit(plain(mount, "v1", "w/big"))
    assert plain(mount, "v2", "w/big").read_bytes() == wrong != BIG
    assert (mount.model / "v1/w/big").read_bytes() != BIG  # the kernel keeps these pages

    done = mount.run("verify", "--all", "--json")
    assert done.returncode == 0, done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert [(f["version"], f["source"]) for f in findings] == [
        ("v1", "registry"),
        ("v2", "acme/llama@v1"),
    ]
    assert all(Path(finding["quarantined"]).read_bytes() == wrong for finding in findings)
    for version in ("v1", "v2"):
        assert plain(mount, version, "w/big").read_bytes() == BIG
        assert (mount.model / version / "w/big").read_bytes() == BIG
    assert plain(mount, "v1", "w/big").stat().st_mtime_ns == mtime_ns
    assert (mount.main / "w/big").read_bytes() == BIG
    assert mount.run("verify", "acme/llama").stdout.endswith("all right\n")
    assert mount.stop() == 0


def test_a_file_that_cannot_be_repaired_is_eio_and_said_loudly(moto_mount: Mount) -> None:
    mount = moto_mount
    (mount.main / "a").write_bytes(b"one")
    (mount.main / "b").write_bytes(b"b")
    version = mount.freeze("v1")
    flip_a_bit(plain(mount, "v1", "a"))
    mount.bucket.put(mount.key("a"), b"two")

    done = mount.run("verify", "acme/llama@v1")
    assert done.returncode == 1
    assert "acme/llama@v1: a: wrong bytes" in done.stderr
    assert "NOT REPAIRED: models/acme/llama/a has changed in the registry" in done.stderr
    assert "has changed in the registry" in xattr(mount.store / "models/acme/llama/v1", "error")
    assert sorted(os.listdir(version)) == ["a", "b"]
    with pytest.raises(OSError, match=os.strerror(errno.EIO)) as failed:
        (version / "a").read_bytes()
    assert failed.value.errno == errno.EIO
    assert (version / "b").read_bytes() == b"b"
    assert "modelfs verify acme/llama@v1" in mount.log()

    second = mount.freeze("v2")  # what is in quarantine is no copy to link
    assert (second / "a").read_bytes() == b"two"
    assert mount.stop() == 0


def test_a_version_that_could_not_be_repaired_is_named_everywhere_until_it_is(
    bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(bucket, launcher=(SERVE, "orphans=0.2", "--"))
    etag = mount.bucket.put(mount.key("a"), b"one")
    version = mount.freeze("v1")
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        xattr(version, "error")
    flip_a_bit(plain(mount, "v1", "a"))
    mount.bucket.put(mount.key("a"), b"two")
    assert mount.run("verify", "--all").returncode == 1

    reason = "a: wrong bytes: models/acme/llama/a has changed in the registry"
    assert xattr(version, "error") == xattr(mount.store / "models/acme/llama/v1", "error") == reason
    assert xattr(version, "state") == "ready"
    named = [{"version": "acme/llama@v1", "error": reason}]
    wait_until(lambda: mount.status()["damaged"] == named)
    manifest = json.loads((mount.model / ".modelfs/versions/v1.json").read_bytes())
    assert (manifest["state"], manifest["error"]) == ("ready", reason)
    assert f"damaged: {reason}" in mount.run("ls", "acme/llama").stdout
    assert f"damaged acme/llama@v1: {reason}" in mount.run("status").stdout

    assert mount.bucket.put(mount.key("a"), b"one") == etag
    assert mount.run("verify", "--all").returncode == 0
    assert (version / "a").read_bytes() == b"one"
    wait_until(lambda: mount.status()["damaged"] == [])
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        xattr(version, "error")
    assert mount.stop() == 0


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount")
def test_a_version_that_is_mounted_natively_says_what_is_wrong_with_it(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    said = (SERVE, "orphans=0.2", "--")
    mount = make_mount(moto_bucket, launcher=said, native_versions=True)
    moto_bucket.put(mount.key("a"), b"one")
    version = mount.freeze("v1")
    wait_until(lambda: version.stat().st_dev != mount.model.stat().st_dev)
    flip_a_bit(plain(mount, "v1", "a"))
    moto_bucket.put(mount.key("a"), b"two")
    assert mount.run("verify", "--all").returncode == 1
    assert version.stat().st_dev != mount.model.stat().st_dev
    assert "a has changed in the registry" in xattr(version, "error")
    assert "damaged: a: wrong bytes" in mount.run("ls", "acme/llama").stdout
    wait_until(lambda: [d["version"] for d in mount.status()["damaged"]] == ["acme/llama@v1"])
    assert mount.stop() == 0


def test_main_is_compared_and_rolled_back(moto_mount: Mount) -> None:
    mount = moto_mount
    (mount.main / "w").mkdir()
    (mount.main / "w/big").write_bytes(BIG)
    (mount.main / "a").write_bytes(b"one")
    (mount.main / "same").write_bytes(b"same")
    for path in ("a", "w/big"):
        os.utime(mount.main / path, ns=(10**18, 10**18))
    mount.freeze("v1")
    assert mount.run("diff", "acme/llama@v1", "main").returncode == 0

    (mount.main / "a").write_bytes(b"two")
    (mount.main / "w/big").unlink()
    (mount.main / "more").mkdir()
    (mount.main / "more/b").write_bytes(b"b")
    with mount.counting() as sent:
        done = mount.run("diff", "acme/llama@v1", "main", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert [[f["path"] for f in found[k]] for k in ("added", "removed", "changed")] == [
        ["more/b"],
        ["w/big"],
        ["a"],
    ]
    assert set(sent) <= {"ListObjectsV2"}

    done = mount.run("rollback", "acme/llama", "v1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("acme/llama/main is equal to v1: 2 files")
    objects = {path: data for path, data in mount.objects().items() if not path.endswith("/")}
    assert objects == {"": b"", "a": b"one", "same": b"same", "w/big": BIG}
    assert (mount.main / "w/big").stat().st_mtime_ns == 10**18
    assert sorted(os.listdir(mount.main)) == ["a", "same", "w"]
    assert mount.run("diff", "acme/llama@v1", "main").returncode == 0
    with mount.counting() as sent:
        again = mount.run("rollback", "acme/llama", "v1")
    assert "0 files (0 B) written, 0 files removed" in again.stdout
    assert set(sent) <= {"ListObjectsV2"}
    assert mount.stop() == 0
