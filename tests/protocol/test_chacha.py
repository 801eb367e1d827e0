"""covey_protocol.chacha: the keystream of RFC 8439, the same by either way into libsodium."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import randombytes_buf_deterministic

from covey_protocol import chacha, prg
from covey_protocol.chacha import SODIUM, Room

SEED = bytes(range(32))


def made(size: int, room: int, sodium: Any) -> bytes:
    memory = Room(room, sodium)
    memory.bytes[:] = 255
    memory.fill(SEED, size)
    assert (memory.bytes[size:] == 255).all()
    return memory.bytes[:size].tobytes()


def test_the_private_module_is_used_where_it_is_as_expected() -> None:
    assert SODIUM is not None, "PyNaCl has changed: masks still come out right, but slower"


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 5000), st.integers(0, 100))
def test_both_ways_give_the_same_bytes(size: int, spare: int) -> None:
    expected = randombytes_buf_deterministic(size, SEED)
    assert made(size, size + spare, SODIUM) == made(size, size + spare, None) == expected


def test_it_is_chacha20_from_counter_0() -> None:
    cipher = Cipher(algorithms.ChaCha20(SEED, bytes(4) + b"LibsodiumDRG"), mode=None)
    assert made(1000, 1000, SODIUM) == cipher.encryptor().update(bytes(1000))


@pytest.mark.parametrize("sodium", [SODIUM, None], ids=["private", "public"])
def test_a_later_keystream_takes_the_place_of_an_earlier_one(sodium: Any) -> None:
    memory = Room(100, sodium)
    memory.fill(SEED, 100)
    first = memory.bytes.tobytes()
    memory.fill(bytes(32), 60)
    assert memory.bytes[60:].tobytes() == first[60:]
    assert memory.bytes[:60].tobytes() == randombytes_buf_deterministic(60, bytes(32))


@pytest.mark.parametrize("sodium", [SODIUM, None], ids=["private", "public"])
@pytest.mark.parametrize(("seed", "size"), [(SEED, 101), (SEED, -1), (SEED[:-1], 100), (SEED + b"x", 100), (b"", 1)])
def test_what_would_read_or_write_elsewhere_is_refused(sodium: Any, seed: bytes, size: int) -> None:
    memory = Room(100, sodium)
    memory.bytes[:] = 7
    with pytest.raises(ValueError, match="room for 100"):
        memory.fill(seed, size)
    assert (memory.bytes == 7).all()


def test_rooms_start_where_cache_lines_do() -> None:
    assert all(Room(size).bytes.ctypes.data % 64 == 0 for size in (1, 63, 64, 1000, 1 << 16))


@pytest.mark.parametrize("missing", ["lib", "ffi", "randombytes_buf_deterministic", "from_buffer"])
def test_another_pynacl_is_not_relied_on(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(
        lib=SimpleNamespace(randombytes_buf_deterministic=print), ffi=SimpleNamespace(from_buffer=print)
    )
    monkeypatch.setitem(sys.modules, "nacl._sodium", other)
    assert chacha.private_module() is other
    for part in (other, other.lib, other.ffi):
        if hasattr(part, missing):
            delattr(part, missing)
            break
    assert chacha.private_module() is None


def test_a_pynacl_without_it_is_not_relied_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nacl._sodium", None)
    assert chacha.private_module() is None


def test_libsodium_is_initialised_by_the_import() -> None:
    """Before ``sodium_init`` libsodium runs portable code, several times slower: importing the bindings calls it."""
    program = (
        "from covey_protocol.chacha import SODIUM; assert SODIUM.lib.sodium_init() == 1, 'it was not initialised yet'"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_masks_made_the_public_way_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = prg.expand(SEED, prg.BLOCK + 10)
    monkeypatch.setattr(prg, "Room", lambda size: Room(size, None))
    assert np.array_equal(prg.expand(SEED, prg.BLOCK + 10), expected)
