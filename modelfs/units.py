"""How a person writes a size, a time, a share of a disk, a mode. Pure.

Every reader takes what a configuration file or a command line may hold, and raises
ValueError without a text: the caller knows what was expected and where.
"""

import re
from datetime import UTC, datetime

from pydantic import ByteSize, TypeAdapter

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

_SIZE = TypeAdapter(ByteSize)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(ms|s|m|h)?")
_SECONDS = {"ms": 0.001, "s": 1.0, None: 1.0, "m": 60.0, "h": 3600.0}
_PERCENTAGE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *%")
_MODE = re.compile(r"0?[0-7]{3}")
_LENGTH_MAX = 40  # of a size: more digits would not fit into a float
_HUGE = 1 << 63  # above any limit, and still a float


def seconds(value: object) -> float:
    """Read '5s', '500ms', '30m', '1h', or a number of seconds."""
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _SECONDS[match[2]]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(min(value, _HUGE))
    raise ValueError


def size(value: object) -> int:
    """Read '8MiB', '10GB', or a number of bytes."""
    if isinstance(value, str) and len(value) <= _LENGTH_MAX:
        return int(_SIZE.validate_python(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError


def size_or_percentage(value: object) -> int | str:
    """Read '5%', which stays a string (see `share`), or a size."""
    if isinstance(value, str) and _PERCENTAGE.fullmatch(value.strip()):
        if share(value) < 1:
            return value.strip()
        raise ValueError
    read = size(value)
    if read < 0:
        raise ValueError
    return read


def share(percentage: str) -> float:
    """Return 0.05 for '5%'."""
    if not (match := _PERCENTAGE.fullmatch(percentage.strip())):
        raise ValueError
    return float(match[1]) / 100


def mode(value: object) -> int:
    """Read the octal digits '0770', or a number up to 0o777."""
    if isinstance(value, str) and _MODE.fullmatch(value):
        return int(value, 8)
    if type(value) is int and 0 <= value <= 0o777:
        return value
    raise ValueError


def utc_text(seconds: float) -> str:
    """Return a moment, in seconds since 1970, as 2026-11-22T10:30:00Z."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
