"""Real work on main/: a model copied in and read back, and how programs save files."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from tests import models
from tests.models import checksums
from tests.mount import twins as fixtures
from tests.mount.twins import Twins, check_bucket
from tests.mounting import Mount, wait_until, xattr

pytestmark = pytest.mark.mount

real_model = models.real_model

moto_shared, ceph_shared = fixtures.moto_shared, fixtures.ceph_shared
twins, everywhere = fixtures.twins, fixtures.everywhere


# ------------------------------------------------------------------------ models


def test_a_real_model_that_was_copied_in_is_the_same_everywhere(
    mount: Mount, real_model: Path
) -> None:
    main = mount.main
    subprocess.run(["cp", "-r", f"{real_model}/.", str(main)], check=True)
    assert checksums(main) == checksums(real_model)
    check_bucket(mount)
    with mount.counting() as sent:
        assert subprocess.run(["diff", "-r", str(real_model), str(main)]).returncode == 0
    assert not {name for name in sent if "get" in name.lower()}  # what was written is cached
    assert _shapes(main / "model.safetensors") == _shapes(real_model / "model.safetensors")
    version = mount.freeze("v1")
    assert checksums(version) == checksums(real_model)
    shutil.rmtree(main / "1_Pooling")
    (main / "model.safetensors").write_bytes(b"broken")
    assert checksums(version) == checksums(real_model)
    subprocess.run(["rsync", "-a", "--delete", f"{version}/", f"{main}/"], check=True)
    assert checksums(main) == checksums(real_model)


def test_a_real_model_that_others_put_is_read_by_safetensors(
    moto_mount: Mount, real_model: Path
) -> None:
    mount = moto_mount
    path = real_model / "model.safetensors"
    mount.bucket.client.upload_file(str(path), mount.bucket.bucket, mount.key(path.name))
    assert _shapes(mount.main / path.name) == _shapes(path)
    assert models.sha256_of(mount.main / path.name) == models.sha256_of(path)


def _shapes(path: Path) -> dict[str, tuple[tuple[int, ...], float]]:
    with safe_open(path, framework="numpy") as opened:
        tensors = ((name, opened.get_tensor(name)) for name in opened.keys())  # noqa: SIM118
        return {name: (tensor.shape, float(tensor.sum())) for name, tensor in tensors}


def test_safetensors_saves_into_main(twins: Twins) -> None:
    import numpy

    def step(folder: Path) -> object:
        weights = {f"layer.{n}": numpy.full((200, 300), n, numpy.float32) for n in range(5)}
        save_file(weights, folder / "model.safetensors")
        save_file(weights, folder / "model.safetensors")
        mapped = numpy.lib.format.open_memmap(folder / "m.npy", "w+", numpy.int32, (1000, 100))
        mapped[500] = 7
        del mapped
        return _shapes(folder / "model.safetensors"), int(numpy.load(folder / "m.npy").sum())

    twins.same(step)


# --------------------------------------------------------------- editors, notebooks


def test_a_save_by_backup_and_rename_keeps_the_file(everywhere: Twins) -> None:
    """What vim does with backupcopy=no: probe 4913, rename to a backup, write anew, unlink."""

    def step(folder: Path) -> object:
        path, backup = folder / "notes.txt", folder / "notes.txt~"
        path.write_text("one\n")
        for text in ("two\n", "three\n"):
            probe = os.open(folder / "4913", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.fchmod(probe, 0o600)
            os.close(probe)
            os.unlink(folder / "4913")
            os.rename(path, backup)
            fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
            os.write(fd, text.encode())
            os.fsync(fd)
            os.close(fd)
            os.unlink(backup)
        return path.read_text()

    assert everywhere.same(step) == "three\n"


def test_notebooks_are_saved_as_jupyter_saves_them(everywhere: Twins) -> None:
    """jupyter_server's atomic_writing: a copy beside it, then the file itself, then unlink."""

    def step(folder: Path) -> object:
        path, kept = folder / "a.ipynb", folder / ".~a.ipynb"
        path.write_text("{}")
        for n in range(3):
            shutil.copy2(path, kept)
            with path.open("w", encoding="utf-8") as file:
                json.dump({"cells": ["x" * 5000] * n}, file)
                file.flush()
                os.fsync(file.fileno())
            os.remove(kept)
        # and where the write fails, the copy is renamed over the file
        shutil.copy2(path, kept)
        path.write_text("half")
        os.replace(kept, path)
        checkpoints = folder / ".ipynb_checkpoints"
        checkpoints.mkdir()
        shutil.copy2(path, checkpoints / "a-checkpoint.ipynb")
        shutil.rmtree(checkpoints)
        return len(json.loads(path.read_text())["cells"])

    assert everywhere.same(step) == 2


def test_a_save_by_temporary_file_and_rename_is_atomic(twins: Twins) -> None:
    """What VS Code's extensions, safetensors' savers and huggingface_hub do."""

    def step(folder: Path) -> object:
        path = folder / "state.json"
        seen = set()
        for n in range(10):
            temporary = folder / f".tmp{n}"
            with temporary.open("w") as file:
                file.write(json.dumps(list(range(n))))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            seen.add(path.read_text())
        return len(seen), os.listdir(folder)

    twins.same(step)


# --------------------------------------------------------------------- programs


def test_the_attributes_of_a_file_tell_its_key_and_state(moto_mount: Mount) -> None:
    path = moto_mount.main / "f"
    path.write_bytes(b"12345")
    assert xattr(path, "key") == moto_mount.key("f")
    assert xattr(path, "dirty") == "0"
    wait_until(lambda: xattr(path, "cached") == "5/5")
    head = moto_mount.bucket.client.head_object(
        Bucket=moto_mount.bucket.bucket, Key=moto_mount.key("f")
    )
    assert xattr(path, "etag") == head["ETag"].strip('"')
    with path.open("ab", buffering=0) as file:
        file.write(b"6")
        assert xattr(path, "dirty") == "1"
