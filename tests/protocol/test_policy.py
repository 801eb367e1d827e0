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
POLICY = Policy(version=3, n_min=6, t_min=6, a_min=5, list_min=20, exposure_max=9, sketch_max=16, noise_min=0.5)
OLD = ("version", "n_min", "a_min", "list_min", "exposure_max", "clear_updates")


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
    "fields",
    [
        *({"n_min": 3}, {"n_min": 33}, {"a_min": -1}, {"a_min": 33}, {"list_min": 3}, {"exposure_max": -1}),
        *({"t_min": -1}, {"t_min": 33}, {"sketch_max": -1}, {"sketch_max": 4097}),
        *({"noise_min": -0.5}, {"noise_min": 1001.0}, {"noise_min": "much"}),
    ],
)
def test_impossible_floors_are_refused(fields: dict[str, object]) -> None:
    data = envelope.sign(cbor.encode(fields), Context(fleet=FLEET, kind="policy", sender=OPERATOR), OPERATOR_KEY)
    with pytest.raises(MalformedError):
        verify_policy(data, operator_key=ANCHOR, fleet=FLEET)


def test_a_policy_from_before_the_newer_floors_is_read_and_sets_none() -> None:
    values = {"version": 2, "n_min": 6, "a_min": 5, "list_min": 20, "exposure_max": 9, "clear_updates": False}
    assert set(values) == set(OLD)
    context = Context(fleet=FLEET, kind="policy", sender=OPERATOR)
    data = envelope.sign(cbor.encode(values), context, OPERATOR_KEY)
    policy = verify_policy(data, operator_key=ANCHOR, fleet=FLEET)
    assert policy == Policy(version=2, n_min=6, a_min=5, list_min=20, exposure_max=9)
    assert (policy.t_min, policy.noise_min) == (0, 0)
    newer = envelope.sign(cbor.encode({**values, "clip_max": 3}), context, OPERATOR_KEY)
    assert verify_policy(newer, operator_key=ANCHOR, fleet=FLEET) == policy


def test_manifests_at_the_floor_pass() -> None:
    POLICY.check(make_manifest(10, n_min=6, n_max=6, sketch=16, noise=0.5))
    Policy(clear_updates=True).check(make_manifest(10, masking=False))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_min": 5}, "n_min 5"),
        ({"n_min": 8, "n_max": 7}, "n_max 7"),
        ({"masking": False}, "masks"),
        ({"sketch": 17}, "sketch 17 is above the policy's 16"),
        ({"noise": 0.49}, "noise 0.49 is below the policy's 0.5"),
        ({"noise": 0}, "noise 0 is below"),
    ],
)
def test_manifests_below_a_floor_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(RefusedError, match=words) as caught:
        POLICY.check(make_manifest(10, **{"n_min": 6, "n_max": 16, "noise": 0.5, **changes}))  # type: ignore[arg-type]
    assert caught.value.cause == "policy"


@pytest.mark.parametrize("policy", [Policy(t_min=9), Policy(a_min=9)])
def test_a_manifest_that_no_roster_above_the_floors_fits_is_refused(policy: Policy) -> None:
    assert policy.roster_min == 9
    policy.check(make_manifest(10, n_max=9))
    with pytest.raises(RefusedError, match="n_max 8") as caught:
        policy.check(make_manifest(10, n_max=8))
    assert caught.value.cause == "policy"
