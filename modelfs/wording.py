"""How sizes, counts and ages are told to a person. Pure, and quick to load."""

NOTHING = "-"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_AGES = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def size_text(size: int | None) -> str:
    """Return bytes for a person: `16.3 MiB`."""
    if size is None:
        return NOTHING
    if size < 1024:
        return f"{size} B"
    value = float(size)
    unit = 0
    while value >= 1023.95 and unit < len(_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.1f} {_UNITS[unit]}"


def count_text(count: int, one: str) -> str:
    """Return `1 file`, `2 files`."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}s"


def age_text(age_ns: int) -> str:
    """Return `5 days`, in the largest unit that is whole."""
    seconds = max(0, age_ns) // 10**9
    length, one = next((unit for unit in _AGES if seconds >= unit[0]), _AGES[-1])
    return count_text(seconds // length, one)
