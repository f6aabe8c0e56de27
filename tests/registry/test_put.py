"""Parts are sent from a file by few connections, and are what the registry takes, or nothing is."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from modelfs.errors import AccessDenied, NotFound, RegistryUnavailable, StoreError
from modelfs.registry.bodies import FileBody
from modelfs.registry.s3 import S3Store
from modelfs.registry.s3_settings import S3Settings
from tests.endpoints import CephServer, S3Endpoint, write_credentials
from tests.registry.test_faults import DATA as SMALL
from tests.registry.test_faults import RESET, Step, error, served
from tests.registry.test_get import ODD_KEYS, Counter

MIB = 1 << 20
PART = 5 * MIB + 321
DATA = os.urandom(2 * PART + 123_456)
SPANS = [(at, min(PART, len(DATA) - at)) for at in range(0, len(DATA), PART)]

pytestmark = pytest.mark.timeout(60)


def ignore(count: int) -> None:
    pass


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "source"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def send_all(store: S3Store, key: str, fd: int, moved: list[int]) -> None:
    upload = store.start_upload(key, {})
    parts = [
        store.upload_part(key, upload, number, fd, *span, moved.append)
        for number, span in enumerate(SPANS, 1)
    ]
    store.finish_upload(key, upload, parts, len(DATA))


@pytest.mark.ceph
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
def test_the_parts_of_a_file_arrive_by_few_connections(
    ceph: CephServer, ceph_bucket: S3Endpoint, source, is_tls
):
    endpoint, more = ceph.endpoint, {}
    if is_tls:
        endpoint, more = ceph.tls_endpoint, {"ca_bundle": ceph.ca}
    with (
        closing(Counter(endpoint)) as counter,
        closing(S3Store(ceph_bucket.settings(endpoint=counter.endpoint, **more))) as store,
    ):
        moved: list[int] = []
        send_all(store, "file", source, moved)
        send_all(store, "again", source, moved)
        assert counter.connections <= 3  # of small requests, of parts, of what may take a while
        assert store.requests()["UploadPart"] == 2 * len(SPANS)
    assert sum(moved) == 2 * len(DATA)
    assert ceph_bucket.get("file") == ceph_bucket.get("again") == DATA


@pytest.mark.ceph
def test_threads_send_parts_of_one_file_at_once(ceph_bucket: S3Endpoint, source):
    with closing(S3Store(ceph_bucket.settings())) as store, ThreadPoolExecutor(8) as pool:
        names = [f"file-{number}" for number in range(8)]
        list(pool.map(lambda name: send_all(store, name, source, []), names))
    assert all(ceph_bucket.get(name) == DATA for name in names)


@pytest.mark.ceph
@pytest.mark.parametrize("key", ODD_KEYS)
def test_a_part_of_any_key_arrives(ceph_bucket: S3Endpoint, source, key):
    with closing(S3Store(ceph_bucket.settings())) as store:
        upload = store.start_upload(key, {})
        part = store.upload_part(key, upload, 1, source, 0, 10, ignore)
        store.finish_upload(key, upload, [part], 10)
    assert ceph_bucket.get(key) == DATA[:10]


@pytest.mark.ceph
def test_what_the_registry_refuses_is_told_as_such(ceph_bucket: S3Endpoint, source):
    good = ceph_bucket.access_key, ceph_bucket.secret_key
    with closing(S3Store(ceph_bucket.settings())) as store:
        upload = store.start_upload("file", {})
        with pytest.raises(NotFound):
            store.upload_part("file", "no-such-upload", 1, source, 0, PART, ignore)
        write_credentials(ceph_bucket.credentials_file, good[0], "wrong")
        with pytest.raises(AccessDenied):
            store.upload_part("file", upload, 1, source, 0, PART, ignore)
        write_credentials(ceph_bucket.credentials_file, *good)
        store.upload_part("file", upload, 1, source, 0, PART, ignore)


@pytest.mark.ceph
def test_a_file_that_has_become_shorter_is_no_part(ceph_bucket: S3Endpoint, source, monkeypatch):
    with closing(S3Store(ceph_bucket.settings())) as store:
        upload = store.start_upload("file", {})
        with pytest.raises(StoreError, match="became shorter"):
            store.upload_part("file", upload, 1, source, len(DATA) - 10, 11, ignore)
        known = hash_then_cut(source, monkeypatch)
        with pytest.raises(StoreError, match="became shorter"):
            store.upload_part("file", upload, 1, source, 0, len(DATA), ignore)
        assert known


def hash_then_cut(fd: int, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Have the file cut between the moment when a part is hashed and that when it is sent."""
    real, known = FileBody.sha256, list[bytes]()

    def cut(body: FileBody) -> bytes:
        known.append(real(body))
        os.ftruncate(fd, 1000)
        return known[-1]

    monkeypatch.setattr(FileBody, "sha256", cut)
    return known


@pytest.mark.parametrize(
    "script", [[error("503 Service Unavailable", "SlowDown")], [RESET], [], ["no HTTP at all"]]
)
def test_a_registry_that_answers_before_it_has_the_part_is_unavailable(
    tmp_path, source, script: list[Step]
):
    with (
        served(tmp_path, script, reads_bodies=False) as (store, _),
        pytest.raises(RegistryUnavailable),
    ):
        store.upload_part("m/file", "id", 1, source, 0, len(DATA), ignore)


def test_a_registry_behind_a_proxy_gets_its_parts_too(tmp_path, source, monkeypatch):
    with served(tmp_path, [error("404 Not Found", "NoSuchUpload")]) as (_, proxy):
        monkeypatch.setenv("http_proxy", proxy.endpoint)
        monkeypatch.delenv("no_proxy", raising=False)
        credentials = write_credentials(tmp_path / "credentials", "key", "SECRET")
        settings = S3Settings("http://registry.invalid", "bucket", credentials=credentials)
        with closing(S3Store(settings)) as store, pytest.raises(NotFound):
            store.upload_part("m/file", "id", 1, source, 0, len(SMALL), ignore)
        assert proxy.requests[0].startswith(b"PUT http://registry.invalid/bucket/m/file?")
