"""What other clients do to the bucket is seen in time, and never mixed with what was."""

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attempts import READ, attempt
from tests.endpoints import S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mounting import METADATA_TTL_S, Mount, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.ceph]

MIB = 1 << 20
MARGIN_S = 1.0
SIZE = 6 * MIB
BLOCK = 64 << 10
ROUNDS = 4

# Reads half of a mapped file, says so, waits for a line, reads the rest; prints block -> hash.
MAPPED_READER = """
import hashlib, json, mmap, os, random, sys
path, seed, block = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, "rb") as file:
    data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
order = list(range(0, len(data), block))
random.Random(seed).shuffle(order)
found = {}
def read(offsets):
    for at in offsets:
        found[at] = hashlib.sha256(data[at:at + block]).hexdigest()
read(order[:len(order) // 2])
print("half", flush=True)
sys.stdin.readline()
read(order[len(order) // 2:])
print(json.dumps(found), flush=True)
"""


@pytest.fixture
def mount(ceph_bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    ceph_bucket.put("models/acme/llama/", b"")
    ceph_bucket.put("models/acme/llama/other", b"other")
    mount = make_mount(ceph_bucket, part_size=MIB)
    os.listdir(mount.main)
    return mount


def wait_for_change(condition: Callable[[], bool]) -> None:
    """Wait no longer than a change may take to be seen."""
    wait_until(condition, METADATA_TTL_S + MARGIN_S)


def test_what_others_put_is_seen_in_time(mount: Mount) -> None:
    for number in range(3):
        path = mount.main / "folder" / f"new-{number}"
        assert not path.exists()
        mount.bucket.put(mount.key(f"folder/new-{number}"), b"theirs")
        wait_for_change(path.exists)
        assert path.read_bytes() == b"theirs"


def test_what_others_delete_vanishes_in_time(mount: Mount) -> None:
    path = mount.main / "other"
    assert path.read_bytes() == b"other"
    mount.bucket.client.delete_object(Bucket=mount.bucket.bucket, Key=mount.key("other"))
    wait_for_change(lambda: not path.exists())
    wait_for_change(lambda: os.listdir(mount.main) == [])


@pytest.mark.parametrize("data", [b"OTHER", b"longer than before", b""])
def test_what_others_replace_is_read_anew_in_time(mount: Mount, data: bytes) -> None:
    path = mount.main / "other"
    assert path.read_bytes() == b"other"
    mount.bucket.put(mount.key("other"), data)
    wait_for_change(lambda: path.read_bytes() == data)
    assert path.stat().st_size == len(data)


def test_a_version_that_others_would_change_does_not_change(mount: Mount) -> None:
    version = mount.freeze("v1")
    mount.bucket.put(mount.key("other"), b"changed")
    wait_for_change(lambda: is_all_of(mount.main / "other", b"changed"))
    assert (version / "other").read_bytes() == b"other"


# ------------------------------------------------------- under an open file


class State:
    """One state of the object, as it was put."""

    def __init__(self, size: int) -> None:
        self.data = os.urandom(size)

    def block(self, offset: int, size: int = BLOCK) -> bytes:
        return self.data[offset : offset + size]


def read_or_stale(fd: int, offset: int) -> bytes | None:
    """Return a block, None where it is stale."""
    try:
        return os.pread(fd, BLOCK, offset)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        return None


def shuffled_offsets(size: int) -> list[int]:
    offsets = list(range(0, size, BLOCK))
    random.shuffle(offsets)
    return offsets


def read_new(path: Path, state: State) -> None:
    """Wait until a fresh open shows a state, and see that it does so wholly."""
    wait_for_change(lambda: path.stat().st_size == len(state.data) and is_all_of(path, state.data))


def is_all_of(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError as error:
        if error.errno != errno.ESTALE:  # the listing is of before the change
            raise
        return False


@pytest.mark.parametrize("round_number", range(ROUNDS))
def test_a_reader_never_gets_bytes_of_two_states(mount: Mount, round_number: int) -> None:
    random.seed(round_number)
    path = mount.main / "big"
    old = State(SIZE)
    new = State(random.choice([SIZE, SIZE, SIZE // 2 + 7, SIZE * 2 + 7]))
    mount.bucket.put(mount.key("big"), old.data)
    wait_until(path.exists)
    offsets = shuffled_offsets(SIZE)
    half = random.randrange(1, len(offsets))
    with path.open("rb", buffering=0) as file:
        for offset in offsets[:half]:
            assert os.pread(file.fileno(), BLOCK, offset) == old.block(offset)
        mount.bucket.put(mount.key("big"), new.data)
        if round_number % 2:
            wait_for_change(lambda: path.stat().st_size == len(new.data))
        for offset in offsets[half:]:
            assert read_or_stale(file.fileno(), offset) in (None, old.block(offset))
        read_new(path, new)
        for offset in offsets:
            assert read_or_stale(file.fileno(), offset) in (None, old.block(offset))
    assert path.read_bytes() == new.data


@pytest.mark.parametrize("length_change", [0, -MIB, MIB + 1])
def test_two_handles_of_two_states_each_keep_their_own(mount: Mount, length_change: int) -> None:
    path = mount.main / "big"
    old, new = State(SIZE), State(SIZE + length_change)
    mount.bucket.put(mount.key("big"), old.data)
    wait_until(path.exists)
    with path.open("rb", buffering=0) as first:
        assert os.pread(first.fileno(), BLOCK, 2 * MIB) == old.block(2 * MIB)
        mount.bucket.put(mount.key("big"), new.data)
        read_new(path, new)
        with path.open("rb", buffering=0) as second:
            assert os.fstat(second.fileno()).st_size == len(new.data)
            assert os.fstat(first.fileno()).st_size == SIZE
            for offset in shuffled_offsets(min(SIZE, len(new.data))):
                assert read_or_stale(first.fileno(), offset) in (None, old.block(offset))
                assert os.pread(second.fileno(), BLOCK, offset) == new.block(offset)
    assert path.read_bytes() == new.data


@pytest.mark.parametrize("seed", range(3))
def test_a_mapped_file_never_shows_bytes_of_two_states(mount: Mount, seed: int) -> None:
    path = mount.main / "big"
    old, new = State(SIZE), State(random.choice([SIZE, SIZE // 2, SIZE + MIB]))
    mount.bucket.put(mount.key("big"), old.data)
    wait_until(path.exists)
    reader = subprocess.Popen(
        [sys.executable, "-c", MAPPED_READER, str(path), str(seed), str(BLOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"half\n"
    mount.bucket.put(mount.key("big"), new.data)
    read_new(path, new)
    out, _ = reader.communicate(b"go\n", timeout=30)
    if reader.returncode != -signal.SIGBUS:  # what of the old state is neither here nor there
        assert reader.returncode == 0
        for offset, found in json.loads(out).items():
            assert found == hash_of(old.block(int(offset)))
    assert path.read_bytes() == new.data


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.timeout(120, func_only=True)
def test_a_reader_of_a_file_that_changes_all_the_time_gets_whole_states_only(
    mount: Mount,
) -> None:
    path = mount.main / "busy"
    seen = set()
    states = [State(random.choice([SIZE // 2, SIZE // 2, SIZE // 3])) for _ in range(12)]
    hashes = {hash_of(state.data) for state in states}
    mount.bucket.put(mount.key("busy"), states[0].data)
    wait_until(path.exists)
    for state in states[1:]:
        mount.bucket.put(mount.key("busy"), state.data)
        end = time.monotonic() + random.uniform(0.1, METADATA_TTL_S + 0.2)
        while time.monotonic() < end:
            outcome = attempt(READ, path)
            assert outcome.errno in (0, errno.ESTALE)
            if outcome.errno == 0:
                assert outcome.answer in hashes
                seen.add(outcome.answer)
    assert len(seen) > 1
    read_new(path, states[-1])
