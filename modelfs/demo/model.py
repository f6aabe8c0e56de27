"""A small model with real tensors, and a program that compares two of them."""

import json
from pathlib import Path

SHARDS, TENSORS, TENSOR_SHAPE = 2, 8, (256, 1024)  # 8 MiB a shard

COMPARE = """\
import sys
from pathlib import Path
from safetensors.numpy import load_file

ours, theirs = ({name: tensor for shard in sorted(Path(folder).glob("*.safetensors"))
                 for name, tensor in load_file(shard).items()} for folder in sys.argv[1:])
assert ours.keys() == theirs.keys() and len(ours) > 0
assert all((ours[name] == theirs[name]).all() for name in ours)
print(len(ours), "tensors,", sum(t.nbytes for t in ours.values()), "bytes: every value is equal")
"""


def make_model(folder: Path) -> None:
    """Write a small model: a configuration, words, a README and two shards of tensors."""
    import numpy
    from safetensors.numpy import save_file

    folder.mkdir()
    random = numpy.random.default_rng(seed=1)
    index = {}
    for shard in range(1, SHARDS + 1):
        name = f"model-{shard:05}-of-{SHARDS:05}.safetensors"
        tensors = {
            f"layers.{shard}.{number}.weight": random.standard_normal(
                TENSOR_SHAPE, dtype=numpy.float32
            )
            for number in range(TENSORS)
        }
        save_file(tensors, folder / name, metadata={"format": "np"})
        index.update(dict.fromkeys(tensors, name))
    documents = {
        "config.json": {"architectures": ["Tiny"], "temperature": 1.0},
        "model.safetensors.index.json": {"weight_map": index},
        "tokenizer.json": {"vocab": {f"word{number}": number for number in range(1000)}},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document, indent=2) + "\n")
    (folder / "README.md").write_text("A tiny model, for the demo.\n")
