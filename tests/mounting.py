"""A real mount in a process of its own, as a user has one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.endpoints import S3Endpoint

SERVE = Path(__file__).parent / "launchers" / "serve.py"
NOBODY = 65534  # uid and gid
START_LIMIT_S = 30.0
END_LIMIT_S = 30.0
METADATA_TTL_S = 0.5
TIMEOUT_S = 3.0
SCALE = int(os.environ.get("MODELFS_TEST_SCALE", "1"))  # how much longer random tests run


def launcher(**options: object) -> tuple[str, ...]:
    """Return the launcher with faults of a choice; _ stands for - in their names."""
    said = (f"{name.replace('_', '-')}={value}" for name, value in options.items())
    return (str(SERVE), *said, "--")


def why_no_fuse() -> str | None:
    """Return why nothing can be mounted here, or None."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is missing, or not for this user"
    return None


class Mount:
    """A mount of one bucket. `path` is the mountpoint, `main` the working tree of acme/llama.

    `launcher` is the Python program that serves: the command line by default, a script of a
    test that injects faults else. `store` may lie elsewhere, and be another node's too.
    """

    def __init__(
        self,
        folder: Path,
        bucket: S3Endpoint,
        *,
        launcher: tuple[str, ...] = ("-m", "modelfs"),
        endpoint: str | None = None,
        store: str | Path | None = None,
        **settings: object,
    ) -> None:
        self.path = folder / "hub"
        self.store = Path(store or folder / "store")
        self.config = folder / "modelfs.toml"
        self.log_file = folder / "daemon.log"
        self.bucket = bucket
        self._launcher = launcher
        self._process: subprocess.Popen[bytes] | None = None
        self.path.mkdir(parents=True, exist_ok=True)
        self._settings: dict[str, object] = {
            "endpoint": endpoint or bucket.endpoint,
            "bucket": bucket.bucket,
            "credentials": str(bucket.credentials_file),
            "mountpoint": str(self.path),
            "store": str(self.store),
            "metadata_ttl": METADATA_TTL_S,
            "timeout": TIMEOUT_S,
            "native_versions": False,  # tests/mount/test_native.py tests them
            **settings,
        }
        self.configure()

    def configure(self, **changes: object) -> None:
        """Write the configuration, with other settings than before; None takes one away."""
        self._settings |= changes
        values = {key: value for key, value in self._settings.items() if value is not None}
        tables = {key: value for key, value in values.items() if isinstance(value, dict)}
        lines = ["[registries.hub]"]
        lines += [f"{k} = {json.dumps(v)}" for k, v in values.items() if k not in tables]
        for name, table in tables.items():
            lines.append(f"[registries.hub.{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in table.items()]
        self.config.write_text("\n".join(lines) + "\n")

    @property
    def model(self) -> Path:
        return self.path / "acme" / "llama"

    @property
    def main(self) -> Path:
        return self.model / "main"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> "Mount":
        """Mount and return when the mount answers."""
        ready, ready_writer = os.pipe()
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, *self._launcher, "--config", str(self.config)),
                    *("mount", "hub", "--ready-fd", str(ready_writer)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[ready_writer],
                env={**os.environ, "PYTHONWARNINGS": "default"},
            )
        os.close(ready_writer)
        with os.fdopen(ready, "rb") as answer:
            said = answer.read()  # ends when the daemon closes it, or dies
        assert said == b"ok\n", f"the mount did not start:\n{self.log()}"
        return self

    def log(self) -> str:
        return self.log_file.read_text() if self.log_file.exists() else ""

    def stop(self) -> int:
        """End the daemon as systemd does; return its exit status."""
        process, self._process = self._process, None
        if process is None:
            return 0
        process.send_signal(signal.SIGTERM)
        return process.wait(END_LIMIT_S)

    def kill(self) -> None:
        """End the daemon as a crash does. The dead mount stays."""
        process, self._process = self._process, None
        assert process is not None
        process.kill()
        process.wait(END_LIMIT_S)

    @property
    def is_running(self) -> bool:
        """Whether the daemon that was started is there still."""
        return self._process is not None and self._process.poll() is None

    def clean(self) -> None:
        """End whatever is left, the mount included."""
        process = self._process
        try:
            self.stop()
        except subprocess.TimeoutExpired:  # of one that waits for what it cannot send
            assert process is not None
            process.kill()
            process.wait(END_LIMIT_S)
        subprocess.run(["umount", "-l", str(self.path)], capture_output=True, check=False)

    def run(self, *arguments: str, limit_s: float = 40.0) -> subprocess.CompletedProcess[str]:
        """Run a command of modelfs in the model's folder."""
        return subprocess.run(
            [sys.executable, "-m", "modelfs", "--config", str(self.config), *arguments],
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
            cwd=self.model,
        )

    def status(self) -> Any:
        return json.loads((self.path / ".modelfs" / "status.json").read_bytes())

    def requests(self) -> dict[str, int]:
        """Return how many requests of each kind the daemon has sent."""
        return dict(self.status()["requests"])

    @contextmanager
    def counting(self) -> Iterator[dict[str, int]]:
        """Fill the dictionary with the requests that are sent inside the block."""
        before = self.requests()
        sent: dict[str, int] = {}
        yield sent
        for operation, count in self.requests().items():
            if count != before.get(operation, 0):
                sent[operation] = count - before.get(operation, 0)

    def key(self, path: str) -> str:
        """Return the key of a file of acme/llama/main."""
        return f"models/acme/llama/{path}"

    def objects(self, prefix: str = "models/acme/llama/") -> dict[str, bytes]:
        """Return path -> bytes of every object below a prefix, markers included."""
        found: dict[str, bytes] = {}
        pages = self.bucket.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket.bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                found[item["Key"].removeprefix(prefix)] = self.bucket.get(item["Key"])
        return found

    def freeze(self, version: str, limit_s: float = 30.0) -> Path:
        """Freeze acme/llama and return the version's folder when it is ready."""
        folder = self.model / version
        folder.mkdir()
        wait_until(lambda: xattr(folder, "state") != "downloading", limit_s)
        assert xattr(folder, "state") == "ready", self.log()
        return folder


def run_as_nobody(
    groups: Sequence[int], place: Path, *words: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a folder as a plain user of these groups."""
    return subprocess.run(
        words,
        cwd=place,
        user=NOBODY,
        group=NOBODY,
        extra_groups=list(groups),
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        capture_output=True,
        check=False,
        timeout=40,
    )


def xattr(path: Path, name: str) -> str:
    """Return an extended attribute of modelfs."""
    return os.getxattr(path, f"user.modelfs.{name}").decode()


def is_ready(mount: Mount, version: str) -> bool:
    """Tell whether a mount shows a version of acme/llama as ready."""
    try:
        return xattr(mount.model / version, "state") == "ready"
    except FileNotFoundError:  # not seen by this node yet
        return False


def put(bucket: S3Endpoint, files: dict[str, bytes]) -> None:
    """Put files into acme/llama as another tool would."""
    for path, data in files.items():
        bucket.put(f"models/acme/llama/{path}", data)


def content(folder: Path) -> dict[str, bytes]:
    """Return path -> bytes of the files of a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check_sums(version: Path) -> list[bytes]:
    """Have sha256sum(1) check a version by the checksums beside it; return a line for each file."""
    checked = subprocess.run(
        ["sha256sum", "--strict", "-c", f"../.modelfs/versions/{version.name}.sha256"],
        cwd=version,
        capture_output=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout[-1000:] + checked.stderr[-1000:]
    return checked.stdout.removesuffix(b"\n").split(b"\n")


@contextmanager
def refused(number: int) -> Iterator[None]:
    """Expect an OSError of this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        yield
    assert caught.value.errno == number, caught.value


def wait_until(
    condition: Callable[[], bool], limit_s: float = 10.0, *, pause_s: float = 0.05
) -> None:
    """Return when the condition holds; fail after a while."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not come to hold in time"
        time.sleep(pause_s)


def disk_bytes(folder: Path) -> int:
    """Return the bytes of disk that the files below a folder take, as du does."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512
        except FileNotFoundError:  # it went meanwhile
            continue
    return total


@contextmanager
def watched_disk(folder: Path) -> Iterator[list[int]]:
    """Fill the list with what a folder takes on its disk, again and again inside the block."""
    found, over = [disk_bytes(folder)], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            found.append(disk_bytes(folder))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
