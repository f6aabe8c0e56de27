"""What the registry answers, in XML mostly."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote_plus

from modelfs.uploadscript.files import Source, etag_of_parts
from modelfs.uploadscript.troubles import NoAnswer, Trouble
from modelfs.uploadscript.wire import TRIES, Answer, Make, Wire
from modelfs.uploadscript.xmltext import local_name, parsed, text_of

FINISH_LIMIT_S = 60.0  # a registry may take its time to put many parts together


class Page(NamedTuple):
    """A page of a listing: key, size and ETag of each object; whether more follow."""

    objects: list[tuple[str, int, str]]
    is_cut: bool


def list_of(wire: Wire, make: Make) -> Page:
    """Ask for a page of a listing. Keys hold surrogates for bytes that are not UTF-8."""
    body = fine(wire.ask(make)).body
    # What follows is not needed, and may hold characters of a key that XML cannot say.
    body = re.sub(rb"<(NextContinuationToken|StartAfter)>.*?</\1>", b"", body, flags=re.DOTALL)
    root = parsed(body)
    objects = [
        (
            unquote_plus(text_of(item, "Key"), errors="surrogateescape"),
            int(text_of(item, "Size")),
            text_of(item, "ETag").strip('"'),
        )
        for item in root
        if local_name(item) == "Contents"
    ]
    return Page(objects, text_of(root, "IsTruncated") == "true")


def parts_of(wire: Wire, page: Callable[[str], Make]) -> dict[int, tuple[int, str]] | None:
    """Return number -> (size, ETag) of the parts that are there; None where the upload is gone."""
    there: dict[int, tuple[int, str]] = {}
    marker = "0"
    while True:
        answer = wire.ask(page(marker))
        if answer.status == 404:
            return None
        root = parsed(fine(answer).body)
        for item in root:
            if local_name(item) == "Part":
                etag = text_of(item, "ETag").strip('"')
                there[int(text_of(item, "PartNumber"))] = int(text_of(item, "Size")), etag
        after = text_of(root, "NextPartNumberMarker")
        if text_of(root, "IsTruncated") != "true" or after == marker:
            return there
        marker = after


def finish(
    wire: Wire,
    make: Make,
    source: Source,
    etags: list[str],
    look: Callable[[], tuple[int, str] | None],
) -> None:
    """Have parts put together, and see that the right object is there.

    An answer may be lost, and the upload is gone when it is asked for again: so it is the object
    that tells. Ceph's gateway says of an upload that is gone that it is busy (500).
    """
    parts = "".join(
        f'<Part><PartNumber>{number}</PartNumber><ETag>"{etag}"</ETag></Part>'
        for number, etag in enumerate(etags, 1)
    )
    body = f'<CompleteMultipartUpload xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{parts}'
    ask = f"{body}</CompleteMultipartUpload>".encode()
    wanted = source.size, etag_of_parts(etags)
    trouble: Trouble | None = None
    for _ in range(TRIES // 2):
        try:
            answer = wire.ask(make, ask, limit_s=FINISH_LIMIT_S, tries=2)
            trouble = None if answer.status == 200 else Trouble(f"the registry says {answer}")
        except NoAnswer as error:
            trouble = error
        found = look()
        if found == wanted or (trouble is None and found and found[0] == source.size):
            return
        if not isinstance(trouble, NoAnswer):
            break
    raise trouble or Trouble(f"the registry has another object ({found})")


def fine(answer: Answer) -> Answer:
    """Return an answer that is no error, or raise Trouble."""
    if not 200 <= answer.status < 300:
        raise Trouble(f"the registry says {answer}")
    return answer
