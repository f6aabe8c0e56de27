"""What an error answer of S3 means to us: code and status -> modelfs.errors. Pure.

The codes are those of AWS, Ceph's gateway and MinIO. A HEAD has no body, so its code is
the status as text.
"""

from collections.abc import Mapping

from modelfs.errors import (
    AccessDenied,
    ModelfsError,
    NameTooLong,
    NoSuchBucket,
    NotFound,
    QuotaExceeded,
    RegistryError,
    RegistryUnavailable,
    Stale,
    WrongBytes,
)

_CLASS_OF_CODE: Mapping[str, type[ModelfsError]] = {
    "NoSuchBucket": NoSuchBucket,
    "NoSuchKey": NotFound,
    "NoSuchUpload": NotFound,
    "PreconditionFailed": Stale,
    "InvalidRange": WrongBytes,
    "BadDigest": WrongBytes,
    "InvalidDigest": WrongBytes,
    "XAmzContentSHA256Mismatch": WrongBytes,
    "InvalidPart": WrongBytes,
    "KeyTooLongError": NameTooLong,
    "QuotaExceeded": QuotaExceeded,
    "XMinioAdminBucketQuotaExceeded": QuotaExceeded,
    "XMinioStorageFull": QuotaExceeded,
    "InsufficientStorage": QuotaExceeded,
    "ExpiredToken": AccessDenied,
    "InvalidToken": AccessDenied,
    "RequestTimeout": RegistryUnavailable,
    "RequestTimeoutException": RegistryUnavailable,
    "SlowDown": RegistryUnavailable,
    "Throttling": RegistryUnavailable,
    "ThrottlingException": RegistryUnavailable,
    "RequestLimitExceeded": RegistryUnavailable,
    "BandwidthLimitExceeded": RegistryUnavailable,
    "OperationAborted": RegistryUnavailable,
    "ConditionalRequestConflict": RegistryUnavailable,
}

_CLASS_OF_STATUS: Mapping[int, type[ModelfsError]] = {
    401: AccessDenied,
    403: AccessDenied,
    404: NotFound,
    408: RegistryUnavailable,
    412: Stale,
    416: WrongBytes,
    429: RegistryUnavailable,
}

_ADVICE: Mapping[str, str] = {
    "InvalidAccessKeyId": "the registry does not know this access key; check the credentials",
    "SignatureDoesNotMatch": "the secret key is wrong; check the credentials",
    "ExpiredToken": "the session token has expired; renew the credentials",
    "InvalidToken": "the session token is wrong; renew the credentials",
    "RequestTimeTooSkewed": "this host's clock differs from the registry's; set the clock",
    "NoSuchBucket": "there is no such bucket; check 'bucket' and 'endpoint'",
    "NoSuchUpload": "the multipart upload is gone",
    "PermanentRedirect": "the bucket is at another endpoint; check 'endpoint' and 'region'",
    "AuthorizationHeaderMalformed": "the region is wrong; set 'region'",
    "IllegalLocationConstraintException": "the region is wrong; set 'region'",
    "EntityTooLarge": "the object is larger than the registry takes",
    "QuotaExceeded": "the quota is used up; delete something or raise it",
    "BadDigest": "the bytes changed on their way; the registry refused them",
    "XAmzContentSHA256Mismatch": "the bytes changed on their way; the registry refused them",
    "InvalidPart": "the registry does not have a part that it has taken",
}

_WORDS: Mapping[type[ModelfsError], str] = {
    NotFound: "there is no such object",
    Stale: "the object was changed by someone else",
    WrongBytes: "the registry does not have these bytes",
    AccessDenied: "the registry refuses these credentials; check 'credentials' and their rights",
    QuotaExceeded: "the quota is used up; delete something or raise it",
    RegistryUnavailable: "the registry cannot answer now",
    NameTooLong: "the key is too long",
}


def error_of(status: int, code: str, message: str, where: str) -> ModelfsError:
    """Return the error of an answer; `where` names the object or bucket and the endpoint."""
    kind = _CLASS_OF_CODE.get(code) or _CLASS_OF_STATUS.get(status)
    if kind is None:
        kind = RegistryUnavailable if status >= 500 else RegistryError
    said = " ".join(f"{code} {message}".split())
    words = _ADVICE.get(code) or _WORDS.get(kind) or "the registry refuses the request"
    return kind(
        f"{where}: {words} ({status} {said})"
        if said != str(status)
        else f"{where}: {words} ({status})"
    )
