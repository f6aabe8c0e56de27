"""Files of main/ that are unlinked or renamed while they are open. Steps run on both."""

import errno
import os
from pathlib import Path

import pytest

from tests.mount import twins as fixtures
from tests.mount.twins import Twins, fails_with
from tests.mounting import Mount

pytestmark = pytest.mark.mount

MIB = 1 << 20

moto_shared, ceph_shared = fixtures.moto_shared, fixtures.ceph_shared
twins, everywhere = fixtures.twins, fixtures.everywhere


def test_a_file_unlinked_while_open_is_written_and_read_on(everywhere: Twins) -> None:
    def step(folder: Path) -> object:
        with (folder / "new").open("w+b", buffering=0) as file:
            file.write(b"before")
            os.unlink(folder / "new")
            file.write(b" and after")
            seen: list[object] = [os.fstat(file.fileno()).st_nlink, os.listdir(folder)]
            file.seek(0)
            seen.append(file.read())
        (folder / "old").write_bytes(b"x" * 3000)
        with (folder / "old").open("rb") as file:
            os.unlink(folder / "old")
            seen.append(file.read())
        return seen, os.listdir(folder)

    everywhere.same(step)


def test_a_name_can_be_made_anew_while_the_old_file_is_open(twins: Twins) -> None:
    def step(folder: Path) -> object:
        path = folder / "f"
        old = path.open("w+b", buffering=0)
        old.write(b"old")
        path.unlink()
        path.write_bytes(b"new")
        old.write(b" goes on")
        old.seek(0)
        seen = [old.read(), path.read_bytes()]
        old.close()
        return seen, path.read_bytes()

    twins.same(step)


def test_a_clean_file_that_is_open_to_write_is_written_on_after_its_name_went(
    twins: Twins,
) -> None:
    def step(folder: Path) -> object:
        path = folder / "f"
        path.write_bytes(b"0123456789")
        with path.open("r+b", buffering=0) as file:
            path.unlink()
            file.write(b"abc")
            file.seek(0)
            return file.read()

    twins.same(step)


def test_a_file_renamed_while_it_is_written_arrives_under_its_new_name(everywhere: Twins) -> None:
    def step(folder: Path) -> object:
        (folder / "d").mkdir()
        (folder / "d" / "there").write_bytes(b"is replaced")
        with (folder / "part").open("w+b", buffering=0) as file:
            file.write(b"one ")
            os.rename(folder / "part", folder / "d" / "there")
            file.write(b"two")
            seen = sorted(os.listdir(folder))
            file.seek(0)
            seen.append(str(file.read()))
        return seen, (folder / "d" / "there").read_bytes()

    everywhere.same(step)


def test_a_file_renamed_while_it_is_read_is_read_on(everywhere: Twins) -> None:
    def step(folder: Path) -> object:
        path = folder / "f"
        path.write_bytes(b"x" * 100 + b"tail")
        with path.open("rb", buffering=0) as file:
            os.rename(path, folder / "g")
            return file.read()

    everywhere.same(step)


def test_a_file_that_is_not_cached_is_read_on_after_it_was_renamed(mount: Mount) -> None:
    content = os.urandom(20 * MIB)
    for name in ("a", "d/b"):
        mount.bucket.put(mount.key(name), content)
    with (mount.main / "a").open("rb", buffering=0) as file:
        os.rename(mount.main / "a", mount.main / "c")
        assert os.pread(file.fileno(), 100, 19 * MIB) == content[19 * MIB : 19 * MIB + 100]
    with (mount.main / "d" / "b").open("rb", buffering=0) as file:
        os.rename(mount.main / "d", mount.main / "e")
        assert os.pread(file.fileno(), 100, 19 * MIB) == content[19 * MIB : 19 * MIB + 100]
    assert (mount.main / "c").read_bytes() == (mount.main / "e" / "b").read_bytes() == content


def test_a_folder_is_renamed_while_files_in_it_are_written_and_read(everywhere: Twins) -> None:
    def step(folder: Path) -> object:
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "old").write_bytes(b"old")
        (folder / "a" / "b" / "grows").write_bytes(b"begun ")
        reader = (folder / "a" / "b" / "old").open("rb", buffering=0)
        writer = (folder / "a" / "b" / "new").open("wb", buffering=0)
        appender = (folder / "a" / "b" / "grows").open("ab", buffering=0)
        writer.write(b"one ")
        appender.write(b"one ")
        os.rename(folder / "a", folder / "c")
        writer.write(b"two")
        appender.write(b"two")
        seen = [reader.read()]
        for file in (reader, writer, appender):
            file.close()
        moved = folder / "c" / "b"
        return seen, {p.name: p.read_bytes() for p in sorted(moved.iterdir())}

    everywhere.same(step)


def test_a_file_replaced_by_rename_is_read_on_by_who_has_it_open(twins: Twins) -> None:
    def step(folder: Path) -> object:
        (folder / "f").write_bytes(b"old")
        (folder / "n").write_bytes(b"new")
        with (folder / "f").open("rb", buffering=0) as file:
            os.replace(folder / "n", folder / "f")
            return file.read(), (folder / "f").read_bytes()

    twins.same(step)


def test_a_removed_file_that_was_open_to_read_alone_is_not_opened_to_write(twins: Twins) -> None:
    """A disk does that by /proc; here there is no name any more that its bytes could go to."""
    path = twins.mount.main / "f"
    path.write_bytes(b"bytes")
    with path.open("rb") as file:
        path.unlink()
        again = Path(f"/proc/self/fd/{file.fileno()}")
        assert again.read_bytes() == b"bytes"
        with fails_with(errno.ESTALE), again.open("r+b", buffering=0) as writer:
            writer.write(b"x")
        assert file.read() == b"bytes"
    twins.check()
