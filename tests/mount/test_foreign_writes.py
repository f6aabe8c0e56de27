"""Others write to the same object while it is open, written or waiting here: both are kept."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attempts import attempt
from tests.endpoints import S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, refused, wait_until

pytestmark = pytest.mark.mount

MIB = 1 << 20
TIMEOUT_S = 20  # what is sent at once here is much for the server of these tests
SIZES = (1000, 30 * MIB)  # one request; parts of which some go before close()


@pytest.fixture
def mount(bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    mount = make_mount(bucket, timeout=TIMEOUT_S)
    mount.model.mkdir(parents=True)
    return mount


def conflict_of(mount: Mount, name: str) -> str:
    """Return the name of the one conflict file of a file, which the log names, too."""
    (found,) = [key for key in mount.objects() if key.startswith(f"{name}.conflict-")]
    assert f"ours is kept as {found}" in mount.log()
    return found


def write_all(fd: int, data: bytes) -> None:
    at = 0
    while at < len(data):
        at += os.pwrite(fd, data[at : at + MIB], at)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("flags", [os.O_TRUNC, os.O_CREAT | os.O_EXCL])
def test_what_others_put_while_a_file_is_written_stays_beside_ours(
    mount: Mount, size: int, flags: int
) -> None:
    path, ours = mount.main / "a.bin", os.urandom(size)
    if flags == os.O_TRUNC:
        path.write_bytes(b"before")
    fd = os.open(path, os.O_WRONLY | flags)
    write_all(fd, ours)
    mount.bucket.put(mount.key("a.bin"), b"theirs")
    os.close(fd)
    objects = mount.objects()
    conflict = conflict_of(mount, "a.bin")
    assert objects == {"": b"", "a.bin": b"theirs", conflict: ours}
    wait_until(lambda: sorted(os.listdir(mount.main)) == ["a.bin", conflict])
    wait_until(lambda: path.read_bytes() == b"theirs")
    assert (mount.main / conflict).read_bytes() == ours
    assert mount.status()["counters"]["conflicts"] == 1


def test_what_others_put_between_open_and_the_first_write_is_not_mixed_with_ours(
    mount: Mount,
) -> None:
    path = mount.main / "a.bin"
    mount.bucket.put(mount.key("a.bin"), bytes(9 * MIB))
    wait_until(path.exists)
    fd = os.open(path, os.O_RDWR)
    mount.bucket.put(mount.key("a.bin"), b"theirs")
    with refused(errno.ESTALE):
        os.pwrite(fd, b"ours", 0)  # the old object's bytes cannot be had any more
    os.close(fd)
    assert mount.objects() == {"": b"", "a.bin": b"theirs"}
    assert path.read_bytes() == b"theirs"  # at once: this node has learned of it


@pytest.mark.parametrize("size", SIZES)
def test_a_file_that_others_delete_while_it_is_written_is_there_when_it_is_closed(
    mount: Mount, size: int
) -> None:
    path, ours = mount.main / "a.bin", os.urandom(size)
    path.write_bytes(b"before")
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    write_all(fd, ours)
    mount.bucket.client.delete_object(Bucket=mount.bucket.bucket, Key=mount.key("a.bin"))
    os.close(fd)
    assert mount.objects() == {"": b"", "a.bin": ours}
    assert path.read_bytes() == ours
    assert "a.bin was deleted by someone else: it is put again" in mount.log()


def test_an_append_to_what_others_have_appended_to_meanwhile_keeps_both(mount: Mount) -> None:
    path, start = mount.main / "log.txt", os.urandom(6 * MIB)
    path.write_bytes(start)
    with path.open("ab", buffering=0) as file:
        file.write(b"ours")
        mount.bucket.put(mount.key("log.txt"), start + b"theirs")
    objects = mount.objects()
    assert objects.pop("log.txt") == start + b"theirs"
    assert objects == {"": b"", conflict_of(mount, "log.txt"): start + b"ours"}


def test_a_descriptor_that_is_written_on_after_a_conflict_writes_ours_and_never_theirs(
    mount: Mount,
) -> None:
    path = mount.main / "a.bin"
    path.write_bytes(b"before")
    with path.open("w+b", buffering=0) as file:
        file.write(b"ours")
        mount.bucket.put(mount.key("a.bin"), b"theirs")
        os.close(os.dup(file.fileno()))  # a flush: here it is found
        file.write(b" and more")
        assert os.pread(file.fileno(), 99, 0) == b"ours and more"
    conflict = conflict_of(mount, "a.bin")
    assert mount.objects() == {"": b"", "a.bin": b"theirs", conflict: b"ours and more"}


@pytest.fixture
def proxied(bucket: S3Endpoint, make_mount: MakeMount) -> Iterator[tuple[Mount, FaultyProxy]]:
    with FaultyProxy(bucket.endpoint) as proxy:
        mount = make_mount(bucket, endpoint=proxy.endpoint)
        mount.model.mkdir(parents=True)
        os.listdir(mount.main)
        yield mount, proxy


@pytest.mark.parametrize("theirs", [b"theirs", None])
def test_what_waits_for_the_registry_meets_what_others_did_meanwhile(
    proxied: tuple[Mount, FaultyProxy], tmp_path: Path, theirs: bytes | None
) -> None:
    mount, proxy = proxied
    path = mount.main / "a.bin"
    path.write_bytes(b"before")
    with proxy.faulty(Fault.RESET):
        assert attempt("paths[0].write_bytes(b'ours')", path).errno == errno.EIO
        if theirs is None:
            mount.bucket.client.delete_object(Bucket=mount.bucket.bucket, Key=mount.key("a.bin"))
        else:
            mount.bucket.put(mount.key("a.bin"), theirs)
    wait_until(lambda: mount.status()["uploads"] == [], 20)
    objects = mount.objects()
    assert objects.pop(conflict_of(mount, "a.bin")) == b"ours"
    assert objects == ({"": b""} if theirs is None else {"": b"", "a.bin": theirs})


def test_writers_on_both_sides_all_at_once_lose_nothing(mount: Mount) -> None:
    """Each side replaces the file again and again: every state is the last, or beside it."""
    path = mount.main / "a.bin"
    ours = [b"ours %d" % number for number in range(12)]
    for number, data in enumerate(ours):
        with path.open("wb", buffering=0) as file:
            file.write(data)
            if number % 3 == 0:
                mount.bucket.put(mount.key("a.bin"), b"theirs %d" % number)
        if number % 3 == 0:  # this node sees theirs by now, and may replace it
            wait_until(lambda n=number: path.read_bytes() == b"theirs %d" % n, 10)  # type: ignore[misc]
    found = mount.objects().values()
    lost = [data for number, data in enumerate(ours) if number % 3 == 0 and data not in found]
    assert lost == []
    assert mount.status()["counters"]["conflicts"] == 4
