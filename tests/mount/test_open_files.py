"""What programs do with open files of main/, as on a local disk. Steps run on both."""

import errno
import fcntl
import mmap
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mount import twins as fixtures
from tests.mount.twins import Twins, check_bucket, result, run
from tests.mount.usedfile import PUNCH, fallocate
from tests.mounting import Mount, wait_until

pytestmark = pytest.mark.mount

MIB = 1 << 20

moto_shared, ceph_shared = fixtures.moto_shared, fixtures.ceph_shared
twins, everywhere = fixtures.twins, fixtures.everywhere


# ----------------------------------------------------------------- flags of open


def test_o_excl_makes_a_file_once(twins: Twins) -> None:
    def step(folder: Path) -> object:
        os.close(os.open(folder / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.close(os.open(folder / "f", os.O_CREAT | os.O_WRONLY))
        return os.open(folder / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)

    assert twins.same(step) == "EEXIST"


def test_appenders_never_overwrite_each_other(everywhere: Twins) -> None:
    def step(folder: Path) -> object:
        (folder / "log").write_bytes(b"begin\n")
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        one, other = os.open(folder / "log", flags), os.open(folder / "log", flags)
        for n in range(50):
            os.write(one, b"one %d\n" % n)
            os.write(other, b"other %d\n" % n)
        os.close(one)
        os.write(other, b"last\n")
        os.close(other)
        return (folder / "log").read_bytes()

    everywhere.same(step)


def test_a_reader_may_not_write_nor_a_writer_read(twins: Twins) -> None:
    def reading(folder: Path) -> object:
        (folder / "f").write_bytes(b"x")
        fd = os.open(folder / "f", os.O_RDONLY)
        try:
            return os.write(fd, b"y")
        finally:
            os.close(fd)

    def writing(folder: Path) -> object:
        fd = os.open(folder / "f", os.O_WRONLY)
        try:
            return os.read(fd, 1)
        finally:
            os.close(fd)

    assert twins.same(reading) == "EBADF"
    assert twins.same(writing) == "EBADF"


def test_opening_a_folder_to_write_or_a_file_as_a_folder_is_refused(twins: Twins) -> None:
    def folder_as_file(folder: Path) -> object:
        (folder / "d").mkdir()
        return os.open(folder / "d", os.O_WRONLY)

    def file_as_folder(folder: Path) -> object:
        (folder / "f").write_bytes(b"")
        return os.open(folder / "f", os.O_DIRECTORY)

    assert twins.same(folder_as_file) == "EISDIR"
    assert twins.same(file_as_folder) == "ENOTDIR"


# ----------------------------------------------------------- bytes in any order


def test_seeking_rewriting_and_holes_give_the_bytes_of_a_disk(everywhere: Twins) -> None:
    def step(folder: Path) -> object:
        with (folder / "f").open("w+b", buffering=0) as file:
            file.seek(3 * MIB)
            file.write(b"end")
            file.seek(0)
            file.write(b"begin")
            file.seek(MIB)
            file.write(b"m" * 5000)
            file.truncate(2 * MIB)
            file.truncate(4 * MIB + 1)
            file.seek(4 * MIB)
            seen = [file.read(), os.pread(file.fileno(), 10, MIB - 5), file.tell()]
            file.write(b"more")
        with (folder / "f").open("r+b") as file:
            file.seek(10)
            file.write(b"rewritten")
            file.seek(-4, os.SEEK_END)
            seen.append(file.read())
        return seen, (folder / "f").stat().st_size

    everywhere.same(step)


def test_what_no_file_can_be_as_large_as_is_refused_and_costs_nothing(twins: Twins) -> None:
    def step(folder: Path) -> object:
        with (folder / "f").open("w+b", buffering=0) as file:
            fd = file.fileno()
            file.write(b"kept")
            seen = [
                result(lambda _: os.pwrite(fd, b"x", 1 << 50), folder),
                result(lambda _: os.ftruncate(fd, 1 << 50), folder),
                result(lambda _: os.pwrite(fd, b"x", (1 << 63) - 1), folder),
                result(lambda _: os.ftruncate(fd, -1), folder),
            ]
        return seen, (folder / "f").read_bytes()

    assert twins.same(step) == (["EFBIG", "EFBIG", "EINVAL", "EINVAL"], b"kept")


def test_space_is_allocated_by_writes_and_holes_are_not_punched(twins: Twins) -> None:
    def step(folder: Path) -> object:
        with (folder / "f").open("w+b", buffering=0) as file:
            file.write(b"begin")
            os.posix_fallocate(file.fileno(), 0, 100_000)
            seen = [os.fstat(file.fileno()).st_size, os.pread(file.fileno(), 10, 0)]
        return seen, (folder / "f").stat().st_size

    twins.same(step)
    with (twins.mount.main / "f").open("r+b") as file:
        assert fallocate(file.fileno(), PUNCH, 0, 10) == errno.EOPNOTSUPP
    assert (twins.mount.main / "f").read_bytes()[:5] == b"begin"


def test_several_handles_see_each_other_s_writes_at_once(twins: Twins) -> None:
    def step(folder: Path) -> object:
        path = folder / "f"
        path.write_bytes(b"0" * 100)
        reader = os.open(path, os.O_RDONLY)
        writer, other = os.open(path, os.O_RDWR), os.open(path, os.O_WRONLY)
        seen = [os.pread(reader, 5, 0)]
        os.pwrite(writer, b"one", 0)
        seen.append(os.pread(reader, 5, 0))
        os.pwrite(other, b"two", 98)
        seen += [os.pread(reader, 200, 90), os.fstat(reader).st_size]
        os.ftruncate(writer, 50)
        seen += [os.pread(reader, 200, 45), os.fstat(other).st_size]
        os.close(writer)
        os.pwrite(other, b"late", 60)
        os.close(other)
        seen.append(os.pread(reader, 200, 40))
        os.close(reader)
        return seen

    twins.same(step)


def test_a_mapping_shows_what_others_write_into_its_pages(twins: Twins) -> None:
    def step(folder: Path) -> object:
        path, seen = folder / "f", []
        path.write_bytes(bytes(10_000))
        with path.open("rb") as reader:
            mapped = mmap.mmap(reader.fileno(), 10_000, prot=mmap.PROT_READ)
            for number in range(1, 4):
                seen.append(bytes(mapped))
                for flags in (os.O_WRONLY, os.O_RDWR):
                    fd = os.open(path, flags)
                    os.pwrite(fd, bytes([number]) * 3000, 3000 * number - 500)
                    seen.append(bytes(mapped))
                    os.close(fd)
            mapped.close()
        return seen

    twins.same(step)


def test_a_reader_beside_an_appender_never_sees_what_was_not_written(mount: Mount) -> None:
    path = mount.main / "log"
    line = b"%0119d\n"
    lines, wrong, is_over = 3000, list[bytes](), threading.Event()
    path.write_bytes(line % 0)

    def read() -> None:
        while not is_over.is_set():
            with path.open("rb", buffering=0) as file:
                for _ in range(20):
                    size = os.fstat(file.fileno()).st_size
                    at = max(0, size - 6000) // 120 * 120
                    found = os.pread(file.fileno(), 6000, at)
                    whole = len(found) // 120
                    expected = b"".join(line % (at // 120 + n) for n in range(whole))
                    if found[: whole * 120] != expected:
                        wrong.append(found)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        for number in range(1, lines):
            os.write(fd, line % number)
        is_over.set()
        for reader in readers:
            reader.result()
        os.close(fd)
    assert not wrong
    assert path.read_bytes() == b"".join(line % number for number in range(lines))


def test_what_mmap_writes_is_in_the_registry(everywhere: Twins) -> None:
    def step(folder: Path) -> object:
        path = folder / "f"
        path.write_bytes(bytes(3 * MIB))
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
            view[0:5] = b"start"
            view[2 * MIB : 2 * MIB + 3] = b"mid"
            view.flush()
            seen = os.pread(file.fileno(), 3, 2 * MIB)
            view[-3:] = b"end"
        return seen, path.read_bytes().count(b"\0")

    everywhere.same(step)


def test_a_mapping_that_outlives_its_descriptor_is_uploaded_when_it_ends(twins: Twins) -> None:
    def step(folder: Path) -> object:
        (folder / "f").write_bytes(bytes(MIB))
        program = (
            "import ctypes, mmap, os\n"
            "fd = os.open('f', os.O_RDWR)\n"
            "libc = ctypes.CDLL(None)\n"
            "libc.mmap.restype = ctypes.c_void_p\n"
            "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3,"
            " ctypes.c_long]\n"
            "at = libc.mmap(None, 1 << 20, mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)\n"
            "os.close(fd)\n"
            "ctypes.memset(at + 1000, 7, 100)\n"
        )
        subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
        return (folder / "f").read_bytes()[999:1101]

    twins.same(step)
    wait_until(lambda: b"\7" * 100 in twins.mount.objects()["f"])


# ------------------------------------------------------------ times and lengths


def test_truncating_a_file_that_another_reads_reaches_the_registry(twins: Twins) -> None:
    def step(folder: Path) -> object:
        (folder / "f").write_bytes(b"0123456789")
        with (folder / "f").open("rb", buffering=0) as reader:
            os.truncate(folder / "f", 4)
            return reader.read()

    twins.same(step)


def test_a_time_that_is_set_on_an_open_file_stays_after_close(twins: Twins) -> None:
    def step(folder: Path) -> object:
        with (folder / "f").open("wb") as file:
            file.write(b"x")
            file.flush()
            os.utime(file.fileno(), (1_000_000_000, 1_000_000_000))
        (folder / "g").write_bytes(b"y")
        os.utime(folder / "g", (1_100_000_000, 1_100_000_000))
        return [int((folder / name).stat().st_mtime) for name in "fg"]

    for _ in range(10):  # against the moment after close() in which the file goes into the cache
        twins.same(step)


def test_a_file_is_cut_and_opened_anew_right_after_it_was_closed(twins: Twins) -> None:
    def step(folder: Path) -> object:
        seen = []
        for n in range(20):
            path = folder / f"f{n}"
            path.write_bytes(b"0123456789")
            os.truncate(path, 5)
            with path.open("ab") as file:
                file.write(b"appended")
            with path.open("r+b") as file:
                file.write(b"ab")
            seen.append(path.read_bytes())
            path.write_bytes(b"whole")
        return seen

    twins.same(step)


def test_a_file_that_was_emptied_and_closed_is_cut_longer_with_zeros(twins: Twins) -> None:
    """What was emptied and not written is uploaded after close(): the node shows it by then."""

    def step(folder: Path) -> object:
        seen = []
        for n in range(5):
            path = folder / f"f{n}"
            path.write_bytes(b"old bytes" * 1000)
            path.stat()
            os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
            if folder != twins.plain:
                wait_until(lambda: not twins.mount.status()["uploads"])
            os.truncate(path, 100)
            seen.append(path.read_bytes())
        return seen

    twins.same(step)


def test_times_and_bytes_are_the_same_after_a_remount(mount: Mount) -> None:
    run(mount.main, "mkdir d; seq 1 9999 > d/f; touch -d 2021-02-03 d/f; cp -p d/f d/g")
    before = {name: (mount.main / "d" / name).stat().st_mtime_ns for name in "fg"}
    assert mount.stop() == 0
    mount.start()
    after = {name: (mount.main / "d" / name).stat().st_mtime_ns for name in "fg"}
    assert after == before
    check_bucket(mount)


# ----------------------------------------------------------------- side by side


def test_many_writers_of_many_files_lose_nothing(twins: Twins) -> None:
    def step(folder: Path) -> object:
        def write(n: int) -> None:
            for m in range(5):
                (folder / f"{n}-{m}").write_bytes(b"%d" % n * 50_000)
                os.rename(folder / f"{n}-{m}", folder / f"done-{n}-{m}")

        threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(os.listdir(folder))

    twins.same(step)


def test_locks_hold_between_processes_of_one_node(moto_mount: Mount) -> None:
    path = moto_mount.main / "lock"
    path.write_bytes(b"")
    taking = (
        f"import fcntl; f = open({str(path)!r}, 'r+b'); "
        "fcntl.CALL(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    for call in ("flock", "lockf"):
        program = [sys.executable, "-c", taking.replace("CALL", call)]
        with path.open("r+b") as mine:
            getattr(fcntl, call)(mine, fcntl.LOCK_EX)
            refused = subprocess.run(program, capture_output=True, check=False)
            assert b"BlockingIOError" in refused.stderr
        assert subprocess.run(program, check=False).returncode == 0


def test_the_names_of_two_files_cannot_be_exchanged(moto_mount: Mount) -> None:
    (moto_mount.main / "a").write_bytes(b"a")
    (moto_mount.main / "b").write_bytes(b"b")
    said = run(moto_mount.main, "mv --exchange a b 2>/dev/null || echo refused\ncat a b")
    assert "refused" in said
    assert "ab" in said


def test_a_write_that_is_not_there_yet_is_seen_by_everyone_on_the_node(moto_mount: Mount) -> None:
    """Own changes are shown at once, whatever metadata_ttl is."""
    main = moto_mount.main
    with pytest.raises(FileNotFoundError):
        (main / "f").stat()
    with (main / "f").open("wb", buffering=0) as file:
        file.write(b"12345")
        assert (main / "f").stat().st_size == 5
        assert os.listdir(main) == ["f"]
        assert "f" not in moto_mount.objects()
    assert moto_mount.objects()["f"] == b"12345"
    (main / "f").unlink()
    assert not (main / "f").exists()
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        (main / "f").open("rb")
