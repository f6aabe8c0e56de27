"""From the answers of S3 to our values, and from our metadata to headers. Pure.

An answer is the dict that boto3 gives. What is an MD5 is decided here and nowhere else.
"""

import base64
import binascii
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote_plus

from modelfs.errors import Stale, WrongBytes
from modelfs.registry.objects import (
    MTIME,
    PART_SIZES,
    Checksum,
    ListPage,
    ObjectId,
    ObjectInfo,
    UnfinishedUpload,
    UploadedPart,
    parse_mtime,
)

Answer = Mapping[str, Any]

_MD5 = re.compile(r"[0-9a-f]{32}")
_MD5_OF_PARTS = re.compile(r"[0-9a-f]{32}-([1-9][0-9]{0,4})")
_CHECKSUM_BYTES = {"SHA256": 32, "SHA1": 20, "CRC32": 4}  # what Python can compute, best first
_PLAIN_HEADER = re.compile(r"(?!=\?)[!-~]+(?: +[!-~]+)*")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CONTENT_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/([0-9]+)")

_FITS_XML = re.compile("[\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]*")


def fits_xml(key: str) -> bool:
    """Tell whether XML 1.0 can say this key."""
    return _FITS_XML.fullmatch(key) is not None


def is_md5(etag: str) -> bool:
    """Tell whether an ETag may be an MD5."""
    return _MD5.fullmatch(etag) is not None


def has_own_etag(answer: Answer) -> bool:
    """Tell whether the object is encrypted such that its ETag is no MD5 of its content."""
    return "SSECustomerAlgorithm" in answer or str(
        answer.get("ServerSideEncryption", "")
    ).startswith("aws:kms")


_FIELDS = {
    "content-range": "ContentRange",
    "etag": "ETag",
    "x-amz-server-side-encryption": "ServerSideEncryption",
    "x-amz-server-side-encryption-customer-algorithm": "SSECustomerAlgorithm",
    "x-amz-version-id": "VersionId",
}
_METADATA = "x-amz-meta-"


def answer_of(headers: Mapping[str, str]) -> Answer:
    """Return of an answer's headers what boto3 would, as far as it is used here."""
    answer: dict[str, Any] = {}
    metadata = answer["Metadata"] = {}
    for header, value in headers.items():
        name = header.lower()
        if field := _FIELDS.get(name):
            answer[field] = value
        elif name.startswith(_METADATA):
            metadata[name.removeprefix(_METADATA)] = value
        elif name == "content-length" and value.isdecimal():
            answer["ContentLength"] = int(value)
        elif name == "last-modified":
            with suppress(ValueError):  # whoever needs it says that it is missing
                answer["LastModified"] = parse_time(value)
    return answer


def etag_of(answer: Answer) -> str:
    """Return the ETag unquoted; '' where there is none."""
    return str(answer.get("ETag", "")).removeprefix('"').removesuffix('"')


def md5_of_answer(answer: Answer, etag: str | None = None) -> str | None:
    """Return the MD5 of the object of an answer, or of `etag` where it stands elsewhere in it."""
    etag = etag_of(answer) if etag is None else etag
    return None if has_own_etag(answer) or not is_md5(etag) else etag


def parts_of_answer(answer: Answer, etag: str) -> int | None:
    """Return how many parts' MD5s the ETag of an answer is made of; None where it is not."""
    match = _MD5_OF_PARTS.fullmatch(etag)
    return None if match is None or has_own_etag(answer) else int(match[1])


def checksum_of(answer: Answer) -> Checksum | None:
    """Return the checksum of the whole content in an answer to HEAD; None where there is none.

    A checksum of the parts' checksums ends in -N, or is said to be COMPOSITE. Where nothing
    is said of an object in parts, its checksum may be either (moto's is of the parts).
    """
    kind = answer.get("ChecksumType")
    if kind not in (None, "FULL_OBJECT") or (kind is None and "-" in etag_of(answer)):
        return None
    for name, size in _CHECKSUM_BYTES.items():
        try:
            value = base64.b64decode(answer.get(f"Checksum{name}", ""), validate=True)
        except binascii.Error:
            continue
        if len(value) == size:
            return Checksum(name.lower(), value.hex())
    return None


def _listed_checksum(entry: Answer) -> str | None:
    """Return the algorithm of a checksum that may be of an object's whole content."""
    listed = entry.get("ChecksumAlgorithm")
    if not listed or entry.get("ChecksumType") == "COMPOSITE":
        return None
    return next((name.lower() for name in _CHECKSUM_BYTES if name in listed), None)


def is_of_ceph(answer: Answer) -> bool:
    """Tell whether an answer to HEAD comes from Ceph's gateway, which names no server."""
    return "x-rgw-object-type" in answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})


def checked_etag(answer: Answer, digest: bytes, key: str) -> str:
    """Return the ETag of an answer to bytes that were sent; raises WrongBytes."""
    etag = etag_of(answer)
    if is_md5(etag) and not has_own_etag(answer) and etag != digest.hex():
        raise WrongBytes(
            f"{key!r}: sent bytes with MD5 {digest.hex()}, the registry has others ({etag})", etag
        )
    return etag


def multipart_etag(parts: Sequence[UploadedPart]) -> str | None:
    """Return the ETag that S3 gives an object made of `parts`; None where it cannot be known."""
    if not all(is_md5(part.etag) for part in parts):
        return None
    digests = b"".join(bytes.fromhex(part.etag) for part in parts)
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"


def checked_upload(
    info: ObjectInfo, head: Answer, said: str, expected: str | None, size: int
) -> ObjectInfo:
    """Return `info`, a HEAD after a complete, where it is what was sent.

    `said` is the ETag that the complete answered with ('' where none). Raises WrongBytes,
    or Stale where someone else's object has taken the place of ours since.
    """
    key, etag = info.id.key, info.id.etag
    expected = None if has_own_etag(head) else expected
    if said and said != etag:
        raise Stale(f"{key!r} was replaced by someone else right after it was uploaded")
    if info.size != size:
        raise WrongBytes(f"{key!r}: sent {size} bytes, the registry has {info.size}")
    if expected is not None and etag != expected:
        raise WrongBytes(f"{key!r}: sent parts with ETag {expected}, the registry has {etag}")
    return info


def nanoseconds(moment: datetime) -> int:
    """Return nanoseconds since 1970, of whole seconds: a listing knows more than a HEAD says."""
    return (moment - _EPOCH) // timedelta(seconds=1) * 10**9


def parse_time(text: str) -> datetime:
    """Parse the two forms of S3's times; botocore's own parser takes 0.1 s for 1,000 of them."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return parsedate_to_datetime(text)


def answered_at_ns(answer: Answer) -> int:
    """Return the registry's clock at an answer."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    try:
        return nanoseconds(parsedate_to_datetime(headers["date"]))
    except (KeyError, ValueError, TypeError):
        return time.time_ns()


# ------------------------------------------------------------------ metadata


def encode_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what headers can carry: other text than plain ASCII as RFC 2047 says, as S3 does."""
    return {name: _encoded(value) for name, value in metadata.items()}


def _encoded(value: str) -> str:
    if not value or _PLAIN_HEADER.fullmatch(value):
        return value
    return f"=?UTF-8?B?{base64.b64encode(value.encode()).decode()}?="


def decode_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Undo `encode_metadata`; what is not encoded is left as it is."""
    return {name.lower(): _decoded(value) for name, value in metadata.items()}


def _decoded(value: str) -> str:
    if "=?" not in value:
        return value
    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, UnicodeError, ValueError):
        return value


# ------------------------------------------------------------------- objects


def info_of(key: str, answer: Answer, size: int) -> ObjectInfo:
    """Return what a HEAD or GET answered."""
    metadata = decode_metadata(answer.get("Metadata", {}))
    etag = etag_of(answer)
    return ObjectInfo(
        ObjectId(key, etag),
        size,
        nanoseconds(answer["LastModified"]),
        parse_mtime(metadata.get(MTIME)),
        md5_of_answer(answer, etag),
        version_of(answer),
        metadata,
        parts_of_answer(answer, etag),
        part_sizes=metadata.get(PART_SIZES),
    )


def made_info(
    key: str, answer: Answer, etag: str, size: int, modified_ns: int, metadata: Mapping[str, str]
) -> ObjectInfo:
    """Return the info of an object that the registry has just made."""
    return ObjectInfo(
        ObjectId(key, etag),
        size,
        modified_ns,
        parse_mtime(metadata.get(MTIME)),
        md5_of_answer(answer, etag),
        version_of(answer),
        dict(metadata),
        parts_of_answer(answer, etag),
        part_sizes=metadata.get(PART_SIZES),
    )


def version_of(answer: Answer) -> str | None:
    """Return the version's id; None in a bucket without versions."""
    version = answer.get("VersionId")
    return None if version in (None, "", "null") else str(version)


def checked_range(object_id: ObjectId, answer: Answer, offset: int, length: int) -> ObjectInfo:
    """Return what a ranged GET answered; raises Stale or WrongBytes where it is not the asked."""
    if etag_of(answer) != object_id.etag:
        raise Stale(f"{object_id.key!r} was changed by someone else")
    said = str(answer.get("ContentRange", ""))
    match = _CONTENT_RANGE.fullmatch(said)
    start, last, size = map(int, match.groups()) if match else (-1, -1, -1)
    if (start, last) != (offset, offset + length - 1) or answer.get("ContentLength") != length:
        raise WrongBytes(
            f"{object_id.key!r}: asked for {length} bytes at {offset}, the registry answered "
            f"{answer.get('ContentLength')} bytes, Content-Range {said!r}"
        )
    return info_of(object_id.key, answer, size)


# ------------------------------------------------------------------ listings


def versions_page_of(answer: Answer) -> ListPage:
    """Return the current versions in a page of ListObjectVersions, with their VersionIds."""
    encoded = answer.get("EncodingType") == "url"
    token = None
    if answer["IsTruncated"]:
        marker = answer["NextKeyMarker"]  # AWS encodes it too, Ceph does not
        listed = [*answer.get("Versions", ()), *answer.get("DeleteMarkers", ())]
        if marker not in {decoded_key(entry["Key"], encoded) for entry in listed}:
            marker = decoded_key(marker, encoded)
        token = f"{marker}\0{answer.get('NextVersionIdMarker', '')}"
    return ListPage(
        [
            listed_info({**entry, "Key": decoded_key(entry["Key"], encoded)})
            for entry in answer.get("Versions", ())
            if entry["IsLatest"]
        ],
        [],
        token,
    )


def listed_info(entry: Answer) -> ObjectInfo:
    """Return the object of an entry in a listing, whose key is decoded."""
    etag = etag_of(entry)
    return ObjectInfo(
        ObjectId(entry["Key"], etag),
        entry["Size"],
        nanoseconds(entry["LastModified"]),
        md5=etag if is_md5(etag) else None,
        version_id=entry.get("VersionId"),
        etag_parts=parts_of_answer(entry, etag),
        checksum=_listed_checksum(entry),
    )


def unfinished_of(answer: Answer) -> list[UnfinishedUpload]:
    """Return a page of ListMultipartUploads."""
    return [
        UnfinishedUpload(entry["Key"], entry["UploadId"], nanoseconds(entry["Initiated"]))
        for entry in answer.get("Uploads", ())
    ]


def decoded_key(text: str, encoded: bool) -> str:
    """Return a key of a listing, which may be URL-encoded."""
    return unquote_plus(text, errors="surrogateescape") if encoded else text
