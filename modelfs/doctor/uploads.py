"""Multipart uploads that were begun and never ended: they take space and no listing shows them."""

import time

from modelfs.doctor.outcome import Outcome, ok, warning
from modelfs.errors import AccessDenied
from modelfs.registry.objects import UnfinishedUpload
from modelfs.registry.s3_probe import S3Probe
from modelfs.tables import RegistryConfig
from modelfs.wording import age_text, count_text, size_text

ORPHAN_AGE_S = 86400.0  # an upload that moves is over by then
MEASURED_MAX = 20  # uploads whose parts are asked for


def check(config: RegistryConfig, probe: S3Probe) -> Outcome:
    """Count the uploads below the prefix; a warning where one is older than a day."""
    try:
        found = probe.unfinished_uploads(config.prefix)
    except AccessDenied:
        return ok("uploads", "not looked at: these credentials may not list multipart uploads")
    now_ns = time.time_ns()
    orphans = [upload for upload in found if now_ns - upload.started_ns >= ORPHAN_AGE_S * 1e9]
    if not orphans:
        return ok("uploads", f"{count_text(len(found), 'multipart upload')} under way")
    oldest = min(orphans, key=lambda upload: upload.started_ns)
    measured = sorted(orphans, key=lambda upload: upload.started_ns)[:MEASURED_MAX]
    size = sum(map(probe.uploaded_bytes, measured))
    at_least = "at least " if len(orphans) > len(measured) else ""
    return warning(
        "uploads",
        f"{count_text(len(orphans), 'multipart upload')} begun and never ended, the oldest "
        f"{age_text(now_ns - oldest.started_ns)} ago ({oldest.key}), {at_least}{size_text(size)}",
        _how_to_remove(config, oldest),
    )


def _how_to_remove(config: RegistryConfig, upload: UnfinishedUpload) -> str:
    return (
        "let a lifecycle rule of the bucket abort them (AbortIncompleteMultipartUpload), or one by "
        f"one: aws --endpoint-url {config.endpoint} s3api abort-multipart-upload --bucket "
        f"{config.bucket} --key '{upload.key}' --upload-id '{upload.id}'"
    )
