"""`modelfs upload-script` where a plain folder stands for the mount."""

import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Hub, Run


def test_a_token_is_not_poured_onto_a_terminal(
    hub: Hub, modelfs: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.model("acme/llama")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    result = modelfs("upload-script", "acme/llama")
    assert (result.status, result.out) == (2, "")
    assert "write > upload.py, or -o upload.py" in result.err


def test_a_model_that_is_not_there_has_no_script(hub: Hub, modelfs: Run, tmp_path: Path) -> None:
    output = tmp_path / "upload.py"
    result = modelfs("upload-script", "acme/missing", "-o", str(output))
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "there is no such model in hub" in result.err
    assert not output.exists()


@pytest.mark.parametrize("word", ["soon", "-1h", ""])
def test_a_time_that_is_none_is_told(hub: Hub, modelfs: Run, word: str) -> None:
    hub.model("acme/llama")
    result = modelfs("upload-script", "acme/llama", f"--expires={word}")
    assert (result.status, result.err.count("\n")) == (2, 1)
    assert "is no time: write 30m, 2h or 90s" in result.err
