"""covey_protocol.sealing: libsodium's sealed boxes, byte for byte."""

from __future__ import annotations

import pytest
from nacl.public import PrivateKey, SealedBox
from tests.protocol.rig import LOW_ORDER, Entropy

from covey_protocol.errors import RefusedError
from covey_protocol.sealing import open_sealed, seal_anonymously

KEY = PrivateKey(Entropy("sealing")(32))
SECRET, PUBLIC = bytes(KEY), bytes(KEY.public_key)
MESSAGES = [b"", b"x", bytes(5000)]


@pytest.mark.parametrize("message", MESSAGES, ids=len)
def test_sealed_boxes_of_libsodium(message: bytes) -> None:
    sealed = seal_anonymously(message, PUBLIC, Entropy("one")(32))
    assert SealedBox(KEY).decrypt(sealed) == message
    assert open_sealed(sealed, PUBLIC, SECRET) == message
    assert open_sealed(SealedBox(KEY.public_key).encrypt(message), PUBLIC, SECRET) == message
    assert len(sealed) == len(SealedBox(KEY.public_key).encrypt(message))


def test_the_randomness_is_the_callers() -> None:
    once, again = (seal_anonymously(b"x", PUBLIC, Entropy("one")(32)) for _ in range(2))
    assert once == again != seal_anonymously(b"x", PUBLIC, Entropy("two")(32))


@pytest.mark.parametrize("size", [0, 1, 31, 32, 47, 48])
def test_truncated_boxes_do_not_open(size: int) -> None:
    with pytest.raises(RefusedError):
        open_sealed(seal_anonymously(b"message", PUBLIC, Entropy("one")(32))[:size], PUBLIC, SECRET)


def test_changed_boxes_and_other_keys_do_not_open() -> None:
    sealed = seal_anonymously(b"message", PUBLIC, Entropy("one")(32))
    for at in range(len(sealed)):
        with pytest.raises(RefusedError):
            open_sealed(sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :], PUBLIC, SECRET)
    other = PrivateKey(Entropy("other")(32))
    with pytest.raises(RefusedError):
        open_sealed(sealed, bytes(other.public_key), bytes(other))


@pytest.mark.parametrize("key", LOW_ORDER, ids=lambda key: key[:4].hex())
def test_low_order_keys_are_refused(key: bytes) -> None:
    with pytest.raises(RefusedError) as caught:
        seal_anonymously(b"message", key, Entropy("one")(32))
    assert caught.value.cause == "low-order-key"
    with pytest.raises(RefusedError):
        open_sealed(key + bytes(40), PUBLIC, SECRET)
