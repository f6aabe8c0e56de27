"""What stays on the node: editors' litter, and the bound on staged bytes."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, refused, wait_until, xattr

pytestmark = pytest.mark.mount


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_local_files_are_used_like_others_and_never_uploaded_nor_frozen(moto_mount: Mount) -> None:
    main = moto_mount.main
    (main / "nb.ipynb").write_text("notebook")
    (main / ".ipynb_checkpoints").mkdir()
    (main / ".ipynb_checkpoints" / "nb-checkpoint.ipynb").write_text("checkpoint")
    (main / ".nb.ipynb.swp").write_bytes(b"swap")
    with (main / ".nb.ipynb.swp").open("r+b") as file:
        file.write(b"again")
    assert sorted(os.listdir(main)) == [".ipynb_checkpoints", ".nb.ipynb.swp", "nb.ipynb"]
    assert (main / ".ipynb_checkpoints" / "nb-checkpoint.ipynb").read_text() == "checkpoint"
    assert (main / ".nb.ipynb.swp").read_bytes() == b"again"
    assert xattr(main / ".nb.ipynb.swp", "dirty") == "0"
    assert moto_mount.objects() == {"": b"", "nb.ipynb": b"notebook"}
    version = moto_mount.freeze("v1")
    assert sorted(os.listdir(version)) == ["nb.ipynb"]


def test_local_files_outlive_a_restart_and_are_removed_like_others(moto_mount: Mount) -> None:
    main = moto_mount.main
    (main / ".ipynb_checkpoints").mkdir(parents=True)
    (main / ".ipynb_checkpoints" / "a").write_text("a")
    with (main / ".x.swp").open("w") as file:
        file.write("swap")
        file.flush()
        os.fsync(file.fileno())
    before = files(main)
    assert moto_mount.stop() == 0
    moto_mount.start()
    assert files(main) == before == {".ipynb_checkpoints/a": b"a", ".x.swp": b"swap"}
    moto_mount.kill()
    moto_mount.start()
    assert files(main) == before
    shutil.rmtree(main / ".ipynb_checkpoints")
    (main / ".x.swp").unlink()
    assert os.listdir(main) == []
    assert moto_mount.objects() == {"": b""}
    assert list((moto_mount.store / "staged").rglob("*.json")) == []


def test_a_local_file_that_is_renamed_to_another_name_is_uploaded(moto_mount: Mount) -> None:
    (moto_mount.main / "nb.ipynb").write_text("old")
    (moto_mount.main / ".~nb.ipynb").write_text("new")
    (moto_mount.main / ".~nb.ipynb").rename(moto_mount.main / "nb.ipynb")
    assert moto_mount.objects() == {"": b"", "nb.ipynb": b"new"}
    assert (moto_mount.main / "nb.ipynb").read_text() == "new"
    assert os.listdir(moto_mount.main) == ["nb.ipynb"]


def test_a_file_that_is_renamed_to_a_local_name_leaves_the_registry(moto_mount: Mount) -> None:
    main = moto_mount.main
    (main / "a").write_bytes(b"written here")
    moto_mount.bucket.put(moto_mount.key("b"), b"of others")
    wait_until(lambda: (main / "b").exists())
    for name in "ab":
        (main / name).rename(main / f".~{name}")
    assert files(main) == {".~a": b"written here", ".~b": b"of others"}
    assert moto_mount.objects() == {"": b""}
    moto_mount.kill()
    moto_mount.start()
    assert files(main) == {".~a": b"written here", ".~b": b"of others"}
    (main / ".~a").rename(main / "a")
    (main / ".~b").unlink()
    assert moto_mount.objects() == {"": b"", "a": b"written here"}


def test_the_time_of_a_local_file_is_kept(moto_mount: Mount) -> None:
    path = moto_mount.main / ".~a"
    path.write_bytes(b"x")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    assert path.stat().st_mtime == 1_000_000_000
    moto_mount.kill()
    moto_mount.start()
    assert path.stat().st_mtime == 1_000_000_000
    path.rename(moto_mount.main / "a")
    assert (moto_mount.main / "a").stat().st_mtime == 1_000_000_000


def test_folders_with_local_files_are_renamed(moto_mount: Mount) -> None:
    main = moto_mount.main
    (main / "work" / ".ipynb_checkpoints" / "deep").mkdir(parents=True)
    (main / "work" / "nb").write_bytes(b"nb")
    (main / "work" / ".ipynb_checkpoints" / "nb").write_bytes(b"nb")
    (main / "work").rename(main / "play")
    assert files(main) == {"play/nb": b"nb", "play/.ipynb_checkpoints/nb": b"nb"}
    assert (main / "play" / ".ipynb_checkpoints" / "deep").is_dir()
    assert os.listdir(main) == ["play"]
    assert moto_mount.objects() == {"": b"", "play/nb": b"nb"} | _markers(moto_mount)


def test_a_folder_that_begins_or_ceases_to_be_local_is_copied_by_mv(moto_mount: Mount) -> None:
    main = moto_mount.main
    (main / "d").mkdir()
    (main / "d" / "f").write_bytes(b"f")
    with refused(errno.EXDEV):
        (main / "d").rename(main / ".~d")
    subprocess.run(["mv", main / "d", main / ".~d"], check=True)
    assert files(main) == {".~d/f": b"f"}
    assert moto_mount.objects() == {"": b""}
    subprocess.run(["mv", main / ".~d", main / "d"], check=True)
    assert files(main) == {"d/f": b"f"}
    assert moto_mount.objects() == {"": b"", "d/": b"", "d/f": b"f"}


def _markers(mount: Mount) -> dict[str, bytes]:
    return {name: data for name, data in mount.objects().items() if name.endswith("/")}


def test_more_than_staged_max_is_enospc_and_the_object_stays(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(moto_bucket, staged_max=1 << 20)
    mount.main.parent.mkdir(parents=True)
    (mount.main / "a").write_bytes(b"good")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        (mount.main / "a").write_bytes(bytes(2 << 20))
    wait_until(lambda: (mount.main / "a").read_bytes() == b"good")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        os.truncate(mount.main / "a", 2 << 20)
    (mount.main / "b").write_bytes(bytes(1 << 19))
    assert mount.objects() == {"": b"", "a": b"good", "b": bytes(1 << 19)}


def test_a_folder_with_a_local_folder_in_it_is_listed(moto_mount: Mount) -> None:
    folder = moto_mount.main / "work" / ".ipynb_checkpoints"
    (folder / "deep").mkdir(parents=True)
    (folder / "nb").write_text("x")
    assert os.listdir(moto_mount.main) == ["work"]
    assert os.listdir(moto_mount.main / "work") == [".ipynb_checkpoints"]
    assert sorted(os.listdir(folder)) == ["deep", "nb"]
    shutil.rmtree(moto_mount.main / "work")
    assert os.listdir(moto_mount.main) == []
