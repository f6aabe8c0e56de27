"""modelfs warm and evict, and the attribute below them, on real mounts."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, put, refused, wait_until, xattr

pytestmark = pytest.mark.mount

MIB = 1 << 20
BIG = os.urandom(5 * MIB + 17)
MODEL = {"config.json": b"{}", "w/big": BIG, "w/small": os.urandom(3000), "empty": b""}
SIZE = sum(map(len, MODEL.values()))


@pytest.fixture
def mount(moto_bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    """A mount of acme/llama with a few files, none of which was read."""
    put(moto_bucket, MODEL)
    return make_mount(moto_bucket, part_size=MIB)


def set_cached(path: Path, value: str) -> None:
    os.setxattr(path, "user.modelfs.cached", value.encode())


def find_xattr(path: Path, name: str) -> str | None:
    with contextlib.suppress(OSError):
        return xattr(path, name)
    return None


def warm(path: Path) -> str | None:
    """Warm a file as a script does; return its error."""
    set_cached(path, "all")
    wait_until(lambda: find_xattr(path, "warming") is None, 30)
    return find_xattr(path, "error")


# -------------------------------------------------------------- the attribute


def test_a_file_that_was_warmed_is_read_without_a_request_and_one_that_was_evicted_with_them(
    mount: Mount,
) -> None:
    big = mount.main / "w" / "big"
    assert xattr(big, "cached") == f"0/{len(BIG)}"
    assert warm(big) is None
    assert mount.status()["counters"]["fetched_parts"] == 6
    assert xattr(big, "cached") == f"{len(BIG)}/{len(BIG)}"
    with mount.counting() as sent:
        assert big.read_bytes() == BIG
        assert warm(big) is None
    assert "GetObject" not in sent
    wait_until(lambda: _evicts(big))
    assert xattr(big, "cached") == f"0/{len(BIG)}"
    set_cached(big, "none")
    assert mount.status()["cache"]["bytes"] == 0
    assert big.read_bytes() == BIG  # not from the kernel's pages either
    assert mount.status()["counters"]["fetched_parts"] == 2 * 6


def _evicts(path: Path) -> bool:
    """Evict; False where the last close() has not reached the daemon yet."""
    try:
        set_cached(path, "none")
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def test_what_is_read_while_it_is_warmed_is_fetched_once(mount: Mount) -> None:
    big = mount.main / "w" / "big"
    with mount.counting() as sent, ThreadPoolExecutor(4) as pool:
        set_cached(big, "all")
        assert list(pool.map(lambda _: big.read_bytes() == BIG, range(4))) == [True] * 4
        wait_until(lambda: find_xattr(big, "warming") is None)
    assert sent["GetObject"] == 6


def test_what_cannot_be_warmed_or_evicted_is_refused(mount: Mount) -> None:
    big = mount.main / "w" / "big"
    version = mount.freeze("v1")
    for value in ("", "ALL", "1/2 ", "all\n"):
        with refused(errno.EINVAL):
            set_cached(big, value)
    with refused(errno.EINVAL):
        os.setxattr(big, "user.modelfs.cached", b"\xff")
    with refused(errno.EOPNOTSUPP):
        os.setxattr(big, "user.modelfs.anything", b"all")
    for folder, number in (
        (mount.main, errno.EOPNOTSUPP),
        (mount.main / "w", errno.EOPNOTSUPP),
        (version, errno.EROFS),
        (version / "w" / "big", errno.EROFS),
        (mount.path / ".modelfs" / "README", errno.EPERM),
    ):
        with refused(number):
            set_cached(folder, "all")
    with refused(errno.ENOENT):
        set_cached(mount.main / "absent", "all")
    assert mount.status()["counters"]["bugs"] == 0


def test_what_is_open_is_not_evicted(mount: Mount) -> None:
    big = mount.main / "w" / "big"
    with big.open("rb") as file:
        assert file.read(10) == BIG[:10]
        with refused(errno.EBUSY):
            set_cached(big, "none")
        assert warm(big) is None
        assert file.read() == BIG[10:]
    wait_until(lambda: _evicts(big))


def test_what_is_staged_is_here_and_is_not_evicted(mount: Mount) -> None:
    new = mount.main / "new"
    with new.open("wb") as file:
        file.write(b"data")
        file.flush()
        with mount.counting() as sent:
            assert warm(new) is None
        assert "GetObject" not in sent
        with refused(errno.EBUSY):
            set_cached(new, "none")
        assert xattr(new, "dirty") == "1"
    wait_until(lambda: _evicts(new))
    with mount.counting() as sent:
        assert new.read_bytes() == b"data"
    assert sent["GetObject"] == 1


def test_a_file_larger_than_the_cache_is_enospc_and_the_log_says_why(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    put(moto_bucket, MODEL)
    mount = make_mount(moto_bucket, part_size=MIB, cache={"max_size": "4MiB"})
    with refused(errno.ENOSPC):
        set_cached(mount.main / "w" / "big", "all")
    assert "the cache (max_size, 4,194,304 bytes) is too small for models/acme" in mount.log()
    assert (mount.main / "w" / "big").read_bytes() == BIG  # which needs no more than parts of it


def test_files_that_are_together_larger_than_the_cache_are_each_fetched_once(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    files = {f"f{number}": os.urandom(2 * MIB) for number in range(8)}
    put(moto_bucket, files)
    mount = make_mount(moto_bucket, part_size=MIB, cache={"max_size": "6MiB"})
    with mount.counting() as sent:
        for name in files:
            set_cached(mount.main / name, "all")
        wait_until(lambda: mount.status()["warming"]["files_done"] == 8, 30)
    assert sent["GetObject"] == 16
    status = mount.status()
    assert status["cache"]["bytes"] <= 6 * MIB
    assert (status["warming"]["files_failed"], status["warming"]["missing_bytes"]) == (0, 0)
    for name, data in files.items():
        assert (mount.main / name).read_bytes() == data


# ----------------------------------------------------------- the command line


def test_the_commands_fill_and_empty_the_cache_of_a_model(mount: Mount) -> None:
    assert (mount.main / "w" / "small").read_bytes() == MODEL["w/small"]
    with mount.counting() as sent:
        result = mount.run("warm", "acme/llama")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "4 files, 5.0 MiB are here (5.0 MiB fetched)\n"
    assert sent["GetObject"] == 7
    with mount.counting() as sent:
        for path, data in MODEL.items():
            assert (mount.main / path).read_bytes() == data
        result = mount.run("warm", "--json", "main")  # a path, relative to the model's folder
    assert "GetObject" not in sent
    assert json.loads(result.stdout) == {
        "files": 4,
        "bytes": SIZE,
        "fetched_bytes": 0,
        "not_tried": 0,
        "errors": [],
    }
    wait_until(lambda: _evicts(mount.main / "config.json"))
    wait_until(lambda: mount.run("evict", "main").returncode == 0)
    assert mount.status()["cache"]["bytes"] == 0
    with mount.counting() as sent:
        assert (mount.main / "config.json").read_bytes() == b"{}"
    assert sent["GetObject"] == 1


def test_evict_says_what_it_freed_and_names_what_is_open(mount: Mount) -> None:
    assert mount.run("warm", "acme/llama").returncode == 0
    (mount.main / ".~lock").write_bytes(b"it stays on this node")
    with (mount.main / "config.json").open("rb"):
        result = mount.run("evict", "acme/llama")
    assert result.returncode == 1
    assert result.stderr.endswith("/main/config.json: it is open, or its bytes are just coming\n")
    assert result.stdout == "2 files, 5.0 MiB freed; 1 file kept that the registry lacks\n"


def test_a_model_larger_than_the_cache_is_refused_before_anything_is_fetched(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    put(moto_bucket, {f"f{number}": os.urandom(2 * MIB) for number in range(4)})
    mount = make_mount(moto_bucket, part_size=MIB, cache={"max_size": "6MiB"})
    with mount.counting() as sent:
        result = mount.run("warm", "acme/llama")
    assert result.returncode == 1
    assert result.stderr == (
        "modelfs: cannot warm 8.0 MiB: the cache of hub holds 6.0 MiB (max_size); "
        "name fewer files, or freeze the model\n"
    )
    assert "GetObject" not in sent
    assert mount.run("warm", "main/f0", "main/f1").returncode == 0


@pytest.fixture
def proxy(moto_bucket: S3Endpoint) -> Iterator[FaultyProxy]:
    with FaultyProxy(moto_bucket.endpoint) as proxy:
        yield proxy


def test_a_registry_that_is_away_is_told_by_file_and_warming_works_when_it_is_back(
    moto_bucket: S3Endpoint, make_mount: MakeMount, proxy: FaultyProxy
) -> None:
    put(moto_bucket, MODEL)
    mount = make_mount(moto_bucket, part_size=MIB, endpoint=proxy.endpoint)
    big = mount.main / "w" / "big"
    subprocess.run(["ls", "-lR", mount.main], capture_output=True, check=True, timeout=20)
    with proxy.faulty(Fault.UNAVAILABLE):
        result = mount.run("warm", "acme/llama")
        assert result.returncode == 1
        lines = result.stderr.splitlines()
        assert len(lines) == 3
        assert all("/acme/llama/main/" in line for line in lines)
        assert result.stdout.startswith("1 of 4 files, 0 B are here")
        assert find_xattr(big, "error")
    wait_until(lambda: bool(mount.status()["reachable"]))
    result = mount.run("warm", "acme/llama")
    assert (result.returncode, result.stderr) == (0, "")
    assert find_xattr(big, "error") is None
    assert big.read_bytes() == BIG


def test_a_version_is_waited_for_and_never_evicted(mount: Mount) -> None:
    version = mount.model / "v1"
    version.mkdir()
    result = mount.run("warm", "acme/llama@v1")
    assert result.returncode == 0, result.stderr
    assert result.stdout == "4 files, 5.0 MiB are here (0 B fetched)\n"
    assert xattr(version, "state") == "ready"
    assert mount.run("warm", "v1/w/small").stdout == "1 file, 2.9 KiB are here (0 B fetched)\n"
    result = mount.run("evict", "main", str(version))
    assert result.returncode == 1
    assert result.stderr == (
        "modelfs: acme/llama@v1 is a version, and no cache: modelfs rm deletes it\n"
    )


def test_a_read_only_mount_is_read_instead_of_warmed(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    put(moto_bucket, MODEL)
    mount = make_mount(moto_bucket, read_only=True)
    result = mount.run("warm", "acme/llama")
    assert result.returncode == 1
    assert "the mount is read-only: read the files instead (cat FILE" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_warm_goes_on_when_the_command_is_interrupted(
    moto_bucket: S3Endpoint, make_mount: MakeMount, proxy: FaultyProxy
) -> None:
    put(moto_bucket, MODEL)
    mount = make_mount(moto_bucket, part_size=MIB, endpoint=proxy.endpoint, timeout=30)
    big = mount.main / "w" / "big"
    with proxy.faulty(Fault.HOLD, lambda head: b"range:" in head.lower()):
        command = subprocess.Popen(
            [sys.executable, "-m", "modelfs", "warm", str(big)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        wait_until(lambda: find_xattr(big, "warming") == "under way", 30)
        with refused(errno.EBUSY):
            set_cached(big, "none")
        wait_until(lambda: proxy.faults > 0)
        command.send_signal(signal.SIGINT)
        _, err = command.communicate(timeout=30)
    assert command.returncode == 130
    assert b"the daemon goes on with 1 file, and begins no others" in err
    wait_until(lambda: xattr(big, "cached") == f"{len(BIG)}/{len(BIG)}", 30)
