"""The registry is away, hangs, or answers rubbish: bounded errors, never wrong bytes, recovery."""

import errno
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.attempts import LIST, READ, WRITE, Attempt, Outcome, attempt
from tests.endpoints import CephServer, S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy, is_any, is_data
from tests.mount.conftest import MakeMount
from tests.mounting import TIMEOUT_S, Mount, wait_until, xattr

pytestmark = pytest.mark.mount

MIB = 1 << 20
GRACE_S = 5.0  # beyond the time limit: a request under way, and a probe
AT_ONCE_S = 1.0  # while it is known that the registry is down
DATA = os.urandom(9 * MIB)
RANGE_START = re.compile(rb"(?i)range: bytes=([0-9]+)-")
SHA256 = hashlib.sha256(DATA).hexdigest()


@dataclass
class Scene:
    """A mount that has seen some of what there is, and the registry's way to go and come."""

    mount: Mount
    version: Path

    def uncached(self) -> dict[str, tuple[str, list[Path]]]:
        """Return what needs the registry: a name, what is done, to which paths."""
        main = self.mount.main
        return {
            "read": (READ, [main / "uncached"]),
            "create": (WRITE, [main / "new"]),
            "replace": (WRITE, [main / "cached"]),
            "mkdir": ("paths[0].mkdir()", [main / "folder"]),
            "rm": ("paths[0].unlink()", [main / "unwanted"]),
            "mv": ("paths[0].rename(paths[1])", [main / "unmoved", main / "moved"]),
            "rmdir": ("paths[0].rmdir()", [main / "empty"]),
            "ls": (LIST, [self.mount.path / "acme" / "unseen" / "main"]),
            "mkdir model": ("paths[0].mkdir()", [self.mount.path / "acme" / "another"]),
            "freeze": ("paths[0].mkdir()", [self.mount.path / "acme" / "unseen" / "v1"]),
        }

    def try_uncached(self) -> dict[str, Outcome]:
        """Try all of it at once, each in a process of its own with a limit."""
        begun = {name: Attempt(code, *paths) for name, (code, paths) in self.uncached().items()}
        return {name: each.outcome() for name, each in begun.items()}

    def check_what_needs_no_registry(self) -> None:
        """The rest works as before, with no request."""
        before = self.mount.requests()
        main = self.mount.main
        for code, path, answer in (
            (READ, self.version / "cached", SHA256),
            (READ, self.version / "uncached", SHA256),
            (LIST, self.version, sorted(["cached", "uncached", "unwanted", "unmoved", "empty"])),
            (LIST, self.mount.path, ["acme"]),
            (LIST, self.mount.path / "acme", ["llama", "unseen"]),
            (LIST, self.mount.model, ["latest", "main", "v1"]),
            ("answer = os.readlink(paths[0])", self.mount.model / "latest", "v1"),
            ("answer = bool(paths[0].read_text())", self.mount.path / ".modelfs/README", True),
            ("answer = os.statvfs(paths[0]).f_blocks > 0", self.mount.path, True),
        ):
            outcome = attempt(code, path, limit_s=10)
            assert (outcome.errno, outcome.answer) == (0, answer), (code, path)
            assert outcome.seconds < AT_ONCE_S, (code, path)
        sent = self.mount.requests()
        assert {k: n for k, n in sent.items() if n != before.get(k)}.keys() <= {"ListObjectsV2"}
        listed = attempt(LIST, main)
        assert {"cached", "uncached", "unwanted"} <= set(listed.answer)  # type: ignore[call-overload]


def prepare(mount: Mount) -> Scene:
    for name in ("cached", "uncached"):
        mount.bucket.put(mount.key(name), DATA)
    for name in ("unwanted", "unmoved"):
        mount.bucket.put(mount.key(name), b"x")
    mount.bucket.put(mount.key("empty/"), b"")
    mount.bucket.put("models/acme/unseen/file", b"x")
    version = mount.freeze("v1")
    wait_until(lambda: (mount.model / "latest").is_symlink())
    wait_until(lambda: "unseen" in os.listdir(mount.path / "acme"))
    wait_until(lambda: len(os.listdir(mount.main)) == 5)
    assert attempt(READ, mount.main / "cached").answer == SHA256
    return Scene(mount, version)


@contextmanager
def stopped(ceph: CephServer) -> Iterator[Callable[[], None]]:
    """The gateway is not there; give what brings it back."""
    ceph.run("stop-rgw")
    try:
        yield lambda: ceph.run("start-rgw") and None
    finally:
        ceph.run("start-rgw")


@contextmanager
def paused(ceph: CephServer) -> Iterator[Callable[[], None]]:
    """The gateway takes connections and never answers; give what lets it go on."""
    ceph.run("pause-rgw")
    try:
        yield lambda: ceph.run("resume-rgw") and None
    finally:
        ceph.run("resume-rgw")


@pytest.mark.ceph
@pytest.mark.timeout(120, func_only=True)
@pytest.mark.parametrize("outage", [stopped, paused])
def test_an_outage_costs_bounded_errors_and_nothing_else(
    ceph: CephServer,
    ceph_mount: Mount,
    outage: Callable[[CephServer], "contextmanager[Callable[[], None]]"],
) -> None:
    scene = prepare(ceph_mount)
    mount = ceph_mount
    with outage(ceph) as bring_back:
        for name, outcome in scene.try_uncached().items():
            assert outcome.errno == errno.EIO, name
            assert outcome.seconds < TIMEOUT_S + GRACE_S, name
        wait_until(lambda: not mount.status()["reachable"])
        for name, (code, paths) in scene.uncached().items():
            outcome = attempt(code, *paths)
            assert outcome.errno == errno.EIO, name
            assert outcome.seconds < AT_ONCE_S, name
        scene.check_what_needs_no_registry()
        waiting = {u["path"].rpartition("/")[2]: u["state"] for u in mount.status()["uploads"]}
        assert waiting == {"new": "waiting", "cached": "waiting"}
        assert attempt("answer = paths[0].read_text()", mount.main / "new").answer == "new"
        assert mount.status()["reachable_error"]
        pid = mount.pid
        bring_back()
        wait_until(lambda: mount.status()["reachable"])
        wait_until(lambda: mount.status()["uploads"] == [])
        assert mount.pid == pid
        assert mount.bucket.get(mount.key("new")) == b"new"
        assert mount.bucket.get(mount.key("cached")) == b"new"
        for name, (code, paths) in scene.uncached().items():
            # What was sent before the registry stood still, it did when it went on.
            assert attempt(code, *paths).errno in (0, errno.EEXIST, errno.ENOENT), name
        assert attempt(READ, mount.main / "uncached").answer == SHA256
        assert mount.status()["counters"] | {"fetched_parts": 0, "uploaded_files": 0} == {
            "fetched_parts": 0,
            "uploaded_files": 0,
            "conflicts": 0,
            "bugs": 0,
            "failed_tasks": 0,
        }
    wait_until(lambda: xattr(mount.path / "acme/unseen/v1", "state") == "ready", 20)
    assert mount.stop() == 0


@pytest.mark.ceph
def test_a_cached_file_is_read_in_an_outage(ceph: CephServer, ceph_mount: Mount) -> None:
    prepare(ceph_mount)
    with stopped(ceph):
        assert attempt(READ, ceph_mount.main / "uncached").errno == errno.EIO
        outcome = attempt(READ, ceph_mount.main / "cached")
        assert (outcome.errno, outcome.answer) == (0, SHA256)
        assert outcome.seconds < AT_ONCE_S


@pytest.mark.ceph
def test_a_mount_that_starts_in_an_outage_serves_versions_and_finds_the_rest_later(
    ceph: CephServer, ceph_mount: Mount
) -> None:
    scene = prepare(ceph_mount)
    assert ceph_mount.stop() == 0
    with stopped(ceph) as bring_back:
        ceph_mount.start()
        assert attempt(READ, scene.version / "cached").answer == SHA256
        assert attempt(LIST, ceph_mount.main).errno == errno.EIO
        bring_back()
        wait_until(lambda: attempt(READ, ceph_mount.main / "uncached").answer == SHA256)


# ------------------------------------------------------- a registry that misbehaves


@pytest.fixture
def proxy(moto_bucket: S3Endpoint) -> Iterator[FaultyProxy]:
    with FaultyProxy(moto_bucket.endpoint) as proxy:
        yield proxy


@pytest.fixture
def faulty_mount(moto_bucket: S3Endpoint, make_mount: MakeMount, proxy: FaultyProxy) -> Mount:
    mount = make_mount(moto_bucket, endpoint=proxy.endpoint, part_size=MIB)
    mount.model.mkdir(parents=True)
    return mount


ONLY_ERRORS = [Fault.UNAVAILABLE, Fault.RESET, Fault.RESET_AFTER, Fault.STALL, Fault.SHORT]


@pytest.mark.parametrize("fault", [*ONLY_ERRORS, Fault.SHORT_LENGTH])
def test_a_faulty_answer_is_an_error_in_bounded_time_and_never_data(
    faulty_mount: Mount, proxy: FaultyProxy, fault: Fault
) -> None:
    main = faulty_mount.main
    faulty_mount.bucket.put(faulty_mount.key("a"), DATA)
    wait_until((main / "a").exists)
    with proxy.faulty(fault, is_data):
        outcome = attempt(READ, main / "a")
        assert outcome.errno == errno.EIO
        assert outcome.seconds < 2 * TIMEOUT_S + GRACE_S
        assert proxy.faults > 0
    wait_until(lambda: attempt(READ, main / "a").answer == SHA256)
    assert faulty_mount.status()["counters"]["bugs"] == 0


def test_a_read_that_fails_is_not_tried_again_for_each_of_its_pages(
    faulty_mount: Mount, proxy: FaultyProxy
) -> None:
    main = faulty_mount.main
    faulty_mount.bucket.put(faulty_mount.key("a"), DATA)
    wait_until((main / "a").exists)
    with proxy.faulty(Fault.SHORT, is_data):  # of which more and more would come
        assert attempt("os.pread(os.open(paths[0], 0), 1 << 20, 0)", main / "a").errno == errno.EIO
        asked = [head for head in proxy.heads if is_data(head)]
    of_the_first_part = [head for head in asked if int(RANGE_START.findall(head)[0]) < MIB]
    assert len(of_the_first_part) == 3  # the tries of one request


@pytest.mark.parametrize("fault", ONLY_ERRORS)
def test_a_registry_that_misbehaves_for_a_while_is_used_again_by_itself(
    faulty_mount: Mount, proxy: FaultyProxy, fault: Fault
) -> None:
    main = faulty_mount.main
    faulty_mount.bucket.put(faulty_mount.key("a"), DATA)
    wait_until((main / "a").exists)
    with proxy.faulty(fault, is_any):
        attempts = [Attempt(READ, main / "a"), Attempt(WRITE, main / "b"), Attempt(LIST, main)]
        for each in attempts:
            outcome = each.outcome()
            assert outcome.errno in (0, errno.EIO)
            assert outcome.seconds < 2 * TIMEOUT_S + GRACE_S
            assert outcome.answer in (None, SHA256, ["a"], ["a", "b"])
        wait_until(lambda: proxy.faults > 0)
    wait_until(lambda: attempt(READ, main / "a").answer == SHA256)
    assert attempt(WRITE, main / "b").errno == 0
    wait_until(lambda: faulty_mount.status()["uploads"] == [])
    assert faulty_mount.objects() == {"": b"", "a": DATA, "b": b"new"}
    assert faulty_mount.status()["counters"]["bugs"] == 0
    assert faulty_mount.status()["counters"]["conflicts"] == 0


def test_wrong_bytes_of_the_right_length_are_found_thrown_away_and_counted(
    faulty_mount: Mount, proxy: FaultyProxy
) -> None:
    """A file is checked once it is whole; until then nothing can tell."""
    main = faulty_mount.main
    faulty_mount.bucket.put(faulty_mount.key("a"), DATA)
    wait_until((main / "a").exists)
    with proxy.faulty(Fault.WRONG, is_data):
        attempt(READ, main / "a")
        wait_until(lambda: faulty_mount.status()["cache"]["wrong_files"] >= 1)
    wait_until(lambda: attempt(READ, main / "a").answer == SHA256)
    assert "wrong bytes of" in faulty_mount.log()


def test_a_freeze_takes_no_wrong_byte(faulty_mount: Mount, proxy: FaultyProxy) -> None:
    faulty_mount.bucket.put(faulty_mount.key("a"), DATA)
    wait_until((faulty_mount.main / "a").exists)
    with proxy.faulty(Fault.WRONG, is_data):
        (faulty_mount.model / "v1").mkdir()
        wait_until(lambda: "arrived with MD5" in faulty_mount.log())
    wait_until(lambda: xattr(faulty_mount.model / "v1", "state") != "downloading", 20)
    assert xattr(faulty_mount.model / "v1", "state") == "ready"
    assert attempt(READ, faulty_mount.model / "v1" / "a").answer == SHA256


def test_an_upload_whose_bytes_are_refused_or_cut_arrives_whole(
    faulty_mount: Mount, proxy: FaultyProxy, tmp_path: Path
) -> None:
    data = os.urandom(17 * MIB)
    (tmp_path / "data").write_bytes(data)
    with proxy.faulty(Fault.RESET_AFTER, lambda head: b"partNumber=2" in head):
        copy = "paths[1].write_bytes(paths[0].read_bytes())"
        assert attempt(copy, tmp_path / "data", faulty_mount.main / "big").errno == errno.EIO
    wait_until(lambda: faulty_mount.status()["uploads"] == [], 20)
    assert faulty_mount.bucket.get(faulty_mount.key("big")) == data
    pending = faulty_mount.bucket.client.list_multipart_uploads(Bucket=faulty_mount.bucket.bucket)
    assert not pending.get("Uploads")


def test_nothing_of_ours_is_left_in_d_state() -> None:
    """After all of the above: no process waits for a mount of these tests."""
    for _ in range(20):
        found = subprocess.run(
            ["ps", "-eo", "stat=,args="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        stuck = [line for line in found if line.startswith("D") and "said = {" in line]
        if not stuck:
            return
        time.sleep(0.2)
    raise AssertionError(stuck)
