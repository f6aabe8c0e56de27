"""modelfs mount and modelfs umount; a small program stands for the daemon."""

import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfs.cli import background, serving
from modelfs.cli.options import Settings
from modelfs.cli.probe import DaemonGone
from modelfs.errors import MountError
from tests.cli.conftest import Hub, Result, Run


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of the registry hub, with a mountpoint."""
    path = tmp_path / "modelfs.toml"
    path.write_text(
        '[registries.hub]\nendpoint = "http://h:1"\nbucket = "models"\n'
        f'mountpoint = "{tmp_path}/here"\n'
        '[registries.lab]\nendpoint = "http://h:1"\nbucket = "models"\n'
    )
    monkeypatch.setenv("MODELFS_CONFIG", str(path))
    return path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the daemon was asked to serve."""
    calls: list[tuple[Any, ...]] = []

    def run(
        config: Any, mountpoint: Path, *, options: Any = (), ready_fd: Any = None, file: Any
    ) -> int:
        assert file.registry(config.name) == config
        calls.append((config.name, mountpoint, list(options), ready_fd))
        return 0

    daemon = types.ModuleType("modelfs.daemon")
    daemon.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelfs.daemon", daemon)
    monkeypatch.setattr("modelfs.daemon", daemon, raising=False)
    monkeypatch.setattr("modelfs.logs.set_up", lambda *_: None)
    return calls


def test_mount_serves_where_the_configuration_says(
    modelfs: Run, configured: Path, served: list[tuple[Any, ...]]
) -> None:
    assert modelfs("mount", "hub").status == 0
    assert served == [("hub", configured.parent / "here", [], None)]


def test_mount_serves_where_the_user_says_with_options(
    modelfs: Run,
    configured: Path,
    served: list[tuple[Any, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(configured.parent)
    assert modelfs("mount", "lab", "there", "-o", "ro,allow_other", "-o", "x=1").status == 0
    assert served == [("lab", configured.parent / "there", ["ro", "allow_other", "x=1"], None)]


def test_mount_without_a_mountpoint_is_told(modelfs: Run, configured: Path) -> None:
    result = modelfs("mount", "lab")
    assert result.status == 1
    assert "modelfs mount lab MOUNTPOINT" in result.err


def test_mount_of_an_unknown_registry_names_those_there_are(modelfs: Run, configured: Path) -> None:
    result = modelfs("mount", "hubb")
    assert result.status == 1
    assert "known: hub, lab" in result.err


def fake_daemon(code: str) -> Callable[..., list[str]]:
    """Return a stand-in for the command in the foreground; `fd` is its --ready-fd."""
    before = "import os, sys, time; fd = int(sys.argv[sys.argv.index('--ready-fd') + 1])\n"
    return lambda *_: [sys.executable, "-c", before + code, "modelfs"]


def mount_in_background(
    modelfs: Run, log: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> Result:
    monkeypatch.setattr(serving, "_same_command", fake_daemon(code))
    return modelfs("mount", "hub", "--background", "--log-file", str(log))


def test_mount_in_the_background_returns_when_the_mount_answers(
    modelfs: Run, configured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "logs" / "hub.log"
    code = "print('serving', flush=True); os.write(fd, b'ok\\n'); os.close(fd); time.sleep(60)"
    result = mount_in_background(modelfs, log, monkeypatch, code)
    assert result.status == 0, result.err
    assert result.out.startswith(f"hub is mounted at {tmp_path}/here (pid ")
    assert str(log) in result.out
    pid = int(result.out.partition("(pid ")[2].partition(",")[0])
    assert os.getsid(pid) == pid
    os.kill(pid, 15)
    os.waitpid(pid, 0)
    assert log.read_text() == "serving\n"


def test_mount_in_the_background_relays_why_it_failed(
    modelfs: Run, configured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "hub.log"
    log.write_text("modelfs: a line of yesterday\n")
    code = "print('modelfs: /here is not empty', file=sys.stderr); print('bye'); sys.exit(1)"
    result = mount_in_background(modelfs, log, monkeypatch, code)
    assert result.status == 1
    assert result.err == f"modelfs: /here is not empty (log {log})\n"


def test_mount_in_the_background_does_not_wait_for_ever(
    modelfs: Run, configured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "START_LIMIT_S", 0.3)
    result = mount_in_background(modelfs, tmp_path / "log", monkeypatch, "time.sleep(60)")
    assert result.status == 1
    assert "does not answer after 0.3 s" in result.err


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountError, match="--log-file"):
        background.start(["false"], "hub", tmp_path / "file" / "log")


def test_the_command_in_the_background_is_the_same_one(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "c.toml", None, True)
    command = serving._same_command(settings, "hub", Path("/models"), ["ro", "x=1"], None)
    expected = f"-m modelfs --verbose --config {tmp_path}/c.toml mount hub /models -o ro,x=1"
    assert command == [sys.executable, *expected.split()]
    quiet = serving._same_command(settings, "hub", Path("/models"), [], "error")
    assert quiet[-2:] == ["--log-level", "error"]


@pytest.fixture
def daemon(hub: Hub, mount_list: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start a process that stands for the daemon; on SIGTERM it runs some code, then ends."""
    started: list[subprocess.Popen[bytes]] = []

    def start(at_the_end: str) -> subprocess.Popen[bytes]:
        code = (
            "import signal, sys, time\nfrom pathlib import Path\n"
            f"mounts = Path({str(mount_list)!r})\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
            "print('up', flush=True)\nsignal.sigwait([signal.SIGTERM])\n" + at_the_end
        )
        process = subprocess.Popen([sys.executable, "-c", code, "modelfs"], stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        process.stdout.readline()
        hub.status(pid=process.pid)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


UNMOUNT = "mounts.write_text(mounts.read_text().replace('fuse.modelfs', 'gone'))\n"


def test_umount_asks_the_daemon_and_waits_for_its_end(
    modelfs: Run, hub: Hub, daemon: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    process = daemon("time.sleep(0.3)\n" + UNMOUNT)
    result = modelfs("umount", str(hub.path))
    assert result.status == 0, result.err
    assert result.out == f"hub is unmounted from {hub.path}\n"
    assert process.wait(1) == 0


def test_umount_shows_what_it_waits_for(
    modelfs: Run,
    hub: Hub,
    daemon: Callable[[str], subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modelfs.cli.unmounting.LOOK_EVERY_S", 0.1)
    process = daemon("time.sleep(0.8)\n" + UNMOUNT)
    upload = {"path": "acme/llama/main/x", "bytes": 3 << 20, "state": "uploading", "error": None}
    hub.status(pid=process.pid, uploads=[upload, upload | {"state": "aside"}])
    result = modelfs("umount", str(hub.path))
    assert result.status == 0
    assert result.err == "hub: 1 upload (3.0 MiB) under way\n"


def test_umount_is_bounded(
    modelfs: Run, hub: Hub, daemon: Callable[[str], subprocess.Popen[bytes]]
) -> None:
    process = daemon("time.sleep(60)")
    result = modelfs("umount", str(hub.path), "--timeout", "0.3")
    assert result.status == 1
    assert "is not unmounted after 0.3 s" in result.err
    assert process.poll() is None


@pytest.fixture
def taken_away(mount_list: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The mounts that were taken away lazily."""
    found: list[Path] = []

    def take_away(mount: Any) -> None:
        found.append(mount.path)

    monkeypatch.setattr("modelfs.cli.unmounting.take_away", take_away)
    return found


def test_umount_takes_away_what_a_daemon_left_that_ended_badly(
    modelfs: Run,
    hub: Hub,
    daemon: Callable[[str], subprocess.Popen[bytes]],
    taken_away: list[Path],
) -> None:
    daemon("sys.exit(1)")
    assert modelfs("umount", str(hub.path)).status == 0
    assert taken_away == [hub.path]


def test_umount_takes_away_the_mount_of_a_daemon_that_is_gone(
    modelfs: Run, hub: Hub, taken_away: list[Path]
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    hub.status(pid=ended.pid)
    assert modelfs("umount", str(hub.path)).status == 0
    assert taken_away == [hub.path]


def test_umount_takes_away_a_dead_mount(
    modelfs: Run, hub: Hub, taken_away: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(*_: Any) -> None:
        raise DaemonGone("dead")

    monkeypatch.setattr("modelfs.cli.unmounting.read_status", dead)
    assert modelfs("umount", str(hub.path)).status == 0
    assert taken_away == [hub.path]


def test_umount_never_signals_a_process_that_is_no_daemon(modelfs: Run, hub: Hub) -> None:
    other = subprocess.Popen(["sleep", "60"])
    try:
        hub.status(pid=other.pid)
        result = modelfs("umount", str(hub.path))
        assert result.status == 1
        assert f"process {other.pid} is no daemon" in result.err
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("pid", [None, 0, 1, -1, "12", True])
def test_umount_refuses_a_status_without_a_process(modelfs: Run, hub: Hub, pid: Any) -> None:
    hub.status(pid=pid)
    assert "names no process" in modelfs("umount", str(hub.path)).err


def test_umount_of_a_mount_that_hangs_ends_in_bounded_time(
    modelfs: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelfs.cli.probe.read_status.__defaults__", (0.2,))
    (hub.path / ".modelfs").mkdir()
    os.mkfifo(hub.path / ".modelfs" / "status.json")
    result = modelfs("umount", str(hub.path))
    assert result.status == 1
    assert "gives no answer in 0.2 s" in result.err


def test_umount_of_what_is_no_mount_is_told(modelfs: Run, hub: Hub, tmp_path: Path) -> None:
    result = modelfs("umount", str(tmp_path))
    assert result.status == 1
    assert f"is no mount of modelfs; mounted: hub at {hub.path}" in result.err
