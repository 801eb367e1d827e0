"""Deterministic CBOR (RFC 8949, section 4.2.1), read strictly.

What ``decode`` accepts is exactly what ``encode`` writes: one value has one encoding, so a digest or a signature over
the bytes is one over the value, and two receivers can never read the same bytes differently. (Map keys here are text,
for which the library's length-first order is the bytewise one of the RFC.) Before the library sees them, the bytes are
walked once: tags (dates, big numbers, shared references, regular expressions), indefinite lengths,
deep nesting and lengths beyond the end of the input are refused there, where they cost nothing.
"""

from __future__ import annotations

import math

import cbor2

from covey_protocol.errors import MalformedError

MAX_DEPTH = 8
MAX_ITEMS = 200_000

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_FALSE, _TRUE, _NULL, _FLOAT16, _FLOAT32, _FLOAT64 = 20, 21, 22, 25, 26, 27


def encode(value: object) -> bytes:
    """Encode a value of None, bool, int, float, bytes, str, list and dict, deterministically.

    Args:
        value: Map keys are text or integers, integers fit 64 bits, floats are finite.

    Returns:
        The one encoding that ``decode`` accepts for it.
    """
    return cbor2.dumps(value, canonical=True)


def decode(data: bytes, *, max_bytes: int) -> object:
    """Decode one deterministically encoded value.

    Args:
        data: The whole encoding and nothing behind it.
        max_bytes: The largest input that is looked at.

    Raises:
        MalformedError: The bytes are too many, truncated, not deterministic CBOR, or use what this protocol never does.
    """
    if len(data) > max_bytes:
        raise MalformedError(f"{len(data)} bytes of CBOR where at most {max_bytes} are allowed", cause="oversized")
    _check_structure(data)
    try:
        value = cbor2.loads(data)
    except (cbor2.CBORDecodeError, ValueError, OverflowError) as error:
        raise MalformedError(f"not valid CBOR: {error}") from error
    if cbor2.dumps(value, canonical=True) != data:
        raise MalformedError("CBOR that is not in its deterministic form", cause="non-canonical")
    return value


def _check_structure(data: bytes) -> None:
    """Walk the item heads iteratively; ``open_items`` holds how many items each open array or map still lacks."""
    size = len(data)
    position = 0
    items = 0
    open_items = [1]
    while open_items:
        if open_items[-1] == 0:
            open_items.pop()
            continue
        open_items[-1] -= 1
        items += 1
        if items > MAX_ITEMS:
            raise MalformedError(f"more than {MAX_ITEMS} CBOR items", cause="oversized")
        major, argument, position = _read_head(data, position)
        if major in (_BYTES, _TEXT):
            position += argument
            if position > size:
                raise MalformedError(f"CBOR string at byte {position - argument} is cut off", cause="truncated")
        elif major in (_ARRAY, _MAP):
            count = argument * (2 if major == _MAP else 1)
            if count > size - position:
                raise MalformedError(f"CBOR container at byte {position} is cut off", cause="truncated")
            if len(open_items) > MAX_DEPTH:
                raise MalformedError(f"CBOR nested deeper than {MAX_DEPTH}")
            open_items.append(count)
    if position != size:
        raise MalformedError(f"{size - position} bytes behind the end of the CBOR value")


def _read_head(data: bytes, position: int) -> tuple[int, int, int]:
    """Return major type, argument and the position behind the head (and, for floats, behind the value)."""
    if position >= len(data):
        raise MalformedError(f"CBOR ends at byte {position}, inside a value", cause="truncated")
    major, info = data[position] >> 5, data[position] & 31
    position += 1
    if info > _FLOAT64:
        raise MalformedError(f"indefinite or reserved CBOR length at byte {position - 1}", cause="non-canonical")
    width = 0 if info < 24 else 1 << (info - 24)
    if position + width > len(data):
        raise MalformedError(f"CBOR ends at byte {len(data)}, inside a head", cause="truncated")
    argument = int.from_bytes(data[position : position + width], "big") if width else info
    if major == _TAG:
        raise MalformedError(f"CBOR tag {argument} at byte {position - 1} is not used by this protocol")
    if major == _SIMPLE:
        if info in (_FLOAT16, _FLOAT32, _FLOAT64):
            if not math.isfinite(_float(data[position - 1 : position + width])):
                raise MalformedError(f"not a finite number at byte {position - 1}")
        elif info not in (_FALSE, _TRUE, _NULL):
            raise MalformedError(f"CBOR simple value at byte {position - 1} is not used by this protocol")
    return major, argument, position + width


def _float(encoded: bytes) -> float:
    value = cbor2.loads(encoded)
    assert isinstance(value, float)
    return value
