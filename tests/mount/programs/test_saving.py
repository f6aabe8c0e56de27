"""Models and data as their libraries save them into main/, loaded again, as on a disk."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy
import pytest
from safetensors.numpy import load_file, save_file

from tests.mount.twins import Twins
from tests.mounting import Mount

pytestmark = [pytest.mark.mount, pytest.mark.ceph]


def test_numpy_pickle_and_zipfile_save_as_on_a_disk(ceph_twins: Twins) -> None:
    def step(folder: Path) -> object:
        array = numpy.arange(300_000, dtype=numpy.float32).reshape(300, 1000)
        numpy.save(folder / "a.npy", array)
        numpy.savetxt(folder / "a.txt", array[:3, :3])
        mapped = numpy.lib.format.open_memmap(folder / "m.npy", "w+", numpy.int32, (1000, 100))
        mapped[500] = 7
        mapped.flush()
        mapped[501] = 8
        del mapped
        array.tofile(folder / "raw")
        with (folder / "p.pkl").open("wb") as file:
            pickle.dump({"array": array, "n": list(range(1000))}, file)
        with zipfile.ZipFile(folder / "z.zip", "w") as archive:
            for name in ("a.npy", "p.pkl"):
                entry = zipfile.ZipInfo(name, (2024, 2, 3, 4, 5, 6))
                archive.writestr(entry, (folder / name).read_bytes())
        with zipfile.ZipFile(folder / "z.zip", "a") as archive:
            archive.writestr(zipfile.ZipInfo("later", (2024, 2, 3, 4, 5, 6)), b"later")
            assert archive.testzip() is None
        with (folder / "j.json").open("w") as file:
            json.dump(array[0].tolist(), file, indent=1)
        loaded = numpy.load(folder / "a.npy", mmap_mode="r+")
        loaded[0, 0] = -1
        del loaded
        sums = [float(numpy.load(folder / name).sum()) for name in ("a.npy", "m.npy")]
        with (folder / "p.pkl").open("rb") as file:
            return sums, float(pickle.load(file)["array"].sum())

    ceph_twins.same(step)


def test_safetensors_saves_over_itself_as_on_a_disk(ceph_twins: Twins) -> None:
    def step(folder: Path) -> object:
        path = folder / "model.safetensors"
        for n in range(3):
            save_file({f"layer.{n}": numpy.full((200, 300), n, numpy.float32)}, path)
        found = load_file(path)
        found["more"] = numpy.ones(5, numpy.int64)
        save_file(found, path, metadata={"format": "np"})
        return sorted(load_file(path)), float(load_file(path)["layer.2"].sum())

    ceph_twins.same(step)


def test_hdf5_is_written_and_grown_as_on_a_disk(ceph_twins: Twins) -> None:
    def step(folder: Path) -> object:
        path = folder / "weights.h5"
        for number in range(3):
            with h5py.File(path, "a") as file:  # with a lock of its own
                values = numpy.full((300, 200), number, numpy.float32)
                file.create_dataset(f"layer{number}", data=values, chunks=True, compression=4)
        with h5py.File(path, "r+") as file:
            file["layer1"][10:20] = 7
            del file["layer0"]
        with h5py.File(path, "r") as file:
            return sorted(file), float(file["layer1"][...].sum())

    ceph_twins.same(step)


@pytest.mark.timeout(150, func_only=True)  # transformers is minutes away from here by nature
@pytest.mark.filterwarnings("ignore")  # of transformers and torch, on which we have no hold
def test_torch_and_transformers_save_and_load_as_on_a_disk(ceph_twins: Twins) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")

    def step(folder: Path) -> object:
        torch.manual_seed(7)
        config = transformers.BertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            vocab_size=500,
        )
        model = transformers.BertModel(config).eval()
        model.save_pretrained(folder / "whole")
        model.save_pretrained(folder / "shards", max_shard_size="40KB")
        torch.save(model.state_dict(), folder / "state.pt")
        torch.save(model.state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)
        optimizer = torch.optim.Adam(model.parameters())
        for step_number in (1, 2):  # a checkpoint over the one before, as trainers do
            torch.save({"step": step_number, "o": optimizer.state_dict()}, folder / "c.pt")
        answers = [_answer(transformers, torch, folder / name) for name in ("whole", "shards")]
        for name, options in (("state.pt", {"mmap": True}), ("old.pt", {})):
            state = torch.load(folder / name, weights_only=True, **options)
            answers.append(sum(float(tensor.double().sum()) for tensor in state.values()))
        (folder / "old.pt").unlink()  # it holds addresses of memory
        assert len(list((folder / "shards").glob("*.safetensors"))) > 2
        return answers, torch.load(folder / "c.pt", weights_only=True)["step"]

    ceph_twins.same(step)
    _freeze(ceph_twins.mount)


def _answer(transformers: Any, torch: Any, folder: Path) -> float:
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        return float(model(torch.tensor([[1, 2, 3]])).last_hidden_state.sum())


def _freeze(mount: Mount) -> None:
    """See that what was saved is frozen as it is."""
    version = mount.freeze("v1")
    names = sorted(path.relative_to(version) for path in version.rglob("*.safetensors"))
    for name in names:
        assert (version / name).read_bytes() == (mount.main / name).read_bytes()
    assert len(names) > 3
