"""Every request of an upload fails, in every way: close() tells, and nothing is lost."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.attempts import attempt
from tests.endpoints import S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, wait_until, xattr

pytestmark = [pytest.mark.mount, pytest.mark.ceph, pytest.mark.timeout(180, func_only=True)]

MIB = 1 << 20
TIMEOUT_S = 2.0
GRACE_S = 8.0  # beyond the limit: requests under way and a probe, on a busy machine
FAULTS = {
    Fault.UNAVAILABLE: errno.EIO,
    Fault.RESET: errno.EIO,
    Fault.RESET_AFTER: errno.EIO,
    Fault.HOLD: errno.EIO,
    Fault.FORBIDDEN: errno.EACCES,
    Fault.QUOTA: errno.EDQUOT,
    Fault.WRONG_ETAG: errno.EIO,
}
APPEND = """
with paths[0].open("ab") as file:
    file.write(paths[1].read_bytes())
"""
REPLACE = "paths[0].write_bytes(paths[1].read_bytes())"


def is_put(head: bytes) -> bool:
    return head.startswith(b"PUT ") and b"partNumber=" not in head


def is_look(head: bytes) -> bool:
    return head.startswith(b"HEAD ")


def is_begin(head: bytes) -> bool:
    return head.startswith(b"POST ") and b"?uploads" in head


def is_part(head: bytes) -> bool:
    return head.startswith(b"PUT ") and b"partNumber=" in head and not is_copy(head)


def is_copy(head: bytes) -> bool:
    return b"x-amz-copy-source:" in head.lower()


def is_end(head: bytes) -> bool:
    return head.startswith(b"POST ") and b"uploadId=" in head


Chosen = Callable[[bytes], bool]
OF_A_SMALL_FILE: dict[str, Chosen] = {"look": is_look, "put": is_put}
IN_PARTS: dict[str, Chosen] = {
    "look": is_look,
    "begin": is_begin,
    "part": is_part,
    "end": is_end,
}


def faults_of(request_kind: str) -> list[Fault]:
    """Return what can befall a request: of a HEAD nobody is told of a quota, or what was sent."""
    left_out = {Fault.QUOTA} if request_kind == "look" else set()
    if request_kind not in ("put", "part"):
        left_out.add(Fault.WRONG_ETAG)
    return [fault for fault in FAULTS if fault not in left_out]


@pytest.fixture
def faulty(ceph_bucket: S3Endpoint, make_mount: MakeMount) -> "tuple[Mount, FaultyProxy]":
    proxy = FaultyProxy(ceph_bucket.endpoint)
    mount = make_mount(ceph_bucket, endpoint=proxy.endpoint, timeout=TIMEOUT_S)
    mount.model.mkdir(parents=True)
    os.listdir(mount.main)
    return mount, proxy


def check(
    mount: Mount, proxy: FaultyProxy, path: Path, code: str, data: Path, expected: bytes
) -> None:
    """Write while the fault lasts; see that close() tells, and that the bytes stay."""
    before = path.read_bytes()
    key = mount.key(path.name)
    proxy.faults = 0
    tried = attempt(code, path, data)
    assert proxy.faults > 0, "it never happened"
    assert tried.errno == FAULTS[proxy.fault], proxy.fault
    assert tried.seconds < TIMEOUT_S + GRACE_S, proxy.fault
    assert xattr(path, "dirty") == "1"
    assert xattr(path, "error"), proxy.fault
    assert path.read_bytes() == expected
    if proxy.fault is not Fault.RESET_AFTER and proxy.fault is not Fault.WRONG_ETAG:
        assert mount.bucket.get(key) == before, proxy.fault


def settle(mount: Mount, path: Path, expected: bytes) -> None:
    """After the fault: the file is there, and nothing else is."""
    wait_until(lambda: mount.status()["uploads"] == [], 30)
    assert mount.bucket.get(mount.key(path.name)) == expected
    assert path.read_bytes() == expected
    assert mount.status()["counters"]["conflicts"] == 0
    client, bucket = mount.bucket.client, mount.bucket.bucket
    left = lambda: client.list_multipart_uploads(Bucket=bucket).get("Uploads")  # noqa: E731
    wait_until(lambda: not left())


def sweep(
    mount: Mount,
    proxy: FaultyProxy,
    chosen: Chosen,
    faults: list[Fault],
    size: int,
    data: Path,
) -> None:
    for number, fault in enumerate(faults):
        path = mount.main / f"file-{number}"
        path.write_bytes(os.urandom(size))
        content = os.urandom(size)
        data.write_bytes(content)
        with proxy.faulty(fault, chosen):
            check(mount, proxy, path, REPLACE, data, content)
        settle(mount, path, content)


@pytest.mark.parametrize("request_kind", OF_A_SMALL_FILE)
def test_a_small_file_is_kept_and_arrives_whatever_befalls_its_upload(
    faulty: tuple[Mount, FaultyProxy], tmp_path: Path, request_kind: str
) -> None:
    chosen = OF_A_SMALL_FILE[request_kind]
    sweep(*faulty, chosen, faults_of(request_kind), 1000, tmp_path / "data")


@pytest.mark.parametrize("request_kind", IN_PARTS)
def test_a_large_file_is_kept_and_arrives_whatever_befalls_its_upload(
    faulty: tuple[Mount, FaultyProxy], tmp_path: Path, request_kind: str
) -> None:
    chosen = IN_PARTS[request_kind]
    sweep(*faulty, chosen, faults_of(request_kind), 17 * MIB, tmp_path / "data")


@pytest.mark.parametrize("request_kind", ["begin", "part", "copy", "end"])
def test_an_append_is_kept_and_arrives_whatever_befalls_its_upload(
    faulty: tuple[Mount, FaultyProxy], tmp_path: Path, request_kind: str
) -> None:
    mount, proxy = faulty
    chosen = {**IN_PARTS, "copy": is_copy}[request_kind]
    path, data = mount.main / "log", tmp_path / "data"
    content = os.urandom(6 * MIB)
    path.write_bytes(content)
    for fault in (Fault.UNAVAILABLE, Fault.RESET_AFTER, Fault.FORBIDDEN, Fault.QUOTA):
        more = os.urandom(1000)
        data.write_bytes(more)
        with proxy.faulty(fault, chosen):
            if request_kind != "begin" and fault in (Fault.FORBIDDEN, Fault.QUOTA):
                assert attempt(APPEND, path, data).errno == 0  # the file was sent whole, by one PUT
            else:
                check(mount, proxy, path, APPEND, data, content + more)
        content += more
        settle(mount, path, content)
