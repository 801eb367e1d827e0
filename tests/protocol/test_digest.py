"""covey_protocol.digest: plain BLAKE2b, which every platform has, kept apart by purpose."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_protocol.digest import DIGEST_BYTES, content_digest, digest, short


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300))
def test_content_digest_is_what_b2sum_prints(data: bytes) -> None:
    assert content_digest(data) == hashlib.blake2b(data, digest_size=32).digest()
    assert content_digest(memoryview(data)) == content_digest(data)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300), st.binary(min_size=1, max_size=16), st.binary(max_size=64))
def test_digest_is_blake2b_with_person_and_key(data: bytes, person: bytes, key: bytes) -> None:
    assert (
        digest(data, person=person, key=key) == hashlib.blake2b(data, digest_size=32, person=person, key=key).digest()
    )


def test_purposes_and_keys_keep_digests_apart() -> None:
    results = {
        content_digest(b"x"),
        digest(b"x", person=b"a"),
        digest(b"x", person=b"b"),
        digest(b"x", person=b"a", key=b"k"),
    }
    assert len(results) == 4
    assert {len(result) for result in results} == {DIGEST_BYTES}


def test_a_purpose_has_at_most_sixteen_bytes() -> None:
    with pytest.raises(Exception, match="Person"):
        digest(b"x", person=b"seventeen bytes!!")


def test_short_shows_the_first_digits() -> None:
    assert short(bytes.fromhex("00112233445566778899")) == "001122334455"
