"""OSD, MDS and gateway of a Ceph cluster killed, or paused, during a freeze and reads.

Nothing is lost, nothing is stuck for good, and what waits says why.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.attempts import READ, Attempt, attempt
from tests.cephfs import MakeNodes
from tests.endpoints import CephServer, S3Endpoint
from tests.models import sha256_of
from tests.mounting import Mount, content, put, wait_until, xattr

pytestmark = [pytest.mark.mount, pytest.mark.ceph, pytest.mark.timeout(240, func_only=True)]

MIB = 1 << 20
BACK_S = 90.0  # a CephFS client may take a minute until it trusts a new MDS

# Reads a file again and again; says each time whether the bytes were right.
READ_ON = """
answer = []
while not paths[1].exists():
    try:
        found = hashlib.sha256(paths[0].read_bytes()).hexdigest()
    except OSError as error:
        found = error.errno
    if found not in answer:
        answer.append(found)
    time.sleep(0.05)
"""


@contextmanager
def away(ceph: CephServer, daemon: str, verb: str) -> Iterator[None]:
    """Have a daemon of Ceph killed or paused inside the block."""
    ceph.run(f"{verb}-{daemon}")
    try:
        yield
    finally:
        ceph.run(f"{'start' if verb == 'kill' else 'resume'}-{daemon}")


def waits_and_says_why(node: Mount) -> bool:
    """Tell whether status.json, which asks nobody, says that the freeze waits, and for what."""
    outcome = attempt("answer = paths[0].read_text()", node.path / ".modelfs" / "status.json")
    assert outcome.errno == 0
    freezes = json.loads(str(outcome.answer))["freezes"]
    return any("does not answer" in (freeze["error"] or "") for freeze in freezes)


def answers(node: Mount) -> bool:
    """Tell whether a node has noticed that registry and store are back."""
    status = node.status()
    return bool(status["reachable"] and status["store"]["answers"])


@pytest.mark.parametrize("verb", ["kill", "pause"])
@pytest.mark.parametrize("daemon", ["osd", "mds", "rgw"])
def test_a_freeze_and_reads_outlive_a_daemon_of_ceph(
    ceph: CephServer,
    ceph_nodes: MakeNodes,
    ceph_bucket: S3Endpoint,
    tmp_path: Path,
    daemon: str,
    verb: str,
) -> None:
    gate, over = tmp_path / "gate", tmp_path / "over"
    options: dict[str, object] = {"gate": gate, "patience": 1}
    node, other = ceph_nodes(options, {"patience": 1})
    files = {"small": b"small", "large": os.urandom(20 * MIB)}
    put(ceph_bucket, files)
    gate.touch()
    ready = node.freeze("v1")
    gate.unlink()
    reader = Attempt(READ_ON, ready / "large", over)
    changed = {"large": os.urandom(9 * MIB), "more": os.urandom(3 * MIB)}
    put(ceph_bucket, changed)
    (node.model / "v2").mkdir()
    with away(ceph, daemon, verb):
        gate.touch()
        wait_until(lambda: waits_and_says_why(node), BACK_S)
    wait_until(lambda: xattr(node.model / "v2", "state") == "ready", BACK_S)
    assert content(node.model / "v2") == {**files, **changed}
    over.touch()
    seen = reader.outcome(BACK_S).answer
    assert seen == [sha256_of(ready / "large")]
    assert content(other.model / "v1") == files
    assert content(other.model / "v2") == {**files, **changed}
    assert attempt(READ, other.main / "more", limit_s=BACK_S).errno == 0
    wait_until(lambda: all(answers(mount) for mount in (node, other)), BACK_S)
    (node.main / "after").write_bytes(b"and it is written again")
    assert ceph_bucket.get(node.key("after")) == b"and it is written again"
