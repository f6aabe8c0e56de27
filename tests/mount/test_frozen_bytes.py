"""What is frozen is what the registry has: objects in parts, many files, odd names; real mounts."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.endpoints import S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy, is_data
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, check_sums, xattr

pytestmark = pytest.mark.mount

MIB = 1 << 20
BIG = os.urandom(17 * MIB + 3)
PARTS = {"parts of 8 MiB": 8 * MIB, "parts of 5 MiB": 5 * MIB, "odd parts": 6 * MIB + 4321}
MANY = 5_000
PUTS_AT_ONCE = 8  # the client keeps no more connections than ten

# Names that a copy of a model must not change, nor stumble over.
ODD_FILES = {
    "empty": b"",
    "deep/er/and/er/empty": b"",
    "two words": b"1",
    "  blanks  ": b"2",
    "a..b": b"3",
    "..a": b"4",
    "a..": b"5",
    "...": b"6",
    "dots..inside/x..y": b"7",
    "日本語/モデル é.bin": b"8",
    "e\u0301": b"decomposed",
    "\u00e9": b"composed",
    "n" * 250: b"9",
    "é" * 125: b"10",
    ("d" * 250) + "/" + ("f" * 250): b"11",
    "back\\slash": b"12",
    "-dash": b"13",
    "*?[x]": b"14",
    "quote'\"": b"15",
    "percent%41+plus": b"16",
    "#hash;semi&amp=": b"17",
    "\ttab": b"18",
    "return\rkey": b"19",
    "\x01\x1f": b"20",
    ".hidden": b"21",
    "CON": b"22",
}


def manifest_of(mount: Mount, version: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (mount.model / ".modelfs" / "versions" / f"{version}.json").read_bytes()
    )
    return found


def once() -> Callable[[bytes], bool]:
    """Choose the first request for a part of an object."""
    left = iter([True])
    return lambda head: is_data(head) and next(left, False)


def test_objects_in_parts_are_compared_with_their_etags(mount: Mount) -> None:
    for path, part in PARTS.items():
        mount.bucket.put_in_parts(mount.key(path), BIG, part)
    mount.bucket.put(mount.key("single"), BIG)
    version = mount.freeze("v1", 50)
    for path in (*PARTS, "single"):
        assert (version / path).read_bytes() == BIG
    assert {f["path"]: f["confirmed"] for f in manifest_of(mount, "v1")["files"]} == {
        "parts of 8 MiB": "multipart",
        "parts of 5 MiB": "multipart",
        "odd parts": None,
        "single": "md5",
    }
    assert xattr(version / "single", "confirmed") == "md5"
    assert xattr(mount.store / "models/acme/llama/v1/single", "confirmed") == "md5"
    fetched = mount.status()["counters"]["fetched_parts"]
    assert fetched == 3 * 5  # the odd parts came twice, to be compared
    assert "ERROR" not in mount.log()
    with mount.counting() as sent:
        mount.freeze("v2")
    assert "GetObject" not in sent
    assert [f["confirmed"] for f in manifest_of(mount, "v2")["files"]] == [
        f["confirmed"] for f in manifest_of(mount, "v1")["files"]
    ]
    assert mount.stop() == 0


@pytest.mark.parametrize("path", [*PARTS, "single"])
def test_bytes_that_change_on_their_way_are_fetched_again(
    bucket: S3Endpoint, make_mount: MakeMount, path: str
) -> None:
    key = f"models/acme/llama/{path}"
    if path in PARTS:
        bucket.put_in_parts(key, BIG, PARTS[path])
    else:
        bucket.put(key, BIG)
    with FaultyProxy(bucket.endpoint) as proxy:
        mount = make_mount(bucket, endpoint=proxy.endpoint)
        with proxy.faulty(Fault.WRONG, once()):
            version = mount.freeze("v1", 50)
        assert proxy.faults == 1
        assert (version / path).read_bytes() == BIG
        (found,) = manifest_of(mount, "v1")["files"]
        assert found["sha256"] == hashlib.sha256(BIG).hexdigest()
        expected = {"single": "md5", "odd parts": None}.get(path, "multipart")
        assert found["confirmed"] == expected
        assert mount.stop() == 0


@pytest.mark.timeout(300, func_only=True)
def test_5000_files_and_odd_names_are_frozen_faithfully(mount: Mount) -> None:
    files = {f"folder {n % 70:02d}/file {n:04d}.bin": os.urandom(n % 97) for n in range(MANY)}
    odd = {path: data for path, data in ODD_FILES.items() if is_storable(mount.bucket, path)}
    files = dict(list(files.items())[len(odd) :]) | odd
    assert len(files) == MANY
    put_all(mount, files)

    with mount.counting() as sent:
        version = mount.freeze("v1", 200)
    assert sent["GetObject"] == sum(1 for data in files.values() if data)
    assert {entry["path"] for entry in manifest_of(mount, "v1")["files"]} == set(files)
    assert {entry["confirmed"] for entry in manifest_of(mount, "v1")["files"]} == {"md5"}
    for folder in (version, mount.store / "models/acme/llama/v1"):
        assert content(folder) == files
        assert count_by_find(folder) == MANY
    said = check_sums(mount.model / "v1")
    assert len(said) == MANY
    assert all(line.endswith(b": OK") for line in said)

    with mount.counting() as sent:
        again = mount.freeze("v2", 100)
    assert set(sent) == {"ListObjectsV2", "GetBucketVersioning"}
    assert xattr(again, "digest") == xattr(version, "digest")
    plain = mount.store / "models/acme/llama"
    assert all((plain / "v1" / p).samefile(plain / "v2" / p) for p in files)
    assert content(again) == files
    assert mount.stop() == 0


def is_storable(bucket: S3Endpoint, path: str) -> bool:
    """Tell whether the registry itself takes a name: moto's routes do not know all."""
    return bucket.kind != "moto" or "\r" not in path


def put_all(mount: Mount, files: dict[str, bytes]) -> None:
    """Put files straight into the bucket, as another tool does."""
    with ThreadPoolExecutor(PUTS_AT_ONCE) as pool:
        list(pool.map(lambda path: mount.bucket.put(mount.key(path), files[path]), files))


def content(folder: Path) -> dict[str, bytes]:
    """Return path -> bytes of all that is in a folder and is no folder."""
    found = {}
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def count_by_find(folder: Path) -> int:
    """Count the files of a folder as a user does; a byte a name, which may have any."""
    done = subprocess.run(
        ["find", str(folder), "-type", "f", "-printf", "."], capture_output=True, check=True
    )
    return len(done.stdout)
