"""`modelfs doctor` finds what is planted, says what to do, and leaves nothing behind."""

import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest

from modelfs import mountinfo
from modelfs.store.layout import Layout
from tests.certificates import Certificate, serving_tls
from tests.endpoints import CephServer, S3Endpoint, free_port, write_credentials
from tests.examining import command, examine
from tests.faulty_proxy import Fault, FaultyProxy, is_change, is_data, is_listing, refusal
from tests.mount.conftest import MakeMount
from tests.mounting import METADATA_TTL_S, Mount, content, put, wait_until

pytestmark = pytest.mark.mount

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounting a disk needs root")
MIB = 1 << 20


@dataclass
class Patient:
    """A configuration with a fault; it is mounted by those faults alone that need it."""

    bucket: S3Endpoint
    folder: Path
    make_mount: MakeMount
    undo: ExitStack
    settings: dict[str, object] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)
    mounted: Mount | None = None  # or not mounted, with a store

    def mount(self) -> Mount:
        """Mount, with the settings so far."""
        self.mounted = self.make_mount(self.bucket, **self.settings)
        return self.mounted

    def store(self) -> Path:
        """Make a store that no daemon has open."""
        mount = self.make_mount(self.bucket, start=False, **self.settings)
        Layout(mount.store, os.uname().nodename).make()
        self.mounted = mount
        return mount.store

    def proxy(self, fault: Fault, chosen: Callable[[bytes], bool] = lambda _: True) -> FaultyProxy:
        proxy = self.undo.enter_context(FaultyProxy(self.bucket.endpoint))
        proxy.fault, proxy.chosen = fault, chosen
        self.settings["endpoint"] = proxy.endpoint
        return proxy

    def refuses(self, code: str, chosen: Callable[[bytes], bool] = lambda _: True) -> None:
        self.proxy(Fault.ANSWER, chosen).answer = refusal(403, code)

    def tls(self, *, is_trusted: bool, days: float = 365, name: str = "127.0.0.1") -> None:
        certificate = Certificate.make(self.folder, days=days, name=name)
        target = urlsplit(self.bucket.endpoint)
        where = self.undo.enter_context(
            serving_tls(certificate, (str(target.hostname), int(target.port or 0)))
        )
        self.settings["endpoint"] = f"https://{where}"
        if is_trusted:
            self.settings["ca_bundle"] = str(certificate.file)

    def disk(self, options: str) -> Path:
        """Mount a small disk in memory for the store."""
        disk = self.folder / "disk"
        disk.mkdir()
        run("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk))
        self.undo.callback(run, "umount", "-l", str(disk))
        self.settings["store"] = str(disk / "store")
        return disk


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def patient(moto_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path) -> Iterator[Patient]:
    with ExitStack() as undo:
        yield Patient(moto_bucket, tmp_path, make_mount, undo)


# ---------------------------------------------------------------- faults


def open_credentials(patient: Patient) -> None:
    patient.bucket.credentials_file.chmod(0o644)


def no_credentials(patient: Patient) -> None:
    patient.bucket.credentials_file.unlink()


def wrong_secret(patient: Patient) -> None:
    patient.refuses("SignatureDoesNotMatch")


def no_bucket(patient: Patient) -> None:
    patient.bucket = replace(patient.bucket, bucket="not-there")


def nothing_listens(patient: Patient) -> None:
    patient.settings["endpoint"] = f"http://127.0.0.1:{free_port()}"


def unknown_host(patient: Patient) -> None:
    patient.settings["endpoint"] = "http://rgw.invalid:7480"
    patient.environment |= {"http_proxy": "", "HTTP_PROXY": ""}


def denied_list(patient: Patient) -> None:
    patient.refuses("AccessDenied", is_listing)


def denied_change(patient: Patient) -> None:
    patient.refuses("AccessDenied", is_change)


def denied_delete(patient: Patient) -> None:
    patient.refuses("AccessDenied", lambda head: head.startswith(b"DELETE "))


def denied_complete(patient: Patient) -> None:
    patient.refuses("AccessDenied", lambda head: head.startswith(b"POST ") and b"uploadId" in head)


def no_if_match(patient: Patient) -> None:
    patient.proxy(Fault.NO_IF_MATCH)


def stalled_reads(patient: Patient) -> None:
    patient.proxy(
        Fault.STALL, lambda head: head.startswith(b"GET ") and b"\r\nrange:" in head.lower()
    )


def expired(patient: Patient) -> None:
    patient.tls(is_trusted=True, days=-3)


def self_signed(patient: Patient) -> None:
    patient.tls(is_trusted=False)


def of_another_host(patient: Patient) -> None:
    patient.tls(is_trusted=True, name="10.1.2.3")


def soon_over(patient: Patient) -> None:
    patient.tls(is_trusted=True, days=10)


def tls_where_http_is_said(patient: Patient) -> None:
    patient.tls(is_trusted=False)
    patient.settings["endpoint"] = str(patient.settings["endpoint"]).replace("https:", "http:")


def clock_off(patient: Patient) -> None:
    patient.proxy(Fault.CLOCK).clock_off_s = 300


def clock_far_off(patient: Patient) -> None:
    patient.proxy(Fault.CLOCK).clock_off_s = -1200


def orphan_upload(patient: Patient) -> None:
    where = {"Bucket": patient.bucket.bucket, "Key": "models/acme/llama/big"}
    client = patient.bucket.client
    upload = client.create_multipart_upload(**where)["UploadId"]
    client.upload_part(**where, UploadId=upload, PartNumber=1, Body=bytes(6 * MIB))


def wrong_file_system(patient: Patient) -> None:
    patient.settings["store_filesystem"] = ["ceph", "fuse.ceph-fuse"]


def full_store(patient: Patient) -> None:
    disk = patient.disk("size=16m")
    (disk / "filler").write_bytes(bytes(12 * MIB))


def little_space(patient: Patient) -> None:
    patient.disk("size=100m")
    patient.settings["cache"] = {"min_free": "99MiB", "max_size": "1MiB"}
    (patient.folder / "disk" / "filler").write_bytes(bytes(4 * MIB))


def large_cache(patient: Patient) -> None:
    patient.disk("size=100m")


def no_fusermount(patient: Patient) -> None:
    patient.environment["PATH"] = "/nonexistent"


def read_only_store(patient: Patient) -> None:
    store = str(patient.store())
    run("mount", "--bind", store, store)
    patient.undo.callback(run, "umount", "-l", store)
    run("mount", "-o", "remount,bind,ro", store)


def dead_host(patient: Patient) -> None:
    staged = patient.store() / "staged" / "node-7"
    staged.mkdir()
    (staged / "ab12").write_bytes(bytes(3 * MIB))
    described = {"model": "acme/llama", "path": "config.json", "promise": "closed"}
    (staged / "ab12.json").write_text(json.dumps(described))
    long_ago = time.time() - 5 * 86400
    os.utime(staged / "ab12", (long_ago, long_ago))


def forgotten_files(patient: Patient) -> None:
    staged = patient.store() / "staged" / os.uname().nodename
    for name, promise in (("a1", "closed"), ("a2", "aside")):
        (staged / name).write_bytes(b"bytes")
        described = {"model": "acme/llama", "path": f"{name}.bin", "promise": promise}
        (staged / f"{name}.json").write_text(json.dumps(described))


def dead_mount(patient: Patient) -> None:
    patient.mount().kill()


def low_knob(patient: Patient) -> None:
    mounted = mountinfo.at(patient.mount().path)
    assert mounted is not None
    Path(f"/sys/class/bdi/{mounted.device}/read_ahead_kb").write_text("128\n")


def hidden_key(patient: Patient) -> None:
    put(patient.bucket, {"a//b": b"x"})
    mount = patient.mount()
    assert os.listdir(mount.main) == []


def another_version(patient: Patient) -> None:
    launcher = patient.folder / "old.py"
    launcher.write_text(
        "import sys, modelfs.mount.status as s\ns.__version__ = '0.0.7'\n"
        "from modelfs.cli import main\nsys.exit(main())\n"
    )
    patient.settings["launcher"] = (str(launcher),)
    patient.mount()


def no_mountpoint(patient: Patient) -> None:
    patient.settings["mountpoint"] = str(patient.folder / "nowhere")


def units(says: str) -> Callable[[Patient], None]:
    def plant(patient: Patient) -> None:
        tools = patient.folder / "bin"
        tools.mkdir()
        (tools / "systemctl").write_text(f"#!/bin/sh\n{says}\n")
        (tools / "systemctl").chmod(0o755)
        patient.environment["PATH"] = f"{tools}:{os.environ['PATH']}"
        patient.options["systemd"] = tools

    return plant


# The fault, the check that finds it, its verdict, what it says.
FAULTS: list[tuple[str, Callable[[Patient], None], str, str, str]] = [
    ("credentials that all can read", open_credentials, "credentials", "warning",
     r"can be read by its group and everyone \(mode 0644\): chmod 600 /"),
    ("no credentials", no_credentials, "credentials", "failed", "cannot be read: No such file"),
    ("a wrong secret", wrong_secret, "bucket", "failed", "the secret key is wrong; check"),
    ("no bucket", no_bucket, "bucket", "failed", "no such bucket; check 'bucket'"),
    ("nothing listens", nothing_listens, "endpoint", "failed",
     r"nothing answers at 127\.0\.0\.1:\d+ \(Connection refused\): start the gateway"),
    ("an unknown host", unknown_host, "endpoint", "failed", "rgw.invalid has no address.*DNS"),
    ("TLS where http is said", tls_where_http_is_said, "endpoint", "failed", "endpoint = .ht"),
    ("denied list", denied_list, "list", "failed", r"AccessDenied.*s3:ListBucket on models/\*"),
    ("denied writes", denied_change, "write", "failed", "grant s3:PutObject .*or set read_only"),
    ("denied delete", denied_delete, "delete", "failed", "AccessDenied.*grant s3:DeleteObject"),
    ("denied multipart", denied_complete, "multipart", "failed", "AccessDenied.*grant s3:PutObj"),
    ("no If-Match", no_if_match, "If-Match", "failed", "not in the asked state: use a registry"),
    ("reads that stall", stalled_reads, "read", "failed", "does not answer: Read timed out"),
    ("an expired certificate", expired, "certificate", "failed", "has expired: renew it"),
    ("a self-signed one", self_signed, "certificate", "failed", "self.signed.*set ca_bundle"),
    ("one of another host", of_another_host, "certificate", "failed", "mismatch.*write the name"),
    ("one that soon ends", soon_over, "certificate", "warning", r"\(9 days\): renew it"),
    ("a clock that is off", clock_off, "clock", "warning", r"(299|30\d) s behind .*NTP"),
    ("a clock far off", clock_far_off, "clock", "failed", r"(1199|120\d) s ahead of .*refused"),
    ("an orphan upload", orphan_upload, "uploads", "warning",
     r"1 multipart upload .* ago \(models/acme/llama/big\), 6\.0 MiB: .*s3api abort-multipart"),
    ("the wrong file system", wrong_file_system, "store", "failed", "not on ceph or fuse.ceph-fus"),
    ("a full store", full_store, "space", "failed", "not even a part of 8.0 MiB: make room"),
    ("little space", little_space, "space", "warning", "less than cache.min_free.*make room"),
    ("a large cache", large_cache, "space", "warning", "cache.max_size .* is more than the disk"),
    ("no fusermount3", no_fusermount, "fusermount3", "failed", "missing in PATH: install"),
    ("a read-only store", read_only_store, "store writes", "failed", "Read-only file system.*let"),
    ("a dead host's files", dead_host, "other nodes", "warning",
     r"node-7 left 1 file, 3\.0 MiB .* 5 days ago \(acme/llama/main/config\.json\): mount there"),
    ("a dead mount", dead_mount, "mount", "failed", "its daemon is gone: modelfs umount /"),
    ("a low knob", low_knob, "kernel", "warning", "read_ahead_kb is 128, not 1024: write the sec"),
    ("a hidden key", hidden_key, "hidden keys", "warning", r"a//b \(an empty comp.*cannot be froz"),
    ("a daemon of another version", another_version, "version", "warning",
     r"the daemon is modelfs 0\.0\.7, .*systemctl restart"),
    ("no mountpoint", no_mountpoint, "mount", "failed", "cannot be: .*make it with mkdir -p"),
    ("a unit that is off", units("echo disabled"), "service", "warning", "is disabled.*enable --n"),
    ("no unit", units("exit 1"), "service", "warning", "is not installed.*make install"),
]  # fmt: skip
OF_ROOT = (
    "a full store",
    "little space",
    "a large cache",
    "a read-only store",
    "a low knob",
)


@pytest.mark.parametrize(
    ("plant", "check", "verdict", "says"),
    [
        pytest.param(*fault[1:], id=fault[0], marks=[needs_root] * (fault[0] in OF_ROOT))
        for fault in FAULTS
    ],
)
def test_a_planted_fault_is_found_and_told_with_what_to_do(
    patient: Patient, plant: Callable[[Patient], None], check: str, verdict: str, says: str
) -> None:
    plant(patient)
    mount = patient.mounted or patient.make_mount(patient.bucket, start=False, **patient.settings)
    report = examine(mount, environment=patient.environment, **patient.options)
    found = report.of(check)
    assert found.verdict == verdict, report
    assert re.search(says, found.line), found
    if verdict == "warning":
        assert not report.names("failed"), report
    assert check in ("bucket", "delete") or not keys_of(patient.bucket, "models/.")


def keys_of(bucket: S3Endpoint, prefix: str = "") -> list[str]:
    answer = bucket.client.list_objects_v2(Bucket=bucket.bucket, Prefix=prefix)
    return [item["Key"] for item in answer.get("Contents", ())]


def test_files_and_freezes_that_nobody_takes_care_of_are_told_each(patient: Patient) -> None:
    forgotten_files(patient)
    mount = patient.mounted
    assert mount is not None
    for name in ("v3", "v4"):
        folder = mount.store / "pending" / "acme" / "llama" / name
        folder.mkdir(parents=True)
        for file in ("manifest.json", "lock"):
            (folder / file).touch()
    (folder / "failed").write_text("weights.bin is gone")
    before = content(mount.store)
    lines = [one.line for one in examine(mount).checks if one.verdict == "warning"]
    said = "\n".join(lines)
    assert re.search(r"1 file, 5 B of this node that no daemon uploads \(.*a1\.bin\)", said)
    assert re.search(r"put aside after a crash.*a2\.bin in /.*/a2\)", said)
    assert re.search(r"acme/llama@v3 is pending .*nobody works on it: modelfs mount hub", said)
    assert re.search(r"acme/llama@v4 failed: weights\.bin is gone: modelfs rm", said)
    assert content(mount.store) == before


def test_a_read_only_registry_is_examined_without_a_change(patient: Patient) -> None:
    put(patient.bucket, {"config.json": b"{}"})
    patient.settings["read_only"] = True
    proxy = patient.proxy(Fault.NONE)
    report = examine(patient.make_mount(patient.bucket, start=False, **patient.settings))
    assert not report.names("failed"), report
    assert report.of("read").found == "2 bytes of models/acme/llama/config.json"
    assert report.of("If-Match").verdict == "ok"
    assert not report.names("ok") & {"write", "multipart", "delete", "If-None-Match"}
    assert proxy.heads
    assert not [head for head in proxy.heads if is_change(head)]


def test_the_probe_is_no_model_and_one_that_was_left_is_removed_later(patient: Patient) -> None:
    mount = patient.mount()
    left = "models/.modelfs-doctor-node-7-0123"
    patient.bucket.put(left, b"left by a killed doctor")
    wait_until(lambda: mount.requests().get("ListObjectsV2", 0) > 0)
    time.sleep(METADATA_TTL_S)
    assert os.listdir(mount.path) == []
    assert mount.status()["hidden_keys"] == []
    assert examine(mount).of("delete").verdict == "ok"
    assert keys_of(patient.bucket) == [left]  # it may be at work yet
    examine(mount, old_probe=0)
    assert keys_of(patient.bucket) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_doctor_that_is_ended_half_way_removes_what_it_made(
    patient: Patient, number: signal.Signals
) -> None:
    proxy = patient.proxy(Fault.HOLD, is_data)
    mount = patient.make_mount(patient.bucket, start=False, **patient.settings)
    with subprocess.Popen(
        command(mount, "doctor", limit=30), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        wait_until(lambda: proxy.faults > 0, 30)
        assert len(keys_of(patient.bucket, "models/.modelfs-doctor-")) == 1
        process.send_signal(number)
        said = process.communicate(timeout=20)[1].strip()
    if number == signal.SIGINT:
        assert (process.returncode, said) == (130, b"modelfs: interrupted")
    proxy.fault = Fault.NONE
    wait_until(lambda: keys_of(patient.bucket) == [], 20)


def test_an_upload_in_parts_that_is_refused_half_way_is_aborted(patient: Patient) -> None:
    denied_complete(patient)
    report = examine(patient.make_mount(patient.bucket, start=False, **patient.settings))
    assert report.names("failed") == {"multipart"}
    answer = patient.bucket.client.list_multipart_uploads(Bucket=patient.bucket.bucket)
    assert "Uploads" not in answer
    assert keys_of(patient.bucket) == []


def test_a_versioned_bucket_keeps_no_version_of_the_probe(
    bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    bucket.client.put_bucket_versioning(
        Bucket=bucket.bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    report = examine(make_mount(bucket, start=False))
    assert not report.names("failed"), report
    assert report.of("bucket").found == f"{bucket.bucket}, versioned"
    answer = bucket.client.list_object_versions(Bucket=bucket.bucket)
    assert not {"Versions", "DeleteMarkers"} & answer.keys()


@needs_root
def test_requests_that_wait_for_a_daemon_that_stands_still_are_counted(patient: Patient) -> None:
    """And the checks of all else are made, though those of the mount do not come back."""
    put(patient.bucket, {"config.json": b"{}"})
    mount = patient.mount()
    assert (mount.main / "config.json").exists()
    os.kill(mount.pid, signal.SIGSTOP)
    reader = subprocess.Popen(["cat", mount.main / "other.json"], stderr=subprocess.DEVNULL)
    try:
        connections = "/sys/fs/fuse/connections"
        inside = f'mountpoint -q {connections} || mount -t fusectl none {connections}; exec "$@"'
        report = examine(mount, before=["unshare", "--mount", "sh", "-c", inside, "sh"])
    finally:
        os.kill(mount.pid, signal.SIGCONT)
        reader.wait(20)
    found = report.of("mount")
    assert found.verdict == "failed"
    assert re.search(
        r"no answer in 5 s.*; [1-9] requests? of programs wait for it: .*log", found.line
    )
    assert {"delete", "store locks", "space"} <= report.names("ok")


@needs_root
def test_a_disk_that_hangs_under_the_store_hangs_no_other_check(patient: Patient) -> None:
    """A mount of modelfs whose daemon stands still is the disk."""
    disk = patient.mount()
    os.kill(disk.pid, signal.SIGSTOP)
    try:
        patient.settings["store"] = str(disk.path / "store")
        report = examine(
            patient.make_mount(patient.bucket, start=False, **patient.settings), limit=1
        )
    finally:
        os.kill(disk.pid, signal.SIGCONT)
    assert report.of("store").verdict == "failed"
    assert "no answer in" in report.of("store").found
    assert {"read", "delete", "uploads"} <= report.names("ok")
    assert report.of("mount").found.startswith("not mounted at")


def test_each_registry_of_the_configuration_is_examined_or_the_one_that_is_named(
    patient: Patient,
) -> None:
    mount = patient.make_mount(patient.bucket, start=False)
    text = mount.config.read_text()
    other = text.replace("registries.hub", "registries.lab").replace(patient.bucket.bucket, "lab-1")
    other = other.replace("/store", "/labstore").replace('/hub"', '/lab"')
    mount.config.write_text(text + other)
    both = subprocess.run(command(mount, "doctor"), capture_output=True, text=True, timeout=50)
    assert both.returncode == 1
    assert "(this node)" in both.stdout
    assert "(hub)" in both.stdout
    assert "(lab)" in both.stdout
    assert "there is no such bucket" in both.stdout
    one = mount_doctor(mount, "hub")
    assert "(hub)" in one.stdout
    assert "(lab)" not in one.stdout
    none = mount_doctor(mount, "hbu")
    assert none.returncode == 1
    assert "failed  configuration" in none.stdout
    assert "did you mean 'hub'?" in none.stdout


def mount_doctor(mount: Mount, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(mount, "doctor", *words), capture_output=True, text=True, timeout=50, check=False
    )


def test_of_a_wrong_configuration_each_line_is_told_and_the_node_is_examined(
    patient: Patient,
) -> None:
    mount = patient.make_mount(patient.bucket, start=False)
    mount.config.write_text(mount.config.read_text() + "colour = 1\npart_size = 1\n")
    report = examine(mount)
    said = [one.found for one in report.checks if one.check == "configuration"]
    assert [re.sub(r".*: registries\.hub\.(\w+): .*", r"\1", line) for line in said] == [
        "part_size",
        "colour",
    ]
    assert report.of("/dev/fuse").verdict == "ok"


# ------------------------------------------------------------------ on Ceph


@pytest.mark.ceph
@needs_root
def test_all_is_well_on_a_mount_of_cephs_gateway_with_a_store_on_cephfs(
    ceph: CephServer,
    ceph_bucket: S3Endpoint,
    cephfs_folder: tuple[Path, Path],
    make_mount: MakeMount,
) -> None:
    mount = make_mount(
        ceph_bucket,
        endpoint=ceph.tls_endpoint,
        ca_bundle=str(ceph.ca),
        store=cephfs_folder[0] / "store",
        store_filesystem=["fuse.ceph-fuse"],
        cache={"max_size": "1GiB"},
    )
    report = examine(mount)
    assert report.names("warning") <= {"kernel"}, report  # where fusectl is not mounted
    assert not report.names("failed"), report
    checks = {
        "credentials",
        "certificate",
        "clock",
        "list",
        "write",
        "read",
        "If-Match",
        "multipart",
    }
    checks |= {"delete", "uploads", "store", "store links", "store renames", "store locks", "space"}
    assert checks | {"staged", "other nodes", "freezes", "mount", "version"} <= report.names("ok")
    assert keys_of(ceph_bucket) == []
    assert [path.name for path in mount.store.rglob("*modelfs-doctor*")] == []


@pytest.mark.ceph
def test_what_a_policy_of_cephs_gateway_denies_is_found(
    ceph: CephServer, ceph_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path
) -> None:
    user = json.loads(ceph.run("user", f"u{uuid.uuid4().hex[:8]}"))
    keys = write_credentials(
        tmp_path / "reader", user["keys"][0]["access_key"], user["keys"][0]["secret_key"]
    )
    put(ceph_bucket, {"config.json": b"{}"})
    reader = replace(ceph_bucket, credentials_file=keys)
    for denied, failures in (
        ("PutObject", {"write"}),
        ("ListBucket", {"list"}),
        ("GetObject", {"read", "If-Match", "multipart"}),
        ("DeleteObject", {"delete"}),
    ):
        set_policy(ceph_bucket, user["user_id"], denied)
        report = examine(make_mount(reader, start=False))
        assert report.names("failed") == failures, (denied, report)
    set_policy(ceph_bucket, user["user_id"], "PutBucketPolicy")
    report = examine(make_mount(reader, start=False), old_probe=0)
    assert not report.names("failed"), report
    assert keys_of(ceph_bucket) == ["models/acme/llama/config.json"]


def set_policy(bucket: S3Endpoint, user: str, denied: str) -> None:
    """Let another user of Ceph's gateway do everything in a bucket but one thing."""
    where = f"arn:aws:s3:::{bucket.bucket}"
    whose = {
        "Principal": {"AWS": [f"arn:aws:iam:::user/{user}"]},
        "Resource": [where, f"{where}/*"],
    }
    statements = [
        {"Effect": "Allow", "Action": ["s3:*"], **whose},
        {"Effect": "Deny", "Action": [f"s3:{denied}"], **whose},
    ]
    policy = {"Version": "2012-10-17", "Statement": statements}
    bucket.client.put_bucket_policy(Bucket=bucket.bucket, Policy=json.dumps(policy))


@pytest.mark.ceph
@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
def test_wrong_keys_are_found_on_cephs_gateway(
    ceph_bucket: S3Endpoint, make_mount: MakeMount, tmp_path: Path, wrong: str
) -> None:
    keys = {"access_key": ceph_bucket.access_key, "secret_key": ceph_bucket.secret_key}
    file = write_credentials(tmp_path / "wrong", **{**keys, wrong: "WRONGWRONGWRONG"})
    report = examine(make_mount(replace(ceph_bucket, credentials_file=file), start=False))
    assert report.names("failed") == {"bucket"}
    assert "are the keys right?" in report.of("bucket").line


@pytest.mark.ceph
def test_an_orphan_upload_is_found_on_cephs_gateway_when_it_is_old(
    ceph_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    where = {"Bucket": ceph_bucket.bucket, "Key": "models/acme/llama/big"}
    upload = ceph_bucket.client.create_multipart_upload(**where)["UploadId"]
    ceph_bucket.client.upload_part(**where, UploadId=upload, PartNumber=1, Body=bytes(5 * MIB))
    mount = make_mount(ceph_bucket, start=False)
    assert examine(mount).of("uploads").found == "1 multipart upload under way"
    found = examine(mount, orphan_age=0).of("uploads")
    assert found.verdict == "warning"
    assert "5.0 MiB" in found.found
    assert f"--upload-id '{upload}'" in (found.advice or "")


@pytest.mark.ceph
def test_the_role_of_uploads_is_tried_on_cephs_gateway(
    ceph_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    iam = boto3.client(
        "iam",
        endpoint_url=ceph_bucket.endpoint,
        region_name="us-east-1",
        aws_access_key_id=ceph_bucket.access_key,
        aws_secret_access_key=ceph_bucket.secret_key,
    )
    trust = {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Effect": "Allow",
                "Principal": {"AWS": ["arn:aws:iam:::user/dev"]},
                "Action": ["sts:AssumeRole"],
            }
        ],
    }
    role = f"r{uuid.uuid4().hex[:8]}"
    compact = json.dumps(trust, separators=(",", ":"))
    iam.create_role(RoleName=role, AssumeRolePolicyDocument=compact)
    try:
        for name, verdict in ((role, "ok"), ("absent", "failed")):
            arn = f"arn:aws:iam:::role/{name}"
            report = examine(make_mount(ceph_bucket, start=False, upload_role=arn))
            assert report.of("upload_role").verdict == verdict, report
    finally:
        iam.delete_role(RoleName=role)
        iam.close()


@pytest.mark.ceph
@needs_root
def test_a_quota_of_cephfs_is_the_disk_s_space(
    ceph_bucket: S3Endpoint, cephfs_folder: tuple[Path, Path], make_mount: MakeMount
) -> None:
    store = cephfs_folder[0] / "store"
    store.mkdir()
    os.setxattr(store, "ceph.quota.max_bytes", str(4 * MIB).encode())
    found = examine(make_mount(ceph_bucket, start=False, store=store)).of("space")
    assert found.verdict == "failed"
    assert f"of 4.0 MiB free, by the quota of {store}" in found.found
