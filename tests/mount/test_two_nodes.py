"""Versions that two nodes share: one cluster, a ceph-fuse and a daemon for each node."""

import errno
import os
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cephfs import MakeNodes
from tests.endpoints import S3Endpoint
from tests.models import checksums
from tests.mounting import Mount, check_sums, content, is_ready, put, refused, wait_until, xattr

pytestmark = [pytest.mark.mount, pytest.mark.ceph]

RecordProperty = Callable[[str, object], None]

KIB = 1024
FILES = {
    "config.json": b"{}",
    "empty": b"",
    "weights/model 1.bin": os.urandom(300 * KIB),
    "weights/deep/vocabulary": b"odd",
}
ROUNDS = 50
SEEN_WITHIN_S = 2.0  # what one node made ready the other shows
LOADED_LIMIT_S = 60.0  # where only the end counts: 50 freezes on a machine that does other things


@pytest.fixture
def nodes(ceph_nodes: MakeNodes, ceph_bucket: S3Endpoint) -> tuple[Mount, Mount]:
    """Two nodes; acme/llama/main holds FILES."""
    put(ceph_bucket, FILES)
    return ceph_nodes()


@pytest.mark.timeout(180, func_only=True)
def test_of_two_nodes_that_make_one_version_at_once_one_wins_in_fifty_rounds(
    nodes: tuple[Mount, Mount], record_property: RecordProperty
) -> None:
    barrier = threading.Barrier(2)

    def make(folder: Path) -> int:
        barrier.wait()
        try:
            folder.mkdir()
        except OSError as error:
            return error.errno or -1
        return 0

    for node in nodes:
        assert os.listdir(node.model) == ["main"]
    wins = [0, 0]
    names = [f"v{number}" for number in range(1, ROUNDS + 1)]
    with ThreadPoolExecutor(2) as pool:
        for name in names:
            results = list(pool.map(make, [node.model / name for node in nodes]))
            assert sorted(results) == [0, errno.EEXIST], name
            wins[results.index(0)] += 1
    record_property("won by each node", wins)
    for node in nodes:
        for name in names:
            wait_until(lambda n=node, v=name: is_ready(n, v), LOADED_LIMIT_S)  # type: ignore[misc]
            assert checksums(node.model / name) == checksums(node.model / "v1")
        assert content(node.model / "v1") == FILES
        assert sorted(os.listdir(node.model)) == sorted([*names, "latest", "main"])
        assert node.status()["counters"]["bugs"] == 0


def test_a_version_that_one_node_froze_is_ready_on_the_other_in_time_and_with_no_request(
    nodes: tuple[Mount, Mount], ceph_bucket: S3Endpoint, record_property: RecordProperty
) -> None:
    here, there = nodes
    seen_after_s = []
    for number in range(1, 6):
        name, files = f"v{number}", {**FILES, "config.json": b"%d" % number}
        put(ceph_bucket, {"config.json": files["config.json"]})
        assert not is_ready(there, name)  # what it knows of the model is as old as may be
        (here.model / name).mkdir()
        await_ready(here, name)
        begun = time.monotonic()
        with there.counting() as sent:
            await_ready(there, name)
            seen_after_s.append(time.monotonic() - begun)
            assert content(there.model / name) == files
            assert len(check_sums(there.model / name)) == len(FILES)
            assert xattr(there.model / name, "digest") == xattr(here.model / name, "digest")
        assert sent == {}
        wait_until(lambda n=name: os.readlink(there.model / "latest") == n)  # type: ignore[misc]
    print("seen by the other node after", *(f"{s:.2f}" for s in seen_after_s), "s")
    record_property("seen after, s", seen_after_s)
    assert max(seen_after_s) <= SEEN_WITHIN_S


def await_ready(node: Mount, name: str) -> None:
    """Ask again and again, with no pause that would count as time that the node needs."""
    end = time.monotonic() + LOADED_LIMIT_S / 2
    while not is_ready(node, name):
        assert time.monotonic() < end, node.log()
        time.sleep(0.002)


def test_a_version_is_listed_and_read_on_the_other_node_while_it_is_downloading(
    ceph_nodes: MakeNodes, ceph_bucket: S3Endpoint, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    put(ceph_bucket, FILES)
    here, there = ceph_nodes(first={"gate": gate})
    (here.model / "v1").mkdir()
    wait_until(lambda: "v1" in os.listdir(there.model))
    with refused(errno.EEXIST):
        (there.model / "v1").mkdir()
    assert content(there.model / "v1") == FILES
    assert xattr(there.model / "v1", "state") == "downloading"
    with refused(errno.EBUSY):
        (there.model / "v1").rmdir()
    gate.touch()
    wait_until(lambda: is_ready(there, "v1"))
    assert content(there.model / "v1") == FILES


def test_aliases_and_latest_that_one_node_made_the_other_follows(
    nodes: tuple[Mount, Mount], ceph_bucket: S3Endpoint
) -> None:
    here, there = nodes
    here.freeze("v1")
    put(ceph_bucket, {"config.json": b"second"})
    here.freeze("v2")
    wait_until(lambda: target_of(there, "latest") == "v2")
    (here.model / "production").symlink_to("v1")
    wait_until(lambda: target_of(there, "production") == "v1")
    assert (there.model / "production" / "config.json").read_bytes() == b"{}"
    subprocess.run(["ln", "-sfn", "v2", str(there.model / "production")], check=True)
    wait_until(lambda: target_of(here, "production") == "v2")
    assert (here.model / "production" / "config.json").read_bytes() == b"second"
    put(ceph_bucket, {"config.json": b"third"})
    there.freeze("v3")
    wait_until(lambda: target_of(here, "latest") == "v3")
    with refused(errno.EEXIST):
        (here.model / "production").symlink_to("v3")
    (here.model / "production").unlink()
    wait_until(lambda: target_of(there, "production") is None)


def target_of(node: Mount, alias: str) -> str | None:
    try:
        return os.readlink(node.model / alias)
    except FileNotFoundError:
        return None


def test_what_an_alias_of_another_node_points_at_is_not_removed(
    nodes: tuple[Mount, Mount],
) -> None:
    here, there = nodes
    here.freeze("v1")
    wait_until(lambda: is_ready(there, "v1"))
    (there.model / "production").symlink_to("v1")
    with refused(errno.EBUSY):  # at once: what this node knew a moment ago does not count
        (here.model / "v1").rmdir()
    assert content(here.model / "v1") == content(there.model / "v1") == FILES


def test_a_name_that_one_node_removed_is_used_up_on_the_other(nodes: tuple[Mount, Mount]) -> None:
    here, there = nodes
    here.freeze("v1")
    there.freeze("v2")
    wait_until(lambda: is_ready(there, "v1"))
    (here.model / "v1").rmdir()
    with refused(errno.EEXIST):
        (there.model / "v1").mkdir()
    wait_until(lambda: "v1" not in os.listdir(there.model))
    with refused(errno.EEXIST):
        (there.model / "v1").mkdir()
    assert os.readlink(there.model / "latest") == "v2"
    there.freeze("v3")
