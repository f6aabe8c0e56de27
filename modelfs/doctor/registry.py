"""Everything far away, in its order: what needs an earlier thing is asked after it."""

import socket
from contextlib import closing

from modelfs.doctor import endpoint, uploads
from modelfs.doctor.bucket import SLOW, Rights, probe_of
from modelfs.doctor.outcome import Outcome, failed, ok
from modelfs.doctor.running import Steps
from modelfs.errors import ModelfsError
from modelfs.registry.s3_probe import S3Probe
from modelfs.tables import RegistryConfig


def examine(config: RegistryConfig, step: Steps) -> None:
    """Check the way to the registry, its bucket, the rights in it, and what was left there."""
    if not endpoint.examine(config, step):
        return
    with closing(probe_of(config, socket.gethostname())) as probe:
        if not Rights(config, probe, step).examine():
            return
        if config.upload_role is not None:
            step("upload_role", lambda: _role(config, probe), SLOW)
        step("uploads", lambda: uploads.check(config, probe), SLOW)


def _role(config: RegistryConfig, probe: S3Probe) -> Outcome:
    assert config.upload_role is not None
    try:
        probe.assume(config.upload_role, config.prefix)
    except ModelfsError as error:
        return failed(
            "upload_role",
            str(error),
            "correct `upload_role`, let its trust policy name these credentials, or leave it out",
        )
    return ok("upload_role", f"{config.upload_role} gives credentials for a prefix")
