"""Headers of files of tensors. Pure; safetensors' own library writes what is read."""

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from modelfs.store import formats
from modelfs.store.formats import Incomplete, NotKnown, tensors_of


def test_the_tensors_of_a_real_safetensors_file_are_found() -> None:
    content = save({name: np.full(size, size, np.float32) for name, size in (("a", 7), ("b", 300))})
    header_end = 8 + int.from_bytes(content[:8], "little")
    known = tensors_of("model.safetensors", content, len(content))
    assert known.starts[0] == header_end
    extents = {known.extent(offset) for offset in range(header_end, len(content))}
    assert {end - start for start, end in extents} == {28, 1200}
    assert known.extent(0) == (0, header_end)
    assert known.extent(len(content) - 1)[1] == len(content)


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf"])
def test_a_header_that_is_cut_says_how_much_more_is_needed(name: str) -> None:
    content = gguf() if name.endswith("gguf") else save({"a": np.zeros(9, np.int8)})
    head, asked = b"", 0
    while True:
        try:
            known = tensors_of(name, head, len(content))
            break
        except Incomplete as error:
            assert asked < error.size <= len(content)  # noqa: PT017
            asked = error.size
            head = content[:asked]
    assert known == tensors_of(name, content, len(content))


def gguf(alignment: int = 64) -> bytes:
    """A GGUF of version 3 with a value of each kind and three tensors of 100 bytes, aligned."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    values = [
        (8, string("llama")),
        (4, struct.pack("<I", 7)),
        (12, struct.pack("<d", 0.5)),
        (7, b"\1"),
        (9, struct.pack("<IQ", 8, 3) + string("a") + string("") + string("ccc")),
        (9, struct.pack("<IQ", 5, 2) + struct.pack("<ii", 1, 2)),
        (9, struct.pack("<IQ", 9, 1) + struct.pack("<IQ", 0, 2) + b"xy"),
    ]
    keys = b"".join(
        string(f"k{n}") + struct.pack("<I", kind) + v for n, (kind, v) in enumerate(values)
    )
    keys += string("general.alignment") + struct.pack("<II", 4, alignment)
    padded = -(-100 // alignment) * alignment
    infos = b"".join(
        string(f"t{n}") + struct.pack("<IQQIQ", 2, 10, 10, 0, n * padded) for n in range(3)
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, 3, len(values) + 1) + keys + infos
    head += bytes(-len(head) % alignment)
    return head + bytes(3 * padded)


@pytest.mark.parametrize("alignment", [32, 64, 256])
def test_the_tensors_of_a_gguf_file_are_found_at_its_alignment(alignment: int) -> None:
    content = gguf(alignment)
    known = tensors_of("model.gguf", content, len(content))
    padded = -(-100 // alignment) * alignment
    assert [len(content) - start for start in known.starts] == [3 * padded, 2 * padded, padded]
    assert all(start % alignment == 0 for start in known.starts)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("a.safetensors", b"\xff" * 100),
        ("a.safetensors", (2).to_bytes(8, "little") + b"[]"),
        ("a.safetensors", (6).to_bytes(8, "little") + b'{"a":1'),
        ("a.safetensors", (21).to_bytes(8, "little") + b'{"a":{"offsets":[0]}}'),
        ("a.gguf", b"GGML" + bytes(100)),
        ("a.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + bytes(8) + struct.pack("<I", 77)),
    ],
)
def test_what_is_no_header_is_not_known(name: str, head: bytes) -> None:
    with pytest.raises(NotKnown):
        tensors_of(name, head, 1 << 30)


def test_tensors_behind_the_end_of_the_file_are_not_believed() -> None:
    content = save({"a": np.zeros(900, np.int8), "b": np.zeros(900, np.int8)})
    with pytest.raises(NotKnown):
        tensors_of("a.safetensors", content, 200)


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail_otherwise(noise: bytes) -> None:
    for name, begin in (("a.gguf", b"GGUF\3\0\0\0"), ("a.gguf", b""), ("a.safetensors", b"")):
        try:
            tensors_of(name, begin + noise, 1 << 40)
        except Incomplete as error:
            assert error.size > len(begin + noise)  # noqa: PT017
        except NotKnown:
            pass


def test_the_shards_of_an_index_are_in_order_and_each_once() -> None:
    places = {"z": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors"}
    index = json.dumps({"metadata": {}, "weight_map": {**places, "b": places["a"]}}).encode()
    assert formats.shards_of(index) == [places["a"], places["z"]]
    for wrong in (b"{", b"[]", b"{}", b'{"weight_map": 3}'):
        with pytest.raises(NotKnown):
            formats.shards_of(wrong)


@pytest.mark.parametrize(
    ("name", "following"),
    [
        ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"),
        ("model-00003-of-00003.safetensors", None),
        ("Llama-3-8B-Q4-00001-of-00012.gguf", "Llama-3-8B-Q4-00002-of-00012.gguf"),
        ("model.safetensors", None),
    ],
)
def test_the_next_shard_is_known_by_its_number(name: str, following: str | None) -> None:
    assert formats.next_shard(name) == following
