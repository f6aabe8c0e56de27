"""A Hugging Face hub of one repository, on this machine: what snapshot_download asks of one."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "acme/tiny"
LARGE = 1 << 20  # files from this size on are told as those of LFS are, by their SHA-256


class FakeHub:
    """The hub. `bodies` counts the GETs of each file; the first one of each in `broken` stops."""

    def __init__(self, files: dict[str, bytes], broken: tuple[str, ...]) -> None:
        self.files = files
        self.bodies: dict[str, int] = {}
        self._broken = set(broken)
        self.endpoint = ""

    def tree(self) -> list[dict[str, Any]]:
        """Return what the API tells of each file."""
        return [self._entry(path, data) for path, data in self.files.items()]

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
        entry["oid"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if len(data) >= LARGE:
            entry["lfs"] = {
                "oid": hashlib.sha256(data).hexdigest(),
                "size": len(data),
                "pointerSize": 130,
            }
        return entry

    def etag(self, path: str) -> str:
        entry = self._entry(path, self.files[path])
        return str(entry.get("lfs", entry)["oid"])

    def is_cut(self, path: str) -> bool:
        """Count a GET of a file; tell whether it breaks off in the middle."""
        self.bodies[path] = self.bodies.get(path, 0) + 1
        if path in self._broken:
            self._broken.discard(path)
            return True
        return False


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, *, has_body: bool) -> None:
        path = self.path.partition("?")[0]
        start = f"/{REPOSITORY}/resolve/{COMMIT}/"
        api = f"/api/models/{REPOSITORY}"
        if path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}", api):
            names = [{"rfilename": name} for name in self.hub.files]
            self._json({"id": REPOSITORY, "sha": COMMIT, "siblings": names})
        elif path.startswith(f"{api}/tree/"):
            self._json(self.hub.tree())
        elif (name := path.removeprefix(start)) in self.hub.files:
            self._file(name, has_body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, name: str, has_body: bool) -> None:
        data = self.hub.files[name]
        asked = self.headers.get("Range", "bytes=0-").removeprefix("bytes=")
        start = int(asked.partition("-")[0])
        rest = data[start:]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("ETag", f'"{self.hub.etag(name)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if not has_body:
            return
        if self.hub.is_cut(name):
            self.wfile.write(rest[: len(rest) // 2])
            self.close_connection = True
        else:
            self.wfile.write(rest)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def fake_hub(files: dict[str, bytes], broken: tuple[str, ...] = ()) -> Iterator[FakeHub]:
    """Run a hub with these files in acme/tiny."""
    hub = FakeHub(files, broken)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
