"""open(2) with every combination of flags, on all that a name can be: as on a disk."""

import itertools
import os
from pathlib import Path

import pytest

from tests.mount import twins as fixtures
from tests.mount.twins import Twins, difference, result

pytestmark = pytest.mark.mount

moto_shared, twins = fixtures.moto_shared, fixtures.twins

ACCESS = ("O_RDONLY", "O_WRONLY", "O_RDWR")
OTHERS = ("O_CREAT", "O_EXCL", "O_TRUNC", "O_APPEND", "O_DIRECTORY", "O_NOFOLLOW")
NAMES = ("absent", "file", "empty", "folder", "absent/", "file/", "folder/", "file/x", "absent/x")
CONTENT = {"file": b"0123456789", "empty": b""}


def every_combination() -> list[tuple[str, ...]]:
    """Return each access mode with each set of the other flags."""
    subsets = [
        chosen for n in range(len(OTHERS) + 1) for chosen in itertools.combinations(OTHERS, n)
    ]
    return [(access, *chosen) for access in ACCESS for chosen in subsets]


def opened_with(path: str, flags: int) -> object:
    """Open, write, read, cut and close; return what each gave."""
    fd = os.open(path, flags, 0o644)
    try:
        return (
            ("size", None if os.path.isdir(path) else os.fstat(fd).st_size),
            ("write", result(lambda _: os.write(fd, b"AB"), Path())),
            ("place", result(lambda _: os.lseek(fd, 0, os.SEEK_CUR), Path())),
            ("read", result(lambda _: os.pread(fd, 20, 0), Path())),
            ("cut", result(lambda _: os.ftruncate(fd, 5), Path())),
            ("read again", result(lambda _: os.pread(fd, 20, 0), Path())),
        )
    finally:
        os.close(fd)


def restore(folder: Path) -> None:
    """Have a folder hold what NAMES say, and nothing else."""
    (folder / "folder").mkdir(exist_ok=True)
    (folder / "absent").unlink(missing_ok=True)
    for name, content in CONTENT.items():
        if not (folder / name).exists() or (folder / name).read_bytes() != content:
            (folder / name).write_bytes(content)


def table(folder: Path, name: str) -> dict[str, object]:
    """Return of each combination of flags what opening `name` gives, and what it leaves."""
    found: dict[str, object] = {}
    for combination in every_combination():
        flags = sum(getattr(os, flag) for flag in combination)
        restore(folder)
        answer = result(lambda _: opened_with(f"{folder}/{name}", flags), folder)  # noqa: B023
        path = folder / name.split("/")[0]
        left = path.read_bytes() if path.is_file() else path.exists()
        found[f"{name}: {' | '.join(combination)}"] = (answer, left)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_combination_of_flags_opens_as_on_a_disk(twins: Twins, name: str) -> None:
    on_disk, on_mount = (table(folder, name) for folder in twins.folders)
    assert len(on_disk) == 192
    assert on_mount == on_disk, difference(on_disk, on_mount)
    twins.check()


def test_a_file_that_was_emptied_through_a_reader_is_emptied_in_the_registry(twins: Twins) -> None:
    def step(folder: Path) -> object:
        (folder / "f").write_bytes(b"0123456789")
        os.close(os.open(folder / "f", os.O_RDONLY | os.O_TRUNC))
        return (folder / "f").read_bytes()

    twins.same(step)
