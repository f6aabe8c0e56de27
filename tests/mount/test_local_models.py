"""A local model of another namespace's model: its main is a link, its versions are its own."""

import errno
import json
import os
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from modelfs.errors import Stale
from modelfs.mount.tree import Folder
from tests.endpoints import S3Endpoint, free_port
from tests.fake_store import FakeStore
from tests.mount.conftest import MakeMount
from tests.mount.twins import fails_with
from tests.mounting import NOBODY, Mount, run_as_nobody, wait_until, xattr
from tests.trio_tests import ROOT, open_house, trio_test

pytestmark = pytest.mark.mount

FILES = {
    "config.json": b"{}",
    "empty": b"",
    "weights/deep/model.bin": os.urandom(300_000),
}
LINK = "../../acme/llama/main"
ACME, TEAM_B, OTHERS = 2001, 2002, 2003  # groups


def put(bucket: S3Endpoint) -> None:
    for path, data in FILES.items():
        bucket.put(f"models/acme/llama/{path}", data)


@pytest.fixture
def mount(bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    """A mount whose acme/llama/main holds FILES, put there by other tools."""
    put(bucket)
    return make_mount(bucket)


@pytest.fixture
def moto_mount(moto_bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    """The same on moto alone."""
    put(moto_bucket)
    return make_mount(moto_bucket)


@pytest.fixture
def closed_mount(moto_bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    """Two namespaces that only their groups may read and write; team-b/llama is made."""
    if os.getuid() != 0:
        pytest.skip("only root may give folders to groups, and let others use its mount")
    put(moto_bucket)
    namespaces = {
        "namespaces.acme": {"gid": ACME, "mode": "0770"},
        "namespaces.team-b": {"gid": TEAM_B, "mode": "0770"},
    }
    mount = make_mount(moto_bucket, **namespaces)
    local_model(mount, source=None)
    return mount


def local_model(mount: Mount, name: str = "llama", source: str | None = "acme/llama") -> Path:
    """Make a model of team-b as a user without a tool of ours does; return its folder."""
    folder = mount.path / "team-b" / name
    folder.mkdir(parents=True)
    if source is not None:
        set_source(folder, source)
    return folder


def set_source(folder: Path, source: str) -> None:
    os.setxattr(folder, "user.modelfs.source", source.encode())


def frozen(model: Path, version: str) -> Path:
    """Freeze a model and return the version's folder when it is ready."""
    folder = model / version
    folder.mkdir()
    wait_until(lambda: xattr(folder, "state") != "downloading", 30)
    assert xattr(folder, "state") == "ready"
    return folder


def plain(mount: Mount, version: str) -> Path:
    return mount.store / "models" / version


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def inodes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_ino for path in files}


def link_is(model: Path, target: str | None = LINK) -> bool:
    """Tell whether a model's main is that link, or (None) a folder."""
    try:
        return os.readlink(model / "main") == target
    except OSError as error:
        if error.errno != errno.EINVAL:  # no symlink
            raise
        return target is None


# ------------------------------------------------------------------- the story


def test_a_local_model_shows_another_s_main_and_freezes_it_for_itself(mount: Mount) -> None:
    acme = frozen(mount.model, "v1")
    local = local_model(mount)
    listed = subprocess.run(["ls", "-l", local], capture_output=True, text=True, check=True)
    assert f"main -> {LINK}" in listed.stdout
    assert content(local / "main") == FILES
    with mount.counting() as sent:
        version = frozen(local, "v1")
    assert "GetObject" not in sent
    assert content(version) == FILES
    assert inodes(plain(mount, "team-b/llama/v1")) == inodes(plain(mount, "acme/llama/v1"))
    assert xattr(version, "digest") == xattr(acme, "digest")
    manifest = json.loads((local / ".modelfs" / "versions" / "v1.json").read_bytes())
    assert (manifest["namespace"], manifest["model"]) == ("team-b", "llama")
    assert manifest["source"] == "acme/llama"
    assert {entry["key"] for entry in manifest["files"]} == {mount.key(path) for path in FILES}
    assert sorted(os.listdir(local)) == ["latest", "main", "v1"]
    assert os.readlink(local / "latest") == "v1"
    os.symlink("v1", local / "production")
    assert (local / "production" / "config.json").read_bytes() == b"{}"


def test_what_changes_in_the_source_is_in_the_next_version_alone(mount: Mount) -> None:
    local = local_model(mount)
    first = frozen(local, "v1")
    (mount.main / "config.json").write_text("[]")
    second = frozen(local, "v2")
    assert content(first) == FILES
    assert content(second) == {**FILES, "config.json": b"[]"}
    ours = inodes(plain(mount, "team-b/llama/v1")), inodes(plain(mount, "team-b/llama/v2"))
    assert {path for path in FILES if ours[0][path] != ours[1][path]} == {"config.json"}
    assert not (mount.model / "v1").exists()


def test_writes_through_the_link_are_the_source_s(mount: Mount) -> None:
    local = local_model(mount)
    (local / "main" / "new").write_bytes(b"new")
    (local / "main" / "weights" / "deep" / "model.bin").unlink()
    os.rename(local / "main" / "config.json", local / "main" / "renamed.json")
    assert mount.objects()["new"] == b"new"
    assert mount.objects()["renamed.json"] == b"{}"
    assert "weights/deep/model.bin" not in mount.objects()
    assert mount.objects("models/team-b/llama/") == {"": b""}


def test_a_source_is_kept_over_a_restart_and_without_the_registry(
    moto_mount: Mount, moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    local = local_model(moto_mount)
    frozen(local, "v1")
    assert os.readlink(moto_mount.store / "models/team-b/llama/main") == LINK
    assert moto_mount.stop() == 0
    alone = make_mount(
        moto_bucket, endpoint=f"http://127.0.0.1:{free_port()}", store=str(moto_mount.store)
    )
    model = alone.path / "team-b" / "llama"
    assert sorted(os.listdir(model)) == ["latest", "main", "v1"]
    assert link_is(model)
    assert content(model / "v1") == FILES


def test_a_node_with_a_store_of_its_own_asks_the_marker_once(
    moto_mount: Mount, moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    local_model(moto_mount)
    other = make_mount(moto_bucket, metadata_ttl=60)
    model = other.path / "team-b" / "llama"
    os.listdir(other.path / "team-b")
    with other.counting() as sent:
        assert link_is(model)
    assert sent == {"ListObjectsV2": 1, "HeadObject": 1}
    with other.counting() as sent:
        for _ in range(3):
            assert sorted(os.listdir(model)) == ["main"]
            assert link_is(model)
    assert sent == {}
    assert content(frozen(model, "v1")) == FILES


def test_a_model_with_files_of_its_own_is_not_asked_for_a_source(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    put(moto_bucket)
    mount = make_mount(moto_bucket, metadata_ttl=60)
    with mount.counting() as sent:
        assert sorted(os.listdir(mount.model)) == ["main"]
        assert content(mount.main) == FILES
    assert "HeadObject" not in sent


def test_what_others_say_of_a_source_is_seen(moto_mount: Mount) -> None:
    bucket, model = moto_mount.bucket, moto_mount.path / "team-b" / "llama"
    bucket.put("models/team-b/llama/", b"", Metadata={"source": "acme/llama"})
    wait_until(model.is_dir)
    assert link_is(model)
    bucket.put("models/team-b/llama/", b"", Metadata={})
    wait_until(lambda: link_is(model, None))
    assert os.listdir(model / "main") == []
    for wrong in ("acme", "../acme/llama", "team-b/llama", "/etc/passwd"):
        bucket.put("models/team-b/llama/", b"", Metadata={"source": wrong})
        with fails_with(errno.ENODATA):
            (model / "v1").mkdir()
        assert link_is(model, None)


def test_a_source_is_set_and_taken_away(moto_mount: Mount) -> None:
    local = local_model(moto_mount, source=None)
    os.setxattr(local, "user.modelfs.description", b"ours")
    assert os.listdir(local / "main") == []  # the kernel knows it as a folder now
    set_source(local, "acme/llama")
    wait_until(lambda: link_is(local))
    assert xattr(local, "source") == "acme/llama"
    set_source(local, "acme/llama")
    set_source(local, "")
    wait_until(lambda: link_is(local, None))
    with fails_with(errno.ENODATA):
        xattr(local, "source")
    set_source(local, "acme/llama")
    wait_until(lambda: link_is(local))
    (local / "main").unlink()
    wait_until(lambda: link_is(local, None))
    assert xattr(local, "description") == "ours"
    assert content(moto_mount.main) == FILES
    (local / "main" / "mine").write_bytes(b"mine")
    assert moto_mount.objects("models/team-b/llama/") == {"": b"", "mine": b"mine"}


@trio_test
async def test_a_folder_that_has_just_become_a_link_takes_no_file(tmp_path: Path) -> None:
    store = FakeStore()
    for key in ("models/acme/llama/a", "models/team-b/llama/"):
        store.place(key, b"")
    async with open_house(tmp_path / "s", store) as house:
        namespace = await house.tree.root.lookup("team-b")
        assert isinstance(namespace, Folder)
        model = await namespace.lookup("llama")
        assert isinstance(model, Folder)
        main = await model.lookup("main")
        assert isinstance(main, Folder)
        for node in (namespace, model, main):
            node.lookups += 1  # as the kernel does
        await model.set_xattr("source", "acme/llama", ROOT)
        with pytest.raises(Stale):
            await main.create("new")
        with pytest.raises(Stale):
            await main.mkdir("new", ROOT)
        assert list(house.staging) == []
        for node in (main, model, namespace):
            house.tree.forget(node.inode, 1)


def test_sources_that_cannot_be_are_refused(moto_mount: Mount) -> None:
    local = local_model(moto_mount)
    other = local_model(moto_mount, "other", source=None)
    for wrong in ("acme", "acme/llama/main", "../acme/llama", "acme/.hidden", "team-b/other"):
        with fails_with(errno.EINVAL):
            set_source(other, wrong)
    with fails_with(errno.EINVAL):  # its main is acme's
        set_source(other, "team-b/llama")
    for gone in ("acme/nothing", "nobody/llama"):
        with fails_with(errno.ENOENT):
            set_source(other, gone)
    with fails_with(errno.ENOTEMPTY):
        set_source(moto_mount.model, "team-b/other")
    (other / "main" / "folder").mkdir()
    with fails_with(errno.ENOTEMPTY):
        set_source(other, "acme/llama")
    (other / "main" / "folder").rmdir()
    (other / "main" / "notes.swp").write_text("stays on this node")
    with fails_with(errno.ENOTEMPTY):
        set_source(other, "acme/llama")
    (other / "main" / "notes.swp").unlink()
    assert link_is(other, None)
    assert link_is(local)
    set_source(other, "acme/llama")
    with fails_with(errno.EEXIST):
        os.symlink("v1", local / "main")
    with fails_with(errno.EPERM):
        os.rename(local / "main", local / "elsewhere")


def test_a_model_whose_source_is_being_written_is_not_frozen(moto_mount: Mount) -> None:
    local = local_model(moto_mount)
    with (local / "main" / "new").open("wb", buffering=0) as file:
        file.write(b"x")
        with fails_with(errno.EBUSY):
            (local / "v1").mkdir()
    assert "new" in os.listdir(frozen(local, "v1"))


def test_a_local_model_goes_with_its_link_and_its_source_stays(moto_mount: Mount) -> None:
    local = local_model(moto_mount)
    version = frozen(local, "v1")
    os.symlink("v1", local / "production")
    with fails_with(errno.ENOTEMPTY):
        local.rmdir()
    (local / "production").unlink()
    version.rmdir()
    wait_until(lambda: not (local / "latest").is_symlink())
    local.rmdir()
    assert os.listdir(moto_mount.path / "team-b") == []
    assert not os.path.lexists(moto_mount.store / "models/team-b/llama/main")
    assert moto_mount.objects("models/team-b/llama/") == {}
    (moto_mount.path / "team-b").rmdir()
    assert content(moto_mount.main) == FILES
    local.mkdir(parents=True)
    assert link_is(local, None)


def test_a_local_model_is_removed_by_rm_r(moto_mount: Mount) -> None:
    local = local_model(moto_mount)
    subprocess.run(["rm", "-r", local], check=True)
    assert os.listdir(moto_mount.path / "team-b") == []
    assert content(moto_mount.main) == FILES


def test_versions_stay_when_their_source_is_removed(moto_mount: Mount) -> None:
    local = local_model(moto_mount)
    version = frozen(local, "v1")
    for path in FILES:
        (moto_mount.main / path).unlink()
    with fails_with(errno.ENODATA):
        (local / "v2").mkdir()
    for folder in ("weights/deep", "weights"):
        (moto_mount.main / folder).rmdir()
    moto_mount.model.rmdir()
    wait_until(lambda: not (local / "main").exists())
    assert link_is(local)
    with fails_with(errno.ENOENT):
        (local / "v2").mkdir()
    assert content(version) == FILES
    assert sorted(os.listdir(local)) == ["latest", "main", "v1"]


def test_the_command_line_makes_and_shows_a_local_model(moto_mount: Mount) -> None:
    made = command(moto_mount, "create", "team-b/llama", "--source", "acme/llama")
    assert "its main is acme/llama's" in made.stdout
    assert link_is(moto_mount.path / "team-b" / "llama")
    command(moto_mount, "freeze", "team-b/llama", "v1")
    [shown] = json.loads(command(moto_mount, "ls", "team-b/llama", "--json").stdout)
    assert shown["source"] == "acme/llama"
    assert shown["main"] == {"files": len(FILES), "bytes": sum(map(len, FILES.values()))}
    assert "equal" in command(moto_mount, "diff", "team-b/llama@v1", "main").stdout
    refused = command(moto_mount, "rollback", "team-b/llama", "v1", status=1)
    assert "its main/ is acme/llama's" in refused.stderr
    missing = command(moto_mount, "create", "team-b/gpt", "--source", "acme/gpt", status=1)
    assert "there is no model 'acme/gpt'" in missing.stderr
    assert os.listdir(moto_mount.path / "team-b") == ["llama"]


def command(mount: Mount, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line in the mount."""
    done = mount.run(*words)
    assert done.returncode == status, done.stdout + done.stderr
    return done


# ------------------------------------------------------------------- who may


def as_user(groups: Sequence[int], place: Path, *words: str) -> str | bytes:
    """Run a command in a folder as a plain user of these groups: its output, or why not."""
    done = run_as_nobody(groups, place, *words)
    return done.stdout if done.returncode == 0 else done.stderr.decode().rpartition(": ")[2].strip()


DENIED = "Permission denied"
SET_SOURCE = ("setfattr", "-n", "user.modelfs.source", "-v", "acme/llama", "team-b/llama")


def test_a_source_is_set_by_who_may_read_it_alone(closed_mount: Mount) -> None:
    hub, local = closed_mount.path, closed_mount.path / "team-b" / "llama"
    assert as_user([TEAM_B], hub, *SET_SOURCE) == DENIED
    assert as_user([TEAM_B, OTHERS], hub, *SET_SOURCE) == DENIED
    assert as_user([ACME], hub, *SET_SOURCE) == DENIED
    assert link_is(local, None)
    assert as_user([TEAM_B, ACME], hub, *SET_SOURCE) == b""
    wait_until(lambda: link_is(local))
    missing = [*SET_SOURCE[:4], "acme/nothing", "team-b/llama"]
    assert as_user([TEAM_B], hub, *missing) == DENIED  # it does not tell what acme has


def test_a_version_is_frozen_by_who_may_read_its_source_alone(closed_mount: Mount) -> None:
    hub, local = closed_mount.path, closed_mount.path / "team-b" / "llama"
    set_source(local, "acme/llama")
    assert as_user([TEAM_B], hub, "mkdir", "team-b/llama/v1") == DENIED
    assert as_user([ACME], hub, "mkdir", "team-b/llama/v1") == DENIED
    assert sorted(os.listdir(local)) == ["main"]
    assert as_user([TEAM_B, ACME], hub, "mkdir", "team-b/llama/v1") == b""
    wait_until(lambda: xattr(local / "v1", "state") == "ready")
    manifest = json.loads((local / ".modelfs" / "versions" / "v1.json").read_bytes())
    assert manifest["uid"] == NOBODY


def test_the_version_is_team_b_s_and_main_stays_acme_s(closed_mount: Mount) -> None:
    hub, local = closed_mount.path, closed_mount.path / "team-b" / "llama"
    set_source(local, "acme/llama")
    frozen(local, "v1")
    assert as_user([TEAM_B], hub, "cat", "team-b/llama/v1/config.json") == b"{}"
    assert as_user([ACME], hub, "cat", "team-b/llama/v1/config.json") == DENIED
    assert as_user([TEAM_B], hub, "cat", "team-b/llama/main/config.json") == DENIED
    assert as_user([TEAM_B], hub, "touch", "team-b/llama/main/new") == DENIED
    assert as_user([TEAM_B, ACME], hub, "cat", "team-b/llama/main/config.json") == b"{}"
    assert as_user([TEAM_B, ACME], hub, "touch", "team-b/llama/main/new") == b""
    assert "new" in closed_mount.objects()


def test_a_plain_folder_is_for_its_namespace_s_group_alone(closed_mount: Mount) -> None:
    set_source(closed_mount.path / "team-b" / "llama", "acme/llama")
    frozen(closed_mount.model, "v1")
    frozen(closed_mount.path / "team-b" / "llama", "v1")
    for version, group in (("acme/llama/v1", ACME), ("team-b/llama/v1", TEAM_B)):
        given = plain(closed_mount, version)  # as a container gets it: without what is above it
        for folder in (given, given / "weights", given / "weights" / "deep"):
            found = folder.stat()
            assert (found.st_uid, found.st_gid) == (os.getuid(), group)
            assert stat.S_IMODE(found.st_mode) == 0o550
            assert as_user([group], folder, "ls") != DENIED
            assert as_user([OTHERS], folder, "ls", ".") == DENIED
        assert stat.S_IMODE((given / "config.json").stat().st_mode) == 0o444
        assert as_user([group], given, "cat", "config.json") == b"{}"
        assert as_user([OTHERS], given, "cat", "config.json") == DENIED
    assert inodes(plain(closed_mount, "team-b/llama/v1")) == inodes(
        plain(closed_mount, "acme/llama/v1")
    )


def test_plain_folders_of_a_namespace_without_configuration_are_for_everyone(
    closed_mount: Mount,
) -> None:
    (closed_mount.path / "free" / "model").mkdir(parents=True)
    (closed_mount.path / "free" / "model" / "main" / "a").write_text("a")
    frozen(closed_mount.path / "free" / "model", "v1")
    found = plain(closed_mount, "free/model/v1").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.getuid(), 0o555)
