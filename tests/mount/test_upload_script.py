"""`.modelfs/upload.py` and `modelfs upload-script`: who gets a script, and what is in it."""

import errno
import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.endpoints import CephServer, S3Endpoint, free_port
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, refused, run_as_nobody, wait_until, xattr
from tests.uploading import PREFIX, Script, upload_role

pytestmark = pytest.mark.mount

ACME, TEAM_B = 2001, 2002  # groups


def script_file(mount: Mount) -> Path:
    return mount.model / ".modelfs" / "upload.py"


def asked(mount: Mount, wish: object) -> bytes:
    """Return the script that answers a wish."""
    data = wish if isinstance(wish, bytes) else json.dumps(wish).encode()
    fd = os.open(script_file(mount), os.O_RDWR)
    try:
        os.write(fd, data)
        found = b""
        while piece := os.pread(fd, 1 << 20, len(found)):
            found += piece
        return found
    finally:
        os.close(fd)


def secrets(script: Script) -> list[str]:
    """Return what of a grant nobody but its user may see."""
    token = script.grant["token"]
    if token["kind"] == "temporary":
        return [token["secret_key"], token["session_token"]]
    return [token["fields"]["x-amz-signature"], *(url[-64:] for url in token["listings"])]


@pytest.mark.ceph
def test_each_open_makes_a_fresh_script_which_uploads_into_the_model(
    ceph_mount: Mount, tmp_path: Path
) -> None:
    mount = ceph_mount
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.bin").write_bytes(os.urandom(100_000))
    before = time.time()
    first = Script(tmp_path / "a", script_file(mount).read_bytes())
    wait_until(lambda: time.time() - before > 1.1)  # signatures tell seconds
    second = Script(tmp_path / "b", script_file(mount).read_bytes())
    assert secrets(first) != secrets(second)
    assert first.grant["expires"] != second.grant["expires"]
    assert second.run(tmp_path / "weights")[::2] == (0, [])
    wait_until((mount.main / "weights" / "model.bin").exists)
    data = (tmp_path / "weights" / "model.bin").read_bytes()
    assert (mount.main / "weights" / "model.bin").read_bytes() == data
    (mount.main / "by the mount").write_bytes(data * 200)  # in parts
    shutil.copy(mount.main / "by the mount", tmp_path)
    assert second.run(tmp_path / "by the mount")[1].endswith("; 1 file there already")


def test_cat_cp_and_the_command_give_the_script_whole(moto_mount: Mount, tmp_path: Path) -> None:
    file = script_file(moto_mount)
    assert ".modelfs" not in os.listdir(moto_mount.model)
    assert sorted(os.listdir(file.parent)) == ["aliases.jsonl", "upload.py", "versions"]
    catted = subprocess.run(["cat", file], capture_output=True, check=True).stdout
    (tmp_path / "catted.py").write_bytes(catted)
    subprocess.run(["cp", file, tmp_path / "copied.py"], check=True)
    shutil.copyfile(file, tmp_path / "python.py")
    for output in ("piped.py", "output.py"):
        words = ["upload-script", "acme/llama", "--expires", "2h"]
        words += [] if output == "piped.py" else ["-o", str(tmp_path / output)]
        done = moto_mount.run(*words)
        assert (done.returncode, done.stderr) == (0, "")
        if output == "piped.py":
            (tmp_path / output).write_text(done.stdout)
    assert stat.S_IMODE((tmp_path / "output.py").stat().st_mode) == 0o600
    for path in tmp_path.glob("*.py"):
        script = Script(tmp_path / path.stem, path.read_bytes())
        grant = script.grant
        assert (grant["model"], grant["prefix"]) == ("acme/llama", PREFIX)
        assert path.read_bytes().endswith(b"main(sys.argv[1:])\n")
        left_s = time.mktime(time.strptime(grant["expires"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
        wanted_s = 7200 if path.stem in ("piped", "output") else 1800
        assert abs(left_s - time.time() - wanted_s) < 60
        status, out, _ = script.run("--help")
        assert status == 0
        assert "the model acme/llama of the registry hub" in " ".join(out.split())


def test_wishes_that_cannot_be_are_refused(moto_mount: Mount) -> None:
    wrong: list[object] = [
        b"no JSON",
        [],
        {"model": "team-b/other"},
        {"expires_s": 0},
        {"expires_s": 12 * 3600 + 1},
        {"expires_s": "1h"},
        {"large": "name"},
        {"large": [1]},
        {"large": ["../llama-2/secret"]},
        {"large": ["a//b"]},
        {"large": ["n"] * 51},
    ]
    for wish in wrong:
        with refused(errno.EINVAL):
            asked(moto_mount, wish)
    with refused(errno.ENAMETOOLONG):
        asked(moto_mount, {"large": ["n" * 256]})
    with refused(errno.EPERM):
        os.open(script_file(moto_mount), os.O_WRONLY | os.O_TRUNC)
    with script_file(moto_mount).open("r+b", buffering=0) as file:
        with refused(errno.EINVAL):
            file.read(1)
        file.write(b"{}")
        with refused(errno.EPERM):
            file.write(b"{}")
    done = moto_mount.run("upload-script", "acme/llama", "--expires", "soon")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = moto_mount.run("upload-script", "acme/llama", "--expires", "13h")
    assert (done.returncode, done.stderr) == (
        1,
        "modelfs: cannot make an upload script for acme/llama: the registry gives no script for "
        "so long, or one of the names cannot be\n",
    )


# ---------------------------------------------------------------------------- who may


def as_user(groups: Sequence[int], place: Path, *words: str) -> str:
    """Run a command as a plain user of these groups: what it printed, or why it could not."""
    done = run_as_nobody(groups, place, *words)
    said = done.stdout if done.returncode == 0 else done.stderr.rpartition(b": ")[2]
    return said.decode().strip()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may let others use its mount")
@pytest.mark.parametrize(("mode", "members_may"), [("0770", True), ("0750", False)])
def test_who_may_write_the_model_gets_a_script_and_nobody_else(
    moto_bucket: S3Endpoint, make_mount: MakeMount, mode: str, members_may: bool
) -> None:
    namespaces = {
        "namespaces.acme": {"gid": ACME, "mode": mode},
        "namespaces.team-b": {"gid": TEAM_B, "mode": "0770"},
    }
    mount = make_mount(moto_bucket, **namespaces)
    mount.model.mkdir(parents=True)
    path = "acme/llama/.modelfs/upload.py"
    reading = (["cat", path], ["dd", f"if={path}", "status=none"])
    for words in (*reading, ["sh", "-c", f": <> {path}"]):
        assert as_user([TEAM_B], mount.path, *words) == "Permission denied", words
        assert as_user([], mount.path, *words) == "Permission denied", words
    for words in reading:
        said = as_user([ACME], mount.path, *words)
        assert said.startswith("#!/usr/bin/env python3") == members_may
        assert said == "Permission denied" or members_may
    assert as_user([ACME], mount.path, "ls", "acme/llama/main") == ""  # reading is another matter
    mode_bits = stat.S_IMODE(script_file(mount).stat().st_mode)
    assert mode_bits == (0o660 if members_may else 0o600)


def test_a_model_whose_main_is_another_s_has_no_script(moto_mount: Mount) -> None:
    local = moto_mount.path / "team-b" / "llama"
    local.mkdir(parents=True)
    os.setxattr(local, "user.modelfs.source", b"acme/llama")
    wait_until(lambda: (local / "main").is_symlink())
    assert sorted(os.listdir(local / ".modelfs")) == ["aliases.jsonl", "versions"]
    done = moto_mount.run("upload-script", "team-b/llama")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "modelfs: cannot make an upload script for team-b/llama: the main/ of team-b/llama is "
        "acme/llama's: make a script for that\n"
    )


# ------------------------------------------------------------------- where none can be made


def test_a_read_only_mount_makes_no_script(moto_bucket: S3Endpoint, make_mount: MakeMount) -> None:
    moto_bucket.put(f"{PREFIX}file")
    mount = make_mount(moto_bucket, read_only=True)
    with refused(errno.EROFS):
        script_file(mount).read_bytes()
    done = mount.run("upload-script", "acme/llama")
    assert (done.returncode, done.stderr) == (
        1,
        "modelfs: cannot make an upload script for acme/llama: the mount, or what is frozen in "
        "it, is read-only\n",
    )
    assert "no upload script for acme/llama: this mount is read-only" in mount.log()


def test_a_registry_that_is_down_makes_no_script(
    moto_mount: Mount, moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    (moto_mount.main / "file").write_text("1")
    moto_mount.freeze("v1")
    moto_mount.stop()
    nowhere = f"http://127.0.0.1:{free_port()}"
    mount = make_mount(moto_bucket, endpoint=nowhere, store=moto_mount.store)
    with refused(errno.EIO):
        script_file(mount).read_bytes()
    done = mount.run("upload-script", "acme/llama")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "the registry does not answer" in done.stderr
    assert "no upload script for acme/llama: " in mount.log()


@pytest.mark.ceph
def test_a_role_that_is_refused_makes_no_script_and_the_log_says_why(
    ceph_bucket: S3Endpoint, make_mount: MakeMount, ceph: CephServer
) -> None:
    ceph_bucket.put(f"{PREFIX}file")
    mount = make_mount(ceph_bucket, upload_role="arn:aws:iam:::role/modelfs-none")
    with refused(errno.EACCES):
        script_file(mount).read_bytes()
    assert "the registry refuses the role arn:aws:iam:::role/modelfs-none" in mount.log()
    with upload_role(ceph, denies_itself=False) as arn:
        loose = make_mount(ceph_bucket, upload_role=arn)
        with refused(errno.EOPNOTSUPP):
            script_file(loose).read_bytes()
        assert "deny it sts:AssumeRole in its own trust policy" in loose.log()


# ------------------------------------------------------------------------ nothing is told


@pytest.mark.ceph
@pytest.mark.parametrize("uses_sts", [True, False])
def test_no_secret_is_in_the_log_in_the_process_list_or_in_what_is_printed(
    ceph_bucket: S3Endpoint, make_mount: MakeMount, ceph: CephServer, tmp_path: Path, uses_sts: bool
) -> None:
    with upload_role(ceph) as arn:
        settings = {"upload_role": arn} if uses_sts else {}
        mount = make_mount(
            ceph_bucket, endpoint=ceph.tls_endpoint, ca_bundle=str(ceph.ca), **settings
        )
        mount.model.mkdir(parents=True)
        script = Script(tmp_path / "script", script_file(mount).read_bytes())
        kind = "temporary" if uses_sts else "signed"
        assert script.grant["token"]["kind"] == kind
        assert "PRIVATE KEY" not in script.path.read_text()
        (tmp_path / "file").write_bytes(os.urandom(1000))
        process = script.start(tmp_path / "file", "--dry-run")
        argv = Path(f"/proc/{process.pid}/cmdline").read_text()
        printed = "".join(process.communicate(timeout=30))
        status, out, err = script.run(tmp_path / "file")
        assert (status, err) == (0, [])
        status_text = (mount.path / ".modelfs" / "status.json").read_text()
        everything = argv + printed + out + mount.log() + status_text
        for secret in (*secrets(script), ceph.secret_key):
            assert secret not in everything
        assert ceph.secret_key not in script.path.read_text()
        wait_until((mount.main / "file").exists)
        assert xattr(mount.main / "file", "key") == f"{PREFIX}file"


@pytest.mark.ceph
def test_the_command_tells_the_names_of_large_files_beforehand(
    ceph_mount: Mount, tmp_path: Path
) -> None:
    done = ceph_mount.run(
        "upload-script",
        "acme/llama",
        "--large",
        "weights/big one.gguf",
        "-o",
        str(tmp_path / "made"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    script = Script(tmp_path / "script", (tmp_path / "made").read_bytes())
    script.change(token={"form_max": 6 << 20}, cut=[(5 << 20, 1)])
    data = os.urandom(11 << 20)
    (tmp_path / "big one.gguf").write_bytes(data)
    assert script.run(tmp_path / "big one.gguf", "--to", "weights")[0] == 0
    wait_until((ceph_mount.main / "weights" / "big one.gguf").exists)
    assert (ceph_mount.main / "weights" / "big one.gguf").read_bytes() == data
