"""Ready versions at native speed: bind mounts of their plain folders, made by root's daemon."""

import errno
import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

# Prints path -> SHA-256 of every file below an open folder: no path of the tree is walked.
HASH_ALL = """
import hashlib, json, os, sys
os.fchdir(int(sys.argv[1]))
files = [os.path.join(folder, name) for folder, _, names in os.walk(".") for name in names]
print(json.dumps({path: hashlib.sha256(open(path, "rb").read()).hexdigest() for path in files}))
"""
# The same each time that a line is asked for, of a folder that is bind-mounted.
SERVE_ALL = """
import os, subprocess, sys
for line in sys.stdin:
    folder = os.open(sys.argv[1], os.O_RDONLY)
    command = [sys.executable, "-c", sys.argv[2], str(folder)]
    subprocess.run(command, pass_fds=[folder], check=True)
    os.close(folder)
"""


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


def hashes_of(folder: Path) -> dict[str, str]:
    """Return what HASH_ALL prints of a folder, asked with the daemon there."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        command = [sys.executable, "-c", HASH_ALL, str(fd)]
        done = subprocess.run(command, pass_fds=[fd], capture_output=True, timeout=20, check=True)
    finally:
        os.close(fd)
    return dict(json.loads(done.stdout))


@contextmanager
def container(version: Path, given: Path) -> Iterator[Callable[[], dict[str, str]]]:
    """Give a version to a process with mounts of its own, as a container has it.

    Yields what makes it read everything, by the path that it was given.
    """
    script = 'mount --bind "$1" "$2" && exec "$3" -c "$4" "$2" "$5"'
    process = subprocess.Popen(
        [
            *("unshare", "--mount", "sh", "-c", script, "sh", str(version), str(given)),
            *(sys.executable, SERVE_ALL, HASH_ALL),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def read_all() -> dict[str, str]:
        print(file=stdin, flush=True)
        return dict(json.loads(stdout.readline()))

    try:
        yield read_all
    finally:
        stdin.close()
        process.wait(20)
        stdout.close()


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
        done = mount.run("rm", "acme/llama@v1")
        assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    done = mount.run("rm", "acme/llama@v1")
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
    expected = hashes_of(version)
    folder = os.open(version, os.O_RDONLY)  # a path would be looked up in the tree above it
    try:
        with mount.counting() as sent:
            os.kill(mount.pid, signal.SIGSTOP)
            try:
                done = subprocess.run(
                    [sys.executable, "-c", HASH_ALL, str(folder)],
                    pass_fds=[folder],
                    capture_output=True,
                    timeout=20,
                    check=True,
                )
            finally:
                os.kill(mount.pid, signal.SIGCONT)
    finally:
        os.close(folder)
    assert json.loads(done.stdout) == expected
    assert len(expected) == 2
    assert sent == {}


def test_a_container_with_mounts_of_its_own_never_notices_a_crash(
    mount: Mount, tmp_path: Path
) -> None:
    version = frozen(mount, "v1")
    expected = hashes_of(version)
    given = tmp_path / "given"
    given.mkdir()
    with container(version, given) as read_all:
        assert read_all() == expected
        mount.kill()
        assert read_all() == expected
        mount.start()
        assert read_all() == expected
        wait_until(lambda: is_native(version))  # bound anew, in the tree of the new daemon
        assert read_all() == expected
        assert mount.stop() == 0
        assert read_all() == expected


def test_a_version_that_others_have_unmounted_is_mounted_again_when_it_is_used(
    mount: Mount,
) -> None:
    version = frozen(mount, "v1")
    subprocess.run(["umount", "-l", str(version)], check=True)
    assert not is_native(version)
    wait_until(lambda: (version / "a").read_text() == "one" and is_native(version))


def test_looking_at_versions_mounts_none_and_reading_one_mounts_it(mount: Mount) -> None:
    old = frozen(mount, "v1")
    newest = frozen(mount, "v2")
    mount.stop()
    mount.start()
    wait_until(lambda: is_native(newest))  # `latest` points at it
    subprocess.run(["ls", "-l", mount.model, old.parent], check=True, capture_output=True)
    assert xattr(old, "state") == "ready"
    assert not is_native(old)
    assert (old / "a").read_text() == "one"
    wait_until(lambda: is_native(old))


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
    in_the_store = [(mount.store / name, 0o550) for name in ("models", "manifests")]
    for folder, mode in ((mount.path, 0o750), *in_the_store):  # where nobody writes but the daemon
        found = (folder / "acme").stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (1234, 2001, mode)
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
