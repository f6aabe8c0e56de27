"""mount -t modelfs, /etc/fstab and umount(8): the real programs, in a mount namespace of the test.

There the helpers lie in /sbin, which the rest of the machine does not see.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfs.cli import mounthelper
from tests.endpoints import S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy
from tests.mounting import why_no_fuse

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.getuid() != 0, reason="only root may mount"),
]

HELPERS = {"mount.modelfs": "mount", "umount.fuse.modelfs": "umount"}


class Node:
    """A node: its own mounts, with our helpers in /sbin, and a configuration of two registries."""

    def __init__(self, folder: Path, bucket: S3Endpoint, endpoint: str) -> None:
        self.folder = folder
        self.bucket = bucket
        self.config = folder / "modelfs.toml"
        self.hub, self.lab = folder / "hub", folder / "lab"
        self.hub.mkdir()
        self.lab.mkdir()
        lines = []
        for name, prefix in (("hub", "models/"), ("lab", "other/")):
            values = {
                "endpoint": endpoint,
                "bucket": bucket.bucket,
                "prefix": prefix,
                "credentials": str(bucket.credentials_file),
                "store": str(folder / f"store-{name}"),
                "timeout": 3,
            }
            lines += [
                f"[registries.{name}]",
                *(f"{k} = {json.dumps(v)}" for k, v in values.items()),
            ]
        self.config.write_text("\n".join(lines) + "\n")
        self._helpers()
        self._shell = subprocess.Popen(
            ["unshare", "-m", "sh", "-c", "echo unshared; exec sleep 300"], stdout=subprocess.PIPE
        )
        assert self._shell.stdout is not None
        assert self._shell.stdout.readline() == b"unshared\n"
        self.run("mount", "-t", "tmpfs", "tmpfs", "/run")  # umount's notes are there
        self.run(
            "mount", "-t", "overlay", "-o", f"lowerdir={folder}/sbin:/usr/sbin", "o", "/usr/sbin"
        )

    def _helpers(self) -> None:
        (self.folder / "sbin").mkdir()
        for name, function in HELPERS.items():
            helper = self.folder / "sbin" / name
            code = f"import sys; from modelfs.cli.mounthelper import {function} as f; sys.exit(f())"
            helper.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
            helper.chmod(0o755)

    def run(self, *command: str | Path, status: int = 0) -> str:
        """Run a command on the node; return what it said."""
        done = subprocess.run(
            [
                "nsenter",
                f"--mount=/proc/{self._shell.pid}/ns/mnt",
                f"--wdns={os.getcwd()}",
                *command,
            ],
            env={**os.environ, "XDG_STATE_HOME": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def mount(self, registry: str, folder: Path, options: str = "", *, status: int = 0) -> str:
        options = f"config={self.config},log_file={self.folder}/{registry}.log,{options}"
        return self.run("mount", "-t", "modelfs", "-o", options, registry, folder, status=status)

    def is_mounted(self, folder: Path) -> bool:
        return f" {folder} fuse.modelfs " in self.run("cat", "/proc/self/mounts")

    def close(self) -> None:
        for folder in (self.hub, self.lab):
            if self.is_mounted(folder):
                self.run("umount", folder)
        with self._shell as shell:
            shell.kill()


@pytest.fixture
def proxy(moto_bucket: S3Endpoint) -> Iterator[FaultyProxy]:
    with FaultyProxy(moto_bucket.endpoint) as proxy:
        yield proxy


@pytest.fixture
def node(moto_bucket: S3Endpoint, proxy: FaultyProxy, tmp_path: Path) -> Iterator[Node]:
    if reason := why_no_fuse():
        pytest.skip(reason)
    folder = tmp_path / "node"
    folder.mkdir()
    made = Node(folder, moto_bucket, proxy.endpoint)
    yield made
    made.close()


def test_two_registries_are_mounted_and_unmounted_as_any_file_system(node: Node) -> None:
    node.mount("hub", node.hub)
    node.mount("modelfs:lab", node.lab)
    assert node.is_mounted(node.hub)
    assert node.is_mounted(node.lab)
    node.run("mkdir", "-p", node.hub / "acme/llama", node.lab / "acme/llama")
    node.run("cp", node.config, node.hub / "acme/llama/main/a")
    assert node.bucket.get("models/acme/llama/a") == node.config.read_bytes()
    assert node.run("ls", node.lab / "acme/llama/main") == ""
    node.run("umount", node.hub)
    assert not node.is_mounted(node.hub)
    assert node.run("ls", node.lab) == "acme\n"
    node.mount("hub", node.hub)  # at once: the daemon of before has ended
    assert node.run("cat", node.hub / "acme/llama/main/a") == node.config.read_text()


def test_a_line_of_fstab_mounts_it_and_what_is_for_others_is_passed_over(node: Node) -> None:
    fstab = node.folder / "fstab"
    options = "_netdev,nofail,ro,allow_other,x-systemd.requires-mounts-for=/ceph,user=somebody"
    more = f"config={node.config},log_file={node.folder}/hub.log"
    fstab.write_text(f"modelfs:hub {node.hub} modelfs {options},{more} 0 0\n")
    node.run("mount", "-T", fstab, node.hub)
    assert " ro," in node.run("findmnt", "-n", "-o", "SOURCE,OPTIONS", node.hub)
    assert "Read-only file system" in node.run("mkdir", node.hub / "acme", status=1)
    node.run("mount", "-a", "-T", fstab)  # it is mounted: nothing to do
    node.run("umount", node.hub)
    node.run("mount", "-a", "-T", fstab)
    assert node.is_mounted(node.hub)


def test_umount_waits_until_what_was_written_is_in_the_registry(
    node: Node, proxy: FaultyProxy
) -> None:
    node.mount("hub", node.hub)
    node.run("mkdir", "-p", node.hub / "acme/llama")
    with proxy.faulty(Fault.UNAVAILABLE, lambda head: head.startswith(b"PUT ")):
        node.run("cp", node.config, node.hub / "acme/llama/main/a", status=1)
    assert "uploads waiting" not in node.run("umount", node.hub)
    assert node.bucket.get("models/acme/llama/a") == node.config.read_bytes()


def test_umount_works_though_versions_are_mounted_below(node: Node) -> None:
    node.mount("hub", node.hub)
    model = node.hub / "acme/llama"
    node.run("mkdir", "-p", model)
    node.run("cp", node.config, model / "main/a")
    node.run("mkdir", model / "v1")
    node.run(sys.executable, "-m", "modelfs", "wait", model / "v1")
    node.run("cat", model / "v1/a")
    node.run("timeout", "10", "sh", "-c", f"until grep -q {model}/v1 /proc/self/mounts; do :; done")
    node.run("umount", node.hub)
    assert str(node.hub) not in node.run("cat", "/proc/self/mounts")


def test_a_lazy_umount_waits_for_nothing(node: Node, proxy: FaultyProxy) -> None:
    node.mount("hub", node.hub)
    node.run("mkdir", "-p", node.hub / "acme/llama")
    with proxy.faulty(Fault.UNAVAILABLE, lambda head: head.startswith(b"PUT ")):
        node.run("cp", node.config, node.hub / "acme/llama/main/a", status=1)
        node.run("umount", "-l", node.hub)
        assert not node.is_mounted(node.hub)


def test_what_cannot_be_mounted_is_said_in_a_line(node: Node) -> None:
    def said(*arguments: str | Path) -> str:
        (line,) = node.mount(*arguments, status=32).splitlines()  # type: ignore[arg-type]
        return line

    assert "there is no registry 'hubb'; did you mean 'hub'?" in said("hubb", node.hub)
    assert "No such file or directory: make it with mkdir" in said("hub", node.folder / "none")
    assert "cannot be mounted" in said("hub", node.hub, "nonsense")
    node.mount("hub", node.hub)
    assert "mounted there already" in said("hub", node.hub)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hub"], "usage: mount.modelfs REGISTRY FOLDER"),
        (["hub", "/x", "-o", "remount,ro"], "/x cannot be remounted"),
        (["hub", "/x", "-q"], "option -q not recognized"),
    ],
)
def test_a_wrong_call_of_the_helper_is_said(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mounthelper.mount(arguments) == 1
    assert said in capsys.readouterr().err
