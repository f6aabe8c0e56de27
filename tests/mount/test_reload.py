"""SIGHUP: a mount reads its configuration again, and goes on whatever it finds there."""

import errno
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from modelfs.reloading import LIVE
from modelfs.tables import RegistryConfig, said_name
from tests.endpoints import S3Endpoint, write_credentials
from tests.faulty_proxy import Fault, FaultyProxy, is_data
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, refused, wait_until

pytestmark = pytest.mark.mount

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")


def reload(mount: Mount, **changes: object) -> dict[str, Any]:
    """Change the configuration and have it read again; return what became of it."""
    before = mount.status()["configuration"]["read_ns"]
    mount.configure(**changes)
    os.kill(mount.pid, signal.SIGHUP)
    wait_until(lambda: mount.status()["configuration"]["read_ns"] != before)
    found: dict[str, Any] = mount.status()["configuration"]
    return found


def test_times_and_limits_change_while_a_file_is_open(moto_mount: Mount) -> None:
    """Each change is seen by what it does, not by what is said of it."""
    moto_mount.bucket.put(moto_mount.key("data"), os.urandom(1 << 20))
    assert (moto_mount.main / "data").stat().st_size == 1 << 20
    with (moto_mount.main / "data").open("rb", buffering=0) as file:
        first = file.read(1000)
        found = reload(
            moto_mount,
            metadata_ttl=3600,
            staged_max=100,
            local_only=["*.mine"],
            cache={"max_size": 0},
        )
        assert found["applied"] == ["cache", "local_only", "metadata_ttl", "staged_max"]
        assert (found["error"], found["needs_restart"]) == (None, [])
        file.seek(0)
        assert file.read(1000) == first
    wait_until(lambda: moto_mount.status()["cache"]["bytes"] == 0)  # max_size
    with refused(errno.ENOSPC):  # staged_max
        (moto_mount.main / "big").write_bytes(bytes(200))
    (moto_mount.main / "x.mine").write_bytes(b"x")  # local_only
    (moto_mount.main / "x.swp").write_bytes(b"x")
    assert {"x.swp"} == {name for name in moto_mount.objects() if name.startswith("x.")}
    os.listdir(moto_mount.main)
    moto_mount.bucket.put(moto_mount.key("later"))
    time.sleep(0.7)  # longer than metadata_ttl was
    assert "later" not in os.listdir(moto_mount.main)


def test_a_shorter_timeout_holds_for_the_next_request(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    moto_bucket.put("models/acme/llama/a")
    with FaultyProxy(moto_bucket.endpoint) as proxy:
        mount = make_mount(moto_bucket, endpoint=proxy.endpoint, timeout=600)
        assert reload(mount, timeout=0.6)["applied"] == ["timeout"]
        with proxy.faulty(Fault.HOLD, is_data), refused(errno.EIO):
            (mount.main / "a").read_bytes()
    assert "sent nothing for 1 s" in mount.log() or "does not answer" in mount.log()


def test_the_log_says_more_and_less_when_its_level_changes(moto_mount: Mount) -> None:
    assert " DEBUG " not in moto_mount.log()
    reload(moto_mount, log_level="debug")
    with refused(errno.ENOENT):
        (moto_mount.main / "absent").read_bytes()
    with refused(errno.EINVAL):
        (moto_mount.model / "none of ours").mkdir()
    wait_until(lambda: " DEBUG " in moto_mount.log())
    reload(moto_mount, log_level="error")
    said = len(moto_mount.log())
    reload(moto_mount, timeout=4)
    assert " INFO " not in moto_mount.log()[said:]


def test_what_wants_a_restart_is_named_and_stays_as_it_was(
    moto_mount: Mount, tmp_path: Path
) -> None:
    moto_mount.bucket.put(moto_mount.key("a"), b"a")
    found = reload(
        moto_mount, bucket="another", part_size="1MiB", store=str(tmp_path / "other"), timeout=4
    )
    assert found["needs_restart"] == ["bucket", "store", "part_size"]
    assert found["applied"] == ["timeout"]
    assert (moto_mount.main / "a").read_bytes() == b"a"
    assert not (tmp_path / "other").exists()
    line = "these want a restart (systemctl restart modelfs@hub), and are what they were: "
    assert moto_mount.log().count(line + "bucket, store, part_size") == 1
    again = reload(
        moto_mount, bucket=moto_mount.bucket.bucket, part_size=None, store=str(moto_mount.store)
    )
    assert again["needs_restart"] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"part_sise": 1}, "did you mean 'part_size'"),
        ({"credentials": "/nothing/here"}, "/nothing/here: cannot be read"),
        ({"store_filesystem": ["ceph"]}, "mount that first (store_filesystem)"),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line_and_the_old_one_goes_on(
    moto_mount: Mount, changes: dict[str, object], said: str
) -> None:
    found = reload(moto_mount, metadata_ttl=1800, **changes)
    assert said in found["error"]
    (line,) = [line for line in moto_mount.log().splitlines() if " ERROR " in line]
    assert "the new configuration is refused, the old one goes on" in line
    assert said in line
    (moto_mount.main / "a").write_text("a")
    moto_mount.bucket.put(moto_mount.key("b"))
    wait_until(lambda: "b" in os.listdir(moto_mount.main))  # metadata_ttl is what it was
    good = reload(moto_mount, **dict.fromkeys(changes) | {"credentials": credentials(moto_mount)})
    assert (good["error"], good["applied"]) == (None, ["metadata_ttl"])


def credentials(mount: Mount) -> str:
    return str(mount.bucket.credentials_file)


def test_a_file_that_is_none_any_more_is_refused(moto_mount: Mount) -> None:
    text = moto_mount.config.read_text()
    moto_mount.config.write_text("[registries.hub")
    done = moto_mount.run("reload", str(moto_mount.path))
    assert done.returncode == 1
    assert "refused, the old configuration goes on" in done.stderr
    assert "not TOML" in done.stderr
    moto_mount.config.write_text(text.replace("registries.hub", "registries.other"))
    assert "there is no registry 'hub'" in moto_mount.run("reload").stderr
    moto_mount.config.write_text(text)
    assert "nothing that a mount can change" in moto_mount.run("reload").stdout


def test_reload_says_what_is_new_and_what_wants_a_restart(moto_mount: Mount) -> None:
    moto_mount.configure(timeout=5, parallel_requests=3)
    said = moto_mount.run("reload").stdout
    assert "new is timeout" in said
    assert "a restart is wanted by parallel_requests" in said


def test_a_registry_that_is_new_is_told_how_to_mount(moto_mount: Mount) -> None:
    with moto_mount.config.open("a") as file:
        file.write('[registries.lab]\nendpoint = "http://h:1"\nbucket = "lab"\n')
    moto_mount.run("reload")
    moto_mount.run("reload")
    assert moto_mount.log().count("systemctl enable --now modelfs@lab") == 1


@pytest.mark.ceph
def test_credentials_of_another_file_are_used_by_the_next_request(
    ceph_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path
) -> None:
    mount = make_mount(ceph_bucket, metadata_ttl=60)  # names are answered from memory
    mount.model.mkdir(parents=True)
    os.listdir(mount.main)
    wrong = write_credentials(tmp_path / "wrong", ceph_bucket.access_key, "wrong")
    assert reload(mount, credentials=str(wrong))["applied"] == ["credentials"]
    with refused(errno.EACCES):
        (mount.main / "a").write_text("a")
    right = write_credentials(tmp_path / "right", ceph_bucket.access_key, ceph_bucket.secret_key)
    requests = mount.requests()
    assert reload(mount, credentials=str(right))["error"] is None
    wait_until(lambda: mount.objects().get("a") == b"a")  # what was refused is tried again
    (mount.main / "b").write_text("b")
    assert mount.requests()["PutObject"] >= requests["PutObject"] + 2


@needs_root
def test_a_namespace_that_is_closed_is_closed_at_once(moto_mount: Mount) -> None:
    """In the mount, and in the store, whose folder it was frozen into before."""
    (moto_mount.main / "a").write_text("secret")
    moto_mount.freeze("v1")
    places = (moto_mount.path / "acme", moto_mount.store / "models" / "acme")
    assert all(may_list(2001, place) for place in places)
    reload(moto_mount, **{"namespaces.acme": {"gid": 2002, "mode": "0770"}})
    wait_until(lambda: not any(may_list(2001, place) for place in places))
    assert all(may_list(2002, place) for place in places)
    reload(moto_mount, **{"namespaces.acme": None})
    wait_until(lambda: all(may_list(2001, place) for place in places))


@needs_root
def test_a_namespace_that_was_closed_while_nothing_ran_is_closed_by_the_start(
    moto_mount: Mount,
) -> None:
    (moto_mount.main / "a").write_text("secret")
    moto_mount.freeze("v1")
    moto_mount.stop()
    moto_mount.configure(**{"namespaces.acme": {"gid": 2002, "mode": "0770"}})
    moto_mount.start()
    wait_until(lambda: not may_list(2001, moto_mount.store / "models" / "acme"))


def may_list(gid: int, folder: Path) -> bool:
    command = ["setpriv", "--clear-groups", "--regid", str(gid), "--reuid", "1235", "ls", "."]
    # The folder is named by a descriptor: those above it are the test's alone.
    fd = os.open(folder.parent, os.O_RDONLY)
    try:
        command[-1] = folder.name
        done = subprocess.run(
            command, cwd=f"/proc/self/fd/{fd}", pass_fds=[fd], capture_output=True, check=False
        )
    finally:
        os.close(fd)
    return done.returncode == 0


def test_every_setting_is_live_or_wants_a_restart_as_the_document_says() -> None:
    document = (Path(__file__).parents[2] / "docs" / "ADMINISTRATION.md").read_text()
    section = document.partition("## Change the configuration")[2].partition("\n## ")[0]
    live, _, restart = section.partition("**after a restart**")
    for field in RegistryConfig.model_fields.keys() - {"name"}:
        expected, other = (live, restart) if field in LIVE else (restart, live)
        assert f"`{said_name(field)}`" in expected, field
        assert f"`{said_name(field)}`" not in other, field


def test_a_daemon_whose_terminal_is_gone_ends_and_leaves_no_mount(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    mount = make_mount(moto_bucket, start=False)
    command = [sys.executable, "-m", "modelfs", "--config", str(mount.config), "mount", "hub"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    wait_until(lambda: os.path.ismount(mount.path), 20)
    mount.model.mkdir(parents=True)
    before = mount.status()["configuration"]["read_ns"]
    os.kill(pid, signal.SIGHUP)  # while the terminal is there the configuration is read again
    wait_until(lambda: mount.status()["configuration"]["read_ns"] != before)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not os.path.ismount(mount.path)
