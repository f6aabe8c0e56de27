"""huggingface_hub on main/: it locks, appends, renames, and copies for want of links."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_hub import COMMIT, REPOSITORY, FakeHub, fake_hub
from tests.mount.twins import Twins, check_bucket

pytestmark = [pytest.mark.mount, pytest.mark.ceph]

LARGE = "model.safetensors"
FILES = {
    "config.json": b'{"layers": 2}',
    "README.md": b"a model\n" * 100,
    "tokenizer/vocab.txt": "\n".join(map(str, range(5000))).encode(),
    "tokenizer/empty": b"",
    LARGE: b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(300_000)),
}

# Prints where the snapshot is, below HF_HOME, and the SHA-256 of each of its files.
SNAPSHOT = """
import hashlib, json, os, sys
from pathlib import Path
from huggingface_hub import scan_cache_dir, snapshot_download
repository, how, into = (*sys.argv[1:], None, None)[:3]
folder = Path(snapshot_download(repository, local_files_only=how == "offline", local_dir=into))
sums = {
    str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts
}
repositories = [] if into else [found.repo_id for found in scan_cache_dir().repos]
print(json.dumps([os.path.relpath(folder, os.environ["HF_HOME"]), sums, repositories]))
"""


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")


def begin(folder: Path, endpoint: str, *options: str) -> subprocess.Popen[str]:
    """Begin to bring the repository into a cache in a folder."""
    return subprocess.Popen(
        [sys.executable, "-c", SNAPSHOT, REPOSITORY, *options],
        env={
            **os.environ,
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> object:
    said, complained = process.communicate(timeout=50)
    assert process.returncode == 0, complained
    return json.loads(said)


def fetched(hub: FakeHub) -> int:
    return sum(hub.bodies.values())


def test_a_snapshot_comes_into_a_cache_in_main_and_is_found_there_offline(
    ceph_twins: Twins,
) -> None:
    expected = [
        f"hub/models--acme--tiny/snapshots/{COMMIT}",
        {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()},
        [REPOSITORY],
    ]
    for folder in ceph_twins.folders:
        with fake_hub(FILES, broken=(LARGE,)) as hub:
            assert end(begin(folder, hub.endpoint)) == expected
            assert hub.bodies[LARGE] == 2  # the second time for the rest alone
            came = fetched(hub)
            assert end(begin(folder, hub.endpoint)) == expected
            assert fetched(hub) == came
        assert end(begin(folder, "http://127.0.0.1:9", "offline")) == expected
    check_bucket(ceph_twins.mount)
    objects = ceph_twins.mount.objects()
    assert not [name for name in objects if name.endswith(".incomplete")]
    assert objects[f"hf/{expected[0]}/{LARGE}"] == FILES[LARGE]


def test_two_downloads_into_one_cache_in_main_wait_for_each_other(ceph_twins: Twins) -> None:
    folder = ceph_twins.mount.main
    with fake_hub(FILES) as hub:
        both = [begin(folder, hub.endpoint) for _ in range(2)]
        first, second = (end(process) for process in both)
    assert first == second
    check_bucket(ceph_twins.mount)


def test_a_snapshot_comes_into_a_folder_of_main_as_on_a_disk(ceph_twins: Twins) -> None:
    """What `hf download --local-dir` does: temporary files in .cache, then renames."""
    with fake_hub(FILES, broken=(LARGE,)) as hub:
        on_disk, on_mount = (
            end(begin(folder, hub.endpoint, "into", str(folder / "model")))
            for folder in ceph_twins.folders
        )
    assert on_mount == on_disk
    for name, data in FILES.items():
        assert ceph_twins.mount.objects()[f"model/{name}"] == data
    check_bucket(ceph_twins.mount)
