"""What is sent, what is passed over, and what is refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from modelfs.uploadscript.files import Source
from modelfs.uploadscript.troubles import shown

NAME_MAX_BYTES, KEY_MAX_BYTES = 255, 1024  # Linux's limit of a name, S3's of a key


@dataclass
class Plan:
    """What to send: files, those that are passed over with the reason, and what is refused."""

    prefix: str
    local_only: list[str]
    follows: bool
    sources: dict[str, Source] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def add(self, path: str, folder: str) -> None:
        """Add what a person named, below a folder of main/ ('' or ending in a slash)."""
        is_content = path.endswith(("/", os.sep)) or os.path.basename(path) in (".", "..")
        name = "" if is_content else os.path.basename(path)
        try:
            found = os.stat(path)
        except OSError as error:
            self.refused.append(f"{shown(path)}: {error.strerror}")
            return
        self._add(path, folder + name, found, [])

    def _add(
        self, path: str, name: str, found: os.stat_result, above: list[tuple[int, int]]
    ) -> None:
        if name and (wrong := wrong_name(name, self.prefix)):
            self.refused.append(f"{shown(path)}: {wrong}")
        elif any(fnmatchcase(word, known) for word in name.split("/") for known in self.local_only):
            self._skip("names that stay local", name)
        elif stat.S_ISDIR(found.st_mode):
            self._add_folder(path, name, [*above, (found.st_dev, found.st_ino)])
        elif not stat.S_ISREG(found.st_mode):
            self._skip("sockets, pipes and devices", name)
        else:
            self._keep(path, name, found.st_size, found.st_mtime_ns)

    def _keep(self, path: str, name: str, size: int, mtime_ns: int) -> None:
        if name in self.sources:
            self.refused.append(f"{shown(path)}: {shown(self.sources[name].path)} has this name")
        else:
            self.sources[name] = Source(path, name, self.prefix + name, size, mtime_ns)

    def _add_folder(self, path: str, name: str, above: list[tuple[int, int]]) -> None:
        below = f"{name}/" if name and not name.endswith("/") else name
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            self.refused.append(f"{shown(path)}: {error.strerror}")
            return
        if not entries and below:
            self._keep(path, below, 0, 0)
        for entry in entries:
            if entry.is_symlink() and not self.follows:
                self._skip("symlinks (--follow sends what they point at)", below + entry.name)
                continue
            try:
                found = entry.stat()
            except OSError as error:
                self.refused.append(f"{shown(entry.path)}: {error.strerror}")
                continue
            if (found.st_dev, found.st_ino) in above:
                self.refused.append(f"{shown(entry.path)}: a symlink to a folder that it is in")
                continue
            self._add(entry.path, below + entry.name, found, above)

    def _skip(self, reason: str, name: str) -> None:
        self.skipped.setdefault(reason, []).append(name)

    def refuse_clashes(self, there: Iterable[str]) -> None:
        """Refuse what would make one name both a file and a folder."""
        files = {key[len(self.prefix) :] for key in there} | set(self.sources)
        folders = {name[:at] for name in files for at, c in enumerate(name) if c == "/"}
        for name, source in list(self.sources.items()):
            above = [name[:at] for at, c in enumerate(name) if c == "/"]
            if name in folders:
                self.refused.append(f"{shown(source.path)}: {shown(name)} is a folder there")
                del self.sources[name]
            elif clash := next((a for a in above if a in files), None):
                self.refused.append(f"{shown(source.path)}: {shown(clash)} is a file there")
                del self.sources[name]


def wrong_name(name: str, prefix: str) -> str:
    """Return why no file of main/ can have this name; '' where one can."""
    try:
        words = [word.encode() for word in name.rstrip("/").split("/")]
    except UnicodeEncodeError:
        return "its name is not UTF-8, as the registry's keys are"
    if any(word in (b"", b".", b"..") or b"\0" in word for word in words):
        return f"{shown(name)} has an empty, . or .. component"
    if max(map(len, words)) > NAME_MAX_BYTES:
        return f"a name has more than {NAME_MAX_BYTES} bytes"
    if len((prefix + name).encode()) > KEY_MAX_BYTES:
        return f"its key would have more than {KEY_MAX_BYTES} bytes"
    return ""
