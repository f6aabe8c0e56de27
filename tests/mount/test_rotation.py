"""The keys are changed while a mount is used: a second one, the file, the first one goes."""

import json
import os
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.endpoints import CephServer, S3Endpoint, fresh_bucket, write_credentials
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.ceph]

MIB = 1 << 20


class Keys:
    """A user of the gateway, whose keys come and go."""

    def __init__(self, ceph: CephServer) -> None:
        self._ceph = ceph
        self.name = f"rotates-{uuid.uuid4().hex[:8]}"
        first = json.loads(ceph.run("user", self.name))["keys"][0]
        self.access_key, self.secret_key = first["access_key"], first["secret_key"]

    def add(self) -> tuple[str, str]:
        """Make another key; return it."""
        pair = f"K{uuid.uuid4().hex[:19].upper()}", uuid.uuid4().hex
        self._run("create", "--access-key", pair[0], "--secret-key", pair[1])
        return pair

    def remove(self, access_key: str) -> None:
        self._run("rm", "--access-key", access_key)

    def _run(self, verb: str, *arguments: str) -> None:
        user = ("--uid", self.name, "--key-type", "s3")
        self._ceph.run("radosgw-admin", "key", verb, *user, *arguments)

    def remove_user(self) -> None:
        self._ceph.run("radosgw-admin", "user", "rm", "--uid", self.name, "--purge-data")


@pytest.fixture
def keys(ceph: CephServer) -> Iterator[Keys]:
    made = Keys(ceph)
    yield made
    made.remove_user()


@pytest.fixture
def bucket(ceph: CephServer, keys: Keys, tmp_path: Path) -> Iterator[S3Endpoint]:
    """A bucket of that user's. It is emptied by a key that lasts."""
    lasting = keys.add()
    server = replace(ceph, access_key=lasting[0], secret_key=lasting[1])
    with fresh_bucket(server, tmp_path) as made:
        write_credentials(made.credentials_file, keys.access_key, keys.secret_key)
        yield made
    server.client.close()


def test_keys_are_rotated_while_files_are_read_and_written(
    keys: Keys, bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    data = os.urandom(8 * MIB)
    bucket.put("models/acme/llama/data", data)
    mount = make_mount(bucket, metadata_ttl=0.1, part_size="256KiB", read_ahead=0, timeout=10)
    stop, failed, rounds = threading.Event(), list[str](), [0, 0]

    def read() -> None:  # not from the cache: what is read is evicted each time
        while not stop.is_set():
            found = (mount.main / "data").read_bytes()
            if found != data:
                failed.append("other bytes")
            os.setxattr(mount.main / "data", "user.modelfs.cached", b"none")
            rounds[0] += 1

    def write() -> None:
        while not stop.is_set():
            (mount.main / f"new-{rounds[1]}").write_bytes(data[: 64 << 10])
            rounds[1] += 1

    def noting(work: object) -> None:
        try:
            work()  # type: ignore[operator]
        except OSError as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=noting, args=[work]) for work in (read, write)]
    for thread in threads:
        thread.start()
    try:
        pass_on(rounds)
        access_key, secret_key = keys.add()
        write_credentials(bucket.credentials_file, access_key, secret_key)
        pass_on(rounds)  # nothing that was signed with the old key is under way any more
        keys.remove(keys.access_key)
        pass_on(rounds)
    finally:
        stop.set()
        for thread in threads:
            thread.join(50)
    assert failed == []
    assert not [line for line in mount.log().splitlines() if " ERROR " in line]
    assert f"new-{rounds[1] - 1}" in mount.objects()
    check_old_key_is_dead(keys, bucket, mount)


def pass_on(rounds: list[int]) -> None:
    """Return when each has begun and ended another round."""
    wanted = [count + 2 for count in rounds]
    wait_until(lambda: all(a >= b for a, b in zip(rounds, wanted, strict=True)), 40)


def check_old_key_is_dead(keys: Keys, bucket: S3Endpoint, mount: Mount) -> None:
    """Else the test would have shown nothing."""
    write_credentials(bucket.credentials_file, keys.access_key, keys.secret_key)
    with pytest.raises(PermissionError):
        (mount.main / "late").write_text("x")
    mount.kill()  # its end would wait for what it may not send
