"""The manual pages, and what a shell completes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from modelfs import config
from modelfs.cli import commands, completing
from modelfs.cli.mounts import Mount
from tests.cli.conftest import Hub, Run

needs_man = pytest.mark.skipif(shutil.which("man") is None, reason="man is missing (man-db)")


def every_command() -> Iterator[tuple[str, click.Command]]:
    yield from commands.commands.items()


def test_the_page_names_every_command_and_every_option(modelfs: Run) -> None:
    page = modelfs("manual").out.replace(r"\-", "-")
    assert page.startswith(".TH MODELFS 1 ")
    for name, command in every_command():
        section = page.partition(f".SS modelfs {name} ")[2].partition("\n.SS ")[0]
        assert section, name
        for param in command.params:
            if isinstance(param, click.Option) and not param.hidden:
                for word in param.opts:
                    assert word in section, (name, word)


def test_the_page_of_the_configuration_names_every_setting(modelfs: Run) -> None:
    page = modelfs("manual", "modelfs.toml").out.replace(r"\-", "-")
    assert page.startswith(".TH MODELFS.TOML 5 ")
    for table, keys in config.settings().items():
        assert f".SS {table}" in page
        for key in keys:
            assert rf"\fB{key}\fR" in page


@needs_man
@pytest.mark.parametrize("page", ["modelfs", "modelfs.toml"])
def test_man_shows_the_pages_without_a_warning(modelfs: Run, page: str, tmp_path: Path) -> None:
    file = tmp_path / page
    file.write_text(modelfs("manual", page).out)
    shown = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", str(file)],
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "100", "MAN_KEEP_FORMATTING": ""},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert shown.stderr == ""
    assert "NAME" in shown.stdout


def test_the_help_of_every_command_teaches_by_an_example() -> None:
    for name, command in every_command():
        assert command.help is not None, name
        assert "\b" in command.help, name
        assert f"modelfs {name}" in command.help, name


def offered(*words: str) -> list[str]:
    """Return what bash would offer for the last of the words."""
    done = subprocess.run(
        [sys.executable, "-m", "modelfs"],
        env={
            **os.environ,
            "_MODELFS_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["modelfs", *words]),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    return [line.split(",", 1)[1] for line in done.stdout.split()]  # nothing is an empty line


def test_commands_and_registries_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "modelfs.toml"
    file.write_text(
        '[registries.hub]\nendpoint = "http://h:1"\nbucket = "abc"\n'
        '[registries.lab]\nendpoint = "http://h:1"\nbucket = "abc"\n'
    )
    monkeypatch.setenv("MODELFS_CONFIG", str(file))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    assert offered("fre") == ["freeze"]
    assert offered("mount", "") == ["hub", "lab"]
    file.write_text("nonsense")
    assert offered("mount", "") == []


def complete(depth: int, incomplete: str) -> list[str]:
    context = click.Context(commands)
    return completing._names(depth)(context, click.Argument(["x"]), incomplete)


def test_models_and_versions_are_completed_a_level_at_a_time(hub: Hub) -> None:
    for name in ("acme/llama", "acme/lama-2", "team/gpt"):
        hub.model(name)
    hub.version("acme/llama", "v1")
    models, versions = completing.MODELS, completing.VERSIONS
    assert complete(models, "") == ["acme/", "team/"]
    assert complete(models, "ac") == ["acme/lama-2", "acme/llama"]  # of the only one: what is in it
    assert complete(models, "acme/ll") == ["acme/llama"]
    assert complete(models, "acme/llama/") == []
    assert complete(versions, "acme/llama/") == ["acme/llama/v1"]
    assert complete(models, "../") == complete(models, "/") == complete(models, "nothing/") == []


def test_a_mount_that_does_not_answer_completes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "ls"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(completing, "LIMIT_S", 0.2)
    monkeypatch.setattr(completing.mounts, "find", lambda: [Mount("hub", tmp_path)])
    assert complete(completing.MODELS, "ac") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_one(modelfs: Run, shell: str) -> None:
    script = modelfs("completion", shell).out
    assert f"_MODELFS_COMPLETE={shell}_complete" in script
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=script, text=True, check=False)
        assert checked.returncode == 0
