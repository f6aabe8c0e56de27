"""modelfs demo."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from modelfs import demo
from modelfs.demo.processes import Server, mounted_below, run_shell
from modelfs.errors import ModelfsError
from tests.cli.conftest import Run, mountinfo_line

LIMIT_S = 150


@pytest.mark.mount
@pytest.mark.timeout(LIMIT_S + 20)
def test_the_demo_tells_its_story_to_the_end_and_leaves_nothing(tmp_path: Path) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("fusermount3") is None:
        pytest.skip("needs /dev/fuse and fusermount3")
    folder = tmp_path / "demo"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "modelfs", "demo"],
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for told in ("v1 is ready", "every value is equal", "Read-only file system", "is unmounted"):
        assert told in done.stdout
    assert "\x1b" not in done.stdout
    assert list(folder.iterdir()) == []


def test_what_the_demo_needs_is_told_in_one_line(
    modelfs: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: True)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    result = modelfs("demo")
    assert result.status == 1
    assert result.err == "modelfs: the demo needs fusermount3: install the package fuse3\n"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "/dev/fuse" in modelfs("demo").err


def test_a_missing_extra_is_told_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: True)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "moto" else name)
    with pytest.raises(ModelfsError, match=r'needs moto: pip install "modelfs\[demo\]"'):
        demo.check_needs()


def test_a_demo_that_fails_cleans_up_and_shows_the_logs(
    modelfs: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(server: Server, *_: object, **__: object) -> None:
        server.log.write_text("no port is free\n")

    monkeypatch.setattr(demo, "check_needs", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Server, "start", start)
    before = set(tmp_path.iterdir())
    result = modelfs("demo")
    assert result.status == 1
    assert "The demo failed: the demo's registry did not start" in result.out
    assert "no port is free" in result.out
    assert set(tmp_path.iterdir()) == before


def test_a_folder_with_a_mount_in_it_is_never_removed(
    modelfs: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "check_needs", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(Server, "start", lambda *_, **__: None)
    monkeypatch.setattr(demo, "mounted_below", lambda folder: [folder / "hub"])
    result = modelfs("demo")
    assert "stays: something in it is still mounted" in result.out
    [folder] = tmp_path.glob("modelfs-demo-*")
    assert (folder / "hub").is_dir()


def test_a_command_that_hangs_is_ended(tmp_path: Path) -> None:
    status, _ = run_shell("sleep 60 & sleep 60", tmp_path, os.environ, limit_s=0.3)
    assert status is None


def test_a_server_is_ended_once(tmp_path: Path) -> None:
    server = Server(tmp_path / "log", os.environ)
    server.start([sys.executable, "-c", "print('hello'); import time; time.sleep(60)"])
    assert server.is_running
    server.stop()
    server.stop()
    assert not server.is_running


def test_what_is_mounted_below_a_folder_is_found_the_innermost_first(mount_list: Path) -> None:
    paths = [Path("/"), Path("/demo/store"), Path("/demo/the hub"), Path("/demo/the hub/a/v1")]
    mount_list.write_text("".join(map(mountinfo_line, paths)))
    assert mounted_below(Path("/demo")) == paths[:0:-1]
    assert mounted_below(Path("/nowhere")) == []


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_after_a_command_ended_reaches_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException]
) -> None:
    real = subprocess.Popen.communicate

    def communicate(process: subprocess.Popen[bytes], timeout: float) -> None:
        real(process, timeout=timeout)
        raise ending

    monkeypatch.setattr(subprocess.Popen, "communicate", communicate)
    with pytest.raises(ending):
        run_shell("true", tmp_path, os.environ, limit_s=10)
