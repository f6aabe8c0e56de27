""".modelfs/metrics and its port: what they tell, that they stay few, that they cost nothing."""

import os
import socket
import time
from collections.abc import Iterator

import pytest

from modelfs.mount.requests import NAMED_ERRORS
from modelfs.registry.s3_counts import OUTCOMES
from tests.endpoints import S3Endpoint, free_port
from tests.faulty_proxy import Fault, FaultyProxy
from tests.mount.conftest import MakeMount
from tests.mount.test_handler_faults import HANDLERS
from tests.mounting import Mount, refused, wait_until
from tests.prometheus import Series, metrics_of, problems, scrape, series

pytestmark = pytest.mark.mount

MIB = 1 << 20


def now(mount: Mount) -> Series:
    return series(metrics_of(mount.path))


def value(found: Series, name: str, **labels: str) -> float:
    return found[name][tuple(sorted(labels.items()))]


@pytest.fixture
def proxy(moto_bucket: S3Endpoint) -> Iterator[FaultyProxy]:
    with FaultyProxy(moto_bucket.endpoint) as running:
        yield running


@pytest.fixture
def proxied(moto_bucket: S3Endpoint, proxy: FaultyProxy, make_mount: MakeMount) -> Mount:
    """A mount whose registry can go away; its cache is empty."""
    mount = make_mount(moto_bucket, endpoint=proxy.endpoint, staged_max="1GiB")
    mount.model.mkdir(parents=True)
    moto_bucket.put(mount.key("model.bin"), os.urandom(3 * MIB))
    wait_until((mount.main / "model.bin").exists)
    return mount


def live(mount: Mount, proxy: FaultyProxy) -> None:
    """Do what makes every metric: read, write, freeze, fail."""
    (mount.main / "model.bin").read_bytes()
    (mount.main / "config.json").write_text("{}")
    mount.freeze("v1")
    (mount.model / "v1" / "model.bin").read_bytes()
    with refused(30):
        (mount.model / "v1" / "new").touch()
    with proxy.faulty(Fault.RESET), refused(5):
        (mount.main / "late").write_text("late")
    wait_until(lambda: mount.status()["uploads"] == [])


def test_metrics_tell_what_was_done_and_what_failed_in_names_as_prometheus_wants_them(
    proxied: Mount, proxy: FaultyProxy
) -> None:
    live(proxied, proxy)
    assert list(problems(metrics_of(proxied.path))) == []
    found = now(proxied)
    assert value(found, "modelfs_fetched_bytes_total") == 3 * MIB
    assert value(found, "modelfs_served_bytes_total") >= 6 * MIB
    assert value(found, "modelfs_written_bytes_total") == len("{}") + len("late")
    assert value(found, "modelfs_cache_bytes") == 3 * MIB + len("{}") + len("late")
    assert value(found, "modelfs_uploaded_files_total") == 2
    assert value(found, "modelfs_upload_failures_total") >= 1
    assert value(found, "modelfs_versions", state="ready") == 1
    assert value(found, "modelfs_staged_limit_bytes") == 1 << 30
    assert value(found, "modelfs_fuse_errors_total", operation="flush", error="EIO") >= 1
    assert value(found, "modelfs_fuse_errors_total", operation="create", error="EROFS") == 1
    requests = found["modelfs_registry_requests_total"]
    assert any(dict(labels)["outcome"] == "no_answer" for labels in requests)
    assert requests[("operation", "GetObject"), ("outcome", "ok")] >= 1
    assert value(found, "modelfs_registry_request_duration_seconds_count", operation="GetObject")
    assert value(found, "modelfs_bugs_total", place="handler") == 0
    assert value(found, "process_resident_memory_bytes") > 1 << 20


def test_an_outage_is_told_with_its_time_and_with_what_waits(
    proxied: Mount, proxy: FaultyProxy
) -> None:
    before = time.time()
    assert value(now(proxied), "modelfs_registry_reachable") == 1
    with proxy.faulty(Fault.RESET):
        with refused(5):
            (proxied.main / "late").write_text("late")
        wait_until(lambda: value(now(proxied), "modelfs_registry_reachable") == 0)
        wait_until(lambda: value(now(proxied), "modelfs_upload_oldest_age_seconds") > 0.1)
        found = now(proxied)
        assert value(found, "modelfs_uploads", state="waiting") == 1
        assert value(found, "modelfs_staged_files") == 1
        since = value(found, "modelfs_registry_reachable_change_timestamp_seconds")
        assert before <= since <= time.time()
    wait_until(lambda: value(now(proxied), "modelfs_uploads", state="waiting") == 0)


LABELS: dict[str, set[str]] = {
    "registry": {"hub"},
    "operation": set(HANDLERS),
    "outcome": set(OUTCOMES),
    "error": {*NAMED_ERRORS, "other"},
    "state": {"running", "waiting", "ready", "failed", "damaged"},
    "place": {"handler", "task"},
}
FREE = {"le", "version", "python"}  # constants of a program
MODELS = 12
S3_OPERATIONS = 40  # that a client of S3 could ever send


def test_no_label_grows_with_what_is_in_the_registry(
    proxied: Mount, proxy: FaultyProxy, moto_bucket: S3Endpoint
) -> None:
    live(proxied, proxy)
    for number in range(MODELS):
        moto_bucket.put(f"models/ns{number}/model{number}/file{number}", b"x")
    before = now(proxied)
    wait_until(lambda: len(os.listdir(proxied.path)) == MODELS + 1)
    for number in range(MODELS):
        model = proxied.path / f"ns{number}" / f"model{number}"
        (model / "main" / f"file{number}").read_bytes()
        (model / "main" / f"new{number}").write_text("new")
        with refused(2):
            (model / "main" / f"absent{number}").read_bytes()
        (model / f"v{number}").mkdir()
    wait_until(lambda: value(now(proxied), "modelfs_versions", state="ready") == MODELS + 1, 30)
    after = now(proxied)
    assert before.keys() == after.keys()
    for name, samples in after.items():
        new = samples.keys() - before[name].keys()
        for labels in samples:
            for label, text in labels:
                if label == "operation" and name.startswith("modelfs_registry"):
                    assert text.isalnum()
                else:
                    assert label in FREE or text in LABELS[label], (name, labels)
        assert {dict(labels).get("operation") for labels in new} <= {*HANDLERS, "ListObjectsV2"}
    operations = {dict(k)["operation"] for k in after["modelfs_registry_requests_total"]}
    assert len(operations) < S3_OPERATIONS


def test_a_port_tells_the_same_and_listens_on_loopback_alone(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    port = free_port()
    mount = make_mount(moto_bucket, metrics_port=port)
    wait_until(lambda: "metrics are served" in mount.log())
    status, text = scrape(port)
    assert status == 200
    assert series(text).keys() >= now(mount).keys() - {"modelfs_fuse_errors_total"}
    assert list(problems(text)) == []
    assert scrape(port, "/")[0] == 404
    listening = socket.create_server(("127.0.0.2", port))  # were it on 0.0.0.0, this would fail
    listening.close()


def test_scrapers_that_hang_or_speak_nonsense_hold_up_nothing(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    port = free_port()
    mount = make_mount(moto_bucket, metrics_port=port)
    wait_until(lambda: "metrics are served" in mount.log())
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    try:
        for sock in idle[:20]:
            sock.sendall(b"\x16\x03\x01 nonsense")
        begun = time.monotonic()
        assert os.listdir(mount.path) == []
        assert (mount.path / ".modelfs" / "README").read_bytes()
        assert time.monotonic() - begun < 2
        wait_until(lambda: scrape(port)[0] == 200, 15)  # the idle ones are hung up on
    finally:
        for sock in idle:
            sock.close()
    assert mount.status()["counters"]["bugs"] == 0
    assert "Traceback" not in mount.log()


def test_a_port_that_is_taken_is_said_and_costs_the_mount_nothing(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        mount = make_mount(moto_bucket, metrics_port=port)
        wait_until(lambda: f"port {port}: the port is taken" in mount.log())
        assert value(now(mount), "modelfs_registry_reachable") == 1
