"""Reading model files on a real mount: right bytes, each fetched once, however they are read."""

import hashlib
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from urllib.parse import urlsplit

import numpy as np
import pytest
from safetensors.numpy import save

from tests.attempts import READ, Attempt, attempt
from tests.endpoints import S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy, is_data
from tests.mount.conftest import MakeMount
from tests.mounting import disk_bytes, put, wait_until, watched_disk, xattr

pytestmark = pytest.mark.mount

MIB = 1 << 20
SMALL_FILES = 1_000


@pytest.fixture
def proxy(moto_bucket: S3Endpoint) -> Iterator[FaultyProxy]:
    """What tells which ranges were asked for."""
    with FaultyProxy(moto_bucket.endpoint) as proxy:
        yield proxy


def asked(proxy: FaultyProxy, name: str) -> list[tuple[int, int]]:
    """Return first and last byte of every range of a file that was asked for, in order."""
    found = []
    for head in proxy.heads:
        path = urlsplit(head.split(b" ", 2)[1]).path.decode()
        if is_data(head) and path.endswith(f"/{name}"):
            (line,) = (x for x in head.lower().split(b"\r\n") if x.startswith(b"range:"))
            first, last = line.rpartition(b"=")[2].split(b"-")
            found.append((int(first), int(last)))
    return found


def bytes_asked(proxy: FaultyProxy, name: str) -> int:
    """Return how many bytes were asked for in all; fails where any was asked for twice."""
    ranges = sorted(asked(proxy, name))
    for (_, last), (following, _) in pairwise(ranges):
        assert last < following, ranges
    return sum(last + 1 - first for first, last in ranges)


def tensors(count: int, size: int) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(count)
    return {f"t{n:03d}": noise.integers(0, 255, size, np.uint8) for n in range(count)}


# ------------------------------------------------------------------ small files


@pytest.mark.timeout(180)
def test_a_thousand_small_files_read_in_order_are_a_thousand_gets(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    files = {f"f{n:04d}.npy": random.Random(n).randbytes(4096) for n in range(SMALL_FILES)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: put(moto_bucket, dict([item])), files.items()))
    mount = make_mount(moto_bucket, metadata_ttl=60)
    with mount.counting() as sent:
        for name, data in files.items():
            assert (mount.main / name).read_bytes() == data
    assert sent["GetObject"] == SMALL_FILES
    said = mount.status()["read_ahead"]
    assert said["small_files"] == SMALL_FILES - 1


@pytest.mark.parametrize(
    ("settings", "others"),
    [({}, 2), ({"read_ahead_formats": False}, 0), ({"read_ahead": "0B"}, 0)],
    ids=["as it comes", "no formats", "no read-ahead"],
)
def test_a_configuration_brings_what_lies_beside_it_unless_that_is_switched_off(
    moto_bucket: S3Endpoint, make_mount: MakeMount, settings: dict[str, object], others: int
) -> None:
    put(moto_bucket, dict.fromkeys(("config.json", "tokenizer.json", "vocab.json"), b"{}"))
    mount = make_mount(moto_bucket, metadata_ttl=60, **settings)
    beside = [mount.main / name for name in ("tokenizer.json", "vocab.json")]
    with mount.counting() as sent:
        (mount.main / "config.json").read_bytes()
        wait_until(lambda: mount.status()["read_ahead"]["small_files"] == others)
        here = "2/2" if others else "0/2"
        wait_until(lambda: all(xattr(path, "cached") == here for path in beside))
    assert sent["GetObject"] == 1 + others


def test_what_was_just_written_beside_a_configuration_is_not_fetched(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    put(moto_bucket, dict.fromkeys(("config.json", "vocab.json"), b"{}"))
    mount = make_mount(moto_bucket, metadata_ttl=60)
    with (mount.main / "tokenizer.json").open("wb", buffering=0) as file:
        file.write(b"{}")
        os.close(os.dup(file.fileno()))  # the registry has it, and it is not in the cache yet
        with mount.counting() as sent:
            (mount.main / "config.json").read_bytes()
            wait_until(lambda: xattr(mount.main / "vocab.json", "cached") == "2/2")
            wait_until(lambda: mount.status()["read_ahead"]["small_files"] == 1)
    assert sent["GetObject"] == 2


# ---------------------------------------------------------------------- tensors


LOAD = """
import json, random, sys
from safetensors import safe_open
with safe_open(sys.argv[1], framework="numpy") as opened:
    names = list(opened.keys())
    if sys.argv[2] == "shuffled":
        random.Random(7).shuffle(names)
    import hashlib
    print(json.dumps({n: hashlib.md5(opened.get_tensor(n).tobytes()).hexdigest() for n in names}))
"""


@pytest.mark.parametrize("order", ["file order", "shuffled"])
def test_safetensors_loads_the_right_tensors_and_no_byte_is_fetched_twice(
    moto_bucket: S3Endpoint, make_mount: MakeMount, proxy: FaultyProxy, order: str
) -> None:
    made = tensors(24, MIB + 1000)
    content = save(made)
    put(moto_bucket, {"w.safetensors": content})
    mount = make_mount(moto_bucket, endpoint=proxy.endpoint, part_size=MIB, timeout=30)
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, str(mount.main / "w.safetensors"), order],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    wanted = {name: hashlib.md5(tensor.tobytes()).hexdigest() for name, tensor in made.items()}
    assert json.loads(loaded.stdout) == wanted
    wait_until(
        lambda: xattr(mount.main / "w.safetensors", "cached") == f"{len(content)}/{len(content)}"
    )
    assert bytes_asked(proxy, "w.safetensors") == len(content)
    # In file order the window of a reader that reads on may be faster than what knows of tensors.
    counter = "parts_ahead" if order == "file order" else "tensor_parts"
    assert mount.status()["read_ahead"][counter] > 0


def test_the_header_of_a_file_of_tensors_is_read_without_the_tensors(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    content = save(tensors(32, MIB))
    put(moto_bucket, {"w.safetensors": content})
    mount = make_mount(moto_bucket, part_size=MIB)
    code = "answer = os.pread(os.open(paths[0], os.O_RDONLY), 100, 0).hex()"
    assert attempt(code, mount.main / "w.safetensors").answer == content[:100].hex()
    said = mount.status()["read_ahead"]
    assert (said["tensor_parts"], said["parts_ahead"] <= 2) == (0, True)


# --------------------------------------------------------------- ways of reading


DIRECT = """
import mmap
fd = os.open(paths[0], os.O_RDONLY | os.O_DIRECT)
buffer, sha = mmap.mmap(-1, 1 << 20), hashlib.sha256()
while count := os.readv(fd, [buffer]):
    sha.update(buffer[:count])
answer = sha.hexdigest()
"""

MAPPED = """
import mmap, random
with open(paths[0], 'rb') as file:
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
pages = list(range(0, len(mapped), 65536))
random.Random(3).shuffle(pages)
found = {at: mapped[at : at + 65536] for at in pages}
answer = hashlib.sha256(b''.join(found[at] for at in sorted(found))).hexdigest()
"""

THREADS = """
from concurrent.futures import ThreadPoolExecutor
fd = os.open(paths[0], os.O_RDONLY)
size = os.fstat(fd).st_size
def read(number):
    start, end = size * number // 16, size * (number + 1) // 16
    found = []
    while start < end:
        found.append(os.pread(fd, min(300_000, end - start), start))
        start += len(found[-1])
    return b''.join(found)
with ThreadPoolExecutor(16) as pool:
    answer = hashlib.sha256(b''.join(pool.map(read, range(16)))).hexdigest()
"""


@pytest.mark.parametrize(
    "way", [READ, DIRECT, MAPPED, THREADS], ids=["read", "O_DIRECT", "mmap", "16 threads"]
)
def test_a_cold_file_has_its_bytes_whichever_way_it_is_read_and_each_is_fetched_once(
    moto_bucket: S3Endpoint, make_mount: MakeMount, proxy: FaultyProxy, way: str
) -> None:
    content = os.urandom(24 * MIB + 12345)
    put(moto_bucket, {"weights.bin": content})
    mount = make_mount(moto_bucket, endpoint=proxy.endpoint, part_size=MIB, timeout=30)
    for _ in range(2):
        found = attempt(way, mount.main / "weights.bin")
        assert (found.errno, found.answer) == (0, hashlib.sha256(content).hexdigest())
    assert bytes_asked(proxy, "weights.bin") == len(content)


def test_two_readers_of_one_cold_file_are_one_download(
    moto_bucket: S3Endpoint, make_mount: MakeMount, proxy: FaultyProxy
) -> None:
    content = os.urandom(16 * MIB)
    put(moto_bucket, {"weights.bin": content})
    mount = make_mount(moto_bucket, endpoint=proxy.endpoint, part_size=MIB, timeout=30)
    readers = [Attempt(way, mount.main / "weights.bin") for way in (READ, DIRECT)]
    for reader in readers:
        assert reader.outcome().answer == hashlib.sha256(content).hexdigest()
    assert bytes_asked(proxy, "weights.bin") == len(content)


def test_a_request_that_breaks_off_on_its_way_is_gone_on_with(
    moto_bucket: S3Endpoint, make_mount: MakeMount, proxy: FaultyProxy
) -> None:
    content = os.urandom(8 * MIB)
    put(moto_bucket, {"weights.bin": content})
    mount = make_mount(moto_bucket, endpoint=proxy.endpoint, part_size=4 * MIB, read_ahead="0B")
    broken: list[bytes] = []

    def first_of_each(head: bytes) -> bool:
        if not is_data(head) or len(broken) == 2:
            return False
        broken.append(head)
        return True

    with proxy.faulty(Fault.SHORT, first_of_each):
        assert (mount.main / "weights.bin").read_bytes() == content
    ranges = asked(proxy, "weights.bin")
    assert len(broken) == 2
    ends = Counter(last for _, last in ranges)
    assert ends == {4 * MIB - 1: ends[4 * MIB - 1], 8 * MIB - 1: ends[8 * MIB - 1]}
    assert sum(ends.values()) == 4
    fetched = sum(last + 1 - first for first, last in ranges)
    assert fetched < 2 * len(content)  # the rest alone was asked for again


# ------------------------------------------------------------------ a small cache


@pytest.mark.timeout(180)
def test_a_cache_much_smaller_than_the_file_gives_20_readers_its_bytes_and_keeps_its_size(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    content, parallel, most = os.urandom(64 * MIB), 4, 4 * MIB
    put(moto_bucket, {"weights.bin": content})
    mount = make_mount(
        moto_bucket,
        part_size=MIB,
        parallel_requests=parallel,
        timeout=30,
        cache={"max_size": "4MiB"},
    )
    path, digest = mount.main / "weights.bin", hashlib.sha256(content).hexdigest()
    with watched_disk(mount.store / "cache") as sizes:
        assert attempt(READ, path, limit_s=60).answer == digest
        mount.run("evict", str(path))
        readers = [Attempt(RANDOM_READS, path) for _ in range(20)]
        for reader in readers:
            found = reader.outcome(90).answer
            assert isinstance(found, list)
            for at, size, md5 in found:
                assert hashlib.md5(content[at : at + size]).hexdigest() == md5
    in_flight = parallel * 4 * MIB
    assert max(sizes) <= most + in_flight
    # A file with holes takes a few blocks of the disk for where its parts lie.
    wait_until(lambda: disk_bytes(mount.store / "cache") <= most + 64 * 1024)
    assert mount.status()["cache"]["bytes"] <= most


RANDOM_READS = """
import random
chance, answer = random.Random(os.getpid()), []
fd = os.open(paths[0], os.O_RDONLY)
for _ in range(12):
    at, size = chance.randrange(64 << 20), chance.randrange(1, 400_000)
    found = os.pread(fd, size, at)
    answer.append((at, len(found), hashlib.md5(found).hexdigest()))
"""
