"""The root, namespaces and model folders: what may be made there, and what is refused."""

import errno
import os

import pytest

from tests.mount.twins import fails_with
from tests.mounting import Mount, wait_until, xattr

pytestmark = pytest.mark.mount


def test_version_names_that_cannot_be_are_refused(moto_mount: Mount) -> None:
    model = moto_mount.model
    (moto_mount.main / "f").write_text("x")
    moto_mount.freeze("v1")
    for name in ("v1", "main", "latest", ".modelfs"):
        with fails_with(errno.EEXIST):
            (model / name).mkdir()
    for name in ("weights", "v", "vv1", "-1", "v1 2", "v1:2", "1" * 101, "vé1", "release-1"):
        with fails_with(errno.EINVAL):
            (model / name).mkdir()
    os.rmdir(model / "v1")
    with fails_with(errno.EEXIST):
        (model / "v1").mkdir()
    moto_mount.freeze("v2")
    assert sorted(os.listdir(model)) == ["latest", "main", "v2"]


def test_a_model_without_files_is_not_frozen(moto_mount: Mount) -> None:
    with fails_with(errno.ENODATA):
        (moto_mount.model / "v1").mkdir()
    (moto_mount.main / "empty").mkdir()
    with fails_with(errno.ENODATA):
        (moto_mount.model / "v1").mkdir()
    assert os.listdir(moto_mount.model) == ["main"]


def test_a_model_that_is_being_written_is_not_frozen(moto_mount: Mount) -> None:
    with (moto_mount.main / "f").open("wb", buffering=0) as file:
        file.write(b"x")
        with fails_with(errno.EBUSY):
            (moto_mount.model / "v1").mkdir()
    moto_mount.freeze("v1")


def test_files_beside_main_are_eperm(moto_mount: Mount) -> None:
    (moto_mount.main / "f").write_text("x")
    for folder in (moto_mount.path, moto_mount.path / "acme", moto_mount.model):
        with fails_with(errno.EPERM):
            (folder / "file").write_text("x")
        with fails_with(errno.EPERM):
            os.link(moto_mount.main / "f", folder / "file")
        with fails_with(errno.EPERM):
            os.rename(moto_mount.main / "f", folder / "file")
        assert "file" not in os.listdir(folder)
    for folder in (moto_mount.path, moto_mount.path / "acme"):
        with fails_with(errno.EPERM):
            os.symlink("acme", folder / "link")
    with fails_with(errno.EPERM):
        os.rename(moto_mount.main, moto_mount.model / "other")
    with fails_with(errno.EPERM):
        os.rename(moto_mount.model, moto_mount.path / "acme" / "other")
    with fails_with(errno.EPERM):
        os.rename(moto_mount.path / "acme", moto_mount.path / "other")
    assert (moto_mount.main / "f").read_text() == "x"


def test_names_of_namespaces_and_models_are_checked(moto_mount: Mount) -> None:
    for folder in (moto_mount.path, moto_mount.path / "acme"):
        for name in ("with space", "-dash", ".hidden", "é", "x" * 101, "new\nline"):
            with fails_with(errno.EINVAL):
                (folder / name).mkdir()
    with fails_with(errno.EEXIST):
        (moto_mount.path / ".modelfs").mkdir()
    with fails_with(errno.EEXIST):
        moto_mount.model.mkdir()


def test_namespaces_and_models_go_when_they_are_empty_alone(moto_mount: Mount) -> None:
    (moto_mount.main / "f").write_text("x")
    with fails_with(errno.ENOTEMPTY):
        moto_mount.model.rmdir()
    with fails_with(errno.ENOTEMPTY):
        (moto_mount.path / "acme").rmdir()
    moto_mount.freeze("v1")
    (moto_mount.main / "f").unlink()
    with fails_with(errno.ENOTEMPTY):
        moto_mount.model.rmdir()
    os.rmdir(moto_mount.model / "v1")
    wait_until(lambda: not (moto_mount.model / "latest").is_symlink())
    moto_mount.model.rmdir()
    (moto_mount.path / "acme").rmdir()
    assert os.listdir(moto_mount.path) == []
    assert moto_mount.objects("models/") in ({}, {"": b""})


def test_aliases_that_cannot_be_are_refused(moto_mount: Mount) -> None:
    model = moto_mount.model
    (moto_mount.main / "f").write_text("x")
    moto_mount.freeze("v1")
    for target in ("main", "v9", "../llama/v1", "/etc", "v1/f", "latest"):
        with fails_with(errno.EINVAL):
            os.symlink(target, model / "production")
    for name in ("v2", "with space", ".hidden"):
        with fails_with(errno.EINVAL):
            os.symlink("v1", model / name)
    for name in ("main", "latest", "v1"):
        with fails_with(errno.EEXIST):
            os.symlink("v1", model / name)
    os.symlink("v1", model / "production")
    with fails_with(errno.EEXIST):
        os.symlink("v1", model / "production")
    with fails_with(errno.EBUSY):
        os.rmdir(model / "v1")
    with fails_with(errno.EBUSY):
        os.unlink(model / "latest")
    assert xattr(model / "v1", "state") == "ready"


def test_a_trash_is_found_by_those_who_look_for_it_and_takes_nothing(moto_mount: Mount) -> None:
    """As send2trash and gio look: after EXDEV they go on to the trash of the user's home."""
    (moto_mount.main / "f").write_bytes(b"x")
    (moto_mount.main / "d").mkdir()
    trash = moto_mount.path / ".Trash-1000"
    assert sorted(os.listdir(trash)) == ["files", "info"]
    assert ".Trash-1000" not in os.listdir(moto_mount.path)
    with (trash / "info" / "f.trashinfo").open("w") as file:
        file.write("[Trash Info]")
    assert os.listdir(trash / "info") == []
    for name in "fd":
        with fails_with(errno.EXDEV):
            os.rename(moto_mount.main / name, trash / "files" / name)
    assert sorted(os.listdir(moto_mount.main)) == ["d", "f"]
    for change in (
        lambda: (trash / "files" / "f").write_bytes(b"x"),
        lambda: (trash / "more").mkdir(),
        lambda: (trash / "files").rmdir(),
    ):
        with fails_with(errno.EXDEV):
            change()
    assert not (moto_mount.path / ".Trash-x").exists()
    assert moto_mount.status()["counters"]["bugs"] == 0
