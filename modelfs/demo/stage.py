"""Where the demo plays: a folder with a configuration, a registry, a daemon and a shell."""

import json
import os
import select
import shlex
import socket
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelfs.demo.model import COMPARE, make_model
from modelfs.demo.processes import Server, detach, mounted_below, run_shell
from modelfs.errors import MountError

if TYPE_CHECKING:
    from rich.console import Console

BUCKET = "registry"
STEP_LIMIT_S = 60.0
START_LIMIT_S = 30.0


class StepFailed(Exception):
    """A command of the story did not do what was told of it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the story: what for, and what must come out (an exit status, a text)."""

    why: str
    command: str
    status: int = 0
    shows: str = ""


class Stage:
    """The folder with all that the story needs in it. INVARIANT: close() ends what open() began."""

    def __init__(self, folder: Path, console: "Console") -> None:
        self.folder = folder
        self._console = console
        self._environment = _make_environment(folder)
        self.registry = Server(folder / "registry.log", self._environment)
        self.daemon = Server(folder / "daemon.log", self._environment)
        self.endpoint = f"http://127.0.0.1:{_free_port()}"

    def open(self) -> None:
        """Make the model, start the registry, mount it."""
        self.tell(f"A registry, a model and a mount, in {self.folder}")
        make_model(self.folder / "tiny")
        (self.folder / "compare.py").write_text(COMPARE)
        (self.folder / "hub").mkdir()
        (self.folder / "credentials").write_text(
            "[default]\naws_access_key_id = demo\naws_secret_access_key = demo\n"
        )
        (self.folder / "modelfs.toml").write_text(self._configuration())
        port = self.endpoint.rpartition(":")[2]
        self.registry.start([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port])
        _make_bucket(self.endpoint, self.registry)
        self.tell("It is mounted by a daemon, in the foreground of another shell:")
        self._console.print("$ modelfs mount demo", style="cyan")
        self._mount()

    def _configuration(self) -> str:
        settings = {
            "endpoint": self.endpoint,
            "bucket": BUCKET,
            "credentials": str(self.folder / "credentials"),
            "mountpoint": str(self.folder / "hub"),
            "store": str(self.folder / "store"),
            "timeout": "5s",
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        return "\n".join(["[registries.demo]", *lines, ""])

    def _mount(self) -> None:
        reading, writing = os.pipe()
        try:
            command = [sys.executable, "-m", "modelfs", "mount", "demo"]
            self.daemon.start([*command, "--ready-fd", str(writing)], pass_fd=writing)
            os.close(writing)
            writing = -1
            ready, _, _ = select.select([reading], [], [], START_LIMIT_S)
            if not ready or not os.read(reading, 16).startswith(b"ok"):
                raise MountError("the mount did not come up")
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)

    def tell(self, text: str) -> None:
        """Print a sentence of the story."""
        self._console.print(f"\n{text}", style="bold")

    def play(self, step: Step) -> None:
        """Print a step, really run it, print its output, or raise StepFailed."""
        self.tell(step.why)
        self._console.print(f"$ {step.command}", style="cyan")
        status, output = run_shell(step.command, self.folder, self._environment, STEP_LIMIT_S)
        if output:
            self._console.print(output.rstrip("\n"))
        if status is None:
            raise StepFailed(f"`{step.command}` did not end in {STEP_LIMIT_S:g} s")
        if status != step.status and not (step.status < 0 and status > 0):
            raise StepFailed(f"`{step.command}` ended with exit status {status}")
        if step.shows not in output:
            raise StepFailed(f"`{step.command}` did not show {step.shows!r}")

    def require_end(self) -> None:
        """Raise StepFailed where the daemon did not end by itself, and well."""
        if (status := self.daemon.wait()) != 0:
            raise StepFailed(f"the daemon ended with exit status {status}")

    def print_logs(self) -> None:
        """Print the end of what the daemon and the registry logged."""
        for server in (self.registry, self.daemon):
            self._console.print(f"\n{server.log.name}, its end:", style="bold")
            self._console.print(server.log_tail())

    def close(self) -> None:
        """End the daemon, with its mount, and the registry."""
        self.daemon.stop()
        for path in mounted_below(self.folder):
            detach(path)
        self.registry.stop()


def _make_environment(folder: Path) -> dict[str, str]:
    """Return a shell's environment in which `modelfs` and `python` are these."""
    programs = folder / "bin"
    programs.mkdir()
    python = shlex.quote(sys.executable)
    for name, command in (("modelfs", f"{python} -m modelfs"), ("python", python)):
        (programs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (programs / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    source = str(Path(__file__).resolve().parents[2])
    return kept | {
        "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])),
        "MODELFS_CONFIG": str(folder / "modelfs.toml"),
        "MODELFS_REGISTRY": "demo",
        "LC_ALL": "C",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _make_bucket(endpoint: str, registry: Server) -> None:
    """Make the bucket when the registry answers; anyone may read it, as the story does."""
    deadline = time.monotonic() + START_LIMIT_S
    policy = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": "*",
                "Action": "s3:GetObject",
                "Resource": f"arn:aws:s3:::{BUCKET}/*",
            }
        ],
    }
    while True:
        try:
            _put(f"{endpoint}/{BUCKET}", b"")
            _put(f"{endpoint}/{BUCKET}?policy", json.dumps(policy).encode())
            return
        except (urllib.error.URLError, OSError) as error:
            if not registry.is_running or time.monotonic() > deadline:
                raise MountError(f"the demo's registry did not start: {error}") from error
            time.sleep(0.1)


def _put(url: str, body: bytes) -> None:
    headers = {"Content-Type": "application/octet-stream"}  # else moto reads the body as a form
    request = urllib.request.Request(url, data=body, headers=headers, method="PUT")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(request, timeout=5).close()
