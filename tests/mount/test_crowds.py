"""Many processes write, rename and remove files at once: the bucket equals the tree."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mounting import SCALE, content, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.ceph]

PROCESSES = 20
FILES = 25  # each; MODELFS_TEST_SCALE=20 makes them 500
MEMORY_MAX_MIB = 300

# Each process has its own names in folders that all share, and knows what must be left.
WORKER = """
import hashlib, json, os, random, sys
main, own, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng, left = random.Random(own), {}
for number in range(count):
    path = f"folder-{rng.randrange(5)}/{own:02d}-{number:03d}.bin"
    data = rng.randbytes(rng.randrange(20_000))
    with open(f"{main}/{path}", "wb") as file:
        file.write(data)
    left[path] = hashlib.sha256(data).hexdigest()
    if rng.random() < 0.3:
        old = rng.choice(list(left))
        new = f"folder-{rng.randrange(5)}/{own:02d}-{number:03d}.moved"
        os.rename(f"{main}/{old}", f"{main}/{new}")
        left[new] = left.pop(old)
    if rng.random() < 0.3:
        old = rng.choice(list(left))
        os.unlink(f"{main}/{old}")
        del left[old]
print(json.dumps(left))
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def most_memory_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


@pytest.mark.timeout(120 + 60 * SCALE, func_only=True)
def test_what_twenty_processes_left_is_in_the_tree_and_in_the_bucket(
    ceph_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(ceph_bucket, timeout=30)  # twenty wait for one gateway
    mount.model.mkdir(parents=True)
    for number in range(5):
        (mount.main / f"folder-{number}").mkdir()
    words = [sys.executable, "-c", WORKER, str(mount.main)]
    workers = [
        subprocess.Popen([*words, str(own), str(FILES * SCALE)], stdout=subprocess.PIPE)
        for own in range(PROCESSES)
    ]
    left: dict[str, str] = {}
    for worker in workers:
        out, _ = worker.communicate(timeout=100 + 60 * SCALE)
        assert worker.returncode == 0, mount.log()[-2000:]
        left |= json.loads(out)
    shown = {path: sha256(data) for path, data in content(mount.main).items()}
    assert shown == left
    objects = {
        path: sha256(data) for path, data in mount.objects().items() if path[-1:] not in ("", "/")
    }
    assert objects == left
    assert len(left) > PROCESSES * FILES * SCALE // 3
    assert mount.status()["counters"]["conflicts"] == 0
    wait_until(lambda: not list(mount.store.glob("staged/*/*")))
    assert most_memory_mib(mount.pid) < MEMORY_MAX_MIB
    assert os.path.ismount(mount.path)
