"""The daemon's log: to the journal with priorities and fields, else to stderr in lines to read.

Lines that come again are folded: a text is said once a minute, and then how often it came;
of one kind (one call in the code) few are said a minute, so that an outage of a thousand
files fills no disk. Other libraries are heard from `warning` on: botocore's finer lines hold
signatures. Any thread may log.
"""

import logging
import os
import re
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDED_S = 60.0
KIND_MAX = 50  # different lines of one kind that are said in FOLDED_S; not at debug
TEXTS_MAX = 1_000  # remembered at once; the oldest is forgotten for a new one
LINE_MAX = 16_000  # characters of a message, its traceback included

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
PRIORITIES: Mapping[int, int] = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}

_SECRET = re.compile(
    r"(?i)((?:signature|security-token|session_token|secret_access_key|secret_key)\W{1,4})"
    r"[^\s&,;'\"<>]{8,}"
)


def set_up(level: str, registry: str) -> None:
    """Have everything logged from now on; `level` is a word of the configuration."""
    handler: logging.Handler
    if is_journal():
        handler = _JournalHandler(registry)
    else:
        handler = _LineHandler(sys.stderr)
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(_FoldingHandler(handler))
    root.setLevel(logging.WARNING)
    set_level(level)


def set_level(level: str) -> None:
    """Have our own lines said from this level on."""
    logging.getLogger("modelfs").setLevel(level.upper())


def tell_folded() -> None:
    """Say of what was folded, and whose time is over, how often it came."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _FoldingHandler):
            handler.tell()


def is_journal() -> bool:
    """Tell whether stderr is the journal's: then it has priorities and fields (systemd.exec(5))."""
    said = os.environ.get("JOURNAL_STREAM", "")
    if not said:
        return False
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return said == f"{found.st_dev}:{found.st_ino}"


# ------------------------------------------------------------------- folding


@dataclass(slots=True)
class _Said:
    """A text, or a kind of text, that was said at `since`, and what came again of it."""

    since: float
    count: int = 0
    folded: int = 0


class Folding:
    """Decides which lines are said; see the module.

    INVARIANT: at most TEXTS_MAX texts are known.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._texts: OrderedDict[tuple[int, str], _Said] = OrderedDict()
        self._kinds: dict[tuple[int, str], _Said] = {}  # as many as there are calls in the code

    def admit(self, level: int, kind: str, text: str) -> bool:
        """Tell whether a line is to be said; what is not is counted."""
        now = self._clock()
        known = self._texts.get((level, text))
        if known is not None and now - known.since < FOLDED_S:
            known.folded += 1
            return False
        if level > logging.DEBUG:
            of_kind = self._kinds.setdefault((level, kind), _Said(now))
            if now - of_kind.since >= FOLDED_S and not of_kind.folded:
                of_kind.since, of_kind.count = now, 0
            if of_kind.count >= KIND_MAX:
                of_kind.folded += 1
                return False
            of_kind.count += 1
        if known is None:
            while len(self._texts) >= TEXTS_MAX:
                self._texts.popitem(last=False)
            self._texts[level, text] = _Said(now)
        return True

    def due(self) -> list[tuple[int, str]]:
        """Return level and text of what is to be said of lines whose time is over; forget them."""
        now = self._clock()
        lines = []
        for known, what in ((self._texts, "again"), (self._kinds, "more lines like this")):
            for key, said in list(known.items()):
                if now - said.since >= FOLDED_S:
                    del known[key]
                    if said.folded:
                        level, text = key
                        lines.append((level, f"{said.folded:,} times {what}: {text}"))
        return lines


class _FoldingHandler(logging.Handler):
    """Hands on what is not folded."""

    def __init__(self, target: logging.Handler) -> None:
        super().__init__()
        self._target = target
        self._folding = Folding()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # of the arguments: the target tells
            self._target.handle(record)
            return
        if self._folding.admit(record.levelno, str(record.msg), text):
            self._target.handle(record)

    def close(self) -> None:
        self._target.close()
        super().close()

    def tell(self) -> None:
        """Say what is due."""
        with self.lock:  # type: ignore[union-attr]  # every handler has one
            for level, text in self._folding.due():
                record = logging.LogRecord(__name__, level, __file__, 0, text, None, None)
                self._target.handle(record)


# ------------------------------------------------------------------- writing


class _Formatter(logging.Formatter):
    """One line for a message, whatever names are in it; a traceback follows. No secrets."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        record.message = "".join(
            character if character.isprintable() else ascii(character)[1:-1]
            for character in record.message
        )
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        text = _SECRET.sub(r"\1***", super().format(record))
        return text if len(text) <= LINE_MAX else text[:LINE_MAX] + " ..."


class _LineHandler(logging.StreamHandler):  # type: ignore[type-arg]  # the stream is stderr
    """Lines on stderr; one that cannot be written is lost, and no reason to print a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        pass


class _JournalHandler(logging.Handler):
    """Sends to journald by its own protocol, which knows fields; never waits for it.

    No library: those that are kept (systemd-python, cysystemd) are compiled against libsystemd,
    and a send of theirs blocks the event loop while journald does not read. Where it does not
    take a line, that goes to stderr, which is journald's too, with its priority in front.
    """

    def __init__(self, registry: str) -> None:
        super().__init__()
        self.setFormatter(_Formatter("%(message)s"))
        self._registry = registry
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        fields = {
            "MESSAGE": text,
            "PRIORITY": str(PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": "modelfs",
            "MODELFS_REGISTRY": self._registry,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
            **getattr(record, "fields", {}),
        }
        try:
            self._socket.sendto(_datagram(fields), socket.MSG_DONTWAIT, str(JOURNAL_SOCKET))
        except OSError:
            _write_prefixed(fields["PRIORITY"], text)

    def close(self) -> None:
        self._socket.close()
        super().close()


def _datagram(fields: Mapping[str, str]) -> bytes:
    """Return fields as journald reads them (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
    lines = []
    for name, value in fields.items():
        content = value.encode(errors="backslashreplace")
        if b"\n" in content:
            lines.append(name.encode() + b"\n" + len(content).to_bytes(8, "little") + content)
        else:
            lines.append(name.encode() + b"=" + content)
    return b"\n".join(lines) + b"\n"


def _write_prefixed(priority: str, text: str) -> None:
    """Write lines to stderr with their priority, as journald reads it there (sd-daemon(3))."""
    try:
        for line in text.splitlines():
            sys.stderr.write(f"<{priority}>{line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return
