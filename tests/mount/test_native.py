"""Ready versions at native speed: bind mounts of their plain folders, made by root's daemon."""

import errno
import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, wait_until, xattr

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.getuid() != 0, reason="only root may mount"),
]

BIG = os.urandom(3 << 20)


@pytest.fixture
def mount(moto_bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    mount = make_mount(moto_bucket, native_versions=True)
    (mount.main / "w").mkdir(parents=True)
    (mount.main / "w" / "big").write_bytes(BIG)
    (mount.main / "a").write_text("one")
    return mount


def is_native(path: Path) -> bool:
    """Tell whether a folder is another file system than the one it is in."""
    return path.stat().st_dev != path.parent.stat().st_dev


def frozen(mount: Mount, name: str) -> Path:
    version = mount.freeze(name)
    wait_until(lambda: is_native(version))
    return version


def modelfs(mount: Mount, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "modelfs", "--config", str(mount.config), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=mount.model,
    )


def test_a_ready_version_is_the_plain_folder_itself(mount: Mount) -> None:
    version = frozen(mount, "v1")
    plain = mount.store / "models/acme/llama/v1"
    assert (version / "w/big").stat().st_ino == (plain / "w/big").stat().st_ino
    assert (version / "w/big").read_bytes() == BIG
    assert xattr(version, "state") == "ready"
    assert len(xattr(version / "a", "sha256")) == 64
    assert sorted(os.listdir(mount.model)) == ["latest", "main", "v1"]
    assert (mount.model / "latest" / "a").read_text() == "one"


def test_nobody_changes_a_version_that_is_mounted(mount: Mount) -> None:
    version = frozen(mount, "v1")
    changes = [
        lambda: (version / "a").write_text("two"),
        lambda: (version / "new").touch(),
        lambda: (version / "a").unlink(),
        lambda: (version / "a").chmod(0o777),
        lambda: (version / "a").rename(version / "b"),
        lambda: (version / "w").rmdir(),
        lambda: os.setxattr(version / "a", "user.modelfs.sha256", b"x"),
    ]
    for change in changes:
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            change()


def test_rm_takes_the_mount_away_first_and_rmdir_is_busy(mount: Mount) -> None:
    version = frozen(mount, "v1")
    with pytest.raises(OSError, match=os.strerror(errno.EBUSY)):
        version.rmdir()
    with (version / "a").open():
        done = modelfs(mount, "rm", "acme/llama@v1")
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    done = modelfs(mount, "rm", "acme/llama@v1")
    assert done.returncode == 0, done.stderr
    assert not version.exists()
    assert not (mount.store / "models/acme/llama/v1").exists()
    with pytest.raises(FileExistsError):
        version.mkdir()


def test_open_files_and_maps_of_a_version_survive_the_daemon(mount: Mount) -> None:
    version = frozen(mount, "v1")
    with (version / "w/big").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        mount.kill()
        assert mapped[:] == BIG
        assert file.read() == BIG
        mount.start()
        assert file.seek(0) == 0
        assert file.read() == BIG
        mapped.close()
    wait_until(lambda: is_native(version))  # `latest` points at it
    assert (version / "w/big").read_bytes() == BIG


def test_a_container_that_was_given_a_version_never_notices_the_daemon(
    mount: Mount, tmp_path: Path
) -> None:
    version = frozen(mount, "v1")
    given = tmp_path / "given"
    given.mkdir()
    subprocess.run(["mount", "--bind", str(version), str(given)], check=True)
    try:
        assert mount.stop() == 0
        assert (given / "w/big").read_bytes() == BIG
        mount.start()
        assert (given / "w/big").read_bytes() == BIG
    finally:
        subprocess.run(["umount", "-l", str(given)], check=True)


def test_a_stop_leaves_no_mount_behind(mount: Mount) -> None:
    frozen(mount, "v1")
    frozen(mount, "v2")
    assert mount.stop() == 0
    assert str(mount.path) not in Path("/proc/self/mountinfo").read_text()


def test_reads_of_a_mounted_version_never_reach_the_daemon(mount: Mount) -> None:
    version = frozen(mount, "v1")
    with mount.counting() as sent:
        os.kill(mount.pid, 19)  # SIGSTOP: it answers nobody
        try:
            code = f"print(len(open({str(version / 'w/big')!r}, 'rb').read()))"
            folder = os.open(version, os.O_PATH)
            code = "import os, sys; fd = os.open('w/big', os.O_RDONLY, dir_fd=int(sys.argv[1])); "
            code += "print(len(os.read(fd, 1 << 30)))"
            done = subprocess.run(
                [sys.executable, "-c", code, str(folder)],
                pass_fds=[folder],
                capture_output=True,
                timeout=20,
                check=True,
            )
        finally:
            os.kill(mount.pid, 18)  # SIGCONT
        os.close(folder)
    assert int(done.stdout) == len(BIG)
    assert sent == {}


def test_a_namespace_keeps_its_owner_and_mode_in_the_store_and_in_the_mount(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(
        moto_bucket,
        native_versions=True,
        **{"namespaces.acme": {"uid": 1234, "gid": 2001, "mode": "0750"}},
    )
    mount.model.mkdir(parents=True)
    (mount.main / "a").write_text("secret")
    frozen(mount, "v1")
    for folder in (mount.path, *(mount.store / name for name in ("models", "manifests"))):
        found = (folder / "acme").stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 2001, 0o750)
    places = [
        (mount.path, "acme/llama/main/a"),
        (mount.path, "acme/llama/v1/a"),
        (mount.store, "models/acme/llama/v1/a"),
    ]
    for place, path in places:
        assert read_as(2002, place, path) == b""
        assert read_as(2001, place, path) == b"secret"


def read_as(gid: int, place: Path, path: str) -> bytes:
    """Read a file below a folder as a plain user of one group."""
    command = ["setpriv", "--clear-groups", "--regid", str(gid), "--reuid", "1235", "cat", path]
    return subprocess.run(command, cwd=place, capture_output=True, check=False).stdout
