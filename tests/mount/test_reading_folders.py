"""A folder of main/ is read while names in it come and go: as on a disk, whatever is remembered."""

import ctypes
import errno
import os
import platform
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mount.twins import fails_with
from tests.mounting import Mount

pytestmark = pytest.mark.mount

COUNT = 60
LONG = "x" * 200

_libc = ctypes.CDLL(None, use_errno=True)
GETDENTS64 = {"x86_64": 217, "aarch64": 61}[platform.machine()]


def name_of(number: int) -> str:
    return f"{number:04}-{LONG}"


def getdents(fd: int) -> list[str]:
    """Return the next few names of a folder, '' at its end: libc reads up to a MiB of them."""
    buffer = ctypes.create_string_buffer(4096)
    size = _libc.syscall(GETDENTS64, fd, buffer, len(buffer))
    if size < 0:
        raise OSError(ctypes.get_errno(), "getdents64")
    names, at = [], 0
    while at < size:
        (length,) = struct.unpack_from("=H", buffer, at + 16)
        names.append(os.fsdecode(buffer.raw[at + 19 : at + length].split(b"\0")[0]))
        at += length
    return names


def slowly(folder: Path, between: Callable[[], None]) -> list[str]:
    """Return the names of a folder, read by many small requests; after the first, do something."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        names = getdents(fd)
        between()
        while more := getdents(fd):
            names += more
    finally:
        os.close(fd)
    return [name for name in names if name not in (".", "..")]


@pytest.fixture
def many(moto_bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    """A mount that believes its listings for a minute, with a folder of many files."""
    for number in range(COUNT):
        moto_bucket.put(f"models/acme/llama/many/{name_of(number)}")
    return make_mount(moto_bucket, metadata_ttl=60)


def test_what_goes_while_a_folder_is_read_is_gone_for_who_looks(many: Mount) -> None:
    folder = many.main / "many"

    def change() -> None:
        (folder / name_of(COUNT - 1)).unlink()
        (folder / name_of(COUNT - 2)).rename(folder / "renamed")
        (folder / name_of(COUNT - 3)).unlink()
        (folder / name_of(COUNT - 3)).mkdir()
        (folder / name_of(COUNT - 4)).write_bytes(b"longer than it was")

    names = slowly(folder, change)
    assert len(names) == len(set(names))
    assert {name_of(number) for number in range(1, COUNT - 4)} <= set(names)
    for number in (1, 2):
        with fails_with(errno.ENOENT):
            (folder / name_of(COUNT - number)).stat()
    assert (folder / name_of(COUNT - 3)).is_dir()
    assert (folder / name_of(COUNT - 4)).stat().st_size == 18
    assert (folder / name_of(COUNT - 4)).read_bytes() == b"longer than it was"
    assert len(os.listdir(folder)) == COUNT - 1


def test_no_name_is_missing_or_there_twice_while_others_come_and_go(many: Mount) -> None:
    folder = many.main / "many"
    stays = {name_of(number) for number in range(0, COUNT, 2)}
    is_over = threading.Event()
    failed: list[BaseException] = []

    def come_and_go() -> None:
        try:
            for number in range(1, 10**6, 2):
                if is_over.is_set():
                    return
                (folder / name_of(number % COUNT)).unlink(missing_ok=True)
                (folder / f"{number:04}-new").write_bytes(b"")
                (folder / f"{number:04}-new").rename(folder / name_of(number % COUNT))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(30):
            names = slowly(folder, lambda: None)
            assert len(names) == len(set(names))
            assert stays <= set(names)
    finally:
        is_over.set()
        thread.join()
    assert not failed


def test_a_folder_that_is_read_again_from_its_beginning_shows_what_there_is_by_then(
    many: Mount,
) -> None:
    folder = many.main / "many"
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert len(os.listdir(fd)) == COUNT
        (folder / name_of(0)).unlink()
        (folder / "new").write_bytes(b"")
        os.lseek(fd, 0, os.SEEK_SET)
        assert set(os.listdir(fd)) == {"new", *map(name_of, range(1, COUNT))}
    finally:
        os.close(fd)


def test_a_folder_that_is_removed_while_it_is_open_is_empty_and_stays_so(
    moto_mount: Mount, tmp_path: Path
) -> None:
    for folder in (tmp_path / "plain", moto_mount.main / "plain"):
        folder.mkdir()
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            folder.rmdir()
            assert os.listdir(fd) == []
            with fails_with(errno.ENOENT):
                os.mkdir("x", dir_fd=fd)
        finally:
            os.close(fd)
