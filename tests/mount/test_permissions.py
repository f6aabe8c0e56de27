"""Who may do what in main/: processes of other users, as on a disk of the same owner and mode."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.endpoints import S3Server, fresh_bucket
from tests.mount.twins import RUNNER, STEP_LIMIT_S
from tests.mounting import Mount, why_no_fuse

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.getuid() != 0, reason="only root starts processes of other users"),
]

OWNER, GROUP = 1234, 2001
MODES = ("0755", "0750", "0770", "0700", "0555")
PEOPLE = {  # uid, gid, supplementary groups
    "the owner": (OWNER, 3000, []),
    "one of the group": (1235, 3000, [GROUP]),
    "one whose own group it is": (1235, GROUP, []),
    "a stranger": (1236, 3000, [3001]),
}

# The last lines change names, those before them nothing that another line needs.
SCRIPT = """
cat file
cat folder/inner
ls folder
stat -c '%a %u %g' file folder folder/inner
test -r file
test -w file
test -x file
test -w folder
echo more >> file
echo new > file
truncate -s 3 file
touch file
touch -d 2020-01-01 file
chmod 600 absent
mkdir folder
touch folder/made
rm folder/made
mkdir folder/deep
rmdir folder/deep
mv file folder/file
mv folder/file file
rm -f folder/inner
cat folder/inner
"""


def namespace(mode: str) -> str:
    return f"team-{mode}"


@pytest.fixture(scope="module")
def owned(moto_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount with a namespace of each mode."""
    if reason := why_no_fuse():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("owned")
    rights = {
        f"namespaces.{namespace(mode)}": {"uid": OWNER, "gid": GROUP, "mode": mode}
        for mode in MODES
    }
    with fresh_bucket(moto_server, folder) as bucket:
        mount = Mount(folder, bucket, **rights)
        try:
            yield mount.start()
            assert "Traceback" not in mount.log(), mount.log()
        finally:
            mount.clean()


def fill(folder: Path) -> None:
    """Make what SCRIPT works on, as root."""
    (folder / "folder").mkdir(exist_ok=True)
    (folder / "file").write_bytes(b"content\n")
    (folder / "folder" / "inner").write_bytes(b"inner\n")


def own(folder: Path, mode: int) -> None:
    """Give a folder of a disk, and all in it, the owner, group and mode of a namespace."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OWNER, GROUP)
        path.chmod(mode if path.is_dir() else mode & 0o666)


def said_to(person: tuple[int, int, list[int]], folder: Path) -> str:
    """Return what SCRIPT says to a person in a folder."""
    uid, gid, groups = person
    done = subprocess.run(
        ["bash"],
        input=f"{RUNNER}{SCRIPT}\nEND OF SCRIPT\n",
        cwd=folder,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        user=uid,
        group=gid,
        extra_groups=groups,
        umask=0o022,
        capture_output=True,
        text=True,
        timeout=STEP_LIMIT_S,
        check=True,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("mode", MODES)
def test_other_users_may_do_what_they_may_on_a_disk_of_that_owner_and_mode(
    owned: Mount, tmp_path: Path, mode: str
) -> None:
    for name, person in PEOPLE.items():
        plain = tmp_path / name
        plain.mkdir()
        main = owned.path / namespace(mode) / name.replace(" ", "-") / "main"
        main.parent.mkdir(parents=True)
        fill(plain)
        fill(main)
        own(plain, int(mode, 8))
        on_disk, on_mount = said_to(person, plain), said_to(person, main)
        assert on_mount == on_disk, f"{name}, {mode}"
