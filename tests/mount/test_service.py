"""What systemd hears of a daemon, and what it gives to it."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelfs.notifying import watchdog_s
from tests.endpoints import S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, wait_until

pytestmark = pytest.mark.mount

LAUNCHERS = Path(__file__).parents[1] / "launchers"
WATCHDOG_S = 1.0


class Systemd:
    """A socket that hears what systemd would hear."""

    def __init__(self, path: Path) -> None:
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while message := self._socket.recv(4096):
            self.said += message.decode().split("\n")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    @property
    def pings(self) -> int:
        return self.said.count("WATCHDOG=1")

    @contextmanager
    def hearing(self, *wanted: str) -> Iterator[None]:
        """Wait until these have come, in this order, of what is said from inside the block on."""
        begin = len(self.said)
        yield
        wait_until(lambda: [line for line in self.said[begin:] if line in wanted] == [*wanted])

    def is_silent(self) -> bool:
        """Tell whether no ping comes for as long as would make systemd act."""
        before = self.pings
        time.sleep(WATCHDOG_S)
        return self.pings == before


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    """What the next mount takes for systemd, with a watchdog."""
    listener = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", str(int(WATCHDOG_S * 1e6)))
    yield listener
    listener.close()


def test_systemd_hears_of_a_mount_from_its_start_to_its_end(
    systemd: Systemd, moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    with systemd.hearing("READY=1", "WATCHDOG=1"):
        mount = make_mount(moto_bucket)
    assert f"STATUS=hub at {mount.path}" in systemd.said
    with systemd.hearing("RELOADING=1", "READY=1"):
        os.kill(mount.pid, signal.SIGHUP)
    with systemd.hearing("STOPPING=1"):
        assert mount.stop() == 0


def test_a_refused_configuration_is_seen_in_the_status_and_the_service_goes_on(
    systemd: Systemd, moto_mount: Mount
) -> None:
    moto_mount.configure(nonsense=1)
    with systemd.hearing("RELOADING=1", "READY=1"):
        os.kill(moto_mount.pid, signal.SIGHUP)
    refused = f"STATUS=hub at {moto_mount.path}, the new configuration was refused"
    wait_until(lambda: refused in systemd.said)


def test_umount_says_that_it_is_stopping(systemd: Systemd, moto_mount: Mount) -> None:
    with systemd.hearing("STOPPING=1"):
        subprocess.run(["umount", "-i", moto_mount.path], check=True)
    wait_until(lambda: not moto_mount.is_running)


def test_a_daemon_that_stands_still_gives_no_sign_of_life(
    systemd: Systemd, moto_mount: Mount
) -> None:
    wait_until(lambda: systemd.pings > 2)
    os.kill(moto_mount.pid, signal.SIGSTOP)
    try:
        time.sleep(0.1)  # what was sent before has come
        assert systemd.is_silent()
    finally:
        os.kill(moto_mount.pid, signal.SIGCONT)
    before = systemd.pings
    wait_until(lambda: systemd.pings > before)


def test_a_mount_that_does_not_answer_gives_no_sign_of_life(
    systemd: Systemd,
    moto_bucket: S3Endpoint,
    make_mount: MakeMount,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though its event loop turns."""
    fault = tmp_path / "fault"
    fault.write_text("")
    monkeypatch.setenv("MODELFS_TEST_FAULT", str(fault))
    monkeypatch.setenv("MODELFS_TEST_GRACE_S", "-6")  # a handler that hangs is ended after 2 s
    mount = make_mount(moto_bucket, launcher=(str(LAUNCHERS / "faulty_handlers.py"),))
    wait_until(lambda: systemd.pings > 2)
    fault.write_text("hang getattr")
    wait_until(lambda: "the mount does not answer" in mount.log())
    assert systemd.is_silent()
    fault.write_text("")
    before = systemd.pings
    wait_until(lambda: systemd.pings > before, 20)


def test_a_daemon_that_systemd_aborts_says_where_it_was_and_the_next_start_mounts_again(
    moto_mount: Mount,
) -> None:
    os.kill(moto_mount.pid, signal.SIGABRT)
    wait_until(lambda: not moto_mount.is_running)
    assert "Fatal Python error: Aborted" in moto_mount.log()
    assert "in main" in moto_mount.log()
    moto_mount.start()
    (moto_mount.main / "a").write_text("a")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "{pid}"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),  # it is owed by another
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_what_the_environment_says(
    environment: dict[str, str], seconds: float | None
) -> None:
    said = {name: value.replace("{pid}", str(os.getpid())) for name, value in environment.items()}
    assert watchdog_s(said) == seconds


def test_credentials_come_from_the_directory_that_systemd_names(
    moto_bucket: S3Endpoint,
    make_mount: MakeMount,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """LoadCredential=credentials:FILE; without them the registry would refuse."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for variable in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    given = tmp_path / "given"
    given.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given))
    mount = make_mount(moto_bucket, start=False, credentials=None)
    with pytest.raises(AssertionError, match="no credentials"):
        mount.start()
    assert mount.stop() == 1
    (given / "credentials").write_bytes(moto_bucket.credentials_file.read_bytes())
    mount.start()
    (mount.path / "acme" / "llama").mkdir(parents=True)
    assert moto_bucket.get("models/acme/llama/") == b""


def test_who_starts_the_daemon_does_not_say_who_may_read_the_store(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mask = os.umask(0o077)
    try:
        mount = make_mount(moto_bucket)
        (mount.path / "acme" / "llama").mkdir(parents=True)
        (mount.main / "a").write_text("a")
    finally:
        os.umask(mask)
    version = mount.freeze("v1")
    modes = {
        path.relative_to(mount.store).as_posix(): oct(path.stat().st_mode & 0o777)
        for path in (mount.store / "models" / "acme").rglob("*")
    }
    assert modes["models/acme/llama"] == "0o755"
    assert modes["models/acme/llama/v1"] == "0o555"
    assert modes["models/acme/llama/v1/a"] == "0o444"
    assert (version / "a").stat().st_mode & 0o777 == 0o444
