"""What is read: models in buckets that are filled once, and stay as long as their cluster.

Each bucket holds one model, acme/llama, so that no contender meets the keys of another. Every
MiB of a large file begins with its number, and the rest of it is the same everywhere: readers
can check cheaply that each byte is at its place.
"""

import os
import random
import tempfile
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from botocore.exceptions import ClientError

from benchmarks.common import MIB, Bench
from tests.endpoints import S3Endpoint, write_credentials

PREFIX = "models/acme/llama/"
WEIGHTS = "weights.bin"
TENSORS = "model.safetensors"
BIG_BYTES = 1 << 30
TENSOR_COUNT, TENSOR_BYTES = 64, 16 * MIB
SMALL_COUNT, SMALL_BYTES = 1_000, 4 << 10
MANY_COUNT, HUGE_COUNT, FOLDER_COUNT = 10_000, 100_000, 1_000
EIGHT, TWENTY = 8, 20
TWENTY_BYTES = 64 * MIB
# Twelve files of a model, as they come: shards of a size, a rest, and small ones.
TWELVE_MIB = (200, 180, 160, 140, 120, 90, 60, 40, 20, 8, 5, 1)
PUT_THREADS = 32

_PATTERN_SEED = 20261122


def pattern() -> bytes:
    """Return the MiB of which all data is made; readers make it again."""
    return random.Random(_PATTERN_SEED).randbytes(MIB)


def bucket(bench: Bench, name: str, fill: Callable[[S3Endpoint], None]) -> S3Endpoint:
    """Return the bucket of one kind of data, filled if nobody has done it before."""
    server = bench.ceph
    file = bench.folder / "bench.credentials"
    write_credentials(file, server.access_key, server.secret_key)
    full = f"modelfs-bench-{name}"
    endpoint = S3Endpoint(
        *(server, server.endpoint, server.access_key, server.secret_key, full, file),
        server.client,
    )
    if not _is_filled(endpoint):
        print(f"(filling {full})", flush=True)
        server.client.create_bucket(Bucket=full)
        fill(endpoint)
        endpoint.put("filled", uuid.uuid4().bytes)  # outside of the models: nobody sees it
    return endpoint


def _is_filled(endpoint: S3Endpoint) -> bool:
    try:
        endpoint.client.head_object(Bucket=endpoint.bucket, Key="filled")
    except ClientError:
        return False
    return True


def big(bench: Bench) -> S3Endpoint:
    """One file of 1 GiB."""
    return bucket(bench, "big", lambda to: _upload_numbered(to, WEIGHTS, BIG_BYTES))


def tensors(bench: Bench) -> S3Endpoint:
    """One safetensors file: 64 tensors of 16 MiB, each of them begins with its number."""
    return bucket(bench, "tensors", _upload_tensors)


def small(bench: Bench) -> S3Endpoint:
    """1,000 files of 4 KiB in one folder; each begins with its number."""
    rest = pattern()[8:SMALL_BYTES]

    def put(to: S3Endpoint) -> None:
        _put_all(to, ((name, n.to_bytes(8) + rest) for n, name in enumerate(small_names())))

    return bucket(bench, "small", put)


def small_names() -> list[str]:
    return [f"part-{number:04d}.bin" for number in range(SMALL_COUNT)]


def many(bench: Bench) -> S3Endpoint:
    """10,000 tiny files in folders of 1,000."""
    return bucket(bench, "many", lambda to: _put_all(to, _tiny(MANY_COUNT)))


def huge(bench: Bench) -> S3Endpoint:
    """100,000 tiny files in folders of 1,000."""
    return bucket(bench, "huge", lambda to: _put_all(to, _tiny(HUGE_COUNT)))


def eight(bench: Bench) -> S3Endpoint:
    """Eight files of 1 GiB: copies on the server of one."""

    def fill(to: S3Endpoint) -> None:
        names = eight_names()
        _upload_numbered(to, names[0], BIG_BYTES)
        source = {"Bucket": to.bucket, "Key": PREFIX + names[0]}
        for name in names[1:]:
            to.client.copy_object(Bucket=to.bucket, Key=PREFIX + name, CopySource=source)

    return bucket(bench, "eight", fill)


def eight_names() -> list[str]:
    return [f"weights-{number}.bin" for number in range(EIGHT)]


def twenty(bench: Bench) -> S3Endpoint:
    """Twenty files of 64 MiB."""

    def fill(to: S3Endpoint) -> None:
        for name in twenty_names():
            _upload_numbered(to, name, TWENTY_BYTES)

    return bucket(bench, "twenty", fill)


def twenty_names() -> list[str]:
    return [f"weights-{number:02d}.bin" for number in range(TWENTY)]


def twelve(bench: Bench) -> S3Endpoint:
    """1 GiB in twelve files of unequal sizes."""

    def fill(to: S3Endpoint) -> None:
        for name, size in twelve_sizes().items():
            _upload_numbered(to, name, size)

    return bucket(bench, "twelve", fill)


def twelve_sizes() -> dict[str, int]:
    return {f"shard-{n:02d}.bin": mib * MIB for n, mib in enumerate(TWELVE_MIB)}


# ----------------------------------------------------------------------- uploads


def _tiny(count: int) -> Iterable[tuple[str, bytes]]:
    for number in range(count):
        folder, name = divmod(number, FOLDER_COUNT)
        yield f"folder-{folder:03d}/file-{name:03d}.bin", b"x"


def _put_all(to: S3Endpoint, files: Iterable[tuple[str, bytes]]) -> None:
    with ThreadPoolExecutor(PUT_THREADS) as threads:
        for _ in threads.map(lambda file: to.put(PREFIX + file[0], file[1]), files):
            pass


def _upload_numbered(to: S3Endpoint, name: str, size: int) -> None:
    rest = pattern()[8:]
    with tempfile.TemporaryFile() as file:
        for number in range(size // MIB):
            file.write(number.to_bytes(8) + rest)
        file.seek(0)
        to.client.upload_fileobj(file, to.bucket, PREFIX + name)


def _upload_tensors(to: S3Endpoint) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    ones = np.frombuffer(pattern() * (TENSOR_BYTES // MIB), np.uint8).view(np.int32)
    made = {}
    for number in range(TENSOR_COUNT):
        made[f"layer.{number:02d}.weight"] = tensor = ones.copy()
        tensor[0] = number
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, TENSORS)
        save_file(made, path)
        assert os.path.getsize(path) > TENSOR_COUNT * TENSOR_BYTES
        to.client.upload_file(str(path), to.bucket, PREFIX + TENSORS)
