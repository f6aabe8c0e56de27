"""What an operator meets: lines of the log, a model's cached share, the removal of models."""

import errno
import os
import re

import pytest

from modelfs.logs import KIND_MAX
from tests.endpoints import S3Endpoint
from tests.faulty_proxy import Fault, FaultyProxy
from tests.mount.conftest import MakeMount
from tests.mount.test_reload import reload
from tests.mounting import Mount, refused, wait_until, xattr
from tests.prometheus import metrics_of

pytestmark = pytest.mark.mount

FILES = 3 * KIND_MAX


def test_a_failed_operation_is_a_line_with_what_where_and_why_and_many_are_bounded(
    moto_bucket: S3Endpoint, make_mount: MakeMount
) -> None:
    for number in range(FILES):
        moto_bucket.put(f"models/acme/llama/f{number}", b"x")
    with FaultyProxy(moto_bucket.endpoint) as proxy:
        mount = make_mount(moto_bucket, endpoint=proxy.endpoint)
        assert len(os.listdir(mount.main)) == FILES
        with proxy.faulty(Fault.RESET):
            with refused(5):
                (mount.main / "f0").read_bytes()
            wait_until(lambda: not mount.status()["reachable"])
            for number in range(1, FILES):
                for _ in range(3):
                    with refused(5):
                        (mount.main / f"f{number}").read_bytes()
        wait_until(lambda: mount.status()["reachable"])
    said = re.findall(r"WARNING modelfs.*: read (acme/llama/main/f\d+): EIO: (.+)", mount.log())
    assert said[0][0] == "acme/llama/main/f0"
    assert "does not answer" in said[0][1]
    assert 10 < len(said) == len(set(said)) <= KIND_MAX


def test_a_model_tells_how_much_of_its_main_is_in_the_cache(moto_mount: Mount) -> None:
    (moto_mount.main / "written").write_bytes(bytes(1000))
    moto_mount.bucket.put(moto_mount.key("far"), bytes(3000))
    wait_until((moto_mount.main / "far").exists)
    assert xattr(moto_mount.model, "cached") == "1000/4000"
    listed = moto_mount.run("ls").stdout.splitlines()[1]
    assert re.split("  +", listed)[:3] == ["acme/llama", "3.9 KiB", "25%"]
    (moto_mount.main / "far").read_bytes()
    assert xattr(moto_mount.model, "cached") == "4000/4000"


def test_rm_of_a_model_takes_nothing_with_it_unless_everything_is_said(moto_mount: Mount) -> None:
    model = moto_mount.model
    (moto_mount.main / "sub").mkdir()
    (moto_mount.main / "sub" / "a").write_text("a")
    (moto_mount.main / "b").write_text("b")
    moto_mount.freeze("v1")
    (model / "production").symlink_to("v1")
    refusal = moto_mount.run("rm", "acme/llama")
    assert refusal.returncode == 1
    assert "acme/llama has 1 version and 1 alias and files in main/" in refusal.stderr
    assert (model / "v1" / "b").read_text() == "b"

    local = moto_mount.path / "acme" / "local"
    assert moto_mount.run("create", "acme/local", "--source", "acme/llama").returncode == 0
    assert moto_mount.run("rm", "acme/local").returncode == 0
    assert not local.exists()
    assert (moto_mount.main / "b").read_text() == "b"  # its source's files are not its own

    done = moto_mount.run("rm", str(model), "--everything")
    assert done.returncode == 0, done.stderr
    assert "acme/llama is deleted" in done.stdout
    assert os.listdir(moto_mount.path / "acme") == []
    assert moto_mount.objects() == {}


def test_the_log_says_more_after_a_reload_and_the_metrics_tell_of_one_that_was_refused(
    moto_mount: Mount,
) -> None:
    assert " DEBUG " not in moto_mount.log()
    assert reload(moto_mount, log_level="debug")["applied"] == ["log_level"]
    with refused(errno.EINVAL):
        (moto_mount.model / "no-version").mkdir()
    assert "DEBUG modelfs.mount.failures: mkdir acme/llama/no-version: EINVAL" in moto_mount.log()
    assert 'modelfs_config_refused{registry="hub"} 0.0' in metrics_of(moto_mount.path)
    assert reload(moto_mount, log_level="loud")["error"]
    assert 'modelfs_config_refused{registry="hub"} 1.0' in metrics_of(moto_mount.path)
