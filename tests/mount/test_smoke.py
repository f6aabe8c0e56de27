"""The main job in one go, on moto and on Ceph's gateway."""

import pytest

from tests.mounting import Mount, wait_until, xattr

pytestmark = pytest.mark.mount


def test_a_file_written_is_in_the_bucket_when_close_returns(mount: Mount) -> None:
    (mount.main / "config.json").write_text("{}")
    assert mount.objects() == {"": b"", "config.json": b"{}"}


def test_a_version_is_read_after_main_has_changed(mount: Mount) -> None:
    (mount.main / "a").write_text("one")
    version = mount.freeze("v1")
    (mount.main / "a").write_text("two")
    assert (version / "a").read_text() == "one"
    assert xattr(version, "state") == "ready"
    wait_until(lambda: (mount.model / "latest").is_symlink())
    assert mount.stop() == 0
