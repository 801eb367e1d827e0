"""covey_protocol.policy: floors that only the operator can move."""

from __future__ import annotations

import pytest
from tests.protocol.rig import FLEET, SERVER, make_manifest
from tests.protocol.rig import OPERATOR as OPERATOR_KEY

from covey_protocol import cbor, envelope
from covey_protocol.envelope import Context
from covey_protocol.errors import MalformedError, RefusedError, SignatureError
from covey_protocol.identity import AGGREGATOR, OPERATOR
from covey_protocol.policy import Policy, sign_policy, verify_policy

ANCHOR = bytes(OPERATOR_KEY.verify_key)
POLICY = Policy(version=3, n_min=6, a_min=5, list_min=20, exposure_max=9)


def test_round_trip() -> None:
    assert verify_policy(sign_policy(POLICY, OPERATOR_KEY, FLEET), operator_key=ANCHOR, fleet=FLEET) == POLICY


def test_only_the_operator_signs_policies() -> None:
    with pytest.raises(SignatureError):
        verify_policy(sign_policy(POLICY, SERVER, FLEET), operator_key=ANCHOR, fleet=FLEET)
    with pytest.raises(SignatureError):
        verify_policy(sign_policy(POLICY, OPERATOR_KEY, "moor"), operator_key=ANCHOR, fleet=FLEET)
    as_aggregator = Context(fleet=FLEET, kind="policy", sender=AGGREGATOR)
    with pytest.raises(SignatureError):
        verify_policy(envelope.sign(b"\xa0", as_aggregator, OPERATOR_KEY), operator_key=ANCHOR, fleet=FLEET)


@pytest.mark.parametrize(
    "fields", [{"n_min": 3}, {"n_min": 33}, {"a_min": -1}, {"a_min": 33}, {"list_min": 3}, {"exposure_max": -1}]
)
def test_impossible_floors_are_refused(fields: dict[str, int]) -> None:
    data = envelope.sign(cbor.encode(fields), Context(fleet=FLEET, kind="policy", sender=OPERATOR), OPERATOR_KEY)
    with pytest.raises(MalformedError):
        verify_policy(data, operator_key=ANCHOR, fleet=FLEET)


def test_manifests_at_the_floor_pass() -> None:
    POLICY.check(make_manifest(10, n_min=6, n_max=6))
    Policy(clear_updates=True).check(make_manifest(10, masking=False))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"n_min": 5}, "n_min 5"), ({"n_min": 8, "n_max": 7}, "n_max 7"), ({"n_min": 6, "masking": False}, "masks")],
)
def test_manifests_below_a_floor_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        POLICY.check(make_manifest(10, **{"n_max": 16, **changes}))  # type: ignore[arg-type]
    assert caught.value.cause == "policy"
