"""Deep folders and long names of main/, up to what a key may have."""

import errno
import os
from pathlib import Path

import pytest

from modelfs.names import KEY_MAX_BYTES
from tests.mount import twins as fixtures
from tests.mount.twins import Twins, check_bucket, fails_with
from tests.mounting import Mount

pytestmark = pytest.mark.mount

moto_shared, ceph_shared = fixtures.moto_shared, fixtures.ceph_shared
twins, everywhere = fixtures.twins, fixtures.everywhere


def path_of(mount: Mount, key_bytes: int, name: str = "x") -> Path:
    """Return a path in folders of 99 bytes whose key has that many bytes."""
    left = key_bytes - len(mount.key("").encode())
    folders, rest = divmod(left - 1, 100)
    return mount.main.joinpath(*["d" * 99] * folders, name * (rest + 1))


def test_a_tree_is_as_deep_as_a_key_can_be_and_no_deeper(everywhere: Twins) -> None:
    mount = everywhere.mount
    longest = path_of(mount, KEY_MAX_BYTES)
    longest.parent.mkdir(parents=True)
    longest.write_bytes(b"deep")
    assert mount.objects()[str(longest.relative_to(mount.main))] == b"deep"
    longer = longest.with_name(longest.name + "x")
    for change in (
        lambda: longer.write_bytes(b"deeper"),
        lambda: longer.mkdir(),
        lambda: longest.with_name(longest.name[:-1] + "y").mkdir(),  # its marker has a slash more
        lambda: os.rename(longest, longer),
    ):
        with fails_with(errno.ENAMETOOLONG):
            change()
    assert not longer.exists()
    assert [len(names) for _, _, names in os.walk(mount.main)][-1] == 1
    assert longest.read_bytes() == b"deep"
    with longest.open("ab") as file, fails_with(errno.ENAMETOOLONG):  # while it is not uploaded
        file.write(b"er")
        os.rename(longest, longer)
    assert longest.read_bytes() == b"deeper"
    check_bucket(mount)


def test_a_folder_whose_files_would_get_too_long_keys_stays_what_it_was(everywhere: Twins) -> None:
    mount = everywhere.mount
    top = mount.main / ("d" * 99)
    longest = path_of(mount, KEY_MAX_BYTES)
    longest.parent.mkdir(parents=True)
    (top / "short").write_bytes(b"short")
    with longest.open("wb", buffering=0) as file:
        file.write(b"not uploaded ")
        with fails_with(errno.ENAMETOOLONG):
            os.rename(top, mount.main / ("e" * 100))
        file.write(b"yet")
    with fails_with(errno.ENAMETOOLONG):
        os.rename(top, mount.main / ("e" * 100))
    assert os.listdir(mount.main) == [top.name]
    assert longest.read_bytes() == b"not uploaded yet"
    assert not [path for path in mount.objects() if path.startswith("e")]
    os.rename(top, mount.main / "f")
    assert (mount.main / "f" / "short").read_bytes() == b"short"
    check_bucket(mount)
