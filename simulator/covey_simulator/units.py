"""Numbers as people read them, the same on the terminal and on the page."""

from __future__ import annotations

NOTHING = "\u2013"


def number_text(value: float | None, form: str) -> str:
    """Return a number by a format specification; a dash where there is none."""
    return NOTHING if value is None else format(value, form)


def seconds_text(value: float) -> str:
    """Return a duration in milliseconds, seconds or minutes."""
    if value < 0.9995:
        return f"{1000 * value:.0f} ms"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def bytes_text(value: float) -> str:
    """Return a size in bytes, kB (1,000) or MB."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if value >= 0.9995 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} B"
