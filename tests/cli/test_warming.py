"""modelfs warm and modelfs evict."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.cli import bars, warming
from tests.cli.conftest import Hub, Run, set_attributes

SIZE = 1024


class Daemon:
    """What a daemon does when a file's `cached` is set: `answer` is called with file and value."""

    def __init__(self, hub: Hub) -> None:
        self.main = hub.model("acme/llama") / "main"
        self.asked: list[tuple[str, str]] = []
        self.answer: Callable[[Path, str], None] = self.obey

    def file(self, path: str, here: int = 0, size: int = SIZE, **attributes: str) -> Path:
        made = self.main / path
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes(bytes(size))
        set_attributes(made, {"cached": f"{here}/{size}", **attributes})
        return made

    @staticmethod
    def obey(path: Path, value: str) -> None:
        size = path.stat().st_size
        set_attributes(path, {"cached": f"{size if value == 'all' else 0}/{size}"})

    def set(self, path: Path, value: str) -> None:
        self.asked.append((str(path.relative_to(self.main)), value))
        self.answer(path, value)


@pytest.fixture
def daemon(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    made, real = Daemon(hub), os.setxattr

    def setxattr(path: str | Path, name: str, value: bytes) -> None:
        if value in (b"all", b"none"):
            assert name == "user.modelfs.cached"
            made.set(Path(path), value.decode())
        else:
            real(path, name, value)

    monkeypatch.setattr(os, "setxattr", setxattr)
    hub.status(cache={"max_bytes": 100 * SIZE})
    return made


def refusing(number: int, only: str = "") -> Callable[[Path, str], None]:
    """Answer a file (all where `only` is none's name) with an errno."""

    def answer(path: Path, value: str) -> None:
        if path.name.startswith(only):
            raise OSError(number, os.strerror(number))
        Daemon.obey(path, value)

    return answer


# --------------------------------------------------------------------- warm


def test_warm_asks_for_what_is_missing_and_says_what_is_here(modelfs: Run, daemon: Daemon) -> None:
    daemon.file("whole", here=SIZE)
    daemon.file("w/half", here=512)
    daemon.file("w/deep/none")
    daemon.file("empty", size=0)
    result = modelfs("warm", "acme/llama")
    assert (result.status, result.err) == (0, "")
    assert result.out == "4 files, 3.0 KiB are here (1.5 KiB fetched)\n"
    assert sorted(daemon.asked) == [("w/deep/none", "all"), ("w/half", "all")]


def test_the_same_in_json(modelfs: Run, daemon: Daemon) -> None:
    daemon.file("a")
    daemon.file("bad")
    daemon.answer = refusing(errno.ENOSPC, "bad")
    result = modelfs("warm", "--json", "acme/llama")
    assert (result.status, result.err) == (1, "")
    assert result.json == {
        "files": 1,
        "bytes": SIZE,
        "fetched_bytes": SIZE,
        "not_tried": 0,
        "errors": [{"path": str(daemon.main / "bad"), "error": "it is larger than the cache"}],
    }


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("acme/llama", ["a", "w/b"]),
        ("acme/llama/", ["a", "w/b"]),
        ("acme/llama/main", ["a", "w/b"]),
        ("acme/llama/main/w/", ["w/b"]),
        ("acme/llama/main/w/b", ["w/b"]),
        ("{hub}/acme/llama", ["a", "w/b"]),
        ("{hub}/acme/llama/main/a", ["a"]),
        ("main", ["a", "w/b"]),
        ("main/w", ["w/b"]),
        ("./main/w/../a", ["a"]),
        (".", ["a", "w/b"]),
        ("{hub}/../linked/b", ["w/b"]),
        ("{hub}/../linked", ["w/b"]),
        ("{hub}/team-b/llama", ["a", "w/b"]),
        ("team-b/llama/main/a", ["a"]),
    ],
)
def test_a_path_is_a_name_or_where_the_files_are(
    modelfs: Run,
    hub: Hub,
    daemon: Daemon,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    files: list[str],
) -> None:
    daemon.file("a")
    daemon.file("w/b")
    (hub.path / "team-b" / "llama").mkdir(parents=True)
    (hub.path / "team-b" / "llama" / "main").symlink_to("../../acme/llama/main")
    (hub.path.parent / "linked").symlink_to(daemon.main / "w")
    monkeypatch.chdir(hub.path / "acme" / "llama")
    result = modelfs("warm", path.format(hub=hub.path))
    assert (result.status, result.err) == (0, "")
    assert sorted(name for name, _ in daemon.asked) == files


def test_what_two_paths_name_is_counted_once(modelfs: Run, daemon: Daemon) -> None:
    daemon.file("w/b")
    result = modelfs("warm", "acme/llama", "acme/llama/main/w", str(daemon.main / "w" / "b"))
    assert result.out == "1 file, 1.0 KiB are here (1.0 KiB fetched)\n"
    assert daemon.asked == [("w/b", "all")]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("acme/gpt", "there is no such model in hub"),
        ("acme/llama/main/absent", "there is no "),
        ("{hub}/acme", "names no model: write NAMESPACE/MODEL"),
        ("{hub}", "names no model"),
        ("{hub}/acme/llama/.modelfs", "is made by the daemon"),
        ("/nowhere", "is not inside a mount of modelfs"),
        ("acme/llama@v9", "there is no version acme/llama@v9"),
        ("acme/llama/nothing", "has no version or alias 'nothing'"),
    ],
)
@pytest.mark.parametrize("command", ["warm", "evict"])
def test_what_is_not_there_is_told_in_one_line(
    modelfs: Run, hub: Hub, daemon: Daemon, command: str, path: str, says: str
) -> None:
    result = modelfs(command, path.format(hub=hub.path))
    assert result.status == 1
    assert says in result.err or (command == "evict" and "is a version, and no cache" in result.err)
    assert result.err.count("\n") == 1
    assert daemon.asked == []


def test_no_more_files_than_a_few_are_asked_for_at_once(
    modelfs: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "UNDER_WAY_MAX", 4)
    for number in range(12):
        daemon.file(f"f{number}")
    coming: list[Path] = []
    most = 0
    full = threading.Event()

    def begin(path: Path, value: str) -> None:
        nonlocal most
        set_attributes(path, {"warming": "waiting"})
        coming.append(path)
        most = max(most, len(coming))
        if len(coming) == 4:
            full.set()

    def bring() -> None:
        for _ in range(3):
            assert full.wait(20)
            full.clear()
            for path in coming[:]:
                daemon.obey(path, "all")
                coming.remove(path)
                os.removexattr(path, "user.modelfs.warming")

    daemon.answer = begin
    thread = threading.Thread(target=bring)
    thread.start()
    result = modelfs("warm", "acme/llama")
    thread.join(20)
    assert result.out == "12 files, 12.0 KiB are here (12.0 KiB fetched)\n"
    assert most == 4


def test_files_that_fail_are_named_and_the_others_come(modelfs: Run, daemon: Daemon) -> None:
    for name in ("a", "down", "gone", "lost"):
        daemon.file(name)

    def answer(path: Path, value: str) -> None:
        if path.name == "down":
            set_attributes(path, {"error": "the registry is down"})
        elif path.name == "gone":
            path.unlink()
        elif path.name == "a":
            daemon.obey(path, value)

    daemon.answer = answer
    result = modelfs("warm", "acme/llama")
    assert result.status == 1
    assert sorted(result.err.splitlines()) == [
        f"modelfs: {daemon.main}/down: the registry is down",
        f"modelfs: {daemon.main}/gone: it is gone",
        f"modelfs: {daemon.main}/lost: {warming.GONE_AGAIN}",
    ]
    assert result.out == "1 of 4 files, 1.0 KiB are here (1.0 KiB fetched)\n"


def test_what_went_again_while_others_came_is_told(modelfs: Run, daemon: Daemon) -> None:
    first = daemon.file("first", here=SIZE)
    daemon.file("second")

    def answer(path: Path, value: str) -> None:
        daemon.obey(path, value)
        daemon.obey(first, "none")

    daemon.answer = answer
    result = modelfs("warm", "acme/llama")
    assert result.status == 1
    assert result.err == f"modelfs: {first}: {warming.GONE_AGAIN}\n"


def test_after_many_failures_no_other_file_is_tried(
    modelfs: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warming, "ERRORS_MAX", 3)
    monkeypatch.setattr(warming, "UNDER_WAY_MAX", 1)
    for number in range(10):
        daemon.file(f"f{number}")
    daemon.answer = lambda path, value: set_attributes(path, {"error": "the registry is down"})
    result = modelfs("warm", "acme/llama")
    assert result.status == 1
    assert len(daemon.asked) == 3
    assert result.err.count("the registry is down") == 3
    assert result.err.endswith("modelfs: 7 more files were not tried\n")
    assert result.out == "0 of 10 files, 0 B are here (0 B fetched)\n"


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EROFS, "the mount is read-only: read the files instead"),
        (errno.EACCES, "permission denied"),
        (errno.ENOTCONN, "the daemon behind the mount is gone"),
        (errno.EIO, "the registry does not answer"),
    ],
)
def test_what_no_file_can_pass_ends_it_in_one_line(
    modelfs: Run, daemon: Daemon, number: int, says: str
) -> None:
    daemon.file("a", here=1)
    daemon.file("b", here=1)
    daemon.answer = refusing(number)
    for command in ("warm", "evict"):
        result = modelfs(command, "acme/llama")
        assert result.status == 1
        assert result.err.startswith(f"modelfs: cannot {command} {daemon.main}/")
        assert says in result.err
        assert result.err.count("\n") == 1


def test_more_than_the_cache_holds_is_refused_before_anything_is_asked(
    modelfs: Run, hub: Hub, daemon: Daemon
) -> None:
    daemon.file("a", here=SIZE)
    daemon.file("b")
    hub.status(cache={"max_bytes": 2 * SIZE - 1})
    result = modelfs("warm", "acme/llama")
    assert result.status == 1
    assert result.err.startswith("modelfs: cannot warm 2.0 KiB: the cache of hub holds 2.0 KiB")
    assert daemon.asked == []
    assert modelfs("warm", "acme/llama/main/b").status == 0


def test_a_daemon_that_tells_nothing_of_its_cache_is_told(modelfs: Run, daemon: Daemon) -> None:
    (daemon.main / "a").write_bytes(b"data")
    result = modelfs("warm", "acme/llama")
    assert result.status == 1
    assert "does not tell what of it is here (user.modelfs.cached)" in result.err


def test_how_far_it_is_is_told_now_and_then(
    modelfs: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "LINE_EVERY_S", 0.0)
    daemon.file("a")
    daemon.file("b", here=SIZE)
    lines = modelfs("warm", "acme/llama").err.splitlines()
    assert lines[-1].startswith("warm: 1.0 KiB of 1.0 KiB, 100%, ")


def test_an_interrupt_says_that_the_daemon_goes_on(modelfs: Run, daemon: Daemon) -> None:
    daemon.file("a")

    def interrupt(path: Path, value: str) -> None:
        raise KeyboardInterrupt

    daemon.answer = interrupt
    result = modelfs("warm", "acme/llama")
    assert result.status == 130
    assert "modelfs: the daemon goes on with 0 files, and begins no others\n" in result.err


@pytest.mark.parametrize("path", ["acme/llama@v1", "acme/llama/v1", "acme/llama@production"])
def test_a_version_is_waited_for_and_counted_as_here(
    modelfs: Run, hub: Hub, daemon: Daemon, path: str
) -> None:
    version = hub.version("acme/llama", "v1", state="downloading")
    (version / "w").mkdir()
    (version / "w" / "b").write_bytes(bytes(2048))
    (version.parent / "production").symlink_to("v1")
    hub.will_show("acme/llama/v1", [{"state": "downloading"}, {"state": "ready"}])
    daemon.file("a")
    result = modelfs("warm", path, "acme/llama")
    assert (result.status, result.err) == (0, "")
    assert result.out == "2 files, 3.0 KiB are here (1.0 KiB fetched)\n"


def test_a_version_that_failed_is_told(modelfs: Run, hub: Hub, daemon: Daemon) -> None:
    hub.version("acme/llama", "v1", state="failed", error="a changed")
    result = modelfs("warm", "acme/llama@v1")
    assert (result.status, result.err) == (1, "modelfs: acme/llama@v1 failed: a changed\n")


# -------------------------------------------------------------------- evict


def test_evict_drops_what_is_here_and_says_how_much(modelfs: Run, daemon: Daemon) -> None:
    daemon.file("whole", here=SIZE)
    daemon.file("w/half", here=512)
    daemon.file("none")
    result = modelfs("evict", "acme/llama")
    assert (result.status, result.err) == (0, "")
    assert result.out == "2 files, 1.5 KiB freed\n"
    assert sorted(daemon.asked) == [("w/half", "none"), ("whole", "none")]
    assert modelfs("evict", "acme/llama").out == "0 files, 0 B freed\n"


def test_evict_names_what_is_open_and_counts_what_is_staged(modelfs: Run, daemon: Daemon) -> None:
    daemon.file("a", here=SIZE)
    busy = daemon.file("busy", here=SIZE, dirty="0", etag="e")
    daemon.file("busy-new", here=SIZE, dirty="1", etag="e")
    daemon.file("busy-local", here=SIZE, dirty="0")
    daemon.answer = refusing(errno.EBUSY, "busy")
    result = modelfs("evict", "acme/llama")
    assert result.status == 1
    assert result.err == f"modelfs: {busy}: it is open, or its bytes are just coming\n"
    assert result.out == "1 file, 1.0 KiB freed; 2 files kept that the registry lacks\n"
    busy.unlink()
    document = modelfs("evict", "--json", "acme/llama").json
    assert document == {"files": 0, "freed_bytes": 0, "not_uploaded": 2, "errors": []}


def test_evict_of_a_version_says_what_deletes_it(modelfs: Run, hub: Hub, daemon: Daemon) -> None:
    hub.version("acme/llama", "v1")
    daemon.file("a", here=SIZE)
    result = modelfs("evict", "acme/llama", "acme/llama@v1")
    assert result.status == 1
    assert result.err == (
        "modelfs: acme/llama@v1 is a version, and no cache: modelfs rm deletes it\n"
    )
    assert daemon.asked == []
