"""Rights by temporary credentials."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from modelfs.uploadscript.answers import fine, finish, list_of, parts_of
from modelfs.uploadscript.files import PARTS_MAX, Source, in_base64, metadata
from modelfs.uploadscript.troubles import note
from modelfs.uploadscript.wire import Answer, Body, Make, Wire
from modelfs.uploadscript.xmltext import parsed, text_of


class Memory:
    """Which uploads in parts this user has begun: a small file for each, without any token."""

    def __init__(self, url: str) -> None:
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        self._folder = Path(home) / "modelfs-upload"
        self._url = url

    def _path(self, source: Source) -> Path:
        return self._folder / hashlib.sha256(f"{self._url}\0{source.key}".encode()).hexdigest()

    def recall(self, source: Source) -> tuple[str, str]:
        """Return the id of an upload and the file's time then; two '' where there is none."""
        try:
            known = json.loads(self._path(source).read_text())
            return str(known["upload"]), str(known["mtime"])
        except (OSError, ValueError, KeyError, TypeError):
            return "", ""

    def keep(self, source: Source, upload: str) -> None:
        path = self._path(source)
        known = {"key": source.key, "upload": upload, "mtime": source.mtime}
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = path.with_name(f"{path.name}.{os.getpid()}")
            new.write_text(json.dumps(known))
            os.replace(new, path)
        except OSError as error:
            note(f"{self._folder}: {error.strerror}: if this is cut off, it begins anew")

    def forget(self, source: Source) -> None:
        with contextlib.suppress(OSError):
            self._path(source).unlink()


class Temporary:
    """Rights by temporary credentials, which the registry itself has narrowed to this model."""

    def __init__(self, wire: Wire, grant: Mapping[str, Any], memory: Memory) -> None:
        self._wire = wire
        self._token = grant["token"]
        self._prefix = grant["prefix"]
        self._url = urlsplit(grant["url"])
        self._memory = memory
        self.single_max = grant["single_max"]  # bytes; larger files go in parts

    def listing(self) -> Iterator[tuple[str, int, str]]:
        """Yield the key, size and ETag of every object of the model."""
        last = ""
        while True:
            page = list_of(self._wire, self._list(self._prefix, last))
            yield from page.objects
            if not page.is_cut:
                return
            last = page.objects[-1][0]

    def _list(self, prefix: str, after: str, most: int = 1000) -> Make:
        query = {"encoding-type": "url", "list-type": "2", "max-keys": str(most), "prefix": prefix}
        return self._request("GET", "", {**query, "start-after": after} if after else query)

    def put(self, source: Source, body: Body, md5: bytes) -> Answer:
        """Put a file in one request."""
        wish = {"content-md5": in_base64(md5), **metadata(source)}
        return fine(self._wire.ask(self._request("PUT", source.key, {}, wish), body))

    def parts_max(self, source: Source) -> int:
        """Return in how many parts a file may come; raises Trouble where it may not."""
        return PARTS_MAX

    def begin(self, source: Source, count: int) -> tuple[str, dict[int, tuple[int, str]]]:
        """Begin an upload in `count` parts, or go on with an unfinished one of ours.

        Returns its id, and number -> (size, ETag) of the parts that are there.
        """
        known, mtime = self._memory.recall(source)
        if known and mtime == source.mtime:
            there = self._parts(source.key, known)
            if there is not None:
                return known, there
        elif known:  # of a state that the file is not in any more
            self._wire.ask(self._request("DELETE", source.key, {"uploadId": known}))
        ask = self._request("POST", source.key, {"uploads": ""}, metadata(source))
        upload = text_of(parsed(fine(self._wire.ask(ask)).body), "UploadId")
        self._memory.keep(source, upload)
        return upload, {}

    def _parts(self, key: str, upload: str) -> dict[int, tuple[int, str]] | None:
        def page(marker: str) -> Make:
            return self._request("GET", key, {"part-number-marker": marker, "uploadId": upload})

        return parts_of(self._wire, page)

    def part(self, source: Source, upload: str, number: int, body: Body, md5: bytes) -> Answer:
        """Send one part."""
        query = {"partNumber": str(number), "uploadId": upload}
        wish = {"content-md5": in_base64(md5)}
        return fine(self._wire.ask(self._request("PUT", source.key, query, wish), body))

    def finish(self, source: Source, upload: str, etags: list[str]) -> None:
        """Have the parts put together."""
        ask = self._request("POST", source.key, {"uploadId": upload})
        finish(self._wire, ask, source, etags, lambda: self.look(source))
        self._memory.forget(source)

    def look(self, source: Source) -> tuple[int, str] | None:
        """Return size and ETag of the object that is there now."""
        for key, size, etag in list_of(self._wire, self._list(source.key, "", 1)).objects:
            if key == source.key:
                return size, etag
        return None

    def _request(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str] | None = None,
    ) -> Make:
        """Return what makes a request that is signed anew each time (AWS Signature Version 4)."""

        def make() -> tuple[str, str, Mapping[str, str]]:
            now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
            path = self._url.path + (f"/{encoded(key, '/')}" if key else "") or "/"
            asked = "&".join(f"{encoded(k)}={encoded(v)}" for k, v in sorted(query.items()))
            signed = {
                **(headers or {}),
                "host": self._url.netloc,
                "x-amz-content-sha256": "UNSIGNED-PAYLOAD",  # content-md5 binds the bytes
                "x-amz-date": now,
                "x-amz-security-token": self._token["session_token"],
            }
            names = ";".join(sorted(signed))
            lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
            whole = f"{method}\n{path}\n{asked}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
            scope = f"{now[:8]}/{self._token['region']}/s3/aws4_request"
            digest = hashlib.sha256(whole.encode()).hexdigest()
            signature = self._sign(scope, f"AWS4-HMAC-SHA256\n{now}\n{scope}\n{digest}")
            signed["authorization"] = (
                f"AWS4-HMAC-SHA256 Credential={self._token['access_key']}/{scope}, "
                f"SignedHeaders={names}, Signature={signature}"
            )
            return method, f"{path}?{asked}" if asked else path, signed

        return make

    def _sign(self, scope: str, text: str) -> str:
        key = b"AWS4" + self._token["secret_key"].encode()
        for word in scope.split("/"):
            key = hmac.new(key, word.encode(), hashlib.sha256).digest()
        return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def encoded(text: str, safe: str = "") -> str:
    return quote(text, safe=f"{safe}-_.~", errors="surrogateescape")
