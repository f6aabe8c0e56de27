"""What the script sends, passes over and refuses, on moto; moto believes any token."""

import hashlib
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy
from tests.mounting import wait_until
from tests.uploading import MIB, PREFIX, Script, moto_script, oldest_python

MTIME_NS = 1_700_000_000_123_456_789
PART = 5 * MIB


@pytest.fixture
def script(tmp_path: Path, moto_bucket: S3Endpoint) -> Script:
    return moto_script(tmp_path / "script", moto_bucket)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files of every kind that may be sent."""
    folder = tmp_path / "llama"
    files = {
        "config.json": b"{}",
        "empty": b"",
        "weights/model 1.bin": os.urandom(70_000),
        "weights/größe+100%.bin": b"x" * 1000,
        "tokens/日本語/a&b=c?.txt": b"text",
        "big.bin": os.urandom(3 * PART + 1000),
    }
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        os.utime(path, ns=(MTIME_NS, MTIME_NS))
    (folder / "nothing here").mkdir()
    return folder


def there(bucket: S3Endpoint, below: str = PREFIX) -> dict[str, bytes]:
    """Return path -> bytes of the objects of the model."""
    answer = bucket.client.list_objects_v2(Bucket=bucket.bucket, Prefix=below)
    return {
        item["Key"].removeprefix(below): bucket.get(item["Key"])
        for item in answer.get("Contents", ())
    }


def files_of(folder: Path) -> dict[str, bytes]:
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return {**found, "nothing here/": b""}


def test_a_folder_comes_with_its_bytes_names_and_times(
    script: Script, folder: Path, moto_bucket: S3Endpoint
) -> None:
    status, out, err = script.run(f"{folder}/")
    assert (status, err) == (0, []), err
    assert out.startswith("acme/llama: 7 files sent, ")
    assert there(moto_bucket) == files_of(folder)
    for name in ("config.json", "big.bin", "tokens/日本語/a&b=c?.txt"):
        head = moto_bucket.client.head_object(Bucket=moto_bucket.bucket, Key=PREFIX + name)
        assert head["Metadata"] == {"mtime": "1700000000.123456789"}
    assert head["ETag"] == f'"{hashlib.md5(b"text").hexdigest()}"'


def test_a_folder_keeps_its_name_unless_it_ends_in_a_slash_and_to_puts_it_deeper(
    script: Script, folder: Path, moto_bucket: S3Endpoint
) -> None:
    assert script.run(folder / "weights", folder / "config.json", "--to", "a/b/")[0] == 0
    assert sorted(there(moto_bucket)) == [
        "a/b/config.json",
        "a/b/weights/größe+100%.bin",
        "a/b/weights/model 1.bin",
    ]


def test_what_is_there_with_equal_content_is_not_sent_again(
    script: Script, folder: Path, moto_bucket: S3Endpoint, tmp_path: Path
) -> None:
    moto_bucket.put(PREFIX + "weights/model 1.bin", (folder / "weights/model 1.bin").read_bytes())
    moto_bucket.put_in_parts(PREFIX + "big.bin", (folder / "big.bin").read_bytes(), 2 * PART)
    moto_bucket.put(PREFIX + "config.json", b"[]")  # of the same size
    with FaultyProxy(moto_bucket.endpoint) as proxy:
        behind = moto_script(tmp_path / "behind", moto_bucket, proxy.endpoint)
        assert behind.run(f"{folder}/")[1].endswith("; 2 files there already")
        sent = [head.split()[1] for head in proxy.heads if head.startswith((b"PUT", b"POST"))]
        assert len(sent) == 5
        assert not any(b"big.bin" in target or b"model%201" in target for target in sent)
        del proxy.heads[:]
        status, out, _ = behind.run(f"{folder}/")
        assert (status, len(proxy.heads)) == (0, 1)  # a listing
        assert "0 files sent, 0 B" in out
    assert there(moto_bucket) == files_of(folder)


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(
    script: Script, folder: Path, moto_bucket: S3Endpoint
) -> None:
    moto_bucket.put(PREFIX + "config.json", b"{}")
    status, out, _ = script.run(folder / "config.json", folder / "empty", "--dry-run")
    assert (status, out.splitlines()) == (0, ["there  config.json  2 B", "send   empty  0 B"])
    assert list(there(moto_bucket)) == ["config.json"]


def test_links_special_files_and_local_names_are_skipped_and_said(
    script: Script, tmp_path: Path, moto_bucket: S3Endpoint
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "file").write_text("1")
    (folder / "link").symlink_to("file")
    (folder / "x.swp").write_text("editor")
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to(".")
    status, _, err = script.run(f"{folder}/")
    assert (status, list(there(moto_bucket))) == (0, ["file"])
    assert [line.partition("skipped ")[2] for line in sorted(err)] == [
        "1 names that stay local: x.swp",
        "1 sockets, pipes and devices: pipe",
        "2 symlinks (--follow sends what they point at): link, loop",
    ]
    status, _, err = script.run(f"{folder}/", "--follow")
    assert status == 1
    assert any("loop: a symlink to a folder that it is in" in line for line in err)
    assert there(moto_bucket) == {"file": b"1", "link": b"1"}


def test_names_that_no_key_can_have_are_refused_in_a_line_each_and_others_are_sent(
    script: Script, tmp_path: Path, moto_bucket: S3Endpoint
) -> None:
    folder = tmp_path / "names"
    deep = folder / ("d" * 250) / ("d" * 250) / ("d" * 250) / ("d" * 250)
    deep.mkdir(parents=True)
    (deep / "too deep").write_text("1")
    (folder / os.fsdecode(b"\xff")).write_text("1")
    (folder / "good").write_text("1")
    moto_bucket.put(PREFIX + "is a file", b"1")
    (folder / "is a file").mkdir()
    (folder / "is a file" / "below").write_text("1")
    status, _, err = script.run(f"{folder}/", tmp_path / "missing", folder / "good")
    assert status == 1
    assert [line.rpartition(": ")[2] for line in err] == [
        "its key would have more than 1024 bytes",
        "its name is not UTF-8, as the registry's keys are",
        "No such file or directory",
        f"{folder}/good has this name",
        "is a file is a file there",
    ]
    assert sorted(there(moto_bucket)) == ["good", "is a file"]
    assert script.run(folder / "good", "--to", "../other")[::2] == (
        2,
        ["upload.py: --to ../other: ../other has an empty, . or .. component"],
    )


def test_a_file_that_changes_or_cannot_be_read_fails_alone(
    script: Script, tmp_path: Path, moto_bucket: S3Endpoint
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "good").write_text("1")
    changing = folder / "changing"
    changing.write_bytes(b"1" * PART * 3)
    with FaultyProxy(moto_bucket.endpoint) as proxy:
        behind = moto_script(tmp_path / "behind", moto_bucket, proxy.endpoint)
        with proxy.faulty(Fault.HOLD, lambda head: b"partNumber=3" in head):
            process = behind.start(f"{folder}/")
            wait_until(lambda: any(b"partNumber=3" in head for head in proxy.heads))
            with changing.open("ab") as file:
                file.write(b"2")
        _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err == "upload.py: changing: it changed while it was sent: send it again\n"
    assert list(there(moto_bucket)) == ["good"]


# ------------------------------------------------------------------ cut off and gone on with


def parts_sent(proxy: FaultyProxy) -> list[int]:
    return sorted(
        int(head.split(b"partNumber=")[1].split(b"&")[0])
        for head in proxy.heads
        if head.startswith(b"PUT") and b"partNumber=" in head
    )


def known_parts(bucket: S3Endpoint) -> list[int]:
    uploads = bucket.client.list_multipart_uploads(Bucket=bucket.bucket).get("Uploads", ())
    return sorted(
        part["PartNumber"]
        for upload in uploads
        for part in bucket.client.list_parts(
            Bucket=bucket.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
        ).get("Parts", ())
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on_with_the_parts_that_are_missing(
    tmp_path: Path, moto_bucket: S3Endpoint, number: signal.Signals
) -> None:
    data = os.urandom(4 * PART)
    (tmp_path / "big").write_bytes(data)
    (tmp_path / "small").write_bytes(b"small")
    with FaultyProxy(moto_bucket.endpoint) as proxy:
        script = moto_script(tmp_path / "script", moto_bucket, proxy.endpoint)
        held = [b"partNumber=3&", b"partNumber=4&"]
        with proxy.faulty(Fault.HOLD, lambda head: any(word in head for word in held)):
            process = script.start(tmp_path / "small", tmp_path / "big")
            wait_until(lambda: len(parts_sent(proxy)) == 4)
            wait_until(lambda: known_parts(moto_bucket) == [1, 2])
            process.send_signal(number)
            _, err = process.communicate(timeout=10)
        if number is not signal.SIGKILL:
            assert process.returncode == 130
            assert err == "upload.py: interrupted: start this again to go on\n"
        there_before = known_parts(moto_bucket)
        del proxy.heads[:]
        status, out, _ = script.run(tmp_path / "small", tmp_path / "big")
        assert status == 0
        missing = sorted(set(range(1, 5)) - set(there_before))
        assert parts_sent(proxy) == missing
        assert not any(b"/small" in head.split(b"\r\n")[0] for head in proxy.heads)
    assert f"1 file sent, {len(missing) * 5}.0 MiB" in out
    assert there(moto_bucket) == {"big": data, "small": b"small"}
    assert known_parts(moto_bucket) == []
    assert not list((script.folder / ".local/state/modelfs-upload").iterdir())


def test_an_unfinished_upload_of_another_state_of_the_file_is_given_up(
    tmp_path: Path, moto_bucket: S3Endpoint
) -> None:
    big = tmp_path / "big"
    big.write_bytes(os.urandom(4 * PART))
    with FaultyProxy(moto_bucket.endpoint) as proxy:
        script = moto_script(tmp_path / "script", moto_bucket, proxy.endpoint)
        with proxy.faulty(Fault.HOLD, lambda head: b"partNumber=4&" in head):
            process = script.start(big)
            wait_until(lambda: known_parts(moto_bucket) == [1, 2, 3])
            process.kill()
            process.communicate()
        big.write_bytes(os.urandom(2 * PART))
        assert script.run(big)[0] == 0
    assert there(moto_bucket) == {"big": big.read_bytes()}
    assert known_parts(moto_bucket) == []


# --------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", [Fault.UNAVAILABLE, Fault.RESET, Fault.RESET_AFTER, Fault.HOLD])
def test_requests_that_fail_for_a_while_are_made_again(
    folder: Path, tmp_path: Path, moto_bucket: S3Endpoint, fault: Fault
) -> None:
    seen: dict[bytes, int] = {}

    def is_first(head: bytes) -> bool:
        """Choose the first try of every request but the last of an upload, which may take long."""
        first = head.split(b"\r\n")[0]
        if fault is Fault.HOLD and first.startswith(b"POST") and b"uploadId=" in first:
            return False
        seen[first] = seen.get(first, 0) + 1
        return seen[first] == 1

    with FaultyProxy(moto_bucket.endpoint) as proxy:
        script = moto_script(tmp_path / "script", moto_bucket, proxy.endpoint).change(timeout_s=0.5)
        with proxy.faulty(fault, is_first):
            status, _, err = script.run(f"{folder}/")
        assert (status, err) == (0, [])
        assert proxy.faults >= 10
    assert there(moto_bucket) == files_of(folder)


def test_a_registry_that_stays_silent_is_given_up_in_a_line(
    folder: Path, tmp_path: Path, moto_bucket: S3Endpoint
) -> None:
    script = moto_script(tmp_path / "script", moto_bucket, "http://127.0.0.1:1")
    text = script.path.read_text()
    script.path.write_text(
        text.replace("LONGEST_PAUSE_S = 0.5, 16.0", "LONGEST_PAUSE_S = 0.1, 0.1")
    )
    assert script.path.read_text() != text
    status, out, err = script.run(f"{folder}/")
    assert (status, out) == (4, "")
    assert len(err) == 1
    assert err[0].startswith("upload.py: 127.0.0.1:1 does not answer (")


# --------------------------------------------------------------------------------- a terminal


def test_on_a_terminal_a_bar_shows_how_far_it_is(
    script: Script, folder: Path, tmp_path: Path
) -> None:
    shown = tmp_path / "shown"
    command = f"{oldest_python()} -I -S {script.path}"
    subprocess.run(
        ["script", "-qec", f"{command} {folder / 'big.bin'}", str(shown)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(script.folder)},
        timeout=30,
        check=True,
    )
    assert re.search(r"\[#* *\] .* of 15.0 MiB, [0-9]+%, .*/s", shown.read_text())
    assert "acme/llama: 1 file sent, 15.0 MiB" in shown.read_text()
