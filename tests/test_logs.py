"""The log: what is folded, how a line looks, what the journal is told."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelfs import logs
from modelfs.cli.output import complain
from modelfs.logs import FOLDED_S, KIND_MAX, TEXTS_MAX, Folding

WARNING, DEBUG = logging.WARNING, logging.DEBUG


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_line_that_comes_again_is_said_once_a_minute_and_then_counted() -> None:
    clock = Clock()
    folding = Folding(clock)
    assert [folding.admit(WARNING, "%s", "no answer") for _ in range(5)] == [True] + [False] * 4
    assert folding.due() == []
    clock.now = FOLDED_S
    assert folding.due() == [(WARNING, "4 times again: no answer")]
    assert folding.due() == []
    assert folding.admit(WARNING, "%s", "no answer")


def test_of_one_kind_of_line_few_are_said_however_they_differ() -> None:
    clock = Clock()
    folding = Folding(clock)
    said = [folding.admit(WARNING, "read %s", f"read {n}") for n in range(10_000)]
    assert sum(said) == KIND_MAX
    assert folding.admit(WARNING, "write %s", "write 1")
    clock.now = FOLDED_S
    assert folding.due() == [
        (WARNING, f"{10_000 - KIND_MAX:,} times more lines like this: read %s")
    ]
    assert folding.admit(WARNING, "read %s", "read 1")


def test_at_debug_every_line_that_differs_is_said_and_memory_has_a_bound() -> None:
    folding = Folding(Clock())
    assert all(folding.admit(DEBUG, "read %s", f"read {n}") for n in range(5 * TEXTS_MAX))
    assert len(folding._texts) == TEXTS_MAX


@pytest.fixture
def fresh_logging() -> Iterator[None]:
    """The loggers as they are, afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("modelfs")
    before = (list(root.handlers), root.level, ours.level)
    yield
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:], level, ours_level = before
    root.setLevel(level)
    ours.setLevel(ours_level)


def test_a_name_cannot_make_a_line_of_its_own(
    fresh_logging: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up("info", "hub")
    logging.getLogger("modelfs.x").warning("read %s", "acme/a\n2026-01-01 ERROR forged \x1b[2J")
    assert (
        capsys.readouterr()
        .err.splitlines()[0]
        .endswith("WARNING modelfs.x: read acme/a\\n2026-01-01 ERROR forged \\x1b[2J")
    )


def test_other_libraries_are_not_heard_below_warning_whatever_the_level(
    fresh_logging: None, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up("debug", "hub")
    logging.getLogger("botocore.auth").debug("Signature:\n%s", "f" * 64)
    logging.getLogger("modelfs.x").debug("ours")
    err = capsys.readouterr().err
    assert "f" * 64 not in err
    assert "ours" in err


@pytest.mark.parametrize(
    "text",
    [
        "https://h/b/k?X-Amz-Algorithm=A&X-Amz-Signature=5ecre75ecre7&x=1",
        "Authorization: AWS4-HMAC-SHA256 Credential=AK, Signature=5ecre75ecre7",
        "{'X-Amz-Security-Token': '5ecre75ecre7'}",
        "aws_secret_access_key = 5ecre75ecre7",
    ],
)
def test_what_looks_like_a_secret_is_struck_out(
    fresh_logging: None, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    logs.set_up("info", "hub")
    logging.getLogger("modelfs.x").error("refused: %s", text)
    err = capsys.readouterr().err
    assert "5ecre7" not in err
    assert "***" in err


@dataclass
class Journal:
    """What stands for journald: its socket, and the stderr that it reads."""

    socket: socket.socket
    written: Path

    def next(self) -> dict[str, str]:
        return fields_of(self.socket.recv(1 << 16))

    @contextmanager
    def read(self) -> Iterator[None]:
        """Let the process's stderr be the journal's, and log to it."""
        with (
            self.written.open("w") as stderr,
            redirect_stderr(stderr),
            pytest.MonkeyPatch.context() as patch,
        ):
            found = os.fstat(stderr.fileno())
            patch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
            logs.set_up("info", "hub")
            yield


@pytest.fixture
def journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_logging: None
) -> Iterator[Journal]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "journal"))
        listening.settimeout(5)
        monkeypatch.setattr(logs, "JOURNAL_SOCKET", tmp_path / "journal")
        yield Journal(listening, tmp_path / "stderr")


def fields_of(datagram: bytes) -> dict[str, str]:
    """Read journald's protocol."""
    found = {}
    while datagram:
        name, _, rest = datagram.partition(b"\n")
        if b"=" in name:
            key, _, value = name.partition(b"=")
        else:
            key, size = name, int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[8 + size + 1 :]
        found[key.decode()] = value.decode()
        datagram = rest
    return found


def test_the_journal_gets_priorities_and_fields(journal: Journal) -> None:
    fields = {"fields": {"ERRNO": "5", "MODELFS_MODEL": "acme/llama"}}
    log = logging.getLogger("modelfs.mount.failures")
    with journal.read():
        log.warning("read %s: EIO", "acme/llama/main/x", extra=fields)
    said = journal.next()
    assert said["MESSAGE"] == "read acme/llama/main/x: EIO"
    assert (said["PRIORITY"], said["SYSLOG_IDENTIFIER"]) == ("4", "modelfs")
    assert (said["MODELFS_REGISTRY"], said["MODELFS_MODEL"]) == ("hub", "acme/llama")
    assert (said["ERRNO"], said["LOGGER"]) == ("5", "modelfs.mount.failures")


def test_a_traceback_is_one_entry_of_the_journal(journal: Journal) -> None:
    with journal.read():
        try:
            raise RuntimeError("odd")
        except RuntimeError:
            logging.getLogger("modelfs.x").exception("read failed by a bug")
    said = journal.next()
    assert said["PRIORITY"] == "3"
    assert said["MESSAGE"].startswith("read failed by a bug\nTraceback")
    assert said["MESSAGE"].endswith("RuntimeError: odd")


def test_a_journal_that_does_not_take_it_gets_it_by_stderr_and_is_not_waited_for(
    journal: Journal,
) -> None:
    log = logging.getLogger("modelfs.x")
    with journal.read():
        for number in range(2_000):  # more than a socket holds while nobody reads
            log.error(f"line {number}")  # each of a kind of its own
    written = journal.written.read_text().splitlines()
    assert written[0].startswith("<3>line ")
    assert written[-1] == "<3>line 1999"


def test_a_command_that_fails_under_systemd_says_so_as_an_error(journal: Journal) -> None:
    with journal.read():
        complain("no such registry")
    assert journal.written.read_text() == "<3>modelfs: no such registry\n"
