"""Where the tensors of a model's file lie, read from its header; which shards it has. Pure.

safetensors: 8 bytes that say how long the header is, a JSON object, the tensors. GGUF: keys
and values, a table of tensors, the tensors
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import json
import re
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

HEADER_MAX_BYTES = 128 << 20  # safetensors allows 100 MB
SUFFIXES = (".safetensors", ".gguf")
INDEX_SUFFIX = ".safetensors.index.json"
CONFIG_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".yaml", ".yml", ".py", ".pbtxt")

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.\w+)")
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_GGUF_ALIGNMENT = 32
_GGUF_INTEGERS = {4: "<I", 10: "<Q"}


class NotKnown(Exception):
    """The bytes are not what the file's name says."""


class Incomplete(Exception):
    """The header goes on after these bytes; `size` is how many there must be at least."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


@dataclass(frozen=True, slots=True)
class Tensors:
    """Where tensors begin in a file, in order; the first begins where the header ends."""

    starts: Sequence[int]
    file_size: int

    def extent(self, offset: int) -> tuple[int, int]:
        """Return start and end of what `offset` lies in: a tensor, or the header."""
        after = bisect_right(self.starts, offset)
        start = self.starts[after - 1] if after else 0
        return start, self.starts[after] if after < len(self.starts) else self.file_size


def has_tensors(name: str) -> bool:
    """Tell whether a file of this name should have a header that is understood here."""
    return name.endswith(SUFFIXES)


def tensors_of(name: str, head: bytes, file_size: int) -> Tensors:
    """Return where the tensors lie, from a file's first bytes; raises NotKnown, Incomplete."""
    find = _gguf_starts if name.endswith(".gguf") else _safetensors_starts
    starts = sorted(set(find(head)))
    if not starts or starts[-1] > file_size:
        raise NotKnown(f"{name} says of no tensors where they are")
    return Tensors(starts, file_size)


def shards_of(index: bytes) -> list[str]:
    """Return the shards that a `model.safetensors.index.json` names, in order."""
    try:
        places = json.loads(index)["weight_map"]
        return sorted({name for name in places.values() if isinstance(name, str)})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotKnown(f"no index of shards: {error!r}") from error


def next_shard(name: str) -> str | None:
    """Return the name of the shard after `model-00002-of-00005.safetensors`, None at the end."""
    match = _SHARD.fullmatch(name)
    if match is None or int(match["number"]) >= int(match["count"]):
        return None
    following = int(match["number"]) + 1
    return f"{match['stem']}-{following:05d}-of-{match['count']}{match['suffix']}"


def _safetensors_starts(head: bytes) -> list[int]:
    if len(head) < 8:
        raise Incomplete(8)
    size = 8 + int.from_bytes(head[:8], "little")
    if size > HEADER_MAX_BYTES:
        raise NotKnown("no header of safetensors")
    if len(head) < size:
        raise Incomplete(size)
    try:
        entries = json.loads(head[8:size])
        return [
            size,
            *(size + entry["data_offsets"][0] for n, entry in entries.items() if n[:2] != "__"),
        ]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise NotKnown(f"no header of safetensors: {error!r}") from error


def _gguf_starts(head: bytes) -> list[int]:
    reader = _Gguf(head)
    if reader.take(4) != b"GGUF" or not 2 <= reader.number("<I") <= 3:
        raise NotKnown("no GGUF of version 2 or 3")
    tensor_count, key_count = reader.number("<Q"), reader.number("<Q")
    alignment = _GGUF_ALIGNMENT
    for _ in range(key_count):
        key, kind = reader.string(), reader.number("<I")
        if key == b"general.alignment" and kind in _GGUF_INTEGERS:
            alignment = reader.number(_GGUF_INTEGERS[kind]) or _GGUF_ALIGNMENT
        else:
            reader.skip_value(kind)
    offsets = []
    for _ in range(tensor_count):
        reader.string()
        reader.take(8 * reader.number("<I") + 4)  # dimensions, type
        offsets.append(reader.number("<Q"))
    data = -(-reader.at // alignment) * alignment
    return [data, *(data + offset for offset in offsets)]


class _Gguf:
    """Reads values one after the other; raises Incomplete where the bytes end."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self.at = 0

    def take(self, size: int) -> bytes:
        if self.at + size > HEADER_MAX_BYTES:
            raise NotKnown("no header of GGUF")
        if self.at + size > len(self._head):
            raise Incomplete(self.at + size)
        self.at += size
        return self._head[self.at - size : self.at]

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def string(self) -> bytes:
        return self.take(self.number("<Q"))

    def skip_value(self, kind: int) -> None:
        if kind == _GGUF_STRING:
            self.string()
        elif kind == _GGUF_ARRAY:
            element, count = self.number("<I"), self.number("<Q")
            if element in _GGUF_SIZES:
                self.take(count * _GGUF_SIZES[element])
            else:
                for _ in range(count):
                    self.skip_value(element)
        elif kind in _GGUF_SIZES:
            self.take(_GGUF_SIZES[kind])
        else:
            raise NotKnown(f"no GGUF: a value of type {kind}")
