"""What a namespace, a model, a version, an alias may be called; name <-> key. Pure.

A key of the registry is never trusted: `relative_path` is the only way from a key to
a path, and it refuses whatever could not be a file below `main/`.
"""

import re
from dataclasses import dataclass

from modelfs.errors import InvalidName, NameTooLong

CONTROL = ".modelfs"
MAIN = "main"
LATEST = "latest"
RESERVED = frozenset({MAIN, LATEST, CONTROL})

NAME_MAX_BYTES = 255  # Linux's NAME_MAX
KEY_MAX_BYTES = 1024  # S3's limit

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,99}")
_VERSION = re.compile(r"(?=[0-9]|v[0-9])[A-Za-z0-9._+-]{1,100}")
_NUMBERED = re.compile(r"v([0-9]+)")


@dataclass(frozen=True, slots=True, order=True)
class ModelId:
    """A model's name: its namespace and its own."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, order=True)
class VersionId:
    """A version of a model, written NS/MODEL@VERSION."""

    model: ModelId
    version: str

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


def is_plain_name(name: str) -> bool:
    """Tell whether a namespace or a model may be called so."""
    return _NAME.fullmatch(name) is not None


def is_version_name(name: str) -> bool:
    """Tell whether `name` looks like a version: a digit, or `v` and a digit, first."""
    return _VERSION.fullmatch(name) is not None


def check_name(name: str, what: str) -> str:
    """Return `name`, or raise InvalidName: what a `what` (namespace, model) may be called."""
    if not is_plain_name(name):
        raise InvalidName(
            f"{name!r} cannot be the name of a {what}: 1 to 100 of A-Z a-z 0-9 . _ + - "
            "and no dot, + or - first"
        )
    return name


def check_version_name(name: str) -> str:
    """Return `name`, or raise InvalidName."""
    if not is_version_name(name):
        raise InvalidName(
            f"{name!r} is no version name: it begins with a digit, or with v and a digit "
            "(1, v2, 2026-11-22), and has up to 100 of A-Z a-z 0-9 . _ + -; "
            "files of the model belong in main/"
        )
    return name


def check_alias_name(name: str) -> str:
    """Return `name`, or raise InvalidName."""
    if name in RESERVED or is_version_name(name) or not is_plain_name(name):
        raise InvalidName(
            f"{name!r} cannot be an alias: it is reserved, looks like a version, or has "
            "other characters than A-Z a-z 0-9 . _ + -"
        )
    return name


def next_version_name(used: set[str]) -> str:
    """Return the first vN above every vN in `used`."""
    numbers = [int(match[1]) for name in used if (match := _NUMBERED.fullmatch(name))]
    return f"v{max(numbers, default=0) + 1}"


def check_component(name: str) -> str:
    """Return a file's or folder's name below main/, or raise InvalidName or NameTooLong."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise InvalidName(f"{name!r} cannot be the name of a file")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidName(f"{name!r} is not UTF-8, as the registry's keys are") from None
    if length > NAME_MAX_BYTES:
        raise NameTooLong(f"a name of {length} bytes; the most is {NAME_MAX_BYTES}")
    return name


def parse_model(text: str) -> ModelId:
    """Return the ModelId of `NS/MODEL`, or raise InvalidName."""
    namespace, slash, name = text.strip("/").partition("/")
    if not slash:
        raise InvalidName(f"{text!r} names no model: write NAMESPACE/MODEL")
    return ModelId(check_name(namespace, "namespace"), check_name(name, "model"))


def parse_version(text: str) -> VersionId:
    """Return the VersionId of `NS/MODEL@VERSION`; the version may be an alias."""
    model, at, version = text.partition("@")
    if not at or not is_plain_name(version):
        raise InvalidName(f"{text!r} names no version: write NAMESPACE/MODEL@VERSION")
    return VersionId(parse_model(model), version)


@dataclass(frozen=True, slots=True)
class Keys:
    """From names to keys of one registry: PREFIX namespace/model/path.

    `prefix` is empty or ends in a slash.
    """

    prefix: str

    def namespace(self, namespace: str) -> str:
        return f"{self.prefix}{namespace}/"

    def model(self, model: ModelId) -> str:
        return f"{self.prefix}{model.namespace}/{model.name}/"

    def file(self, model: ModelId, path: str) -> str:
        """Return the key of a file of main/, or raise NameTooLong."""
        key = self.model(model) + path
        length = len(key.encode(errors="surrogateescape"))
        if length > KEY_MAX_BYTES:
            raise NameTooLong(f"the key would have {length} bytes; the most is {KEY_MAX_BYTES}")
        return key


def relative_path(key: str, prefix: str) -> str:
    """Return the path of `key` below `prefix`: a folder's ends in a slash, the prefix is ''.

    Raises InvalidName with the reason where the key has an empty, `.` or `..` component,
    a NUL, a component over 255 bytes, or is not UTF-8 (surrogates stand for such bytes).
    """
    if not key.startswith(prefix):
        raise InvalidName(f"not below {prefix}")
    path = key[len(prefix) :]
    if not path:
        return path
    for component in path.removesuffix("/").split("/"):
        if component == "":
            raise InvalidName("an empty component")
        if component in (".", ".."):
            raise InvalidName(f"a component {component!r}")
        if "\0" in component:
            raise InvalidName("a NUL character")
        try:
            length = len(component.encode())
        except UnicodeEncodeError:
            raise InvalidName("not UTF-8") from None
        if length > NAME_MAX_BYTES:
            raise InvalidName(f"a component of {length} bytes")
    return path
