"""Numbers, sizes and times as text."""


def plural(n: int, noun: str) -> str:
    """`1 slice`, `3 slices`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def byte_count(value: float | None) -> str:
    """`1.5 MiB`; a dash for what is not known (None or nan)."""
    if value is None or value != value:
        return "–"
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`, `2 d 04 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24:02d} h"


def exact(value: float) -> str:
    """The shortest text that is read back as the same number: `1`, `0.5`, `0.12345678`."""
    short = f"{value:g}"
    if float(short) == value:
        return short
    return str(value) if isinstance(value, int) else repr(float(value))
