"""No secret is ever said: a whole life at the finest log level, and everything that it wrote."""

import re
from pathlib import Path

import pytest

from tests.endpoints import S3Endpoint, write_credentials
from tests.faulty_proxy import Fault, FaultyProxy
from tests.mount.conftest import MakeMount
from tests.mounting import Mount, refused, wait_until, xattr
from tests.prometheus import metrics_of

pytestmark = [pytest.mark.mount, pytest.mark.ceph]

TOKEN = "FwoGZXIvYXdzEBYaDOurSessionToken" * 3
WRONG_SECRET = "wrongSecretKeyThatNobodyMaySee0123456789"
_SIGNATURE = re.compile(rb"(?i)signature=([0-9a-f]{64})")


def files_of(mount: Mount) -> str:
    """Return what the files of the control directories say."""
    control, versions = mount.path / ".modelfs", mount.model / ".modelfs" / "versions"
    paths = [control / "README", control / "status.json", *versions.iterdir()]
    return "\n".join([metrics_of(mount.path), *(path.read_text() for path in paths)])


def answers_of(mount: Mount) -> str:
    """Return what commands print."""
    texts = []
    for command in (
        ["status"],
        ["ls", "acme/llama"],
        ["freeze", "acme/llama", "--no-wait"],
        ["warm", "acme/llama"],
    ):
        done = mount.run(*command)
        texts += [done.stdout, done.stderr]
    return "\n".join(texts)


def credentials(path: Path, access_key: str, secret_key: str, token: str) -> None:
    write_credentials(path, access_key, secret_key)
    with path.open("a") as file:
        file.write(f"aws_session_token = {token}\n")


@pytest.mark.timeout(120, func_only=True)
def test_no_secret_is_said_in_a_life_with_wrong_keys_and_an_outage_at_debug(
    ceph_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    bucket, file, said = ceph_bucket, ceph_bucket.credentials_file, []
    with FaultyProxy(bucket.endpoint) as proxy:
        mount = make_mount(bucket, endpoint=proxy.endpoint, log_level="debug")
        mount.model.mkdir(parents=True)
        (mount.main / "config.json").write_text("{}")
        (mount.main / "model.bin").write_bytes(bytes(1 << 20))
        bucket.put(mount.key("other"), b"other")
        mount.freeze("v1")
        said.append(files_of(mount))

        write_credentials(file, bucket.access_key, WRONG_SECRET)
        for text in ("one", "two"):
            with refused(13):
                (mount.main / text).write_text(text)
            said += [files_of(mount), answers_of(mount) if text == "one" else ""]
            credentials(file, bucket.access_key, bucket.secret_key, TOKEN)
        credentials(file, bucket.access_key, bucket.secret_key, f"{TOKEN}\n  {TOKEN}")
        with refused(22):  # a token of two lines would be shown by Python's error on a header
            (mount.main / "three").write_text("three")
        said.append(files_of(mount))

        write_credentials(file, bucket.access_key, bucket.secret_key)
        with proxy.faulty(Fault.RESET):
            with refused(5):
                (mount.main / "four").write_text("four")
            said.append(xattr(mount.main / "four", "error"))
            said += [files_of(mount), answers_of(mount)]
        wait_until(lambda: mount.status()["uploads"] == [], 40)
        assert bucket.get(mount.key("four")) == b"four"
        assert mount.stop() == 0
        heads = b"\n".join(proxy.heads)
    said.append(mount.log())
    signatures = {found.decode() for found in _SIGNATURE.findall(heads)}
    assert len(signatures) > 20  # the requests were signed as we believe
    assert TOKEN.encode() in heads
    assert " DEBUG " in mount.log()
    for secret in (bucket.secret_key, WRONG_SECRET, TOKEN, *signatures):
        assert not any(secret in text for text in said), secret
