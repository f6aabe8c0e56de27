"""What versions, control directories and the levels above refuse, with which errno."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mount.twins import fails_with, run
from tests.mounting import Mount, wait_until, xattr

pytestmark = pytest.mark.mount


@pytest.fixture
def frozen(moto_mount: Mount) -> Mount:
    """A mount with a version v1 of a file in a folder."""
    (moto_mount.main / "d").mkdir()
    (moto_mount.main / "d" / "f").write_text("frozen")
    moto_mount.freeze("v1")
    return moto_mount


def changes(folder: Path, file: Path) -> dict[str, Callable[[], object]]:
    """Return every way to change a folder with a file in it."""
    return {
        "create": lambda: (folder / "new").write_text("x"),
        "write": lambda: file.open("r+b"),
        "append": lambda: file.open("ab"),
        "overwrite": lambda: file.open("wb"),
        "truncate": lambda: os.truncate(file, 0),
        "mkdir": lambda: (folder / "newfolder").mkdir(),
        "symlink": lambda: os.symlink("x", folder / "link"),
        "unlink": file.unlink,
        "rename": lambda: os.rename(file, folder / "other"),
        "utime": lambda: os.utime(file, (1, 1)),
        "chmod": lambda: os.chmod(file, 0o600),
        "chown": lambda: os.chown(file, 1, 1),
        "setxattr": lambda: os.setxattr(file, "user.modelfs.x", b"x"),
        "setxattr of others": lambda: os.setxattr(file, "user.other", b"x"),
        "removexattr": lambda: os.removexattr(file, "user.modelfs.sha256"),
    }


def refused(change: Callable[[], object]) -> str:
    try:
        change()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "allowed"


def test_every_change_of_a_version_is_erofs(frozen: Mount) -> None:
    version = frozen.model / "v1"
    found = {name: refused(c) for name, c in changes(version / "d", version / "d" / "f").items()}
    assert found == dict.fromkeys(found, "EROFS")
    for change in (
        lambda: os.rmdir(version / "d"),
        lambda: os.rename(version, frozen.model / "v2"),
        lambda: os.rename(version / "d" / "f", frozen.main / "f"),
        lambda: os.rename(frozen.main / "d" / "f", version / "f"),
        lambda: os.link(version / "d" / "f", version / "hard"),
    ):
        assert refused(change) in ("EROFS", "EPERM", "EXDEV")
    assert (version / "d" / "f").read_text() == "frozen"
    assert os.listdir(version) == ["d"]
    assert "Read-only file system" in run(frozen.model, "rm -r v1/d")


def test_a_version_is_deleted_by_rmdir_though_it_is_not_empty(frozen: Mount) -> None:
    with (frozen.model / "v1" / "d" / "f").open("rb"), fails_with(errno.EBUSY):
        os.rmdir(frozen.model / "v1")
    os.rmdir(frozen.model / "v1")
    with fails_with(errno.ENOENT):
        os.stat(frozen.model / "v1")


def test_a_control_directory_is_not_listed_and_cannot_be_changed(frozen: Mount) -> None:
    assert ".modelfs" not in os.listdir(frozen.path)
    assert ".modelfs" not in os.listdir(frozen.model)
    control = frozen.model / ".modelfs"
    assert "versions" in os.listdir(control)
    for folder, file in (
        (control / "versions", control / "versions" / "v1.json"),
        (frozen.path / ".modelfs", frozen.path / ".modelfs" / "README"),
    ):
        before = os.listdir(folder)
        found = {name: refused(change) for name, change in changes(folder, file).items()}
        del found["removexattr"]
        assert found == dict.fromkeys(found, "EPERM")
        assert os.listdir(folder) == before
    with fails_with(errno.ENOENT):
        (control / "absent").read_text()


def test_a_control_file_keeps_its_content_while_it_is_open(frozen: Mount) -> None:
    path = frozen.model / ".modelfs" / "aliases.jsonl"
    with path.open() as file:
        os.symlink("v1", frozen.model / "production")
        assert file.read() == ""
    assert '"production"' in path.read_text()
    assert '"to": "v1"' in path.read_text()


def test_model_folders_refuse_what_is_no_version_or_alias(frozen: Mount) -> None:
    model = frozen.model
    for folder, number in (
        (frozen.path, errno.EOPNOTSUPP),
        (frozen.path / "acme", errno.EOPNOTSUPP),
        (model, errno.EPERM),
    ):
        os.chmod(folder, 0o700)  # as in main/: it succeeds and changes nothing
        assert folder.stat().st_mode & 0o777 == 0o755
        with fails_with(number):
            os.setxattr(folder, "user.modelfs.other", b"x")
    with fails_with(errno.EISDIR):
        os.unlink(model / "v1")
    with fails_with(errno.ENOTEMPTY):
        os.rmdir(model / "main")
    with fails_with(errno.ENODATA):
        os.getxattr(model, "user.modelfs.absent")


def test_description_and_source_of_a_model_can_be_set(frozen: Mount) -> None:
    local = frozen.path / "acme" / "local"
    local.mkdir()
    os.setxattr(local, "user.modelfs.description", "große Modelle".encode())
    os.setxattr(local, "user.modelfs.source", b"acme/llama")
    assert xattr(local, "description") == "große Modelle"
    assert set(os.listxattr(local)) == {*("user.modelfs.description", "user.modelfs.source")}
    with fails_with(errno.EINVAL):
        os.setxattr(local, "user.modelfs.description", b"x" * 3000)
    assert frozen.stop() == 0
    frozen.start()
    assert xattr(local, "description") == "große Modelle"
    assert xattr(local, "source") == "acme/llama"


def test_attributes_of_others_are_not_kept(moto_mount: Mount) -> None:
    path = moto_mount.main / "f"
    path.write_text("x")
    with fails_with(errno.EOPNOTSUPP):
        os.setxattr(path, "user.mine", b"x")
    with fails_with(errno.ENODATA):
        os.getxattr(path, "user.mine")
    assert {name.partition(".")[0] for name in os.listxattr(path)} == {"user"}


def test_what_only_a_disk_can_do_says_so(moto_mount: Mount) -> None:
    path = moto_mount.main / "f"
    path.write_text("x")
    said = run(
        moto_mount.main,
        """
        fallocate -l 1M f
        lsattr f
        python3 -c 'import os; fd = os.open("f", os.O_RDWR); os.posix_fallocate(fd, 0, 9)'
        """,
    )
    assert said.count("Operation not supported") == 2
    assert path.read_bytes() == b"x" + bytes(8)
    with fails_with(errno.EOPNOTSUPP):
        os.open(moto_mount.main, os.O_TMPFILE | os.O_RDWR)


def test_what_copying_tools_bring_along_of_our_attributes_changes_nothing(
    moto_mount: Mount,
) -> None:
    path = moto_mount.main / "f"
    path.write_text("x")
    version = moto_mount.freeze("v1")
    before = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    with moto_mount.counting() as sent:
        for source, target in ((path, path), (version, moto_mount.main), (version / "f", path)):
            for name in os.listxattr(source):
                os.setxattr(target, name, os.getxattr(source, name))
                os.removexattr(target, name)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == before
    assert sent == {}
    with fails_with(errno.ENODATA):
        os.removexattr(path, "user.mine")


def test_a_read_only_mount_refuses_every_change(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    moto_bucket.put("models/acme/llama/d/f", b"there")
    mount = make_mount(moto_bucket, read_only=True)
    main = mount.main
    found = {
        name: refused(change) for name, change in changes(main / "d", main / "d" / "f").items()
    }
    assert found == dict.fromkeys(found, "EROFS")
    for change in (
        lambda: (mount.path / "new").mkdir(),
        lambda: (mount.path / "acme" / "new").mkdir(),
        lambda: (mount.model / "v1").mkdir(),
        lambda: os.rmdir(mount.model),
    ):
        assert refused(change) == "EROFS"
    assert (main / "d" / "f").read_bytes() == b"there"


def test_what_others_change_is_seen_within_the_metadata_ttl(mount: Mount) -> None:
    """And an open file reads the state that it was opened as."""
    mount.bucket.put(mount.key("f"), b"one")
    wait_until(lambda: (mount.main / "f").exists(), 2)
    with (mount.main / "f").open("rb", buffering=0) as old:
        assert old.read(1) == b"o"
        mount.bucket.put(mount.key("f"), b"another")
        wait_until(lambda: (mount.main / "f").stat().st_size == 7, 2)
        assert (mount.main / "f").read_bytes() == b"another"
        assert os.pread(old.fileno(), 10, 0) == b"one"
    mount.bucket.client.delete_object(Bucket=mount.bucket.bucket, Key=mount.key("f"))
    wait_until(lambda: not (mount.main / "f").exists(), 2)


def test_an_object_that_changed_under_an_open_file_is_estale_where_it_is_not_cached(
    mount: Mount,
) -> None:
    size = 64 << 20
    mount.bucket.put(mount.key("f"), bytes(size))
    with (mount.main / "f").open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 10, 0) == bytes(10)
        etag = mount.bucket.put(mount.key("f"), b"\1" * size)
        with fails_with(errno.ESTALE):
            os.pread(file.fileno(), 10, size - 10)
    wait_until(lambda: xattr(mount.main / "f", "etag") == etag, 2)  # so long ESTALE may be met
    assert (mount.main / "f").read_bytes() == b"\1" * size


def test_the_time_of_an_object_of_others_is_the_registry_s_until_it_is_learned(
    moto_mount: Mount,
) -> None:
    moto_mount.bucket.put(moto_mount.key("f"), b"x", Metadata={"mtime": "1600000000.5"})
    path = moto_mount.main / "f"
    head = moto_mount.bucket.client.head_object(
        Bucket=moto_mount.bucket.bucket, Key=moto_mount.key("f")
    )
    assert int(path.stat().st_mtime) == int(head["LastModified"].timestamp())
    assert path.read_bytes() == b"x"
    wait_until(lambda: path.stat().st_mtime == 1600000000.5, 3)
