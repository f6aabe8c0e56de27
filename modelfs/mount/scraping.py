"""The metrics over HTTP, for Prometheus: `metrics_port` of the configuration.

Answers GET /metrics and nothing else; HTTP's little is done here, in the event loop, so that
a scraper costs no thread and can be held to limits: few at once, a short head, a short time.
"""

import errno
import logging
from collections.abc import Awaitable, Callable

import trio

from modelfs.mount.metrics import CONTENT_TYPE

log = logging.getLogger(__name__)

SCRAPERS_MAX = 16  # connections at once; more are turned away
HEAD_MAX_BYTES = 8 << 10
LIMIT_S = 5.0  # for one scrape, from the connection to the last byte
RETRY_S = 30.0  # until a port that was taken is tried again
BACKLOG = 16

MakeText = Callable[[], Awaitable[bytes]]


async def serve(address: str, port: int, make_text: MakeText) -> None:
    """Answer scrapes; runs for ever. A port that is taken is an error in the log, no more.

    The mount is worth more than its metrics, which `.modelfs/metrics` shows as well.
    """
    while True:
        try:
            listeners = await trio.open_tcp_listeners(port, host=address, backlog=BACKLOG)
        except OSError as error:
            reason = error.strerror or str(error)
            if _is_taken(error):
                reason = "the port is taken: set another metrics_port"
            log.error("metrics cannot be served at %s port %d: %s", address, port, reason)
            await trio.sleep(RETRY_S)
            continue
        log.info("metrics are served at %s port %d", address, port)
        await trio.serve_listeners(_Scraper(make_text).answer, listeners)


def _is_taken(error: OSError) -> bool:
    """Tell whether it is EADDRINUSE; trio raises one error for all of a host's addresses."""
    causes = [error, error.__cause__]
    if isinstance(error.__cause__, BaseExceptionGroup):
        causes += error.__cause__.exceptions
    return any(isinstance(e, OSError) and e.errno == errno.EADDRINUSE for e in causes)


class _Scraper:
    """Answers connections; see the module for its limits."""

    def __init__(self, make_text: MakeText) -> None:
        self._make_text = make_text
        self._places = trio.CapacityLimiter(SCRAPERS_MAX)

    async def answer(self, stream: trio.SocketStream) -> None:
        with trio.move_on_after(LIMIT_S):
            try:
                async with stream:
                    await stream.send_all(await self._reply_in_place(stream))
            except trio.BrokenResourceError:  # the other side has gone
                pass
            except Exception:
                log.exception("a scrape failed by a bug")

    async def _reply_in_place(self, stream: trio.SocketStream) -> bytes:
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            return _response("503 Service Unavailable", b"too many scrapers\n")
        try:
            return await self._reply(stream)
        finally:
            self._places.release()

    async def _reply(self, stream: trio.SocketStream) -> bytes:
        method, path = await _head(stream)
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", b"only GET\n")
        if path.partition("?")[0] != "/metrics":
            return _response("404 Not Found", b"look at /metrics\n")
        text = await self._make_text()
        return _response("200 OK", text, CONTENT_TYPE, has_body=method == "GET")


async def _head(stream: trio.SocketStream) -> tuple[str, str]:
    """Return the method and the path of a request; empty ones where it is none."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) < HEAD_MAX_BYTES:
        piece = await stream.receive_some(HEAD_MAX_BYTES)
        if not piece:
            break
        head += piece
    words = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    return (words[0], words[1]) if len(words) == 3 else ("", "")


def _response(
    status: str, body: bytes, kind: str = "text/plain; charset=utf-8", *, has_body: bool = True
) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + (body if has_body else b"")
