"""A plain folder with attributes stands for a mount; the command line runs in-process."""

import errno
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelfs import cli, mountinfo

LIMIT_S = 20


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Result]


@dataclass
class Hub:
    """A folder that stands for the mount of a registry, and what a daemon would do in it."""

    path: Path
    registry: str = "hub"
    threads: list[threading.Thread] = field(default_factory=list)

    def model(self, name: str, **attributes: str) -> Path:
        folder = self.path / name
        (folder / "main").mkdir(parents=True)
        (folder / ".modelfs" / "versions").mkdir(parents=True)
        set_attributes(folder, attributes)
        return folder

    def version(self, model: str, name: str, **attributes: str) -> Path:
        folder = self.path / model / name
        folder.mkdir()
        ready = {"state": "ready", "progress": "2048/2048", "digest": f"digest-of-{name}"}
        set_attributes(folder, ready | {"path": f"/store/{model}/{name}"} | attributes)
        return folder

    def status(self, **changes: Any) -> None:
        control = self.path / ".modelfs"
        control.mkdir(exist_ok=True)
        (control / "status.json").write_text(json.dumps(example_status(self) | changes))

    def will_show(self, version: str, states: Sequence[dict[str, str]]) -> None:
        """Let a version have these attributes, one after the other, once it is there."""
        thread = threading.Thread(target=self._show, args=(self.path / version, states))
        thread.start()
        self.threads.append(thread)

    @staticmethod
    def _show(folder: Path, states: Sequence[dict[str, str]]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not folder.is_dir() and time.monotonic() < deadline:
            time.sleep(0.01)
        for state in states:
            set_attributes(folder, state)
            time.sleep(0.05)


def set_attributes(path: Path, attributes: dict[str, str]) -> None:
    for name, text in attributes.items():
        os.setxattr(path, f"user.modelfs.{name}", text.encode())


def example_status(hub: Hub) -> dict[str, Any]:
    return {
        "registry": hub.registry,
        "endpoint": "http://127.0.0.1:1",
        "bucket": "models",
        "pid": None,
        "mountpoint": str(hub.path),
        "reachable": True,
        "reachable_since_ns": 1_790_000_000_000_000_000,
        "reachable_error": None,
        "cache": {"files": 1, "bytes": 1024, "max_bytes": 4096},
        "store": {"path": "/store", "free_bytes": 1 << 30, "total_bytes": 1 << 40},
        "uploads": [],
        "freezes": [],
        "hidden_keys": [],
    }


def mountinfo_line(path: Path, kind: str = "fuse.modelfs", source: str = "modelfs:hub") -> str:
    escaped = str(path).replace("\\", "\\134").replace(" ", "\\040")
    return f"36 35 0:98 / {escaped} rw,nosuid,nodev shared:1 - {kind} {source} rw,user_id=0\n"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No mount, registry or configuration of this machine reaches a test."""
    for name in ("MODELFS_REGISTRY", "MODELFS_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(mountinfo, "MOUNTINFO", tmp_path / "mountinfo")
    (tmp_path / "mountinfo").write_text(mountinfo_line(Path("/"), "ext4", "/dev/vda"))


@pytest.fixture
def mount_list(tmp_path: Path) -> Path:
    """The file that stands for /proc/self/mountinfo."""
    return tmp_path / "mountinfo"


@pytest.fixture
def make_hub(tmp_path: Path, mount_list: Path) -> Iterator[Callable[[str], Hub]]:
    """Make a folder that stands for a mount, and list it."""
    hubs = []

    def make(registry: str) -> Hub:
        hub = Hub(tmp_path / registry, registry)
        hub.path.mkdir()
        try:
            os.setxattr(hub.path, "user.modelfs.probe", b"1")
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                pytest.skip("the folder for temporary files has no user attributes")
            raise
        with mount_list.open("a") as listed:
            listed.write(mountinfo_line(hub.path, source=f"modelfs:{registry}"))
        hubs.append(hub)
        return hub

    yield make
    for hub in hubs:
        for thread in hub.threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()


@pytest.fixture
def hub(make_hub: Callable[[str], Hub]) -> Hub:
    """The mount of the registry hub."""
    return make_hub("hub")


@pytest.fixture
def modelfs(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command: modelfs("ls", "--json")."""

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        status = cli.main(arguments)
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return run


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Let a call of os fail with an errno, as the mount would."""

    def make(call: str, number: int) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, call, fail)

    return make
