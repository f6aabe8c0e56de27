"""Scenarios that run twice: in a plain folder of this disk, and on a mount.

A scenario is a script (a shell command per line) or a Python function of the folder. What
it says and returns must be the same on both, and so must the trees that it leaves: names,
kinds, bytes, and the times that a tool has set. Then every object of the bucket is compared
with its file.
"""

import difflib
import errno
import hashlib
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.endpoints import CephServer, S3Server, fresh_bucket
from tests.mounting import Mount, wait_until, why_no_fuse

Step = Callable[[Path], object]

TIME_SLACK_S = 30  # a mount's clock for "now" may differ by what an upload takes
STEP_LIMIT_S = 50.0

A_MODEL = """
mkdir -p model/weights/a/b model/empty
printf '{"layers": 2}' > model/config.json
head -c 3000000 /dev/zero | tr '\\0' 'w' > model/weights/1.bin
seq 1 40000 > model/weights/a/b/2.bin
: > model/weights/none
"""

# Each line of a script is run by itself; what it prints and its exit status are compared.
RUNNER = r"""
while IFS= read -r line; do
  [ -n "$line" ] || continue
  printf '$ %s\n' "$line"
  eval "$line" 2>&1
  printf '=> %s\n' "$?"
done <<'END OF SCRIPT'
"""


@dataclass(frozen=True)
class Seen:
    """What stat and read say of one name."""

    kind: str
    content: str
    set_time_s: int | None


def run(folder: Path, script: str, **variables: str) -> str:
    """Run a script in a folder; return its transcript, without the folder's own path."""
    done = subprocess.run(
        ["bash"],
        input=f"{RUNNER}{script}\nEND OF SCRIPT\n",
        cwd=folder,
        env={**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC", **variables},
        capture_output=True,
        text=True,
        timeout=STEP_LIMIT_S,
        check=True,
    )
    said = (done.stdout + done.stderr).replace(str(folder), "FOLDER")
    assert "command not found" not in said, said  # it would be missing on both, and all be well
    return said


def tree(folder: Path, began_s: float) -> dict[str, Seen]:
    """Return what is below a folder; a time is told where a tool has set it (in the past)."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in folders:
            found[_relative(place, name, folder)] = Seen("folder", "", None)
        for name in files:
            path = Path(place, name)
            mtime_s = path.lstat().st_mtime
            is_set = not began_s - 2 < mtime_s < time.time() + TIME_SLACK_S
            set_time_s = int(mtime_s) if is_set else None
            found[_relative(place, name, folder)] = Seen("file", _sha256(path), set_time_s)
    return found


def _relative(place: str, name: str, folder: Path) -> str:
    return os.path.relpath(os.path.join(place, name), folder)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class OneModel(Mount):
    """A model of its own on a mount that many tests share."""

    def __init__(self, mount: Mount, name: str) -> None:
        self.__dict__.update(mount.__dict__)
        self.name = name
        self.model.mkdir(parents=True)

    @property
    def model(self) -> Path:
        return self.path / "acme" / self.name

    def key(self, path: str) -> str:
        return f"models/acme/{self.name}/{path}"

    def objects(self, prefix: str | None = None) -> dict[str, bytes]:
        return super().objects(self.key("") if prefix is None else prefix)


@contextmanager
def shared_mount(server: S3Server, folder: Path) -> Iterator[Mount]:
    """Make a mount for many tests, each of which uses a model of its own."""
    if reason := why_no_fuse():
        pytest.skip(reason)
    with fresh_bucket(server, folder) as bucket:
        mount = Mount(folder, bucket)
        try:
            yield mount.start()
            assert "Traceback" not in mount.log(), mount.log()
            assert "Warning" not in mount.log(), mount.log()
        finally:
            mount.clean()


class Twins:
    """A plain folder and the empty main/ of a model, to which the same is done."""

    def __init__(self, plain: Path, mount: Mount) -> None:
        self.plain = plain
        self.mount = OneModel(mount, f"model-{uuid.uuid4().hex[:12]}")
        self.began_s = time.time()
        plain.mkdir()

    @property
    def folders(self) -> tuple[Path, Path]:
        return self.plain, self.mount.main

    def same(self, scenario: str | Step, **variables: str) -> object:
        """Do a scenario on both and compare all that can be seen; return what it returned."""
        on_disk, on_mount = (_done(scenario, folder, variables) for folder in self.folders)
        assert on_mount == on_disk, difference(on_disk, on_mount)
        self.check()
        return on_disk

    def check(self) -> None:
        """Compare the two trees, then the mount's with the bucket."""
        on_disk, on_mount = (tree(folder, self.began_s) for folder in self.folders)
        assert on_mount == on_disk, difference(on_disk, on_mount)
        check_bucket(self.mount)


def difference(on_disk: object, on_mount: object) -> str:
    """Return both as lines, of which only those that differ."""
    one, other = (
        [f"{name!r}: {seen}" for name, seen in sorted(value.items())]
        if isinstance(value, dict)
        else str(value).splitlines()
        for value in (on_disk, on_mount)
    )
    return "\n".join(difflib.unified_diff(one, other, "on the disk", "on the mount", "", "", 2))


def _done(scenario: str | Step, folder: Path, variables: dict[str, str]) -> object:
    if isinstance(scenario, str):
        return run(folder, scenario, **variables)
    return result(scenario, folder)


def result(step: Step, folder: Path) -> object:
    """Return what a step returned, or the name of the errno that it failed with."""
    try:
        return step(folder)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def check_bucket(mount: Mount) -> None:
    """See that each object is its file's, byte for byte, and that there are no others."""
    wait_until(lambda: not mount.status()["uploads"])
    files = {
        os.path.relpath(os.path.join(place, name), mount.main): _sha256(Path(place, name))
        for place, _, names in os.walk(mount.main)
        for name in names
    }
    objects = {
        path: hashlib.sha256(data).hexdigest()
        for path, data in mount.objects().items()
        if path and not path.endswith("/")
    }
    assert objects == files, difference(files, objects)


# What a test module of scenarios takes over as its fixtures, under these names.


@pytest.fixture(scope="module")
def moto_shared(moto_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with shared_mount(moto_server, tmp_path_factory.mktemp("moto")) as mount:
        yield mount


@pytest.fixture(scope="module")
def ceph_shared(ceph: CephServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    with shared_mount(ceph, tmp_path_factory.mktemp("ceph")) as mount:
        yield mount


@pytest.fixture
def twins(moto_shared: Mount, tmp_path: Path) -> Twins:
    """On moto alone."""
    return Twins(tmp_path / "plain", moto_shared)


@pytest.fixture(params=["moto", pytest.param("ceph", marks=pytest.mark.ceph)])
def everywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Twins:
    """Once on moto and once on Ceph's gateway."""
    return Twins(tmp_path / "plain", request.getfixturevalue(f"{request.param}_shared"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of this disk to copy from, with old times."""
    folder = tmp_path / "source"
    folder.mkdir()
    run(folder, A_MODEL + "find . -exec touch -d '2024-02-03 04:05:06' {} +")
    return folder


@contextmanager
def fails_with(number: int) -> Iterator[None]:
    """Expect an OSError of this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011  its errno is compared below
        yield
    assert errno.errorcode[caught.value.errno or 0] == errno.errorcode[number]
