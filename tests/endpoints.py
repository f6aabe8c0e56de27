"""The S3 servers that tests talk to, and a bucket on one of them."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import boto3
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.client import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError

from modelfs.errors import RegistryUnavailable
from modelfs.registry.s3 import S3Store
from modelfs.registry.s3_settings import S3Settings

CEPH_DEV = Path(__file__).parent / "tools" / "ceph-dev"
CEPH_TOOLS = ("ceph-mon", "ceph-mgr", "ceph-osd", "ceph-mds", "radosgw", "ceph-fuse")
CEPH_UP_LIMIT_S = 180


@dataclass(frozen=True)
class S3Server:
    """A server of ours, with the keys of a user who may do everything. `kind`: moto or ceph."""

    kind: str
    endpoint: str
    access_key: str
    secret_key: str

    @cached_property
    def client(self) -> Any:
        """A plain boto3 client: what other tools than modelfs would use."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(
                retries={"total_max_attempts": 1},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
                proxies={},
            ),
        )


@dataclass(frozen=True)
class CephServer(S3Server):
    """A gateway of a real cluster; `run` is for its faults: run("stop-rgw")."""

    tls_endpoint: str
    ca: Path
    directory: Path

    def run(self, *args: str) -> str:
        """Run a subcommand of ceph-dev on this cluster and return what it printed."""
        return ceph_dev(self.directory, *args)


@dataclass(frozen=True)
class S3Endpoint:
    """A fresh bucket, and what a configuration file needs to name it."""

    server: S3Server
    endpoint: str
    access_key: str
    secret_key: str
    bucket: str
    credentials_file: Path
    client: Any

    @property
    def kind(self) -> str:
        return self.server.kind

    def settings(self, **changes: Any) -> S3Settings:
        """Return settings of an S3Store of this bucket."""
        plain = S3Settings(self.endpoint, self.bucket, credentials=self.credentials_file)
        return replace(plain, **changes)

    def put(self, key: str, data: bytes = b"x", **more: Any) -> str:
        """Put an object as another tool would; return its ETag."""
        answer = self.client.put_object(Bucket=self.bucket, Key=key, Body=data, **more)
        return str(answer["ETag"]).strip('"')

    def put_in_parts(self, key: str, data: bytes, part_size: int, **more: Any) -> None:
        """Put an object in parts of a size as another tool would."""
        where = {"Bucket": self.bucket, "Key": key}
        upload = {
            **where,
            "UploadId": self.client.create_multipart_upload(**where, **more)["UploadId"],
        }
        of_part = {k: v for k, v in more.items() if k == "ChecksumAlgorithm"}
        parts = []
        for number, at in enumerate(range(0, len(data), part_size), 1):
            body = data[at : at + part_size]
            answer = self.client.upload_part(**upload, **of_part, PartNumber=number, Body=body)
            sums = {k: v for k, v in answer.items() if k.startswith("Checksum")}
            parts.append({"PartNumber": number, "ETag": answer["ETag"], **sums})
        self.client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})

    def get(self, key: str) -> bytes:
        """Return an object's bytes as another tool would."""
        with self.client.get_object(Bucket=self.bucket, Key=key)["Body"] as body:
            return bytes(body.read())

    def put_raw(self, quoted_key: str) -> int:
        """Put an object whose key boto3 would not send; return the HTTP status."""
        url = f"{self.endpoint}/{self.bucket}/{quoted_key}"
        request = AWSRequest("PUT", url, data=b"x")
        keys = ReadOnlyCredentials(self.access_key, self.secret_key, None)
        S3SigV4Auth(keys, "s3", "us-east-1").add_auth(request)
        headers = dict(request.prepare().headers)
        plain = urllib.request.Request(url, data=b"x", headers=headers, method="PUT")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(plain, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


@contextmanager
def store_at(endpoint: str, folder: Path, **settings: Any) -> Iterator[S3Store]:
    """Open a bucket at a test's own server, which believes every key."""
    keys = write_credentials(folder / "credentials", "key", "SECRET")
    with closing(S3Store(S3Settings(endpoint, "bucket", credentials=keys, **settings))) as store:
        yield store


def write_credentials(path: Path, access_key: str, secret_key: str) -> Path:
    """Write a credentials file, by rename as one rotates keys."""
    new = path.with_suffix(".new")
    new.write_text(
        f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret_key}\n"
    )
    new.chmod(0o600)
    new.rename(path)
    return path


@contextmanager
def fresh_bucket(server: S3Server, folder: Path) -> Iterator[S3Endpoint]:
    """Make a bucket with a credentials file in `folder`; empty and delete it afterwards."""
    name = f"t{uuid.uuid4().hex[:16]}"
    client = server.client
    client.create_bucket(Bucket=name)
    file = write_credentials(
        folder / f"{server.kind}.credentials", server.access_key, server.secret_key
    )
    endpoint = S3Endpoint(
        server, server.endpoint, server.access_key, server.secret_key, name, file, client
    )
    try:
        yield endpoint
    finally:
        if server.kind != "moto":  # which forgets by itself
            keys = write_credentials(file, server.access_key, server.secret_key)
            for is_last in (False, False, True):  # a cluster that had a fault may be slow yet
                try:
                    _remove_bucket(endpoint, keys)
                    break
                except (RegistryUnavailable, BotoCoreError):
                    if is_last:
                        raise


def _remove_bucket(bucket: S3Endpoint, credentials: Path) -> None:
    name, client = bucket.bucket, bucket.client
    for upload in client.list_multipart_uploads(Bucket=name).get("Uploads", ()):
        client.abort_multipart_upload(Bucket=name, Key=upload["Key"], UploadId=upload["UploadId"])
    with closing(S3Store(bucket.settings(credentials=credentials))) as store:
        while objects := store.list_page("", by_folder=False).objects:
            store.delete_many([info.id.key for info in objects])
    answer = client.list_object_versions(Bucket=name)  # a test may have let it keep them
    for kept in (*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())):
        client.delete_object(Bucket=name, Key=kept["Key"], VersionId=kept["VersionId"])
    client.delete_bucket(Bucket=name)


# ------------------------------------------------------------------------ moto


def free_port() -> int:
    """Return a port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def accepts(port: int) -> bool:
    """Tell whether something listens on a port of 127.0.0.1."""
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running_moto() -> Iterator[S3Server]:
    """Run moto's server in a process of its own."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 30
        while not accepts(port):
            assert process.poll() is None, "moto's server did not start"
            assert time.monotonic() < end, "moto's server does not listen"
            time.sleep(0.05)
        server = S3Server("moto", f"http://127.0.0.1:{port}", "testing", "testing")
        yield server
        server.client.close()
    finally:
        process.terminate()
        process.wait(10)


# ------------------------------------------------------------------------ Ceph


def ceph_dev(directory: Path, *args: str, port: int | None = None) -> str:
    """Run tests/tools/ceph-dev on the cluster in `directory`."""
    environment = dict(os.environ, CEPH_DEV_DIR=str(directory))
    if port is not None:
        environment["CEPH_DEV_PORT"] = str(port)
    done = subprocess.run(
        [str(CEPH_DEV), *args],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CEPH_UP_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"ceph-dev {' '.join(args)}: {done.stdout}{done.stderr}"
    return done.stdout


def free_ceph_ports() -> int:
    """Return a first port for ceph-dev: it, the next two, and those of the daemons are free."""
    for first in range(24300, 32000, 100):
        if not any(accepts(port) for port in (*range(first, first + 3), first + 10, first + 20)):
            return first
    raise AssertionError("no free ports for a Ceph cluster")


def ceph_server(directory: Path) -> CephServer:
    """Return the cluster of `directory`, which is up."""
    lines = ceph_dev(directory, "env").splitlines()
    said = dict(line.removeprefix("export ").split("=", 1) for line in lines)
    return CephServer(
        "ceph",
        said["AWS_ENDPOINT_URL"],
        said["AWS_ACCESS_KEY_ID"],
        said["AWS_SECRET_ACCESS_KEY"],
        said["CEPH_DEV_TLS_ENDPOINT"],
        Path(said["CEPH_DEV_TLS_CA"]),
        directory,
    )


def ceph_serves(directory: Path) -> bool:
    """Tell whether the gateway of a cluster in `directory` listens.

    A cluster whose start was cut off has settings, and no keys yet: it does not.
    """
    if not all((directory / name).exists() for name in ("settings", "keys/s3.env")):
        return False
    return accepts(int(ceph_server(directory).endpoint.rpartition(":")[2]))
