"""covey_protocol.cbor: one value, one encoding, and nothing else gets through."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_protocol import cbor
from covey_protocol.errors import MalformedError

LIMIT = 1 << 20

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.binary(max_size=40)
    | st.text(max_size=20)
)
# Three levels of containers over a scalar keep well below MAX_DEPTH, which has a test of its own.
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=30), inner, max_size=5)
).filter(lambda value: depth(value) <= cbor.MAX_DEPTH)


def depth(value: object) -> int:
    match value:
        case list(items):
            return 1 + max(map(depth, items), default=0)
        case dict(pairs):
            return 1 + max(map(depth, pairs.values()), default=0)
        case _:
            return 0


def refused(data: bytes, max_bytes: int = LIMIT) -> str:
    with pytest.raises(MalformedError) as caught:
        cbor.decode(data, max_bytes=max_bytes)
    return caught.value.cause


@settings(deadline=None, max_examples=150)
@given(values)
def test_round_trip(value: object) -> None:
    data = cbor.encode(value)
    assert cbor.decode(data, max_bytes=LIMIT) == value


@pytest.mark.parametrize(
    ("value", "encoded"),
    [  # RFC 8949, appendix A
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (1000000, "1a000f4240"),
        (2**64 - 1, "1bffffffffffffffff"),
        (-(2**64), "3bffffffffffffffff"),
        (1.5, "f93e00"),
        (100000.0, "fa47c35000"),
        (1.1, "fb3ff199999999999a"),
        (True, "f5"),
        (None, "f6"),
        (b"\1\2\3\4", "4401020304"),
        ("ü", "62c3bc"),
        ([1, [2, 3]], "8201820203"),
        ({"a": 1, "b": [2, 3]}, "a26161016162820203"),
        ({"bb": 1, "a": 2}, "a261610262626201"),  # shorter keys first
    ],
)
def test_encodings_are_those_of_the_standard(value: object, encoded: str) -> None:
    assert cbor.encode(value).hex() == encoded
    assert cbor.decode(bytes.fromhex(encoded), max_bytes=LIMIT) == value


@pytest.mark.parametrize(
    "encoded",
    [
        "1800",  # 0 in two bytes
        "190017",
        "1a00000017",
        "1b0000000000000017",
        "3800",
        "580101",  # length in two bytes
        "780161",
        "980100",
        "b801616100",
        "a2616200616100",  # keys out of order
        "a2616100616101",  # the same key twice
        "fa3fc00000",  # 1.5 as float32
        "fb3ff8000000000000",  # 1.5 as float64
        "9fff",  # indefinite lengths
        "bfff",
        "5f4101ff",
        "7f6161ff",
        "ff",
        "1c",  # reserved lengths
        "1d",
        "1e",
        "3f",
    ],
)
def test_other_encodings_are_refused(encoded: str) -> None:
    assert refused(bytes.fromhex(encoded)) == "non-canonical"


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        ("c000", "tag 0"),
        ("c249010000000000000000", "tag 2"),  # a big number
        ("d818420101", "tag 24"),
        ("f7", "simple value"),  # undefined
        ("e0", "simple value"),
        ("f8ff", "simple value"),
        ("f97e00", "finite"),  # NaN
        ("f97c00", "finite"),
        ("f9fc00", "finite"),
        ("fa7f800000", "finite"),
        ("fb7ff8000000000000", "finite"),
        ("61ff", "CBOR"),  # not UTF-8
        ("0000", "behind the end"),
        ("8000", "behind the end"),
    ],
)
def test_what_the_protocol_never_uses_is_refused(encoded: str, words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        cbor.decode(bytes.fromhex(encoded), max_bytes=LIMIT)


def test_every_truncation_and_extension_is_refused() -> None:
    data = cbor.encode({"a": [1, -500, 1.1, b"bytes", None], "bcd": {"ü": "text" * 10, "z": [[], {}, 2**40]}})
    for end in range(len(data)):
        assert refused(data[:end]) == "truncated"
    refused(data + b"\0")


def test_nesting_is_bounded() -> None:
    assert cbor.decode(b"\x81" * cbor.MAX_DEPTH + b"\0", max_bytes=LIMIT)
    with pytest.raises(MalformedError, match="nested"):
        cbor.decode(b"\x81" * (cbor.MAX_DEPTH + 1) + b"\0", max_bytes=LIMIT)
    with pytest.raises(MalformedError, match="nested"):
        cbor.decode(b"\x81" * 500_000 + b"\0", max_bytes=LIMIT)


@pytest.mark.parametrize(
    "head", ["9bffffffffffffffff", "bbffffffffffffffff", "5bffffffffffffffff", "7a7fffffff", "9a00ffffff"]
)
def test_lengths_beyond_the_end_cost_nothing(head: str) -> None:
    assert refused(bytes.fromhex(head) + bytes(10)) == "truncated"


def test_items_are_bounded() -> None:
    assert len(cbor.decode(cbor.encode([0] * (cbor.MAX_ITEMS - 1)), max_bytes=LIMIT)) == cbor.MAX_ITEMS - 1  # type: ignore[arg-type]
    assert refused(cbor.encode([0] * cbor.MAX_ITEMS)) == "oversized"


def test_size_is_bounded() -> None:
    data = cbor.encode(b"12345")
    assert cbor.decode(data, max_bytes=len(data)) == b"12345"
    assert refused(data, max_bytes=len(data) - 1) == "oversized"


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=60), values, st.randoms(use_true_random=False))
def test_random_and_damaged_bytes_only_ever_raise_malformed(noise: bytes, value: object, dice: random.Random) -> None:
    damaged = bytearray(cbor.encode(value))
    damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
    for data in (noise, bytes(damaged)):
        try:
            decoded = cbor.decode(data, max_bytes=LIMIT)
        except MalformedError:
            continue
        assert cbor.encode(decoded) == data
