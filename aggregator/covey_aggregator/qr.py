"""A line of text as a QR code that a terminal can show (ISO/IEC 18004, by segno)."""

from __future__ import annotations

import io

import segno
from segno.encoder import DataOverflowError

BORDER = 4  # modules; the standard asks for a quiet zone of so many
LARGEST = 2953
"""Bytes that the largest QR code holds: version 40, error correction L."""


def text_qr(line: str) -> str | None:
    """Return a QR code in half blocks, light on a dark terminal, or None if the text is too long for one.

    Error correction is the least: a screen has no scratches, and a smaller code is easier to read off it.
    """
    try:
        code = segno.make_qr(line, error="l", boost_error=False, encoding="ascii", mode="byte")
    except DataOverflowError:
        return None
    out = io.StringIO()
    code.terminal(out, border=BORDER, compact=True)
    return out.getvalue()


def size(text: str) -> tuple[int, int]:
    """Return columns and lines of such a text."""
    lines = text.splitlines()
    return max(map(len, lines), default=0), len(lines)
