"""modelfs verify: a store made by the real code, the registry on moto; no daemon, no mount."""

import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modelfs.cli import bars, verifying
from modelfs.names import ModelId
from modelfs.store import repair, verify
from tests.cli.conftest import Run
from tests.endpoints import S3Endpoint
from tests.frozen_store import FrozenStore, error_of, flip_a_bit

DATA = os.urandom(300_000)


class Case:
    """A configuration, its store and its bucket."""

    def __init__(self, folder: Path, bucket: S3Endpoint) -> None:
        self.bucket = bucket
        self.store = FrozenStore(folder / "store")
        self.config = folder / "modelfs.toml"
        self.endpoint(bucket.endpoint)

    def endpoint(self, url: str) -> None:
        self.config.write_text(
            f'[registries.hub]\nendpoint = "{url}"\nbucket = "{self.bucket.bucket}"\n'
            f'credentials = "{self.bucket.credentials_file}"\nstore = "{self.store.root}"\n'
            'part_size = "128KiB"\ntimeout = "1s"\n'
        )

    def put(self, path: str, data: bytes) -> tuple[bytes, str]:
        return data, self.bucket.put(f"models/acme/llama/{path}", data)


@pytest.fixture
def case(tmp_path: Path, moto_bucket: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> Case:
    """acme/llama with v1 and v2, which share a file, and team-b/gpt@v1."""
    made = Case(tmp_path, moto_bucket)
    big = made.put("w/big", DATA)
    made.store.freeze("v1", {"w/big": big, "a": made.put("a", b"one")})
    made.store.freeze("v2", {"w/big": big, "a": made.put("a", b"two")})
    made.store.freeze("v1", {"a": (b"a", "e")}, model=ModelId("team-b", "gpt"))
    monkeypatch.setenv("MODELFS_CONFIG", str(made.config))
    monkeypatch.setattr(repair, "RETRY_PAUSE_S", 0.001)
    return made


def test_a_sound_store_is_told_in_one_line(modelfs: Run, case: Case) -> None:
    result = modelfs("verify", "--all")
    assert (result.status, result.err) == (0, "")
    assert result.out == "3 versions, 5 files, 293.0 KiB read: all right\n"


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("acme/llama", "2 versions, 4 files"),
        ("acme/llama@v1", "1 version, 2 files"),
        ("acme/llama/v1", "1 version, 2 files"),
        ("acme/llama@latest", "1 version, 2 files"),
    ],
)
def test_a_model_or_a_version_can_be_named(modelfs: Run, case: Case, what: str, says: str) -> None:
    result = modelfs("verify", what)
    assert result.status == 0, result.err
    assert says in result.out


def test_a_flipped_bit_is_repaired_from_the_registry_in_every_version(
    modelfs: Run, case: Case
) -> None:
    wrong = flip_a_bit(case.store.path("v1", "w/big"))
    result = modelfs("verify", "--all")
    assert (result.status, result.err) == (0, "")
    first, second, last = result.out.splitlines()
    assert first.startswith("acme/llama@v1: w/big: wrong bytes (SHA-256 ")
    assert "right again, from registry; the file is now " in first
    assert "acme/llama@v2: w/big: wrong bytes" in second
    assert "right again, from acme/llama@v1" in second
    assert last.endswith("read: 2 wrong, 2 of them put right")
    for version in ("v1", "v2"):
        assert case.store.path(version, "w/big").read_bytes() == DATA
    assert set(case.store.quarantined().values()) == {wrong}
    assert "all right" in modelfs("verify", "--all").out


def test_what_cannot_be_repaired_is_one_line_and_exit_status_1(modelfs: Run, case: Case) -> None:
    flip_a_bit(case.store.path("v1", "a"))  # the registry has that of v2 now
    result = modelfs("verify", "acme/llama")
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert result.err.startswith("modelfs: acme/llama@v1: a: wrong bytes (SHA-256 ")
    assert "NOT REPAIRED: models/acme/llama/a has changed in the registry" in result.err
    assert result.out.endswith("1 wrong, 0 of them put right\n")
    assert "has changed in the registry" in (error_of(case.store.path("v1")) or "")
    assert case.store.quarantined().keys() == {"acme/llama/v1/a"}


def test_the_same_in_json(modelfs: Run, case: Case) -> None:
    flip_a_bit(case.store.path("v1", "a"))
    flip_a_bit(case.store.path("v2", "a"))
    result = modelfs("verify", "acme/llama", "--json")
    assert result.status == 1
    document = result.json
    assert (document["registry"], document["sound"]) == ("hub", False)
    assert (document["versions"], document["files"]) == (2, 4)
    one, two = document["findings"]
    assert (one["model"], one["version"], one["path"]) == ("acme/llama", "v1", "a")
    assert (one["problem"], one["repaired"], one["source"]) == ("wrong bytes", False, None)
    assert one["error"] == "models/acme/llama/a has changed in the registry"
    assert Path(one["quarantined"]).is_file()
    assert (two["version"], two["repaired"], two["source"]) == ("v2", True, "registry")


def test_a_registry_that_is_down_is_a_reason(modelfs: Run, case: Case) -> None:
    flip_a_bit(case.store.path("v2", "a"))
    case.endpoint("http://127.0.0.1:1")
    result = modelfs("verify", "--all")
    assert result.status == 1
    assert "NOT REPAIRED: http://127.0.0.1:1 does not answer" in result.err
    assert result.err.count("\n") == 1
    case.endpoint(case.bucket.endpoint)
    assert "missing: right again, from registry" in modelfs("verify", "--all").out


def test_without_repair_nothing_is_changed_or_asked(modelfs: Run, case: Case) -> None:
    wrong = flip_a_bit(case.store.path("v2", "a"))
    case.endpoint("http://127.0.0.1:1")
    result = modelfs("verify", "acme/llama@v2", "--no-repair", "--pace", "1GiB/s")
    assert result.status == 1
    assert "nothing is changed with --no-repair" in result.err
    assert case.store.path("v2", "a").read_bytes() == wrong
    assert case.store.quarantined() == {}


def test_the_second_verify_says_that_there_is_a_first(modelfs: Run, case: Case) -> None:
    with verify.locked(case.store.layout):
        result = modelfs("verify", "--all")
    assert result.status == 1
    assert result.err.startswith("modelfs: another modelfs verify works on the store")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ((), 2, "Say what: NS/MODEL@VERSION, NS/MODEL or --all"),
        (("acme/llama", "--all"), 2, "Say what"),
        (("--all", "--pace", "fast"), 2, "'fast' is no pace"),
        (("--all", "--pace", "-1"), 2, "'-1' is no pace"),
        (("acme/llama@v9",), 1, "acme/llama@v9 is no ready version in the store"),
        (("acme/llama@nothing",), 1, "acme/llama@nothing is no ready version"),
        (("acme/gpt",), 1, "acme/gpt has no ready version in the store"),
        (("llama",), 1, "names no model"),
        (("-r", "lab", "--all"), 1, "there is no registry 'lab'"),
    ],
)
def test_what_cannot_be_verified_is_told(
    modelfs: Run, case: Case, arguments: tuple[str, ...], status: int, says: str
) -> None:
    result = modelfs("verify", *arguments)
    assert result.status == status
    assert says in result.err
    assert result.err.count("\n") == 1


def test_a_store_that_is_not_mounted_is_told(modelfs: Run, case: Case) -> None:
    case.store.root.rename(case.store.root.with_name("away"))
    result = modelfs("verify", "--all")
    assert result.status == 1
    assert "holds no store: is its disk mounted?" in result.err


def test_several_registries_are_asked_about(modelfs: Run, case: Case) -> None:
    with case.config.open("a") as file:
        file.write('[registries.lab]\nendpoint = "http://h:1"\nbucket = "models"\n')
    assert "which registry? Say -r NAME" in modelfs("verify", "--all").err
    assert modelfs("-r", "hub", "verify", "--all").status == 0


def test_a_line_now_and_then_says_how_far_it_is(
    modelfs: Run, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "LINE_EVERY_S", 0.0)
    lines = modelfs("verify", "acme/llama@v1").err.splitlines()
    assert lines[-1].startswith("verify: 293.0 KiB of 293.0 KiB, 100%, ")


def test_a_terminal_is_shown_a_bar_and_sigterm_leaves_tidily(case: Case) -> None:
    flip_a_bit(case.store.path("v1", "a"))
    code = "import sys; from modelfs.cli import main; sys.exit(main(sys.argv[1:]))"
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, "verify", "acme/llama", "--pace", "5KiB"],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = bytearray()
    found = threading.Event()

    def read() -> None:
        try:
            while more := os.read(ours, 4096):
                shown.extend(more)
                if b"293.0 KiB" in shown and b"NOT REPAIRED" in shown:
                    found.set()
        except OSError:  # EIO: the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    assert found.wait(30), bytes(shown)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130, bytes(shown).decode(errors="replace")
    reader.join(10)
    os.close(ours)
    assert b"Traceback" not in shown
    assert "━".encode() in shown
    assert not list(case.store.root.rglob(".verify-*"))


def test_sigterm_means_what_it_meant_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with verifying._ended_as_interrupted():
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is before
