"""kill -9 and SIGTERM, at all moments: nothing that was promised is lost, nothing is invented."""

import contextlib
import errno
import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.attempts import Attempt, attempt
from tests.endpoints import S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy, is_data
from tests.mount.conftest import MakeMount
from tests.mounting import SCALE, Mount, wait_until, xattr

pytestmark = pytest.mark.mount

MIB = 1 << 20
KILLS = 15
DRAIN_S = 2.0

READ_FOR_EVER = """
while True:
    for path in paths:
        path.read_bytes()
"""

CLOSE_ONE_FSYNC_THE_OTHER = """
import threading
first = os.open(paths[0], os.O_WRONLY | os.O_CREAT)
second = os.open(paths[0], os.O_WRONLY)
os.write(first, bytes(17 << 20))
threading.Thread(target=os.close, args=[os.dup(first)], daemon=True).start()
while not paths[1].exists():
    time.sleep(0.01)
os.pwrite(second, b"newer", 0)
os.fsync(second)
paths[2].touch()
time.sleep(60)
"""

# Says `begin NAME SHA` before what may be seen of NAME changes, and `done NAME SHA` when close(),
# fsync() or rename() has said yes. What is appended after an fsync() is written by one write().
WRITER = """
import hashlib, os, random, sys
main, log, seed = sys.argv[1], open(sys.argv[2], "a"), random.Random(int(sys.argv[3]))

def say(verb, name, data):
    print(verb, name, hashlib.sha256(data).hexdigest(), file=log, flush=True)

def put(name, data, flags=os.O_TRUNC):
    fd = os.open(f"{main}/{name}", os.O_WRONLY | os.O_CREAT | flags)
    at = 0
    while at < len(data):
        at += os.write(fd, data[at : at + (1 << 20)])
    return fd

while True:
    name, how = f"f{seed.randrange(6)}", seed.randrange(8)
    size = seed.choice([17, 30]) << 20 if how == 0 else seed.randrange(200_000)
    data, more = seed.randbytes(size), seed.randbytes(seed.randrange(4000))
    if how < 4:
        say("begin", name, data)
        os.close(put(name, data))
        say("done", name, data)
    elif how < 6:
        say("begin", name, data)
        fd = put(name, data)
        os.fsync(fd)
        say("done", name, data)
        say("begin", name, data + more)
        os.write(fd, more)
        os.close(fd)
        say("done", name, data + more)
    else:
        say("begin", f"{name}.new", data)
        os.close(put(f"{name}.new", data))
        say("done", f"{name}.new", data)
        say("begin", name, data)
        say("move", f"{name}.new", data)
        os.rename(f"{main}/{name}.new", f"{main}/{name}")
        say("done", name, data)
        say("gone", f"{name}.new", data)
"""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tree_of(folder: Path) -> dict[str, str]:
    """Return path -> SHA-256 of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): sha256(path.read_bytes()) for path in files}


def sidecars(mount: Mount) -> dict[str, object]:
    """Return key -> parts of what the cache would know after a crash now."""
    found = {}
    for path in mount.store.glob("cache/*/??/*.json"):
        content = json.loads(path.read_bytes())
        found[content["key"]] = content["parts"]
    return found


def uploads(mount: Mount) -> list[tuple[str, str]]:
    return [(u["path"], u["state"]) for u in mount.status()["uploads"]]


def restart(mount: Mount) -> None:
    """Kill -9, then mount again over the dead mount."""
    mount.kill()
    mount.start()


@pytest.fixture
def proxy(moto_bucket: S3Endpoint) -> Iterator[FaultyProxy]:
    with FaultyProxy(moto_bucket.endpoint) as proxy:
        yield proxy


@pytest.fixture
def cut_mount(moto_bucket: S3Endpoint, make_mount: MakeMount, proxy: FaultyProxy) -> Mount:
    """A mount whose registry can be made to fail; the empty model acme/llama."""
    mount = make_mount(moto_bucket, endpoint=proxy.endpoint, timeout=15)
    mount.model.mkdir(parents=True)
    os.listdir(mount.main)  # what is in it is known from now on, the registry up or down
    return mount


def write_in_vain(path: Path, data: bytes) -> None:
    """Write a file whose close() fails."""
    data_file = path.parents[3].parent / "data"
    data_file.write_bytes(data)
    code = "paths[0].write_bytes(paths[1].read_bytes())"
    assert attempt(code, path, data_file).errno == 5
    mount = path.parents[3]
    status = json.loads((mount / ".modelfs" / "status.json").read_bytes())
    assert [u["bytes"] for u in status["uploads"]] == [len(data)], "it was not close() that failed"


# ------------------------------------------------------------------- reading


def test_versions_and_main_are_identical_after_a_kill_while_they_are_read(mount: Mount) -> None:
    content = {"a": os.urandom(9 * MIB), "deep/er/b": os.urandom(MIB), "empty": b""}
    for name, data in content.items():
        mount.bucket.put(mount.key(name), data)
    version = mount.freeze("v1")
    expected = {name: sha256(data) for name, data in content.items()}
    for round_number in range(3):
        paths = [folder / name for folder in (version, mount.main) for name in content]
        readers = [Attempt(READ_FOR_EVER, *paths) for _ in range(2)]
        wait_until(lambda: mount.status()["cache"]["files"] > 0)
        time.sleep(random.uniform(0, 0.2))  # a kill comes at any moment
        restart(mount)
        for reader in readers:
            assert reader.outcome().errno in (103, 107, 5, 2), round_number  # ENOTCONN and such
        assert tree_of(version) == expected
        assert xattr(version, "state") == "ready"
    assert os.readlink(mount.model / "latest") == "v1"
    assert tree_of(mount.main) == expected


def test_a_file_that_is_whole_in_the_cache_is_read_after_a_kill_without_a_request(
    mount: Mount,
) -> None:
    data = os.urandom(9 * MIB)
    mount.bucket.put(mount.key("a"), data)
    (mount.main / "b").write_bytes(data)  # what was written is in the cache as well
    assert (mount.main / "a").read_bytes() == data
    wait_until(lambda: sidecars(mount) == {mount.key("a"): "all", mount.key("b"): "all"})
    restart(mount)
    os.listdir(mount.main)
    with mount.counting() as sent:
        assert (mount.main / "a").read_bytes() == data
        assert (mount.main / "b").read_bytes() == data
    assert sent.keys() <= {"ListObjectsV2"}


def test_parts_in_the_cache_are_used_after_a_kill_and_the_others_are_fetched(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(moto_bucket, part_size=MIB)
    data = os.urandom(4 * MIB + 1)
    moto_bucket.put(mount.key("a"), data)
    assert attempt("answer = os.pread(os.open(paths[0], 0), 9, 0).hex()", mount.main / "a")
    wait_until(lambda: bool(sidecars(mount).get(mount.key("a"))))
    known = sidecars(mount)[mount.key("a")]
    assert isinstance(known, list)
    restart(mount)
    assert (mount.main / "a").read_bytes() == data
    assert mount.status()["counters"]["fetched_parts"] == 5 - len(known)


def test_parts_that_were_evicted_just_before_a_kill_are_not_believed(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(moto_bucket, part_size=MIB, cache={"max_size": "8MiB"})
    data = os.urandom(24 * MIB)
    moto_bucket.put(mount.key("a"), data)
    fd = os.open(mount.main / "a", os.O_RDONLY)
    assert os.pread(fd, MIB, 0) == data[:MIB]
    wait_until(lambda: 0 in parts_known(mount))
    for offset in range(0, 24 * MIB, MIB):
        assert os.pread(fd, MIB, offset) == data[offset : offset + MIB]
    mount.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    mount.start()
    assert (mount.main / "a").read_bytes() == data


def parts_known(mount: Mount) -> list[int]:
    parts = sidecars(mount).get(mount.key("a"), [])
    return parts if isinstance(parts, list) else []


def test_wrong_bytes_that_were_thrown_away_do_not_come_back_after_a_kill(
    cut_mount: Mount, proxy: FaultyProxy
) -> None:
    data = os.urandom(3 * MIB)
    cut_mount.bucket.put(cut_mount.key("a"), data)
    wait_until((cut_mount.main / "a").exists)
    with proxy.faulty(Fault.WRONG, is_data):
        attempt("paths[0].read_bytes()", cut_mount.main / "a")
    # Twice where the reader was not done yet when the first ones were thrown away.
    wait_until(lambda: cut_mount.status()["cache"]["wrong_files"] >= 1)
    wait_until(lambda: sidecars(cut_mount).get(cut_mount.key("a")) == [])
    restart(cut_mount)
    assert (cut_mount.main / "a").read_bytes() == data


# ------------------------------------------------------------------- freezes


@pytest.mark.parametrize("seed", range(2))
def test_a_freeze_that_was_killed_again_and_again_becomes_ready(
    cut_mount: Mount, proxy: FaultyProxy, seed: int
) -> None:
    content = {f"w/{n}": random.Random(seed + n).randbytes(MIB) for n in range(12)}
    for name, data in content.items():
        cut_mount.bucket.put(cut_mount.key(name), data)
    version = cut_mount.model / "v1"
    killed = 0
    with proxy.faulty(Fault.SLOW, is_data):
        version.mkdir()
        for done in (0, 3 * MIB, 7 * MIB):
            wait_until(lambda done=done: progress(version) > done, 20)  # type: ignore[misc]
            if xattr(version, "state") == "ready":  # this machine was slower than the proxy
                break
            restart(cut_mount)
            killed += 1
    assert killed
    wait_until(lambda: xattr(version, "state") == "ready", 20)
    assert tree_of(version) == {name: sha256(data) for name, data in content.items()}
    assert not list(cut_mount.store.glob("pending/*/*/v1"))
    wait_until(lambda: (cut_mount.model / "latest").is_symlink())
    checked = subprocess.run(
        ["sha256sum", "-c", "--quiet", cut_mount.model / ".modelfs" / "versions" / "v1.sha256"],
        cwd=version,
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked


def progress(version: Path) -> int:
    return int(xattr(version, "progress").partition("/")[0])


# ------------------------------------------------------------------- writing


@pytest.mark.parametrize("size", [5, 17 * MIB])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_file_that_was_closed_in_vain_reaches_the_registry_after_a_kill(
    cut_mount: Mount, proxy: FaultyProxy, size: int, replaces: bool
) -> None:
    if replaces:
        (cut_mount.main / "a").write_bytes(b"before")
    data = os.urandom(size)
    with proxy.faulty(Fault.RESET):
        write_in_vain(cut_mount.main / "a", data)
        assert uploads(cut_mount) == [("acme/llama/main/a", "waiting")]
        restart(cut_mount)
        assert uploads(cut_mount) == [("acme/llama/main/a", "waiting")]
    wait_until(lambda: uploads(cut_mount) == [])
    assert cut_mount.objects() == {"": b"", "a": data}
    assert (cut_mount.main / "a").read_bytes() == data
    assert cut_mount.status()["counters"]["conflicts"] == 0


@pytest.mark.parametrize("size", [5, 17 * MIB])
@pytest.mark.parametrize("replaces", [False, True])
def test_an_upload_whose_answer_was_lost_is_no_conflict_after_a_kill(
    cut_mount: Mount, proxy: FaultyProxy, size: int, replaces: bool
) -> None:
    if replaces:
        (cut_mount.main / "a").write_bytes(b"before")
    data = os.urandom(size)
    is_last = b"PUT /" if size < 16 * MIB else b"uploadId="
    with proxy.faulty(
        Fault.RESET_AFTER,
        lambda head: is_last in head and (size < 16 * MIB or head.startswith(b"POST")),
    ):
        write_in_vain(cut_mount.main / "a", data)
        cut_mount.kill()
    assert cut_mount.objects() == {"": b"", "a": data}
    cut_mount.start()
    wait_until(lambda: uploads(cut_mount) == [])
    assert cut_mount.objects() == {"": b"", "a": data}
    assert cut_mount.status()["counters"]["conflicts"] == 0


def test_a_file_that_was_fsynced_reaches_the_registry_after_a_kill(mount: Mount) -> None:
    data = os.urandom(3 * MIB)
    fd = os.open(mount.main / "a", os.O_WRONLY | os.O_CREAT)
    os.write(fd, data)
    os.fsync(fd)
    mount.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    mount.start()
    wait_until(lambda: uploads(mount) == [])
    assert mount.objects() == {"": b"", "a": data}


@pytest.mark.parametrize("flags", [0, os.O_TRUNC, os.O_APPEND])
def test_a_file_neither_closed_nor_fsynced_never_replaces_the_object(
    moto_mount: Mount, flags: int
) -> None:
    mount = moto_mount
    (mount.main / "a").write_bytes(b"good")
    fd = os.open(mount.main / "a", os.O_WRONLY | flags)
    os.write(fd, b"half")
    mount.kill()
    with contextlib.suppress(OSError):
        os.close(fd)
    for _ in range(2):  # a second restart changes nothing about it
        mount.start()
        assert uploads(mount) == [("acme/llama/main/a", "aside")]
        assert (mount.main / "a").read_bytes() == b"good"
        assert mount.objects() == {"": b"", "a": b"good"}
        kept = Path(mount.status()["uploads"][0]["error"].rpartition(" ")[2])
        assert kept.read_bytes() == (b"goodhalf" if flags == os.O_APPEND else b"half")
        mount.kill()


@pytest.mark.parametrize("flags", [0, os.O_TRUNC, os.O_APPEND])
def test_a_file_that_waits_is_what_it_was_when_a_kill_meets_it_written_anew(
    cut_mount: Mount, proxy: FaultyProxy, flags: int
) -> None:
    path = cut_mount.main / "a"
    path.write_bytes(b"before")
    with proxy.faulty(Fault.RESET):
        write_in_vain(path, b"promised")
        restart(cut_mount)
        fd = os.open(path, os.O_WRONLY | flags)
        os.write(fd, b"half")
        expected = {0: b"halfised", os.O_TRUNC: b"half", os.O_APPEND: b"promisedhalf"}[flags]
        assert path.read_bytes() == expected
        cut_mount.kill()
        with contextlib.suppress(OSError):
            os.close(fd)
        cut_mount.start()
    wait_until(lambda: [state for _, state in uploads(cut_mount)] == ["aside"])
    assert cut_mount.objects() == {"": b"", "a": b"promised"}
    assert path.read_bytes() == b"promised"
    assert cut_mount.status()["counters"]["conflicts"] == 0


def test_a_file_that_waits_stays_what_it_was_when_its_new_bytes_are_refused(
    moto_bucket: S3Endpoint, make_mount: MakeMount, proxy: FaultyProxy
) -> None:
    mount = make_mount(moto_bucket, endpoint=proxy.endpoint, timeout=15, staged_max="2MiB")
    mount.model.mkdir(parents=True)
    os.listdir(mount.main)
    path, promised = mount.main / "a", os.urandom(9000)
    with proxy.faulty(Fault.RESET):
        write_in_vain(path, promised)
        assert attempt("paths[0].write_bytes(bytes(3 << 20))", path).errno == errno.ENOSPC
        assert path.read_bytes() == promised, "the kernel's pages are not those of the failed write"
        assert uploads(mount) == [("acme/llama/main/a", "waiting")]
    wait_until(lambda: uploads(mount) == [])
    assert mount.objects() == {"": b"", "a": promised}
    assert path.read_bytes() == promised


def test_what_was_fsynced_while_an_upload_ran_is_not_lost_by_a_kill(
    cut_mount: Mount, proxy: FaultyProxy, tmp_path: Path
) -> None:
    """One descriptor is closed (uploading the first state), another writes and fsyncs."""
    go, synced = tmp_path / "go", tmp_path / "synced"
    with proxy.faulty(Fault.HOLD, lambda head: head.startswith(b"POST") and b"uploadId=" in head):
        writer = Attempt(CLOSE_ONE_FSYNC_THE_OTHER, cut_mount.main / "a", go, synced)
        wait_until(lambda: proxy.faults > 0)
        go.touch()
        wait_until(synced.exists)
    wait_until(lambda: sum(b"uploads" in head for head in proxy.heads) == 2)
    cut_mount.kill()
    writer.end()
    cut_mount.start()
    wait_until(lambda: uploads(cut_mount) == [])
    assert cut_mount.bucket.get(cut_mount.key("a")) == b"newer" + bytes(17 * MIB - 5)


def is_longer(path: Path, size: int) -> bool:
    return path.stat().st_size > size


def promised(log: Path) -> dict[str, set[str]]:
    """Return what a writer's log allows each name to hold: SHA-256s, or `absent`."""
    allowed: dict[str, set[str]] = {}
    for line in log.read_text().splitlines():
        verb, name, sha = line.split()
        if verb == "done":
            allowed[name] = {sha}
        elif verb == "gone":
            allowed[name] = {"absent"}
        else:  # begun and perhaps not closed: may be there, wholly, or not
            allowed.setdefault(name, {"absent"}).add("absent" if verb == "move" else sha)
    return allowed


@pytest.mark.timeout(180 * SCALE)
def test_what_close_and_fsync_said_yes_to_is_in_the_registry_whenever_the_daemon_is_killed(
    mount: Mount, tmp_path: Path
) -> None:
    log = tmp_path / "writer.log"
    log.touch()
    kills = SCALE * (KILLS if mount.bucket.kind == "ceph" else KILLS // 3)
    for seed in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(mount.main), str(log), str(seed)],
            stderr=subprocess.DEVNULL,
        )
        wait_until(partial(is_longer, log, log.stat().st_size))
        time.sleep(random.uniform(0, 0.8))  # a kill comes at any moment
        mount.kill()
        assert writer.wait(20) != 0
        mount.start()
    wait_until(lambda: not [u for u in uploads(mount) if u[1] != "aside"], 30)
    lines = log.read_text().splitlines()
    assert sum(line.startswith("done") for line in lines) > kills, "next to nothing was recorded"
    allowed, objects = promised(log), mount.objects()
    assert objects.keys() <= {"", *allowed}
    for name, shas in allowed.items():
        found = sha256(objects[name]) if name in objects else "absent"
        assert found in shas, f"{name} after {kills} kills\n{log.read_text()}"
        if name in objects:
            assert sha256((mount.main / name).read_bytes()) == found
    client, bucket = mount.bucket.client, mount.bucket.bucket
    if mount.bucket.kind == "ceph":  # moto says of all that they began in 2010
        assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")


# ----------------------------------------------------------------- conflicts


@pytest.mark.parametrize("is_killed", [True, False])
@pytest.mark.parametrize("base", [b"before", None])
def test_what_others_put_while_ours_waited_stays_and_ours_is_kept_beside_it(
    cut_mount: Mount, proxy: FaultyProxy, base: bytes | None, is_killed: bool
) -> None:
    path = cut_mount.main / "a.bin"
    if base is not None:
        path.write_bytes(base)
    with proxy.faulty(Fault.RESET):
        write_in_vain(path, b"ours")
        cut_mount.bucket.put(cut_mount.key("a.bin"), b"theirs")
        if is_killed:
            restart(cut_mount)
    wait_until(lambda: uploads(cut_mount) == [])
    found = cut_mount.objects()
    (conflict,) = found.keys() - {"", "a.bin"}
    assert conflict.startswith(f"a.bin.conflict-{os.uname().nodename}-2")
    assert found == {"": b"", "a.bin": b"theirs", conflict: b"ours"}
    wait_until(lambda: sorted(os.listdir(cut_mount.main)) == ["a.bin", conflict])
    assert path.read_bytes() == b"theirs"
    assert (cut_mount.main / conflict).read_bytes() == b"ours"
    assert cut_mount.status()["counters"]["conflicts"] == 1
    assert f"ours is kept as {conflict}" in cut_mount.log()


# ------------------------------------------------------------------- SIGTERM


def test_sigterm_uploads_what_waits_and_unmounts(cut_mount: Mount, proxy: FaultyProxy) -> None:
    with proxy.faulty(Fault.RESET):
        write_in_vain(cut_mount.main / "a", b"late")
        (cut_mount.path / ".modelfs" / "README").read_text()
    assert cut_mount.stop() == 0
    assert cut_mount.objects() == {"": b"", "a": b"late"}
    assert not os.path.ismount(cut_mount.path)
    assert not list(cut_mount.store.glob("staged/*/*"))


def test_sigterm_while_the_registry_is_down_ends_in_time_and_nothing_is_lost(
    moto_bucket: S3Endpoint, make_mount: MakeMount, proxy: FaultyProxy
) -> None:
    cut_mount = make_mount(moto_bucket, endpoint=proxy.endpoint, drain_timeout=DRAIN_S)
    cut_mount.model.mkdir(parents=True)
    os.listdir(cut_mount.main)
    with proxy.faulty(Fault.RESET):
        write_in_vain(cut_mount.main / "a", b"late")
        started = time.monotonic()
        assert cut_mount.stop() == 0
        assert time.monotonic() - started < DRAIN_S + 1.5
        assert not os.path.ismount(cut_mount.path)
        assert cut_mount.objects() == {"": b""}
    assert "acme/llama/main/a is not in the registry yet" in cut_mount.log()
    cut_mount.start()
    wait_until(lambda: uploads(cut_mount) == [])
    assert cut_mount.objects() == {"": b"", "a": b"late"}


def test_sigterm_ends_a_mount_that_is_being_read(mount: Mount) -> None:
    data = os.urandom(9 * MIB)
    mount.bucket.put(mount.key("a"), data)
    reader = Attempt(READ_FOR_EVER, mount.main / "a")
    wait_until(lambda: mount.status()["cache"]["files"] > 0)
    assert mount.stop() == 0
    assert reader.outcome().errno != 0
    assert not os.path.ismount(mount.path)
