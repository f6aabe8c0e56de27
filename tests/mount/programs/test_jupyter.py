"""Jupyter on main/: what JupyterLab asks of a server's contents API, and a notebook that runs."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.endpoints import accepts, free_port
from tests.mount.twins import Twins
from tests.mounting import METADATA_TTL_S

pytestmark = [pytest.mark.mount, pytest.mark.ceph]

MIB = 1 << 20
START_LIMIT_S = 40.0


@dataclass(frozen=True)
class Jupyter:
    """A server whose root is that of this machine: each folder of a test lies below it."""

    url: str
    environment: dict[str, str]

    def ask(self, method: str, path: Path, say: object = None, more: str = "") -> tuple[int, Any]:
        """Return the status and what was answered to a request of the contents API."""
        body = None if say is None else json.dumps(say).encode()
        request = urllib.request.Request(
            f"{self.url}/api/contents{urllib.parse.quote(str(path))}{more}",
            data=body,
            method=method,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=30) as answer:
                said = answer.read()
                return answer.status, json.loads(said) if said else None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, None


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jupyter]:
    pytest.importorskip("jupyter_server", reason="jupyter_server is not installed")
    home, port = tmp_path_factory.mktemp("jupyter"), free_port()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")},
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
    }
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--port={port}"]
    options += ["--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True"]
    options += ["--ServerApp.root_dir=/", "--ServerApp.terminals_enabled=False"]
    log = home / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyter_server", *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        end = time.monotonic() + START_LIMIT_S
        while not accepts(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)
        yield Jupyter(f"http://127.0.0.1:{port}", environment)
    finally:
        process.terminate()
        process.wait(20)


def notebook(*sources: str) -> dict[str, Any]:
    """Return a notebook with these cells."""
    cells = [
        {
            "cell_type": "code",
            "id": f"cell-{number}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for number, source in enumerate(sources)
    ]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def saved(*sources: str) -> dict[str, object]:
    return {"type": "notebook", "content": notebook(*sources)}


def text(content: str) -> dict[str, object]:
    return {"type": "file", "format": "text", "content": content}


def told(answer: tuple[int, Any]) -> object:
    """Return of an answer what is the same on every disk."""
    status, model = answer
    if not isinstance(model, dict):
        return status
    kept = {key: model.get(key) for key in ("name", "type", "format", "size", "writable")}
    content = model.get("content")
    if isinstance(content, list):
        content = sorted(entry["name"] for entry in content)
    return status, kept, content


def test_notebooks_are_saved_renamed_copied_and_removed_as_on_a_disk(
    ceph_twins: Twins, jupyter: Jupyter
) -> None:
    def step(folder: Path) -> object:
        ask, work = jupyter.ask, folder / "work"
        answers = [
            ask("PUT", work, {"type": "directory"}),
            ask("POST", work, {"type": "notebook"}),
            ask("POST", work, {"type": "file", "ext": ".txt"}),
            ask("POST", work, {"type": "directory"}),
            ask("PUT", work / "nb.ipynb", saved("1 + 1")),
            ask("PUT", work / "nb.ipynb", saved("1 + 1", "2 + 2")),
            ask("GET", work / "nb.ipynb"),
            ask("PATCH", work / "nb.ipynb", {"path": str(work / "renamed.ipynb")}),
            ask("GET", work / "nb.ipynb"),
            ask("PATCH", work / "renamed.ipynb", {"path": str(work / "untitled.txt")}),
            ask("POST", work, {"copy_from": str(work / "renamed.ipynb")}),
            ask("PUT", work / "config.json", text('{"a": 1}')),
            ask("PUT", work / "config.json", text('{"a": 2}')),
            ask("GET", work / "config.json", more="?hash=1"),
            ask("PATCH", work, {"path": str(folder / "play")}),
            ask("GET", folder / "play"),
            ask("DELETE", folder / "play" / "untitled.txt"),
            ask("DELETE", folder / "play" / "absent"),
            ask("DELETE", folder / "play" / "Untitled Folder"),
            ask("GET", folder / "work"),
        ]
        shutil.rmtree(folder / "play" / ".ipynb_checkpoints")
        return [told(answer) for answer in answers]

    answers = ceph_twins.same(step)
    assert "'renamed-Copy1.ipynb'" in str(answers)


def test_checkpoints_are_made_restored_and_deleted_as_on_a_disk(
    ceph_twins: Twins, jupyter: Jupyter
) -> None:
    """They lie in .ipynb_checkpoints, which stays on the node."""
    mount = ceph_twins.mount

    def step(folder: Path) -> object:
        ask, path, answers = jupyter.ask, folder / "d" / "nb.ipynb", []
        ask("PUT", folder / "d", {"type": "directory"})
        ask("PUT", path, saved("first"))
        answers.append(told(ask("POST", path, more="/checkpoints")))
        checkpoint = ask("GET", path, more="/checkpoints")[1][0]["id"]
        ask("PUT", path, saved("second"))
        answers.append(sorted(os.listdir(folder / "d" / ".ipynb_checkpoints")))
        if folder == mount.main:
            assert set(mount.objects()) == {"", "d/", "d/nb.ipynb"}
        answers.append(told(ask("POST", path, more=f"/checkpoints/{checkpoint}")))
        answers.append(told(ask("GET", path)))
        ask("PATCH", path, {"path": str(folder / "d" / "renamed.ipynb")})
        path = folder / "d" / "renamed.ipynb"
        answers.append(len(ask("GET", path, more="/checkpoints")[1]))
        ask("PATCH", folder / "d", {"path": str(folder / "e")})
        path = folder / "e" / "renamed.ipynb"
        answers.append(len(ask("GET", path, more="/checkpoints")[1]))
        answers.append(told(ask("DELETE", path, more=f"/checkpoints/{checkpoint}")))
        answers.append(told(ask("DELETE", path)))
        answers.append(sorted(os.listdir(folder / "e")))
        answers.append(told(ask("DELETE", folder / "e")))
        return answers

    assert "'first'" in str(ceph_twins.same(step))


def test_a_large_file_is_uploaded_in_pieces_as_jupyterlab_does(
    ceph_twins: Twins, jupyter: Jupyter
) -> None:
    pieces = [bytes([number]) * MIB for number in range(4)] + [b"the end"]

    def step(folder: Path) -> object:
        sizes = []
        for number, piece in enumerate(pieces, 1):
            last = number == len(pieces)
            content = base64.b64encode(piece).decode()
            said: dict[str, object] = {"type": "file", "format": "base64", "content": content}
            said["chunk"] = -1 if last else number
            sizes.append(jupyter.ask("PUT", folder / "model.bin", said)[0])
            sizes.append((folder / "model.bin").stat().st_size)
        return sizes

    ceph_twins.same(step)
    assert ceph_twins.mount.objects()["model.bin"] == b"".join(pieces)


def test_a_notebook_that_was_saved_never_seems_to_be_changed_by_others(
    ceph_twins: Twins, jupyter: Jupyter
) -> None:
    """JupyterLab asks whose version to keep when `last_modified` moves after a save."""
    path = ceph_twins.mount.main / "nb.ipynb"
    for source in ("one", "two"):
        said = jupyter.ask("PUT", path, saved(source))[1]["last_modified"]
        end = time.monotonic() + 1.5 * METADATA_TTL_S
        while time.monotonic() < end:
            assert jupyter.ask("GET", path, more="?content=0")[1]["last_modified"] == said


CELLS = (
    "import json, os, numpy\nnumpy.save('a.npy', numpy.arange(1000))\nint(numpy.load('a.npy')[7])",
    "for n in range(20):\n    with open('log', 'a') as file:\n        file.write(f'line {n}\\n')",
    "%%writefile module.py\nanswer = 42",
    "import module\nmodule.answer",
    "!echo from the shell > shell.txt; cat shell.txt",
    "os.makedirs('out')\nos.rename('shell.txt', 'out/renamed.txt')\nos.listdir('out')",
    "with open('m.json', 'w') as file:\n    json.dump({'loss': 0.5}, file)\nopen('m.json').read()",
    "from safetensors.numpy import save_file, load_file\n"
    "save_file({'w': numpy.ones((100, 100))}, 'w.safetensors')\n"
    "float(load_file('w.safetensors')['w'].sum())",
)


def test_a_notebook_runs_in_main_and_its_kernel_writes_as_on_a_disk(
    ceph_twins: Twins, jupyter: Jupyter
) -> None:
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    program = "import sys; from nbclient.cli import main; sys.argv[0] = 'execute'; main()"

    def step(folder: Path) -> object:
        path = folder / "work" / "run.ipynb"
        path.parent.mkdir()
        jupyter.ask("PUT", path, saved(*CELLS))
        done = subprocess.run(
            [sys.executable, "-c", program, "--inplace", str(path)],
            env={**jupyter.environment, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        cells = json.loads(path.read_text())["cells"]
        path.unlink()  # it holds the moments in which its cells ran
        shutil.rmtree(path.parent / ".ipynb_checkpoints")
        return [cell["outputs"] for cell in cells]

    assert "from the shell" in str(ceph_twins.same(step))
