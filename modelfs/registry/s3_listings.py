"""A page of ListObjectsV2, from its XML to our values. Pure.

botocore parses a listing twice, the first time to see whether it is an error, and its entries take
three times as long as they need; that was most of what a daemon did while a model of thousands of
keys was written to.
"""

import html
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from modelfs.errors import RegistryUnavailable
from modelfs.registry.objects import ListPage, ObjectInfo
from modelfs.registry.s3_answers import Answer, decoded_key, listed_info, parse_time

ROOT = b"<ListBucketResult"  # an answer that has it is a listing
# What XML 1.0 cannot say, but Ceph says in a continuation token that is an odd key.
_ILLEGAL_XML = re.compile(
    rb"&#(?:x0*(?:[0-8BCEFbcef]|1[0-9A-Fa-f]));|[\0-\x08\x0b\x0c\x0e-\x1f]"
    rb"|\xef\xbf[\xbe\xbf]"
)
_NEXT_TOKEN = re.compile(rb"<NextContinuationToken>(.*?)</NextContinuationToken>", re.DOTALL)


def list_page_of(body: bytes) -> ListPage:
    """Return a page of ListObjectsV2; nothing is no listing.

    Raises RegistryUnavailable where it is no whole XML, KeyError where it lacks a field.
    """
    token = None
    try:
        try:
            root = ElementTree.fromstring(body)
        except ElementTree.ParseError:
            body, token = _mended(body)
            root = ElementTree.fromstring(body)
        return _page(root, token)
    except (ElementTree.ParseError, ValueError) as error:
        raise RegistryUnavailable(f"a listing cannot be read: {error}") from error


def _page(root: ElementTree.Element, token: str | None) -> ListPage:
    start = len(root.tag) - len("ListBucketResult")  # of a name behind its namespace
    said = {child.tag[start:]: child.text or "" for child in root}
    encoded = said.get("EncodingType") == "url"
    return ListPage(
        [_object(fields, encoded) for fields in _each(root, "Contents", start)],
        [decoded_key(fields["Prefix"], encoded) for fields in _each(root, "CommonPrefixes", start)],
        (token or said["NextContinuationToken"]) if said["IsTruncated"] == "true" else None,
    )


def _each(root: ElementTree.Element, name: str, start: int) -> Iterator[dict[str, str]]:
    """Yield the fields of each child of that name."""
    for child in root:
        if child.tag[start:] == name:
            yield {field.tag[start:]: field.text or "" for field in child}


def _object(fields: Answer, encoded: bool) -> ObjectInfo:
    algorithm = fields.get("ChecksumAlgorithm")
    return listed_info(
        {
            **fields,
            "Key": decoded_key(fields["Key"], encoded),
            "Size": int(fields["Size"]),
            "LastModified": parse_time(fields["LastModified"]),
            "ChecksumAlgorithm": [algorithm] if algorithm else (),
        }
    )


def _mended(body: bytes) -> tuple[bytes, str | None]:
    """Return a listing that XML cannot say as one that it can, and the next token.

    Ceph's gateway URL-encodes keys on demand, but not the continuation token, which is the
    page's last key. Where that has a control character, no page after it could be had.
    """
    token, match = None, _NEXT_TOKEN.search(body)
    if match:
        text = match[1].decode(errors="surrogateescape")
        token = html.unescape(
            re.sub(r"&#x([0-9A-Fa-f]+);", lambda found: chr(int(found[1], 16)), text)
        )
    return _ILLEGAL_XML.sub(b"", body), token
