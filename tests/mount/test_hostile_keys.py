"""Keys that could not be files below main/: hidden, named, and never joined into a path."""

import errno
import os
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.mount.twins import fails_with
from tests.mounting import METADATA_TTL_S, Mount, wait_until

pytestmark = pytest.mark.mount

PREFIX = "models/acme/llama/"

# What follows the model's prefix, as it stands in the request.
HOSTILE = (
    "../../../../escaped",
    "./here",
    "folder/..",
    "a//b",
    "/b",
    "l" * 300,
)
GOOD = {"config.json": b"{}", "folder/weights.bin": b"weights", "control\x01\x7f": b"\x01"}


def hidden(mount: Mount) -> dict[str, str]:
    return {item["key"]: item["reason"] for item in mount.status()["hidden_keys"]}


def names(folder: Path) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(place, name), folder)
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
    )


def put_good(bucket: S3Endpoint) -> None:
    for path, data in GOOD.items():
        bucket.put(PREFIX + path, data)


def test_hostile_keys_are_hidden_and_named_and_refuse_a_freeze(mount: Mount) -> None:
    outside = set(os.listdir(mount.store.parent))
    put_good(mount.bucket)
    taken = 0
    for quoted in HOSTILE:  # each is seen by itself: one alone refuses a freeze
        before = len(listed(mount))
        mount.bucket.put_raw(PREFIX + quoted)
        if len(listed(mount)) == before:
            continue  # this server does not take such a key
        taken += 1
        wait_until(lambda: bool(names(mount.main)) and len(hidden(mount)) == taken)  # noqa: B023
        with fails_with(errno.EINVAL):
            (mount.model / "v1").mkdir()
    assert taken >= 5
    assert {reason.partition(" of ")[0] for reason in hidden(mount).values()} >= {
        *("a component '..'", "a component '.'", "an empty component", "a component")
    }
    assert names(mount.main) == ["config.json", "control\x01\x7f", "folder", "folder/weights.bin"]
    for path, data in GOOD.items():
        assert (mount.main / path).read_bytes() == data
    assert not any("escaped" in name for _, _, found in os.walk(mount.store) for name in found)
    assert set(os.listdir(mount.store.parent)) == outside
    (mount.main / "new").write_text("main/ can be changed all the same")
    os.rename(mount.main / "config.json", mount.main / "folder" / "config.json")
    assert mount.status()["counters"]["bugs"] == 0


def listed(mount: Mount) -> list[dict[str, str]]:
    answer = mount.bucket.client.list_objects_v2(Bucket=mount.bucket.bucket)
    found: list[dict[str, str]] = answer.get("Contents", [])
    return found


def test_of_a_key_that_is_a_file_and_a_folder_the_folder_is_shown(mount: Mount) -> None:
    bucket = mount.bucket
    put_good(bucket)
    bucket.put(f"{PREFIX}both", b"the file")
    bucket.put(f"{PREFIX}both/inside", b"inside")
    bucket.put(f"{PREFIX}folder/weights.bin/deeper", b"deeper")
    wait_until(lambda: len(names(mount.main)) == 7 and len(hidden(mount)) == 2)
    assert (mount.main / "both").is_dir()
    assert (mount.main / "both" / "inside").read_bytes() == b"inside"
    assert (mount.main / "folder" / "weights.bin" / "deeper").read_bytes() == b"deeper"
    assert hidden(mount) == {
        f"{PREFIX}both": "both a file and a folder",
        f"{PREFIX}folder/weights.bin": "both a file and a folder",
    }
    with fails_with(errno.EINVAL):
        (mount.model / "v1").mkdir()
    bucket.client.delete_object(Bucket=bucket.bucket, Key=f"{PREFIX}both")
    bucket.client.delete_object(Bucket=bucket.bucket, Key=f"{PREFIX}folder/weights.bin")
    wait_until(lambda: bool(names(mount.main)) and not hidden(mount))
    version = mount.freeze("v1")
    assert (version / "both" / "inside").read_bytes() == b"inside"


def test_the_hidden_file_of_a_pair_is_seen_when_the_folder_is_gone(moto_mount: Mount) -> None:
    bucket = moto_mount.bucket
    bucket.put(f"{PREFIX}both", b"the file")
    bucket.put(f"{PREFIX}both/inside", b"inside")
    wait_until(lambda: (moto_mount.main / "both").is_dir())
    (moto_mount.main / "both" / "inside").unlink()
    (moto_mount.main / "both").rmdir()
    wait_until(lambda: (moto_mount.main / "both").is_file(), 10 * METADATA_TTL_S)
    assert (moto_mount.main / "both").read_bytes() == b"the file"


def test_namespaces_and_models_with_hostile_names_are_not_shown(mount: Mount) -> None:
    for key in ("models/.hidden/m/f", "models/acme/-m/f", "models/acme/a b/f", "models//m/f"):
        mount.bucket.put(key)
    mount.bucket.put_raw("models/../escaped/f")
    wait_until(lambda: os.listdir(mount.path) == ["acme"])
    assert os.listdir(mount.path / "acme") == ["llama"]
    with fails_with(errno.ENOENT):
        os.stat(mount.path / "acme" / "a b")


def test_names_that_no_key_can_have_are_refused(moto_mount: Mount) -> None:
    main = os.fsencode(moto_mount.main)
    with fails_with(errno.EINVAL):
        os.close(os.open(main + b"/bad\xff", os.O_CREAT | os.O_WRONLY))
    with fails_with(errno.EINVAL):
        os.mkdir(main + b"/bad\xff")
    (moto_mount.main / "f").write_text("x")
    with fails_with(errno.EINVAL):
        os.rename(main + b"/f", main + b"/bad\xff")
    with fails_with(errno.ENOENT):
        os.stat(main + b"/bad\xff")
    for name in ("x" * 256, "ü" * 128):
        with fails_with(errno.ENAMETOOLONG):
            (moto_mount.main / name).mkdir()
    deep = moto_mount.main.joinpath(*["d" * 200] * 4)
    deep.mkdir(parents=True)
    with fails_with(errno.ENAMETOOLONG):
        (deep / ("f" * 250)).write_text("a key has 1,024 bytes at most")
    with fails_with(errno.ENAMETOOLONG):
        os.rename(moto_mount.main / "f", deep / ("f" * 250))
    assert (moto_mount.main / "f").read_text() == "x"
    assert moto_mount.status()["counters"]["bugs"] == 0
