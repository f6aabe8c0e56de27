"""A credentials file in AWS format: a section [default] with a key pair, read anew when it changes.

Its content never appears in a message.
"""

import configparser
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from modelfs.errors import ConfigError

FORMAT = "[default], aws_access_key_id = ... and aws_secret_access_key = ..."


@dataclass(frozen=True, slots=True)
class KeyPair:
    """What signs a request; `token` belongs to temporary credentials."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


class CredentialsFile:
    """The key pair of a file; a change of the file is seen at the next request.

    INVARIANT: `_pair` is what the file of `_stamp` says. Threads that race here read the
    file twice and write the same.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[tuple[int, ...], KeyPair] | None = None
        self.read_ns: int | None = None  # when it was last read anew (epoch ns)

    def current(self) -> KeyPair:
        """Return the key pair; raises ConfigError naming the file."""
        known = self._known
        try:
            if known is not None and known[0] == _stamp(os.stat(self._path)):
                return known[1]
            with open(self._path, encoding="utf-8") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                text = file.read()
        except OSError as error:
            raise ConfigError(
                f"{self._path}: cannot be read: {error.strerror}; make it readable for this user, "
                "or name another file: credentials = FILE"
            ) from None
        except UnicodeDecodeError:
            raise ConfigError(f"{self._path}: is no UTF-8 text; expected {FORMAT}") from None
        pair = self._parse(text)
        self._known = stamp, pair
        self.read_ns = time.time_ns()
        return pair

    def _parse(self, text: str) -> KeyPair:
        parser = configparser.RawConfigParser(default_section="")
        try:
            parser.read_string(text)
        except configparser.Error as error:  # its text may quote the line, so it is not shown
            line = getattr(error, "lineno", None)
            place = f" (line {line})" if line else ""
            raise ConfigError(
                f"{self._path}: not in AWS credentials format{place}: expected {FORMAT}"
            ) from None
        if not parser.has_section("default"):
            others = ", ".join(map(repr, parser.sections()))
            raise ConfigError(
                f"{self._path}: has no section [default], but {others}; name it [default]"
                if others
                else f"{self._path}: has no section [default]; expected {FORMAT}"
            )
        section = parser["default"]
        for name in ("aws_access_key_id", "aws_secret_access_key"):
            if not section.get(name):
                raise ConfigError(f"{self._path}: {name} is missing in [default]; add {name} = ...")
        for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"):
            if not (section.get(name) or "").isascii() or re.search(r"\s", section.get(name) or ""):
                # It would go into a header, and Python's error on that shows it whole.
                raise ConfigError(
                    f"{self._path}: {name} has a blank or another odd character; copy it again"
                )
        return KeyPair(
            section["aws_access_key_id"],
            section["aws_secret_access_key"],
            section.get("aws_session_token") or None,
        )


def _stamp(stat: os.stat_result) -> tuple[int, ...]:
    return stat.st_mtime_ns, stat.st_ino, stat.st_dev, stat.st_size


def systemd_credentials() -> Path | None:
    """Return the file that the unit's LoadCredential=credentials:... has put there, if any."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder) / "credentials" if folder else None
    return path if path is not None and path.is_file() else None
