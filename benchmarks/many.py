"""1,000 models of 20 versions: what a mount costs that has many of them.

The store is written directly, by the code that writes manifests but without its fsyncs:
three small files a version, two of them links to those of the version before, as a freeze
leaves them. The registry has the 1,000 models too, one object each.
"""

import hashlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.common import Bench, Place, command, memory_mib, processor_s, seconds
from benchmarks.figures import Figure
from modelfs import mountinfo
from modelfs.names import ModelId, VersionId
from modelfs.store.layout import Layout
from modelfs.store.manifest import Entry, Manifest, Provenance
from tests.endpoints import S3Endpoint
from tests.mounting import Mount

SECTION = "1,000 models of 20 versions each"
MODELS = 1_000
VERSIONS = 20
NAMESPACE_MODELS = 100  # half of the models are in namespaces of this many
FROZEN_NS = 1_760_000_000 * 10**9
START_MAX_S = 2.0
STARTS = 5
SETTLE_S = 3.0
FILES = ("config.json", "tokenizer.json", "model.safetensors")


def model_ids(count: int) -> list[ModelId]:
    """Half of the models in namespaces of 100, half in namespaces of 10."""
    half = count // 2
    large = [ModelId(f"team-{n // NAMESPACE_MODELS}", f"model-{n}") for n in range(half)]
    small = [ModelId(f"user-{n // 10}", f"model-{n}") for n in range(half, count)]
    return large + small


def run(bench: Bench, models: int = MODELS) -> None:
    """Measure a store of `models` models in each place."""
    ids = model_ids(models)
    with bench.bucket() as bucket:
        _fill_registry(bucket, ids)
        for place in bench.places:
            with bench.mount(bucket, place, "many") as mount:
                _measure(bench, place, mount, ids)


def _measure(bench: Bench, place: Place, mount: Mount, ids: list[ModelId]) -> None:
    def add(what: str, value: float, unit: str, promised_s: float | None = None) -> None:
        promised = "" if promised_s is None else f"< {promised_s:g} s"
        holds = None if promised_s is None else value < promised_s
        bench.figures.add(Figure(SECTION, what, place.name, value, unit, promised, holds))

    def add_step(what: str, words: Sequence[str | Path]) -> None:
        add(what, command(*words), "s")
        add(f"memory after {what}", memory_mib(mount.pid)[0], "MiB")

    layout = Layout(mount.store, platform.node())
    layout.make()
    add("(writing the store)", seconds(lambda: _fill_store(layout, ids)), "s")
    bench.forget(place)
    add("start, all caches empty", seconds(mount.start), "s", START_MAX_S)
    mount.stop()
    starts = [_start(mount) for _ in range(STARTS)]
    add(f"start, median of {STARTS}", statistics.median(s for s, _ in starts), "s", START_MAX_S)
    add("of that, processor time", statistics.median(cpu_s for _, cpu_s in starts), "s")

    mount.start()
    add("memory after the start", memory_mib(mount.pid)[0], "MiB")
    add("until the served versions are mounted", seconds(lambda: _wait_mounts(mount)), "s")
    add("versions mounted then", _native_mounts(mount), "")
    root = mount.path
    namespaces = [root / name for name in dict.fromkeys(model.namespace for model in ids)]
    models = [root / model.namespace / model.name for model in ids]
    add_step("`ls -l` of the root", ("ls", "-l", root))
    add_step(f"`ls -l` of a namespace of {NAMESPACE_MODELS} models", ("ls", "-l", namespaces[0]))
    add_step(f"`ls -l` of all {len(namespaces)} namespaces", ("ls", "-l", *namespaces))
    add_step("`ls -l` of one model", ("ls", "-l", models[-1]))
    add_step(f"`ls -l` of all {len(models):,} models", ("ls", "-l", *models))
    add_step("`ls -l` of all models again", ("ls", "-l", *models))
    add_step("`find -maxdepth 3`", ("find", root, "-maxdepth", "3"))
    add_step(
        "`modelfs ls`", (sys.executable, "-m", "modelfs", "--config", mount.config, "ls", root)
    )
    add("most memory ever (VmHWM)", memory_mib(mount.pid)[1], "MiB")
    add("stop", seconds(mount.stop), "s")


def _start(mount: Mount) -> tuple[float, float]:
    """Start and stop; return the seconds until it answers, and those of a processor."""
    took = seconds(mount.start)
    spent = processor_s(mount.pid)
    mount.stop()
    return took, spent


def _wait_mounts(mount: Mount) -> None:
    """Wait until no more versions are mounted."""
    while True:
        before = _native_mounts(mount)
        time.sleep(SETTLE_S)
        if _native_mounts(mount) == before > 0:
            return


def _native_mounts(mount: Mount) -> int:
    return sum(mount.path in mounted.path.parents for mounted in mountinfo.mounted())


# ------------------------------------------------------------------ what there is


def _fill_registry(bucket: S3Endpoint, ids: list[ModelId]) -> None:
    with ThreadPoolExecutor(8) as threads:
        for _ in threads.map(lambda model: bucket.put(f"models/{model}/config.json", b"{}"), ids):
            pass


def _fill_store(layout: Layout, ids: list[ModelId]) -> None:
    with ThreadPoolExecutor(8) as threads:
        for _ in threads.map(lambda model: _write_model(layout, model), ids):
            pass


def _write_model(layout: Layout, model: ModelId) -> None:
    for folder in (layout.model(model), layout.manifests(model)):
        folder.mkdir(parents=True)
    names = [f"v{n}" for n in range(1, VERSIONS + 1)]
    for number, name in enumerate(names):
        _write_version(layout, VersionId(model, name), number)
    (layout.model(model) / "latest").symlink_to(names[-1])


def _write_version(layout: Layout, version: VersionId, number: int) -> None:
    folder = layout.version(version)
    folder.mkdir()
    before = layout.version(VersionId(version.model, f"v{number}"))
    entries = []
    for name in FILES:
        is_new = number == 0 or name == FILES[-1]
        data = f"{version.model} {name} {number if is_new and number else 0}".encode()
        sha256 = hashlib.sha256(data).hexdigest()
        path = folder / name
        if is_new:
            path.write_bytes(data)
            os.setxattr(path, "user.modelfs.sha256", sha256.encode())
            path.chmod(0o444)
        else:
            os.link(before / name, path)
        key, etag = f"models/{version.model}/{name}", hashlib.md5(data).hexdigest()
        entries.append(Entry(name, key, etag, len(data), FROZEN_NS, md5=etag, sha256=sha256))
    bare = Manifest(
        *(version.model.namespace, version.model.name, version.version),
        Provenance("hub", "http://ceph", "bucket", "models/", layout.host, "0"),
        pinned_ns=FROZEN_NS,
        uid=0,
        folders=(),
        files=tuple(sorted(entries, key=lambda entry: entry.path)),
    )
    manifest = bare.completed(bare.files, FROZEN_NS + number)
    for name, value in (
        ("state", "ready"),
        ("digest", manifest.digest or ""),
        ("progress", f"{manifest.size}/{manifest.size}"),
    ):
        os.setxattr(folder, f"user.modelfs.{name}", value.encode())
    folder.chmod(0o555)
    layout.manifest(version).write_bytes(manifest.to_json())
    layout.checksums(version).write_bytes(manifest.to_checksums())
