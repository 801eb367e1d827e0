"""covey_protocol.renewal: who may ask for a certificate, whom an answer is for, and when it is time."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.protocol.rig import FLEET, SERVER, signing_key

from covey_protocol.errors import SignatureError
from covey_protocol.messages import IssuedCertificate
from covey_protocol.renewal import (
    CERTIFICATE_SECONDS,
    is_due,
    private_key_pem,
    read_certificate,
    read_renew,
    write_certificate,
    write_renew,
)

DEVICE = signing_key("pi-1")
DAY = 86400


@given(st.binary(min_size=32, max_size=32))
def test_a_seed_in_pem_form_is_the_key_that_others_read(seed: bytes) -> None:
    read = serialization.load_pem_private_key(private_key_pem(seed).encode(), password=None)
    assert isinstance(read, Ed25519PrivateKey)
    assert read.private_bytes_raw() == seed


def test_a_question_is_the_devices_own() -> None:
    data = write_renew(bytes(32), fleet=FLEET, device="pi-1", key=DEVICE)
    assert read_renew(data, fleet=FLEET, device="pi-1", key=bytes(DEVICE.verify_key)) == bytes(32)
    for fleet, device, key in (
        ("orchard", "pi-1", DEVICE),
        (FLEET, "pi-2", DEVICE),
        (FLEET, "pi-1", signing_key("pi-2")),
    ):
        with pytest.raises(SignatureError):
            read_renew(data, fleet=fleet, device=device, key=bytes(key.verify_key))


def test_an_answer_is_the_aggregators_and_for_one_device() -> None:
    answer = IssuedCertificate(certificate="PEM", public_key=bytes(32), not_after=9, made=1)
    data = write_certificate(answer, fleet=FLEET, device="pi-1", key=SERVER)
    assert read_certificate(data, fleet=FLEET, device="pi-1", aggregator_key=bytes(SERVER.verify_key)) == answer
    for device, key in (("pi-2", SERVER), ("pi-1", DEVICE)):
        with pytest.raises(SignatureError):
            read_certificate(data, fleet=FLEET, device=device, aggregator_key=bytes(key.verify_key))


def test_a_third_of_its_life_is_when_it_is_due() -> None:
    end = 2_000_000_000
    assert not is_due(end, end - CERTIFICATE_SECONDS // 3)
    assert is_due(end, end - CERTIFICATE_SECONDS // 3 + 1)
    assert is_due(end, end + DAY)
    assert not is_due(0, end)  # nobody has said when it ends
