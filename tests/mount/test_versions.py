"""Versions on real mounts: frozen, read, loaded, aliased, removed, shared by two nodes."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import models
from tests.endpoints import CephServer, S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mounting import (
    Mount,
    check_sums,
    content,
    is_ready,
    launcher,
    put,
    refused,
    wait_until,
    xattr,
)

pytestmark = pytest.mark.mount

real_model = models.real_model
KIB = 1024
FILES = {
    "config.json": b"{}",
    "empty": b"",
    "weights/model 1.bin": os.urandom(300 * KIB),
    "weights/deep/back\\slash é": b"odd",
}


@pytest.fixture
def mount(bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    """A mount whose acme/llama/main holds FILES, put there by other tools."""
    put(bucket, FILES)
    return make_mount(bucket, native_versions=False)


@pytest.fixture
def moto_mount(moto_bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    """The same on moto alone."""
    put(moto_bucket, FILES)
    return make_mount(moto_bucket, native_versions=False)


def log_of_aliases(model: Path) -> list[tuple[str, str | None, str | None]]:
    lines = (model / ".modelfs" / "aliases.jsonl").read_text().splitlines()
    return [(c["alias"], c["from"], c["to"]) for c in map(json.loads, lines)]


# ------------------------------------------------------------------ freezing


def test_mkdir_of_a_version_asks_for_the_listing_alone_and_comes_back(
    moto_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    put(moto_bucket, FILES)
    mount = make_mount(moto_bucket, launcher=launcher(gate=gate))
    os.listdir(mount.model)
    with mount.counting() as sent:
        (mount.model / "v1").mkdir()  # no GET is answered before the gate is there
        assert xattr(mount.model / "v1", "state") == "downloading"
    assert sent == {"ListObjectsV2": 1, "GetBucketVersioning": 1}
    done, total = map(int, xattr(mount.model / "v1", "progress").split("/"))
    assert (done, total) == (0, sum(map(len, FILES.values())))
    assert (mount.model / "v1" / "weights" / "model 1.bin").stat().st_size == 300 * KIB
    assert not (mount.model / "latest").is_symlink()
    gate.touch()
    wait_until(lambda: xattr(mount.model / "v1", "state") == "ready")
    assert content(mount.model / "v1") == FILES


def test_a_ready_version_is_checked_by_sha256sum_and_costs_no_request(mount: Mount) -> None:
    version = mount.freeze("v1")
    with mount.counting() as sent:
        assert len(check_sums(version)) == len(FILES)
        assert content(version) == FILES
        assert content(Path(xattr(version, "path"))) == FILES
    assert sent == {}
    assert mount.stop() == 0


def test_attributes_and_the_manifest_tell_of_a_version(mount: Mount) -> None:
    version = mount.freeze("v1")
    size = sum(map(len, FILES.values()))
    assert xattr(version, "progress") == f"{size}/{size}"
    assert xattr(version, "path") == str(mount.store / "models" / "acme" / "llama" / "v1")
    assert xattr(version, "digest").startswith("sha256:")
    with refused(errno.ENODATA):
        xattr(version, "error")
    for path, data in FILES.items():
        assert xattr(version / path, "sha256") == hashlib.sha256(data).hexdigest()
    plain = Path(xattr(version, "path"))
    assert os.getxattr(plain, "user.modelfs.digest").decode() == xattr(version, "digest")
    manifest = json.loads((mount.model / ".modelfs" / "versions" / "v1.json").read_bytes())
    assert (manifest["state"], manifest["digest"]) == ("ready", xattr(version, "digest"))
    assert {f["path"]: f["size"] for f in manifest["files"]} == {
        path: len(data) for path, data in FILES.items()
    }
    assert manifest["provenance"]["bucket"] == mount.bucket.bucket
    listed = subprocess.run(
        ["getfattr", "-d", str(version)], capture_output=True, text=True, check=True
    )
    assert 'user.modelfs.state="ready"' in listed.stdout


def test_an_equal_model_has_an_equal_digest_and_another_has_not(moto_mount: Mount) -> None:
    first = xattr(moto_mount.freeze("v1"), "digest")
    assert xattr(moto_mount.freeze("v2"), "digest") == first
    moto_mount.bucket.put(moto_mount.key("config.json"), b"{ }")
    assert xattr(moto_mount.freeze("v3"), "digest") != first


def test_what_happens_to_main_later_does_not_matter(mount: Mount) -> None:
    version = mount.freeze("v1")
    (mount.main / "config.json").write_text("changed")
    (mount.main / "empty").unlink()
    mount.bucket.put(mount.key("weights/model 1.bin"), b"changed by others")
    assert content(version) == FILES
    assert mount.stop() == 0
    mount.start()
    assert content(version) == FILES
    assert "config.json" in os.listdir(mount.main)


def test_names_that_are_no_versions_freeze_nothing(moto_mount: Mount) -> None:
    model = moto_mount.model
    for name in ("weights", "version1", "-v1", "v", "x1", "v1 "):
        with refused(errno.EINVAL):
            (model / name).mkdir()
    for name in ("main", "latest", ".modelfs"):
        with refused(errno.EEXIST):
            (model / name).mkdir()
    with refused(errno.EPERM):
        (model / "file").write_text("x")
    with refused(errno.EINVAL):
        shutil.copytree(moto_mount.main / "weights", model / "weights")
    (moto_mount.path / "acme" / "hollow").mkdir()
    with refused(errno.ENODATA):
        (moto_mount.path / "acme" / "hollow" / "v1").mkdir()
    assert os.listdir(model) == ["main"]
    moto_mount.bucket.put(moto_mount.key("a//b"))
    with refused(errno.EINVAL):
        (model / "v1").mkdir()


def test_a_model_with_a_file_that_is_being_written_is_busy(moto_mount: Mount) -> None:
    with (moto_mount.main / "new").open("w") as file:
        file.write("x")
        file.flush()
        with refused(errno.EBUSY):
            (moto_mount.model / "v1").mkdir()
    assert "new" in os.listdir(moto_mount.freeze("v1"))


CHANGES: dict[str, Callable[[Path], object]] = {
    "write": lambda v: (v / "config.json").write_text("x"),
    "append": lambda v: (v / "config.json").open("a").close(),
    "read and write": lambda v: (v / "config.json").open("r+").close(),
    "truncate": lambda v: os.truncate(v / "config.json", 0),
    "create": lambda v: (v / "new").write_text("x"),
    "chmod": lambda v: (v / "config.json").chmod(0o777),
    "chown": lambda v: os.chown(v / "config.json", 1, 1),
    "utime": lambda v: os.utime(v / "config.json", (1, 1)),
    "chmod of the version": lambda v: v.chmod(0o777),
    "rename": lambda v: (v / "config.json").rename(v / "renamed"),
    "rename out": lambda v: (v / "config.json").rename(v.parent / "main" / "stolen"),
    "rename in": lambda v: (v.parent / "main" / "empty").rename(v / "brought"),
    "rename of the version": lambda v: v.rename(v.with_name("v9")),
    "unlink": lambda v: (v / "config.json").unlink(),
    "mkdir": lambda v: (v / "weights" / "new").mkdir(),
    "rmdir": lambda v: (v / "weights" / "deep").rmdir(),
    "symlink": lambda v: (v / "link").symlink_to("config.json"),
    "setxattr": lambda v: os.setxattr(v / "config.json", "user.x", b"1"),
    "setxattr of ours": lambda v: os.setxattr(v / "config.json", "user.modelfs.sha256", b"1"),
    "setxattr of the version": lambda v: os.setxattr(v, "user.modelfs.state", b"failed"),
    "removexattr": lambda v: os.removexattr(v / "config.json", "user.modelfs.sha256"),
}


def test_a_version_is_never_changed(mount: Mount) -> None:
    version = mount.freeze("v1")
    found = {}
    for name, change in CHANGES.items():
        try:
            change(version)
            found[name] = "nothing"
        except OSError as error:
            found[name] = errno.errorcode[error.errno or 0]
    assert found == dict.fromkeys(CHANGES, "EROFS")
    assert content(version) == FILES
    assert stat.S_IMODE((version / "config.json").stat().st_mode) == 0o444
    assert stat.S_IMODE(version.stat().st_mode) == 0o555
    assert set(mount.objects()) == set(FILES)


def test_a_version_that_is_still_downloading_is_read_right_the_asked_bytes_first(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    part, count = 64 * KIB, 80
    big = os.urandom(part * count + 7)
    put(moto_bucket, {"big": big})
    mount = make_mount(
        moto_bucket,
        launcher=launcher(slow_get=0.08),
        part_size=part,
        parallel_requests=1,
    )
    version = mount.model / "v1"
    version.mkdir()
    with (version / "big").open("rb") as file:
        for offset in (part * count - 5, part * 40 + 1, 3):
            assert os.pread(file.fileno(), 100, offset) == big[offset : offset + 100]
        assert xattr(version, "state") == "downloading"
        done, total = map(int, xattr(version, "progress").split("/"))
        assert 0 < done < total == len(big)
        with refused(errno.EROFS):
            (version / "big").write_bytes(b"")
        wait_until(lambda: xattr(version, "state") == "ready", 40)
        assert file.read() == big
    with mount.counting() as sent:
        assert (version / "big").read_bytes() == big
    assert sent == {}


def test_an_object_that_vanishes_in_mid_freeze_fails_it_and_rmdir_clears_it(
    moto_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    put(moto_bucket, FILES)
    mount = make_mount(moto_bucket, launcher=launcher(gate=gate))
    version = mount.model / "v1"
    version.mkdir()
    moto_bucket.put(mount.key("config.json"), b"overwritten")
    gate.touch()
    wait_until(lambda: xattr(version, "state") == "failed")
    assert "config.json changed or vanished" in xattr(version, "error")
    with refused(errno.EIO):
        (version / "config.json").read_bytes()
    assert not (mount.store / "models" / "acme" / "llama" / "v1").exists()
    with refused(errno.EEXIST):
        version.mkdir()
    with refused(errno.EINVAL):
        (mount.model / "production").symlink_to("v1")
    version.rmdir()
    assert "v1" not in os.listdir(mount.model)
    assert content(mount.freeze("v1")) == {**FILES, "config.json": b"overwritten"}


# -------------------------------------------------------- aliases, removing


def test_latest_and_an_alias_resolve_and_an_alias_is_moved_atomically(mount: Mount) -> None:
    model = mount.model
    mount.freeze("v1")
    mount.bucket.put(mount.key("config.json"), b"second")
    mount.freeze("v2")
    assert os.readlink(model / "latest") == "v2"
    assert (model / "latest" / "config.json").read_bytes() == b"second"
    (model / "production").symlink_to("v1")
    assert (model / "production" / "config.json").read_bytes() == b"{}"
    assert (model / "production").lstat().st_size == 2
    for number in range(6):
        subprocess.run(["ln", "-sfn", f"v{2 - number % 2}", str(model / "production")], check=True)
        assert os.readlink(model / "production") == f"v{2 - number % 2}"
    assert sorted(os.listdir(model)) == ["latest", "main", "production", "v1", "v2"]
    assert os.readlink(mount.store / "models" / "acme" / "llama" / "production") == "v1"
    moves = [(b, a) for alias, b, a in log_of_aliases(model) if alias == "production"]
    assert moves == [(None, "v1"), *[("v1", "v2"), ("v2", "v1")] * 3]
    (model / "production").unlink()
    assert log_of_aliases(model)[-1] == ("production", "v1", None)
    change = json.loads((model / ".modelfs" / "aliases.jsonl").read_text().splitlines()[-1])
    assert change["uid"] == os.getuid()
    assert change["time_ns"] > 0


def test_readers_of_an_alias_that_is_moved_never_meet_nothing(moto_mount: Mount) -> None:
    model = moto_mount.model
    moto_mount.freeze("v1")
    moto_mount.bucket.put(moto_mount.key("config.json"), b"second")
    moto_mount.freeze("v2")
    alias = model / "production"
    alias.symlink_to("v1")

    def move() -> None:
        for number in range(40):
            subprocess.run(["ln", "-sfn", f"v{1 + number % 2}", str(alias)], check=True)

    with ThreadPoolExecutor(1) as pool:
        moving = pool.submit(move)
        seen = set()
        while not moving.done():
            seen.add((alias / "config.json").read_bytes())
        moving.result()
    assert seen == {b"{}", b"second"}


def test_an_alias_has_a_name_of_its_own_and_points_at_a_ready_version(
    moto_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    put(moto_bucket, FILES)
    mount = make_mount(moto_bucket, launcher=launcher(gate=gate))
    model = mount.model
    mount.freeze("v1")
    gate.unlink()
    moto_bucket.put(mount.key("config.json"), b"new")
    (model / "v2").mkdir()
    for target in ("v2", "v3", "main", "v1/weights", "../llama/v1", "/etc", "latest"):
        with refused(errno.EINVAL):
            (model / "production").symlink_to(target)
    for name in ("v3", "3", "2026-11-22", "-x", ".hidden", "two words"):
        with refused(errno.EINVAL):
            (model / name).symlink_to("v1")
    (model / "production").symlink_to("v1")
    for name in ("main", "latest", "v1", "production"):
        with refused(errno.EEXIST):
            (model / name).symlink_to("v1")
    for name in ("v7", "latest"):
        with refused(errno.EINVAL):
            (model / "production").rename(model / name)
    with refused(errno.EXDEV):
        (mount.path / "acme" / "other").mkdir()
        (model / "production").rename(mount.path / "acme" / "other" / "production")
    with refused(errno.EBUSY):
        (model / "latest").unlink()
    (model / "production").rename(model / "staging")
    assert os.readlink(model / "staging") == "v1"
    assert not (model / "production").is_symlink()
    gate.touch()
    wait_until(lambda: xattr(model / "v2", "state") == "ready")


def test_rmdir_removes_a_version_whole_and_its_name_is_used_up(mount: Mount) -> None:
    model = mount.model
    mount.freeze("v1")
    mount.freeze("v2")
    (model / "production").symlink_to("v2")
    with refused(errno.EBUSY):
        (model / "v2").rmdir()
    (model / "production").unlink()
    with (model / "v2" / "config.json").open("rb") as file:
        with refused(errno.EBUSY):
            (model / "v2").rmdir()
        assert file.read() == b"{}"

    def is_closed() -> bool:  # the kernel tells of a close a moment after it
        with contextlib.suppress(OSError):
            (model / "v2").rmdir()
        return not (model / "v2").exists()

    wait_until(is_closed)
    assert sorted(os.listdir(model)) == ["latest", "main", "v1"]
    assert os.readlink(model / "latest") == "v1"
    assert not (mount.store / "models" / "acme" / "llama" / "v2").exists()
    with refused(errno.EEXIST):
        (model / "v2").mkdir()
    with refused(errno.ENOENT):
        (model / "v2").rmdir()
    assert content(model / "v1") == FILES
    (model / "v1").rmdir()
    assert os.listdir(model) == ["main"]

    def is_swept() -> bool:
        with contextlib.suppress(FileNotFoundError):  # it goes while it is looked at
            return not list((mount.store / "models").rglob("*.json"))
        return False

    wait_until(is_swept)
    assert content(mount.main) == FILES


def test_a_freeze_that_is_under_way_is_given_up_by_rmdir(
    moto_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    put(moto_bucket, FILES)
    mount = make_mount(moto_bucket, launcher=launcher(gate=gate))
    (mount.model / "v1").mkdir()
    (mount.model / "v1").rmdir()
    assert os.listdir(mount.model) == ["main"]
    gate.touch()
    assert content(mount.freeze("v1")) == FILES


# ---------------------------------------------------------------- .modelfs


def test_the_control_folders_are_never_listed_and_can_be_opened(
    moto_mount: Mount, tmp_path: Path
) -> None:
    mount = moto_mount
    mount.freeze("v1")
    names = {name for _, folders, files in os.walk(mount.path) for name in (*folders, *files)}
    assert ".modelfs" not in names
    copied = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(mount.model), str(copied)], check=True)
    assert sorted(os.listdir(copied)) == ["latest", "main", "v1"]
    assert content(copied / "v1") == content(copied / "main") == FILES
    assert mount.bucket.bucket in (mount.path / ".modelfs" / "README").read_text()
    status = mount.status()
    assert status["reachable"] is True
    assert status["counters"]["bugs"] == 0
    assert {"README", "status.json"} <= set(os.listdir(mount.path / ".modelfs"))
    assert {"aliases.jsonl", "versions"} <= set(os.listdir(mount.model / ".modelfs"))
    versions = mount.model / ".modelfs" / "versions"
    assert sorted(os.listdir(versions)) == ["v1.json", "v1.sha256"]
    assert (versions / "v1.json").stat().st_size == len((versions / "v1.json").read_bytes())
    with refused(errno.EPERM):
        (mount.path / ".modelfs" / "README").write_text("x")
    with refused(errno.ENOENT):
        (versions / "v9.json").read_bytes()


# --------------------------------------------------------------- real models


def load_states(folder: Path) -> dict[str, bytes]:
    """Return the digest of each tensor of a model, by its name."""
    safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is missing")
    tensors = safetensors.load_file(folder / "model.safetensors")
    return {name: hashlib.sha256(t.tobytes()).digest() for name, t in tensors.items()}


@pytest.mark.ceph
@pytest.mark.timeout(180, func_only=True)
def test_a_real_model_loads_from_its_version_while_the_gateway_is_stopped(
    ceph: CephServer, ceph_bucket: S3Endpoint, make_mount: MakeMount, real_model: Path
) -> None:
    mount = make_mount(ceph_bucket)
    mount.model.mkdir(parents=True)
    subprocess.run(["cp", "-r", f"{real_model}/.", str(mount.main)], check=True)
    version = mount.freeze("v1", 60)
    plain = Path(xattr(version, "path"))
    assert plain.is_relative_to(mount.store)
    ceph.run("stop-rgw")
    try:
        sent = mount.requests()
        expected = load_states(real_model)
        assert load_states(version) == expected
        assert load_states(mount.model / "latest") == expected
        assert load_states(plain) == expected
        for path in real_model.rglob("*"):
            if path.is_file():
                relative = path.relative_to(real_model)
                assert (version / relative).read_bytes() == path.read_bytes()
        assert mount.requests() == sent
    finally:
        ceph.run("start-rgw")


def embed(folder: Path) -> list[float]:
    """Return what a model of transformers makes of a sentence, with files of `folder` alone."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        answer = model(**tokenizer("a registry as folders", return_tensors="pt"))
    found: list[float] = answer.last_hidden_state.mean(dim=1)[0].tolist()
    return found


@pytest.mark.ceph
@pytest.mark.timeout(240, func_only=True)
@pytest.mark.filterwarnings("ignore")  # of transformers and torch, on which we have no hold
def test_transformers_loads_a_version_while_the_gateway_is_stopped(
    ceph: CephServer, ceph_bucket: S3Endpoint, make_mount: MakeMount, real_model: Path
) -> None:
    expected = embed(real_model)
    mount = make_mount(ceph_bucket)
    mount.model.mkdir(parents=True)
    subprocess.run(["cp", "-r", f"{real_model}/.", str(mount.main)], check=True)
    version = mount.freeze("v1", 60)
    ceph.run("stop-rgw")
    try:
        sent = mount.requests()
        assert embed(version) == expected
        assert embed(Path(xattr(version, "path"))) == expected
        assert mount.requests() == sent
    finally:
        ceph.run("start-rgw")
    assert len(expected) == 384


# ----------------------------------------------------------------- two nodes

MakeNodes = Callable[..., tuple[Mount, Mount]]


@pytest.fixture
def make_nodes(
    moto_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path
) -> Callable[..., tuple[Mount, Mount]]:
    """Make two nodes that share one store; `first` and `second` are their faults."""
    store = tmp_path / "shared"

    def make(
        first: dict[str, object] | None = None, second: dict[str, object] | None = None
    ) -> tuple[Mount, Mount]:
        put(moto_bucket, FILES)
        nodes = []
        for name, options in (("node-a", first), ("node-b", second)):
            said = launcher(host=name, orphans=0.2, **(options or {}))
            nodes.append(make_mount(moto_bucket, launcher=said, store=store, native_versions=False))
        return nodes[0], nodes[1]

    return make


def test_of_two_nodes_that_freeze_one_name_at_once_one_wins_and_both_have_it(
    make_nodes: MakeNodes,
) -> None:
    nodes = make_nodes()

    def freeze(mount: Mount, name: str) -> int:
        try:
            (mount.model / name).mkdir()
        except OSError as error:
            return error.errno or -1
        return 0

    with ThreadPoolExecutor(2) as pool:
        for round_number in range(8):
            name = f"v{round_number}"
            results = list(pool.map(freeze, nodes, [name, name]))
            assert sorted(results) == [0, errno.EEXIST]
            for mount in nodes:
                wait_until(lambda m=mount, n=name: is_ready(m, n))  # type: ignore[misc]
                assert content(mount.model / name) == FILES
    assert all(mount.status()["counters"]["bugs"] == 0 for mount in nodes)


def test_what_one_node_freezes_aliases_and_removes_the_other_sees(make_nodes: MakeNodes) -> None:
    here, there = make_nodes()
    here.freeze("v1")
    wait_until(lambda: is_ready(there, "v1"))
    with there.counting() as sent:
        assert content(there.model / "v1") == FILES
        assert xattr(there.model / "v1", "digest") == xattr(here.model / "v1", "digest")
    assert sent == {}
    (here.model / "production").symlink_to("v1")
    wait_until(lambda: (there.model / "production").is_symlink())
    with refused(errno.EBUSY):
        (there.model / "v1").rmdir()
    (there.model / "production").unlink()
    (there.model / "v1").rmdir()
    wait_until(lambda: "v1" not in os.listdir(here.model))
    with refused(errno.EEXIST):
        (here.model / "v1").mkdir()


def test_the_freeze_of_a_node_that_died_is_finished_by_the_other(
    make_nodes: MakeNodes, tmp_path: Path
) -> None:
    here, there = make_nodes(first={"gate": tmp_path / "never"})
    (here.model / "v1").mkdir()
    wait_until(lambda: "v1" in os.listdir(there.model))
    assert xattr(there.model / "v1", "state") == "downloading"
    assert (there.model / "v1" / "config.json").read_bytes() == b"{}"
    assert xattr(there.model / "v1", "state") == "downloading"  # node a holds its lock
    here.kill()
    wait_until(lambda: is_ready(there, "v1"))
    assert content(there.model / "v1") == FILES
    assert "going on with the freeze of acme/llama@v1" in there.log()


def test_a_daemon_that_died_goes_on_with_its_freeze_when_it_is_back(
    moto_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    put(moto_bucket, FILES)
    mount = make_mount(moto_bucket, launcher=launcher(gate=gate))
    (mount.model / "v1").mkdir()
    mount.kill()
    gate.touch()
    mount.start()
    wait_until(lambda: is_ready(mount, "v1"))
    assert content(mount.model / "v1") == FILES
