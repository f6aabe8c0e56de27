"""Where a bucket is and how it is asked; pure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modelfs.registry.credentials import systemd_credentials
from modelfs.tables import RegistryConfig
from modelfs.units import MIB


@dataclass(frozen=True, slots=True)
class S3Settings:
    """See the module.

    `credentials` is a file in AWS format, else boto3's own chain is used. `addressing` auto
    means virtual on AWS and path elsewhere. Limits are of one wait on a socket: a third of
    `timeout_s`, or `slow_timeout_s` for putting parts together and for copies.
    """

    endpoint: str
    bucket: str
    region: str = "us-east-1"
    credentials: Path | None = None
    ca_bundle: Path | None = None
    addressing: Literal["path", "virtual", "auto"] = "path"
    timeout_s: float = 30.0
    slow_timeout_s: float = 60.0
    connections: int = 16
    copy_limit_bytes: int = 512 * MIB  # larger objects are copied in parts
    copy_part_bytes: int = 256 * MIB

    @property
    def verify(self) -> str | None:
        """Return the CA bundle as botocore takes it; None is its own choice."""
        return str(self.ca_bundle) if self.ca_bundle else None

    @classmethod
    def of(cls, config: RegistryConfig) -> "S3Settings":
        """Return the settings of a registry of the configuration."""
        return cls(
            endpoint=config.endpoint,
            bucket=config.bucket,
            region=config.region,
            credentials=config.credentials or systemd_credentials(),
            ca_bundle=config.ca_bundle,
            addressing=config.addressing,
            timeout_s=config.timeout_s,
            connections=3 * config.parallel_requests,
        )
