"""modelfs freeze and modelfs wait."""

import errno
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.cli.conftest import Hub, Run, set_attributes

DOWNLOADING = {"state": "downloading", "progress": "1024/4096"}
READY = {"state": "ready", "progress": "4096/4096", "digest": "d1"}


@pytest.fixture
def llama(hub: Hub) -> Hub:
    hub.model("acme/llama")
    return hub


def test_freeze_makes_the_version_and_waits_until_it_is_ready(modelfs: Run, llama: Hub) -> None:
    llama.will_show("acme/llama/v1", [DOWNLOADING, READY])
    result = modelfs("freeze", "acme/llama", "v1")
    assert result.status == 0
    assert result.out == "acme/llama@v1 is ready: 4.0 KiB, digest d1\n"


def test_freeze_says_its_end_in_json(modelfs: Run, llama: Hub) -> None:
    llama.will_show("acme/llama/v1", [READY])
    assert modelfs("freeze", "acme/llama", "v1", "--json").json == {
        "model": "acme/llama",
        "version": "v1",
        "state": "ready",
        "done_bytes": 4096,
        "total_bytes": 4096,
        "digest": "d1",
        "error": None,
        "path": None,
    }


def test_freeze_takes_the_next_number(modelfs: Run, llama: Hub) -> None:
    for name in ("v2", "v9", "2026-11-22"):
        llama.version("acme/llama", name)
    llama.will_show("acme/llama/v10", [READY])
    assert modelfs("freeze", "acme/llama").out.startswith("acme/llama@v10 is ready")


def test_freeze_passes_over_numbers_that_were_used_before(
    modelfs: Run, llama: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_mkdir = os.mkdir

    def mkdir(path: os.PathLike[str]) -> None:
        if os.path.basename(path) in ("v1", "v2"):
            raise FileExistsError(errno.EEXIST, "used")
        real_mkdir(path)

    monkeypatch.setattr(os, "mkdir", mkdir)
    llama.will_show("acme/llama/v3", [READY])
    assert "acme/llama@v3 is ready" in modelfs("freeze", "acme/llama").out


def test_freeze_does_not_try_for_ever(
    modelfs: Run,
    llama: Hub,
    refuse: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modelfs.cli.freezing.ATTEMPTS_MAX", 3)
    refuse("mkdir", errno.EEXIST)
    assert "3 names up to v3 were used before" in modelfs("freeze", "acme/llama").err


def test_freeze_without_waiting_returns_at_once(
    modelfs: Run, llama: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_mkdir = os.mkdir

    def mkdir(path: os.PathLike[str]) -> None:
        real_mkdir(path)
        set_attributes(llama.path / "acme/llama/v1", DOWNLOADING)

    monkeypatch.setattr(os, "mkdir", mkdir)
    result = modelfs("freeze", "acme/llama", "--no-wait")
    assert result.status == 0
    assert result.out == "acme/llama@v1 is downloading: 4.0 KiB\n"


def test_freeze_that_fails_says_why(modelfs: Run, llama: Hub) -> None:
    failed = {"state": "failed", "progress": "1024/4096", "error": "config.json changed"}
    llama.will_show("acme/llama/v1", [DOWNLOADING, failed])
    result = modelfs("freeze", "acme/llama")
    assert result.status == 1
    assert result.err == (
        "modelfs: acme/llama@v1 failed: config.json changed; "
        "modelfs rm acme/llama@v1 clears the name\n"
    )


def test_freeze_says_once_why_it_waits(modelfs: Run, llama: Hub) -> None:
    waiting = DOWNLOADING | {"error": "the registry does not answer"}
    llama.will_show("acme/llama/v1", [DOWNLOADING, waiting, waiting, READY | {"error": ""}])
    result = modelfs("freeze", "acme/llama")
    assert result.status == 0
    assert result.err.count("waits: the registry does not answer") == 1
    assert "1.0 KiB of 4.0 KiB, 25%" in result.err


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EEXIST, "v1 exists or was used before (a version name is never used twice)"),
        (errno.ENODATA, "the model has no file in main/"),
        (errno.EBUSY, "a file of main/ is being written"),
        (errno.EINVAL, "hidden_keys"),
        (errno.ENOSPC, "the store has no room"),
        (errno.EROFS, "read-only"),
        (errno.EOPNOTSUPP, "set `store` in the configuration"),
        (errno.EIO, "the registry does not answer"),
    ],
)
def test_freeze_explains_what_the_mount_refuses(
    modelfs: Run, llama: Hub, refuse: Callable[[str, int], None], number: int, says: str
) -> None:
    refuse("mkdir", number)
    result = modelfs("freeze", "acme/llama", "v1")
    assert result.status == 1
    assert result.err.startswith("modelfs: cannot freeze acme/llama as v1: ")
    assert says in result.err
    assert result.err.count("\n") == 1


def test_freeze_refuses_what_is_no_version_name(modelfs: Run, llama: Hub) -> None:
    assert "'weights' is no version name" in modelfs("freeze", "acme/llama", "weights").err


def test_freeze_of_no_model_is_told(modelfs: Run, llama: Hub) -> None:
    assert "there is no such model" in modelfs("freeze", "acme/gpt").err


def test_freeze_takes_a_path(modelfs: Run, llama: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(llama.path / "acme")
    llama.will_show("acme/llama/v1", [READY])
    assert modelfs("freeze", "llama").status == 0
    llama.will_show("acme/llama/v2", [READY])
    assert modelfs("freeze", "llama/main").status == 1  # a name: namespace llama, model main
    assert modelfs("freeze", f"{llama.path}/acme/llama/main/").status == 0


def test_an_interrupted_freeze_says_that_it_goes_on(
    modelfs: Run, llama: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modelfs.cli.following.time.sleep", interrupt)
    llama.version("acme/llama", "v1", **DOWNLOADING)
    result = modelfs("wait", "acme/llama@v1")
    assert result.status == 130
    assert "goes on: modelfs wait acme/llama@v1" in result.err


def test_a_folder_without_a_state_is_not_waited_for_for_ever(
    modelfs: Run, llama: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelfs.cli.following.UNKNOWN_MAX_S", 0.05)
    result = modelfs("freeze", "acme/llama")
    assert result.status == 1
    assert "shows no state" in result.err


def test_wait_is_over_when_the_version_is_ready(modelfs: Run, llama: Hub) -> None:
    llama.version("acme/llama", "v1", **DOWNLOADING)
    llama.will_show("acme/llama/v1", [DOWNLOADING, READY])
    assert modelfs("wait", "acme/llama@v1").status == 0


def test_wait_follows_an_alias(modelfs: Run, llama: Hub) -> None:
    llama.version("acme/llama", "v1")
    (llama.path / "acme/llama/production").symlink_to("v1")
    assert "acme/llama@v1 is ready" in modelfs("wait", "acme/llama@production").out


def test_wait_gives_up_in_time(modelfs: Run, llama: Hub) -> None:
    llama.version("acme/llama", "v1", **DOWNLOADING, error="no answer")
    result = modelfs("wait", "acme/llama@v1", "--timeout", "0.1")
    assert result.status == 1
    assert "is still downloading after 0.1 s (no answer)" in result.err


def test_wait_for_what_is_not_there_is_told(modelfs: Run, llama: Hub) -> None:
    assert "there is no version acme/llama@v9" in modelfs("wait", "acme/llama@v9").err
    assert "names no version" in modelfs("wait", "acme/llama").err


def test_a_terminal_is_shown_a_bar(llama: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    llama.version("acme/llama", "v1", **DOWNLOADING)
    code = (
        "import sys; from pathlib import Path;"
        "from modelfs import mountinfo; from modelfs.cli import main;"
        f"mountinfo.MOUNTINFO = Path({str(llama.path.parent / 'mountinfo')!r});"
        "sys.exit(main(['wait', 'acme/llama@v1', '--timeout', '0.3']))"
    )
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        try:
            while more := os.read(ours, 4096):
                shown.extend(more)
        except OSError:  # EIO: the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, stdout=theirs, stderr=theirs, env=environment, timeout=30, check=False
    )
    os.close(theirs)
    reader.join(10)
    os.close(ours)
    assert done.returncode == 1
    assert b"1.0/4.0 KiB" in shown
    assert "━".encode() in shown
