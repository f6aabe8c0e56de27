"""The command as a whole: help, exit statuses, one line for a mistake."""

import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs import cli
from tests.cli.conftest import Hub, Run

COMMANDS = ["alias", "create", "demo", "freeze", "ls", "mount", "path", "rm", "status"]
COMMANDS += ["doctor", "umount", "wait", "diff", "rollback", "verify", "warm", "evict"]


def test_help_names_every_command_and_shows_an_example(modelfs: Run) -> None:
    result = modelfs("--help")
    assert result.status == 0
    assert all(f"\n  {command} " in result.out for command in COMMANDS)
    assert "modelfs freeze acme/llama" in result.out


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "demo"])
def test_help_of_each_command_teaches_by_example(modelfs: Run, command: str) -> None:
    result = modelfs(command, "--help")
    assert result.status == 0
    assert f"    modelfs {command}" in result.out.replace("-r hub ", "")


def test_help_loads_nothing_that_is_slow() -> None:
    code = (
        "import sys; from modelfs.cli import main; main(['--help']);"
        "slow = {'boto3', 'botocore', 'pyfuse3', 'trio', 'pydantic', 'rich', 'numpy'};"
        "sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr


def test_both_modules_run_as_the_command() -> None:
    for module in ("modelfs", "modelfs.cli"):
        command = [sys.executable, "-m", module, "--version"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("modelfs")


def test_an_unknown_command_is_a_usage_error_in_one_line(modelfs: Run) -> None:
    result = modelfs("frieze")
    assert result.status == 2
    assert result.err.startswith("modelfs: No such command 'frieze'")
    assert result.err.count("\n") == 1


def test_a_missing_argument_says_where_the_help_is(modelfs: Run) -> None:
    result = modelfs("freeze")
    assert result.status == 2
    assert result.err == "modelfs: Missing argument 'NS/MODEL'; see modelfs freeze --help\n"


def test_no_command_shows_the_help_as_a_usage_error(modelfs: Run) -> None:
    result = modelfs()
    assert result.status == 2
    assert "Usage: modelfs" in result.err


def test_a_mistake_is_one_line_and_exit_status_1(modelfs: Run) -> None:
    result = modelfs("ls")
    assert result.status == 1
    assert result.out == ""
    assert result.err == (
        "modelfs: no registry is mounted here: modelfs mount REGISTRY [MOUNTPOINT]\n"
    )


def test_an_interrupt_is_exit_status_130(modelfs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("modelfs.cli.mounts.find", interrupt)
    result = modelfs("ls")
    assert result.status == 130
    assert result.err.strip() == "modelfs: interrupted"  # click ends the line of ^C


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EIO, "modelfs status"),
        (errno.ENOTCONN, "modelfs umount"),
        (errno.EACCES, "permission denied"),
        (errno.ELOOP, "Too many levels"),
    ],
)
def test_an_error_of_the_mount_is_a_sentence(
    modelfs: Run, hub: Hub, refuse: Callable[[str, int], None], number: int, says: str
) -> None:
    refuse("listdir", number)
    result = modelfs("ls")
    assert result.status == 1
    assert says in result.err
    assert "Traceback" not in result.err
    assert result.err.count("\n") == 1


def test_a_reader_that_has_enough_is_no_mistake(tmp_path: Path) -> None:
    command = f"{sys.executable} -m modelfs --help | true"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=30)
    assert "Traceback" not in done.stderr


def test_a_wrong_configuration_is_told_line_by_line(modelfs: Run, tmp_path: Path) -> None:
    wrong = tmp_path / "modelfs.toml"
    wrong.write_text('[registries.hub]\nbucket = "models"\ncolour = "red"\n')
    result = modelfs("--config", str(wrong), "mount", "hub", str(tmp_path))
    assert result.status == 1
    assert len(result.err.splitlines()) == 2
    assert all(line.startswith("modelfs: ") for line in result.err.splitlines())


def test_control_characters_of_names_do_not_reach_the_terminal(modelfs: Run, hub: Hub) -> None:
    hub.model("acme/llama", description="\x1b[31mred")
    result = modelfs("ls")
    assert "\x1b" not in result.out
    assert "[31mred" in result.out


def test_main_returns_the_status_for_the_script() -> None:
    assert cli.main(["--help"]) == 0
