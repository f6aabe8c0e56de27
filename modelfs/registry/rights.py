"""What an upload script may do, and how it is said to the registry. Pure.

Either temporary credentials with a session policy, or requests that are signed beforehand. Both
let list the keys of one model and write them, and nothing else: no reading, no deleting.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelfs.errors import NotSupported

FORM_MAX = 5 << 30  # bytes: S3's limit of one request
LARGE_PARTS = 1000  # of a larger file without temporary credentials: one listing shows them all
PAGE_KEYS = 1000  # the most that S3 lists at once
LISTED_KEYS, LISTINGS_MAX = 500, 40  # keys between two listings that are signed; how many
ROLE_EXPIRES_MIN_S = 900  # what STS gives at least

# What means something in a policy, or is lost from it (Ceph's gateway takes blanks out).
_ODD = re.compile(r"[*?$\s\"\\]")


@dataclass(frozen=True, slots=True)
class UploadWish:
    """What a script shall be able to do: `large` are keys of files that no form can carry.

    `label` names the session in the registry's own log.
    """

    prefix: str
    expires_s: int
    label: str
    role: str | None = None
    large: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class UploadRights:
    """The bucket's URL, what the script needs to know, and until when (seconds since 1970)."""

    url: str
    token: Mapping[str, Any] = field(repr=False)
    expires_at: int


def session_policy(bucket: str, prefix: str) -> str:
    """Return the policy that leaves temporary credentials one prefix, which ends in a slash.

    Without blanks, as Ceph's gateway wants it. Raises NotSupported for a prefix that a policy
    would understand as a pattern.
    """
    if _ODD.search(prefix):
        raise NotSupported(f"{prefix!r} cannot be named in a policy: unset upload_role")
    arn = f"arn:aws:s3:::{bucket}"
    statements = [
        {
            "Effect": "Allow",
            "Action": ["s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"],
            "Resource": [f"{arn}/{prefix}?*"],  # not the model's marker
        },
        {
            "Effect": "Allow",
            "Action": ["s3:ListBucket"],
            "Resource": [arn],
            "Condition": {"StringLike": {"s3:prefix": [f"{prefix}*"]}},
        },
    ]
    policy = {"Version": "2012-10-17", "Statement": statements}
    return json.dumps(policy, separators=(",", ":"))


def session_name(label: str) -> str:
    """Return what STS takes for the name of a session."""
    return re.sub(r"[^A-Za-z0-9_=,.@-]", "-", f"modelfs-{label}")[:64]


def form_conditions(bucket: str, prefix: str) -> list[Any]:
    """Return what a form may say; a field that is not named here is refused by the registry."""
    return [
        {"bucket": bucket},
        ["starts-with", "$key", prefix],
        ["starts-with", "$x-amz-meta-mtime", ""],
        ["starts-with", "$content-md5", ""],
        {"success_action_status": "201"},
        ["content-length-range", 0, FORM_MAX],
    ]


def is_ceph_request_id(text: str) -> bool:
    """Tell whether an answer's x-amz-request-id is of Ceph's gateway, which names no server."""
    return re.match(r"tx[0-9a-f]{21}-[0-9a-f]{10}-", text) is not None
