"""A bug in any FUSE handler costs the call EIO, and one that hangs is ended: the mount lives."""

import errno
import inspect
from pathlib import Path

import pytest

from modelfs.mount.fuse import Operations
from tests.attempts import attempt
from tests.endpoints import S3Endpoint
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, wait_until

pytestmark = pytest.mark.mount

LAUNCHER = Path(__file__).parents[1] / "launchers" / "faulty_handlers.py"
SHORTER_GRACE_S = -7.3  # 3 s of `timeout` and 5 s of grace become 0.7 s
DEADLINE_LIMIT_S = 4.0

HANDLERS = {
    name: method
    for name, method in vars(Operations).items()
    if inspect.iscoroutinefunction(method) and not name.startswith("_")
}
NO_REPLY = {"forget", "release", "releasedir"}  # the caller is not told how these end

# Handler -> what makes the kernel call it. paths: the model, its main/.
TRIGGERS = {
    "lookup": "os.stat(paths[1] / 'not-looked-up')",
    "forget": "(paths[1] / 'forgotten').unlink()",
    "getattr": "os.stat(paths[0] / '../../.modelfs/README')",
    "setattr": "os.utime(paths[1] / 'file', (1, 1))",
    "readlink": "os.readlink(paths[0] / 'latest')",
    "mkdir": "(paths[1] / 'made').mkdir()",
    "rmdir": "(paths[1] / 'empty').rmdir()",
    "unlink": "(paths[1] / 'unwanted').unlink()",
    "symlink": "(paths[0] / 'alias').symlink_to('v1')",
    "rename": "(paths[1] / 'unmoved').rename(paths[1] / 'moved')",
    "link": "os.link(paths[1] / 'file', paths[1] / 'linked')",
    "mknod": "os.mkfifo(paths[1] / 'fifo')",
    "opendir": "os.listdir(paths[1])",
    "readdir": "os.listdir(paths[1])",
    "releasedir": "os.listdir(paths[1])",
    "fsyncdir": "os.fsync(os.open(paths[1], os.O_RDONLY))",
    "open": "os.open(paths[1] / 'file', os.O_RDONLY)",
    "create": "os.open(paths[1] / 'created', os.O_WRONLY | os.O_CREAT)",
    "read": "(paths[1] / 'unread').read_bytes()",
    "write": "os.write(os.open(paths[1] / 'written', os.O_WRONLY | os.O_CREAT), b'x')",
    "flush": "os.close(os.open(paths[1] / 'file', os.O_RDONLY))",
    "fsync": "os.fsync(os.open(paths[1] / 'synced', os.O_WRONLY | os.O_CREAT))",
    "release": "os.close(os.open(paths[1] / 'file', os.O_RDONLY))",
    "statfs": "os.statvfs(paths[1])",
    "getxattr": "os.getxattr(paths[1] / 'file', 'user.modelfs.key')",
    "listxattr": "os.listxattr(paths[1] / 'file')",
    "setxattr": "os.setxattr(paths[0], 'user.modelfs.description', b'x')",
    "removexattr": "os.removexattr(paths[0], 'user.modelfs.description')",
}
FILES = ("file", "unwanted", "unmoved", "unread", "forgotten", "not-looked-up")


def is_bounded(name: str) -> bool:
    found = inspect.getclosurevars(HANDLERS[name]).nonlocals
    return bool(found.get("is_bounded", False))


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says which handler fails."""
    file = tmp_path / "fault"
    file.write_text("")
    monkeypatch.setenv("MODELFS_TEST_FAULT", str(file))
    return file


@pytest.fixture
def faulty_mount(control: Path, moto_bucket: S3Endpoint, make_mount: MakeMount) -> Mount:
    mount = make_mount(moto_bucket, start=False, launcher=(str(LAUNCHER),), metadata_ttl=30)
    moto_bucket.put("models/acme/llama/empty/", b"")
    for name in FILES:
        moto_bucket.put(mount.key(name), b"content")
    return mount


def check_alive(mount: Mount, pid: int) -> None:
    assert mount.pid == pid
    outcome = attempt("answer = paths[0].read_text()", mount.main / "file")
    assert (outcome.errno, outcome.answer) == (0, "content")


def test_every_handler_is_covered() -> None:
    assert set(TRIGGERS) == set(HANDLERS)
    assert {name for name in HANDLERS if is_bounded(name)}
    assert {name for name in HANDLERS if not is_bounded(name)} >= {"read", "write", "flush"}


def test_a_bug_in_any_handler_costs_that_call_alone(faulty_mount: Mount, control: Path) -> None:
    faulty_mount.start()
    faulty_mount.freeze("v1")
    wait_until(lambda: (faulty_mount.model / "latest").is_symlink())
    pid = faulty_mount.pid
    wrong = {}
    for bugs, name in enumerate(sorted(HANDLERS.keys() - {"forget"}), 1):
        control.write_text(f"raise {name}")
        outcome = attempt(TRIGGERS[name], faulty_mount.model, faulty_mount.main)
        said = f"{name} failed by a bug"
        if name in NO_REPLY:  # it comes after its trigger has ended
            wait_until(lambda said=said: said in faulty_mount.log())  # type: ignore[misc]
        control.write_text("")
        expected = 0 if name in NO_REPLY else errno.EIO
        is_logged = said in faulty_mount.log()
        if outcome.errno != expected or not is_logged:
            wrong[name] = (outcome.errno, is_logged)
        check_alive(faulty_mount, pid)
        assert faulty_mount.status()["counters"]["bugs"] >= bugs - len(wrong), name
    assert wrong == {}
    assert faulty_mount.stop() == 0


def test_a_bug_in_forget_is_logged_and_nothing_else(faulty_mount: Mount, control: Path) -> None:
    faulty_mount.start()
    control.write_text("raise forget")
    assert attempt(TRIGGERS["forget"], faulty_mount.model, faulty_mount.main).errno == 0
    wait_until(lambda: "forget failed by a bug" in faulty_mount.log())
    control.write_text("")
    check_alive(faulty_mount, faulty_mount.pid)
    assert faulty_mount.stop() == 0


def test_a_bounded_handler_that_hangs_is_ended_by_its_deadline(
    faulty_mount: Mount, control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELFS_TEST_GRACE_S", str(SHORTER_GRACE_S))
    faulty_mount.start()
    faulty_mount.freeze("v1")
    wait_until(lambda: (faulty_mount.model / "latest").is_symlink())
    pid = faulty_mount.pid
    wrong = {}
    for name in sorted(name for name in HANDLERS if is_bounded(name)):
        control.write_text(f"hang {name}")
        outcome = attempt(TRIGGERS[name], faulty_mount.model, faulty_mount.main)
        expected = 0 if name in NO_REPLY else errno.EIO
        if outcome.errno != expected or outcome.seconds > DEADLINE_LIMIT_S:
            wrong[name] = outcome
        wait_until(lambda name=name: f"{name} gave up after" in faulty_mount.log())  # type: ignore[misc]
        control.write_text("")  # only now: what has no reply comes after its trigger has ended
        check_alive(faulty_mount, pid)
    assert wrong == {}
    assert faulty_mount.stop() == 0
