"""What a wrong configuration is answered by the real command: one line, with what to do."""

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from tests.certificates import Certificate, serving_tls
from tests.endpoints import S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy, refusal

pytestmark = pytest.mark.mount

LIMIT_S = 30.0
T = TypeVar("T")


@dataclass
class Node:
    """A configuration that is right until a test spoils it."""

    folder: Path
    bucket: S3Endpoint
    settings: dict[str, str] = field(default_factory=dict)
    more: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    registry: str = "hub"
    user: int | None = None
    undo: list[Callable[[], object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.config = self.folder / "modelfs.toml"
        self.mountpoint, self.store = self.folder / "hub", self.folder / "store"
        self.mountpoint.mkdir()
        self.settings |= {
            "endpoint": f"'{self.bucket.endpoint}'",
            "bucket": f"'{self.bucket.bucket}'",
            "credentials": f"'{self.bucket.credentials_file}'",
            "mountpoint": f"'{self.mountpoint}'",
            "store": f"'{self.store}'",
        }

    def set(self, **settings: str) -> None:
        self.settings |= settings

    def write(self) -> None:
        lines = [f"{key} = {value}" for key, value in self.settings.items()]
        self.config.write_text("\n".join(["[registries.hub]", *lines, self.more]) + "\n")

    def credentials(self, text: str) -> None:
        path = self.folder / "bad.credentials"
        path.write_text(text)
        self.set(credentials=f"'{path}'")

    def mount(self) -> subprocess.CompletedProcess[str]:
        """Run `modelfs mount`, as a user would."""
        return subprocess.run(
            [sys.executable, "-m", "modelfs", "--config", self.config, "mount", self.registry],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=LIMIT_S,
            check=False,
        )


@pytest.fixture
def node(tmp_path: Path, moto_bucket: S3Endpoint) -> Iterator[Node]:
    made = Node(tmp_path, moto_bucket)
    yield made
    for undo in made.undo:
        undo()
    subprocess.run(["umount", "-l", made.mountpoint], capture_output=True, check=False)  # it failed


# How a configuration is spoiled. Each leaves a whole file, but for those that write it.


def setting(**settings: str) -> Callable[[Node], None]:
    return lambda node: node.set(**settings)


def lines(text: str) -> Callable[[Node], None]:
    def spoil(node: Node) -> None:
        node.more = text

    return spoil


def whole_file(text: str) -> Callable[[Node], None]:
    def spoil(node: Node) -> None:
        node.config.write_text(text)

    return spoil


def no_file(node: Node) -> None:
    node.config = node.folder / "none.toml"


def unreadable_file(node: Node) -> None:
    node.config = Path("/proc/self/mem")  # root may open it too, and nobody reads it


def credentials(text: str) -> Callable[[Node], None]:
    return lambda node: node.credentials(text)


def unknown_profile(node: Node) -> None:
    del node.settings["credentials"]
    node.environment["AWS_PROFILE"] = "staging"


def no_credentials(node: Node) -> None:
    del node.settings["credentials"]
    node.environment |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(node.folder)}


def mountpoint_is_missing(node: Node) -> None:
    node.mountpoint.rmdir()


def mountpoint_is_not_empty(node: Node) -> None:
    (node.mountpoint / "model.bin").touch()


def mountpoint_is_a_file(node: Node) -> None:
    node.mountpoint.rmdir()
    node.mountpoint.touch()


def no_mountpoint(node: Node) -> None:
    del node.settings["mountpoint"]


def store_below_a_file(node: Node) -> None:
    (node.folder / "file").touch()
    node.set(store=f"'{node.folder}/file/store'")


def store_is_not_writable(node: Node) -> None:
    if os.getuid():
        node.store.mkdir(mode=0o500)
        return
    node.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", node.store], check=True)
    node.undo.append(lambda: subprocess.run(["umount", "-l", node.store], check=True))


def store_is_in_use(node: Node) -> None:
    cache = node.store / "cache" / os.uname().nodename
    cache.mkdir(parents=True)
    lock = (cache / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    node.undo.append(lock.close)


def store_of_another_format(node: Node) -> None:
    node.store.mkdir()
    (node.store / "format").write_text("99\n")


def ca_bundle_is_no_pem(node: Node) -> None:
    file = node.folder / "ca.pem"
    file.write_text("no certificate\n")
    node.set(ca_bundle=f"'{file}'")


def unknown_registry(node: Node) -> None:
    node.registry = "hbu"


def held(node: Node, server: AbstractContextManager[T]) -> T:
    """Keep a server until the test is over."""
    opened = server.__enter__()
    node.undo.append(lambda: server.__exit__(None, None, None))
    return opened


def wrong_keys(node: Node) -> None:
    proxy = held(node, FaultyProxy(node.bucket.endpoint))
    proxy.fault, proxy.answer = Fault.ANSWER, refusal(403, "SignatureDoesNotMatch")
    node.set(endpoint=f"'{proxy.endpoint}'")


def wrong_certificate(node: Node) -> None:
    certificate = Certificate.make(node.folder)
    node.set(endpoint=f"'https://{held(node, serving_tls(certificate))}'")


def tls_where_http_is_said(node: Node) -> None:
    certificate = Certificate.make(node.folder)
    node.set(endpoint=f"'http://{held(node, serving_tls(certificate))}'")


def http_where_tls_is_said(node: Node) -> None:
    node.set(endpoint=f"'{node.bucket.endpoint.replace('http:', 'https:')}'")


# What is wrong, how it is made so, and what is said of it: the key or the cause, where, the remedy.
HUB = r"modelfs\.toml: line \d+: registries\.hub\."
FAULTS: list[tuple[str, Callable[[Node], None], str]] = [
    ("the file is missing", no_file, r"none\.toml: there is no such file; make it with"),
    ("the file cannot be read", unreadable_file, r"/proc/self/mem: cannot be read .*; make it"),
    ("no TOML", whole_file("[registries.hub"), r"line 1: not TOML: Expected ']'"),
    ("no registry", whole_file("# nothing\n"), r"registries: found nothing; expected at least"),
    ("an unknown key", setting(endpont="1"), HUB + r"endpont: .*did you mean 'endpoint'\?"),
    ("a wrong type", setting(bucket="7"), HUB + "bucket: found 7; expected a bucket's name"),
    ("a negative size", lines("cache.max_size = -1"), HUB + r"cache\.max_size: found -1; exp"),
    ("a bad unit", setting(part_size="'8 MegaB'"), HUB + "part_size: found '8 MegaB'; expected"),
    ("no scheme", setting(endpoint="'rgw:8443'"), HUB + "endpoint: .*expected a URL like 'https"),
    ("a path", setting(endpoint="'https://rgw/hub'"), HUB + "endpoint: .*with no path"),
    ("a bucket's name", setting(bucket="'s3://hub'"), HUB + "bucket: .*expected a bucket's name"),
    ("no bucket at all", lambda node: node.settings.pop("bucket"), HUB + "bucket: found nothing"),
    (
        "credentials are missing",
        setting(credentials="'/nonexistent/keys'"),
        "/nonexistent/keys: cannot be read: No such file.*credentials = FILE",
    ),
    ("credentials have no keys", credentials("[default]\n"), r"aws_access_key_id is missing.*add"),
    (
        "credentials have no section",
        credentials("[prod]\naws_access_key_id = x\n"),
        r"has no section \[default\], but 'prod'.*name it \[default\]",
    ),
    ("credentials are no such file", credentials("key"), r"not in AWS credentials format.*expect"),
    ("an unknown profile", unknown_profile, r"profile \(?staging\)?.*credentials = FILE"),
    ("no credentials at all", no_credentials, "no credentials for .*set credentials = FILE"),
    ("a relative mountpoint", setting(mountpoint="'hub'"), HUB + "mountpoint: .*absolute path"),
    ("no mountpoint", no_mountpoint, r"where shall hub be mounted\? modelfs mount hub MOUNTPOINT"),
    ("the mountpoint is missing", mountpoint_is_missing, "/hub: No such .*make it with mkdir -p"),
    ("the mountpoint is not empty", mountpoint_is_not_empty, "/hub is not empty .*'model.bin'.*ch"),
    ("the mountpoint is a file", mountpoint_is_a_file, "/hub: Not a directory.*name a folder"),
    (
        "the store is on the wrong file system",
        setting(store_filesystem="['ceph']"),
        r"/store is on \S+ \(.*\), not on ceph: mount that first \(store_filesystem\)",
    ),
    (
        "the store's parent is missing",
        setting(store="'/nonexistent/a/store'"),
        "/nonexistent/a does not exist; mount its disk, or mkdir -p /nonexistent/a",
    ),
    ("the store is below a file", store_below_a_file, "file/store cannot be .*file is no folder"),
    ("the store is not writable", store_is_not_writable, "store .*/store cannot be used: .*: give"),
    ("the store is in use", store_is_in_use, "is used by another modelfs on this node: end it"),
    ("the store is of another format", store_of_another_format, "has format 99.*use the modelfs"),
    ("ca_bundle is missing", setting(ca_bundle="'/nonexistent/ca'"), "ca_bundle: /nonexistent/ca"),
    ("ca_bundle is no PEM", ca_bundle_is_no_pem, r"ca_bundle: .*ca\.pem .*name a file of PEM cert"),
    ("addressing", setting(addressing="'dns'"), HUB + "addressing: .*expected 'path', 'virtual'"),
    ("min_free", lines("cache.min_free = '150%'"), HUB + r"cache\.min_free: .*\(under 100%\)"),
    ("part_size is small", setting(part_size="'1KiB'"), HUB + "part_size: .*from '64KiB' to"),
    ("part_size is large", setting(part_size="'2GiB'"), HUB + "part_size: .*from '64KiB' to"),
    ("a namespace", lines("namespaces.'a b'.uid = 1"), HUB + r'namespaces\."a b": .*expected a na'),
    ("a mode", lines("namespaces.a.mode = 770"), HUB + r"namespaces\.a\.mode: .*octal digits"),
    ("a uid", lines("namespaces.a.uid = -1"), HUB + r"namespaces\.a\.uid: found -1; .*user id"),
    ("read_ahead", setting(read_ahead="true"), HUB + "read_ahead: found true; expected a size"),
    ("a prefix", setting(prefix="'models/../'"), HUB + r"prefix: .*no empty, \. or \.\. component"),
    ("staged_max", setting(staged_max="0"), HUB + "staged_max: found 0; expected a size"),
    ("parallel_requests", setting(parallel_requests="0"), HUB + "parallel_requests: .*from 1 to"),
    ("an unknown registry", unknown_registry, "no registry 'hbu'; did you mean 'hub'"),
    (
        "two registries with one store",
        lines("[registries.lab]\nendpoint = 'http://x'\nbucket = 'lab'\nstore = '/var/lib/modelfs'"
              "\n[registries.x]\nendpoint = 'http://x'\nbucket = 'lab'\nstore='/var/lib/modelfs'"),
        r"line \d+: registries\.x\.store: .*apart from registries\.lab\.store",
    ),
    (
        "two registries with one mountpoint",
        lines("[registries.lab]\nendpoint = 'http://x'\nbucket = 'lab'\nmountpoint = '/m'\n"
              "[registries.x]\nendpoint = 'http://x'\nbucket = 'lab'\nmountpoint = '/m'"),
        r"line \d+: registries\.x\.mountpoint: .*apart from registries\.lab\.mountpoint",
    ),
    ("there is no such bucket", setting(bucket="'not-there'"), "'not-there' at .*check 'bucket'"),
    ("wrong keys", wrong_keys, "the secret key is wrong; check the credentials"),
    ("a wrong certificate", wrong_certificate, "certificate cannot be verified; set ca_bundle"),
    ("TLS where http is said", tls_where_http_is_said, r"speaks TLS: write endpoint = .https://"),
    ("http where TLS is said", http_where_tls_is_said, "speaks no TLS: write endpoint = .http://"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "says"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_misconfiguration_is_one_line_with_its_key_or_cause_and_the_remedy(
    node: Node, spoil: Callable[[Node], None], says: str
) -> None:
    spoil(node)
    if not node.config.exists() and node.config.name == "modelfs.toml":
        node.write()
    done = node.mount()
    said = [line for line in done.stderr.splitlines() if line.startswith("modelfs: ")]
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert len(said) == 1, done.stderr
    assert re.search(says, said[0]), said[0]
    assert said[0] == done.stderr.splitlines()[-1]
