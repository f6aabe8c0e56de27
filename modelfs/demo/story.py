"""The story that the demo tells: what for, the command, and what must come out of it."""

import hashlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from modelfs.demo.model import SHARDS, TENSORS
from modelfs.demo.stage import BUCKET, Stage, Step


def story(stage: Stage) -> Iterator[Step]:
    """Yield the steps; what stands between them happens between them."""
    yield from _fill(stage)
    yield from _freeze()
    yield from _change()
    yield from _survive(stage)


def _fill(stage: Stage) -> Iterator[Step]:
    shard = f"model-00001-of-0000{SHARDS}.safetensors"
    url = f"{stage.endpoint}/{BUCKET}/models/acme/tiny/{shard}"
    yield Step(
        "The mount hub/ shows a registry. A model in it is a folder.", "mkdir -p hub/acme/tiny"
    )
    yield Step(
        "Its files go to main/. When cp returns, the registry has them.",
        "cp -r tiny/. hub/acme/tiny/main/",
    )
    yield Step("They are there:", "ls -l hub/acme/tiny/main", shows=shard)
    yield Step(
        "And in the bucket: the object, read past the mount, is the file.",
        f"sha256sum < tiny/{shard} && {_fetch(url)} | sha256sum",
        shows="\n".join([_digest(stage.folder / "tiny" / shard) + "  -"] * 2),
    )
    yield Step(
        "A file in main/ is edited in place, by any program.",
        'sed -i \'s/"temperature": 1.0/"temperature": 0.7/\' hub/acme/tiny/main/config.json'
        " && cat hub/acme/tiny/main/config.json",
        shows='"temperature": 0.7',
    )


def _freeze() -> Iterator[Step]:
    yield Step(
        "Freeze main/ as it is into version v1: complete, local, never to change.",
        "modelfs freeze acme/tiny v1",
        shows="acme/tiny@v1 is ready",
    )
    yield Step(
        "A version has its checksums with it.",
        "cd hub/acme/tiny/v1 && sha256sum -c ../.modelfs/versions/v1.sha256",
        shows=f"model-00001-of-0000{SHARDS}.safetensors: OK",
    )
    yield Step(
        "Servers are pointed at an alias, which is a symlink.", "ln -s v1 hub/acme/tiny/production"
    )
    yield Step(
        "The model beside its working tree:", "ls -l hub/acme/tiny", shows="production -> v1"
    )


def _change() -> Iterator[Step]:
    yield Step(
        "Work goes on in main/; the version does not move.",
        "echo 'Now it speaks Italian, too.' >> hub/acme/tiny/main/README.md",
    )
    yield Step(
        "The next version: no name is given, so it gets the next number.",
        "modelfs freeze acme/tiny",
        shows="acme/tiny@v2 is ready",
    )
    yield Step(
        "What changed? Versions are folders.",
        "diff -r hub/acme/tiny/v1 hub/acme/tiny/v2",
        status=1,
        shows="Italian",
    )
    yield Step(
        "Roll out: the alias moves in one step (and back, the same way).",
        "modelfs alias acme/tiny production v2 && readlink hub/acme/tiny/production",
        shows="\nv2",
    )
    yield Step("Everything there is:", "modelfs ls acme/tiny", shows="production")
    yield Step(
        "Where a server wants no FUSE in the way, the version is a plain folder.",
        "ls $(modelfs path acme/tiny@production)",
        shows="config.json",
    )


def _survive(stage: Stage) -> Iterator[Step]:
    stage.tell("Now the registry goes down: its process is stopped.")
    stage.registry.stop()
    yield Step(
        "Versions do not need it. Load the tensors, compare each with the original:",
        "python compare.py hub/acme/tiny/production tiny",
        shows=f"{SHARDS * TENSORS} tensors",
    )
    yield Step(
        "Nobody changes a version, not even by mistake.",
        "echo oops > hub/acme/tiny/v1/config.json",
        status=-1,
        shows="Read-only file system",
    )
    yield Step("What does the daemon say?", "modelfs status", shows="demo")
    yield Step("Unmount. Nothing waits to be uploaded.", "modelfs umount hub", shows="unmounted")
    stage.require_end()


def _fetch(url: str) -> str:
    """Return a command that prints what is at a URL."""
    if shutil.which("curl"):
        return f"curl -sS --noproxy '*' {url}"
    code = "import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1]).read())"
    return f"python -c {shlex.quote(code)} {url}"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
