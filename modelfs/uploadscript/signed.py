"""Rights by requests that were signed before."""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from modelfs.uploadscript.answers import fine, finish, list_of, parts_of
from modelfs.uploadscript.files import Source, in_base64, metadata
from modelfs.uploadscript.troubles import Trouble, note, shown, size_text
from modelfs.uploadscript.wire import Answer, Body, Make, Wire


class Signed:
    """Rights by requests that modelfs has signed: a form for any file of the model of up to
    `single_max` bytes, and each request that a larger file takes whose name was told before.
    """

    def __init__(self, wire: Wire, grant: Mapping[str, Any]) -> None:
        self._wire = wire
        self._grant = grant
        self._token = grant["token"]
        self._url = urlsplit(grant["url"])
        self.single_max = self._token["form_max"]

    def listing(self) -> Iterator[tuple[str, int, str]]:
        """Yield the key, size and ETag of the objects of the model that may be listed."""
        seen: set[str] = set()
        is_cut = False
        for url in self._token["listings"]:
            page = list_of(self._wire, self._request("GET", url))
            is_cut = page.is_cut
            for found in page.objects:
                if found[0] not in seen:
                    seen.add(found[0])
                    yield found
        if is_cut:
            note(f"more than {len(seen):,} files are there: of the others some may be sent again")

    def put(self, source: Source, body: Body, md5: bytes) -> Answer:
        """Send a file by the form."""
        if source.key != source.key.rstrip() or "${filename}" in source.key:
            raise Trouble("a form cannot carry this name: rename it")
        boundary = uuid.uuid4().hex
        fields = {
            **self._token["fields"],
            "key": source.key,
            "content-md5": in_base64(md5),
            **metadata(source),
        }
        lines = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        lines.append(
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body.before, body.after = "".join(lines).encode(), f"\r\n--{boundary}--\r\n".encode()
        headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
        if self._token["checks_md5"]:
            headers["content-md5"] = in_base64(md5)
        answer = fine(self._wire.ask(self._request("POST", self._grant["url"], headers), body))
        # The answer is XML, but for some names; where it has no ETag, nothing was kept.
        if found := re.search(rb"<ETag>(?:&quot;|\")?([^<&\"]*)", answer.body):
            answer = answer._replace(headers={**answer.headers, "etag": found[1].decode()})
        return answer

    def parts_max(self, source: Source) -> int:
        """Return in how many parts a file may come; raises Trouble where it may not."""
        return len(self._large(source)["part_signatures"])

    def _large(self, source: Source) -> dict[str, Any]:
        large: dict[str, Any] | None = self._token["large"].get(source.name)
        if large is None:
            raise Trouble(
                f"it has more than {size_text(self.single_max)}, and its name must be told before: "
                f"{self._grant['another']} --large {shlex.quote(shown(source.name))}"
            )
        return large

    def begin(self, source: Source, count: int) -> tuple[str, dict[int, tuple[int, str]]]:
        """Return the id of the upload that modelfs has begun, and the parts that are there."""
        large = self._large(source)
        there = parts_of(self._wire, lambda marker: self._request("GET", large["parts"]))
        if there and max(there) > count:  # of another state of the file: they would be in the way
            self._wire.ask(self._request("DELETE", large["drop"]))
            there = None
        if there is None:
            raise Trouble(
                f"its upload was finished or given up; get another script: "
                f"{self._grant['another']} --large {shlex.quote(shown(source.name))}"
            )
        return large["upload"], there

    def part(self, source: Source, upload: str, number: int, body: Body, md5: bytes) -> Answer:
        """Send one part."""
        large = self._large(source)
        signature = large["part_signatures"][number - 1]
        url = f"{large['part']}&partNumber={number}&X-Amz-Signature={signature}"
        headers = {**large["part_headers"], "content-md5": in_base64(md5)}
        return fine(self._wire.ask(self._request("PUT", url, headers), body))

    def finish(self, source: Source, upload: str, etags: list[str]) -> None:
        """Have the parts put together."""
        ask = self._request("POST", self._large(source)["finish"])
        finish(self._wire, ask, source, etags, lambda: self.look(source))

    def look(self, source: Source) -> tuple[int, str] | None:
        """Return size and ETag of the object that is there now, of a large file."""
        answer = self._wire.ask(self._request("HEAD", self._large(source)["look"]))
        if answer.status == 404:
            return None
        return int(fine(answer).headers["content-length"]), answer.etag

    def _request(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> Make:
        target = urlsplit(url)
        query = f"?{target.query}" if target.query else ""
        return lambda: (method, target.path + query, {"host": target.netloc, **(headers or {})})
