"""How many requests the daemon sends for what users do: counted at the client."""

import os
import random
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.attempts import READ, Attempt, attempt
from tests.endpoints import S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mounting import Mount

pytestmark = [pytest.mark.mount, pytest.mark.ceph]

MIB = 1 << 20
FILES = 2_500
FOLDERS = 10


@pytest.fixture
def mount(ceph_bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    """A mount that believes its listings for a minute; parts of 8 MiB."""
    ceph_bucket.put("models/acme/llama/", b"")
    return make_mount(ceph_bucket, metadata_ttl=60)


def put_and_list(mount: Mount, name: str, data: bytes) -> None:
    mount.bucket.put(mount.key(name), data)
    assert name in os.listdir(mount.main)


@pytest.mark.timeout(120, func_only=True)
def test_ls_of_2500_files_in_folders_is_three_lists(mount: Mount) -> None:
    with ThreadPoolExecutor(16) as pool:
        names = [f"folder-{n % FOLDERS}/deep/file-{n}" for n in range(FILES)]
        list(pool.map(lambda name: mount.bucket.put(mount.key(name), b"12345"), names))
    os.listdir(mount.path / "acme")
    with mount.counting() as sent:
        done = subprocess.run(
            ["ls", "-lR", mount.main], capture_output=True, text=True, timeout=60, check=True
        )
    assert done.stdout.count("file-") == FILES
    assert sent == {"ListObjectsV2": 3}
    with mount.counting() as sent:
        subprocess.run(["ls", "-lR", mount.main], capture_output=True, timeout=60, check=True)
    assert sent == {}


def test_stats_of_absent_names_are_no_request(mount: Mount) -> None:
    put_and_list(mount, "a", b"x")
    with mount.counting() as sent:
        for number in range(20):
            assert not (mount.main / f"absent-{number}").exists()
    assert sent == {}


def test_reading_a_cached_file_again_is_no_request(mount: Mount) -> None:
    put_and_list(mount, "a", os.urandom(9 * MIB))
    first = attempt(READ, mount.main / "a").answer
    with mount.counting() as sent:
        assert attempt(READ, mount.main / "a").answer == first
    assert sent == {}


def test_own_changes_cause_no_list_and_reading_them_no_get(mount: Mount) -> None:
    put_and_list(mount, "a", b"x")
    with mount.counting() as sent:
        (mount.main / "new").write_bytes(b"new")
        (mount.main / "a").write_bytes(b"replaced")
        (mount.main / "folder").mkdir()
        (mount.main / "folder" / "inner").write_bytes(b"inner")
        (mount.main / "new").rename(mount.main / "renamed")
        (mount.main / "folder" / "inner").unlink()
        (mount.main / "folder").rmdir()
        assert sorted(os.listdir(mount.main)) == ["a", "renamed"]
        assert (mount.main / "a").read_bytes() == b"replaced"
        assert (mount.main / "renamed").read_bytes() == b"new"
    assert "ListObjectsV2" not in sent
    assert "GetObject" not in sent


def test_a_file_written_is_one_put_and_one_look(mount: Mount) -> None:
    put_and_list(mount, "a", b"x")
    with mount.counting() as sent:
        (mount.main / "new").write_bytes(os.urandom(MIB))
    assert sent == {"HeadObject": 1, "PutObject": 1}  # what others did is looked for


def test_a_cold_read_of_20_mib_is_three_gets_at_most(mount: Mount) -> None:
    put_and_list(mount, "a", os.urandom(20 * MIB))
    with mount.counting() as sent:
        attempt(READ, mount.main / "a")
    assert set(sent) == {"GetObject"}
    assert sent["GetObject"] <= 3


def test_small_files_that_are_read_in_order_are_one_get_each(mount: Mount) -> None:
    names = [f"folder/f{number:03d}" for number in range(60)]
    for name in names:
        mount.bucket.put(mount.key(name), name.encode())
    os.listdir(mount.main / "folder")
    with mount.counting() as sent:
        for name in names:
            assert (mount.main / name).read_bytes() == name.encode()
    assert sent == {"GetObject": len(names)}


def test_two_readers_at_once_cause_one_download(mount: Mount) -> None:
    put_and_list(mount, "a", os.urandom(20 * MIB))
    with mount.counting() as sent:
        readers = [Attempt(READ, mount.main / "a") for _ in range(2)]
        answers = {reader.outcome().answer for reader in readers}
    assert len(answers) == 1
    assert set(sent) == {"GetObject"}
    assert sent["GetObject"] <= 3


def test_the_last_byte_of_a_cold_file_is_one_part(mount: Mount) -> None:
    put_and_list(mount, "a", bytes(64 * MIB - 1) + b"!")
    with mount.counting() as sent:
        code = "answer = os.pread(os.open(paths[0], os.O_RDONLY), 9, (64 << 20) - 1).decode()"
        assert attempt(code, mount.main / "a").answer == "!"
    assert sent == {"GetObject": 1}


def test_a_random_reader_is_not_read_ahead(ceph_bucket: S3Endpoint, make_mount: MakeMount) -> None:
    mount = make_mount(ceph_bucket, metadata_ttl=60, part_size=MIB)
    put_and_list(mount, "a", os.urandom(64 * MIB))
    parts = random.sample(range(1, 63, 3), 10)
    with mount.counting() as sent, (mount.main / "a").open("rb", buffering=0) as file:
        for part in parts:
            assert len(os.pread(file.fileno(), 4096, part * MIB + 300_000)) == 4096
    assert sent == {"GetObject": len(parts)}


def test_versions_and_control_files_are_no_request(mount: Mount) -> None:
    put_and_list(mount, "a", os.urandom(MIB))
    version = mount.freeze("v1")
    with mount.counting() as sent:
        subprocess.run(["ls", "-lR", version], capture_output=True, timeout=60, check=True)
        (version / "a").read_bytes()
        (mount.model / ".modelfs" / "versions" / "v1.json").read_bytes()
        assert not (version / "absent").exists()
        os.statvfs(version)
    assert sent == {}
