"""covey_protocol.privacy_ledger, and how a device pays from it: what is spent stays spent, and beyond is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_protocol import accounting, topics
from covey_protocol.device_round import DeviceRound
from covey_protocol.effects import Remember
from covey_protocol.errors import LocalError, RefusedError
from covey_protocol.ledger import DeviceLedger
from covey_protocol.messages import Blob
from covey_protocol.noise import calibrate
from covey_protocol.policy import Policy
from covey_protocol.ring import RingScale
from covey_protocol.round_table import DeviceStage, GroupStage

from .rig import METRICS, Rig, make_manifest

Z, DIMENSION, K = 4.0, 512, 8
NOISE = calibrate(Z, n_max=6, dimension=DIMENSION)
COST = accounting.round_cost(NOISE, sketched=False)
OPEN_ENDED = Policy()


def capped(rounds: float, **changes: object) -> Policy:
    """Return a policy with room for so many rounds of ``COST``."""
    return Policy(epsilon_max=accounting.epsilon(rounds * COST, 1e-5), **changes)  # type: ignore[arg-type]


def model(number: int) -> bytes:
    return number.to_bytes(32, "big")


def rig_of(
    number: int = 1, policy: Policy | None = None, ledgers: dict[str, DeviceLedger] | None = None, **changes: object
) -> Rig:
    blob = Blob(digest=model(number), bytes=4 * DIMENSION)
    manifest = make_manifest(DIMENSION, n_max=6, **{"noise": Z, "model": blob, **changes})
    return Rig(n=6, dimension=DIMENSION, manifest=manifest, policy=policy, round=number, ledgers=ledgers or {})


def restarted(ledger: DeviceLedger) -> DeviceLedger:
    return DeviceLedger(dict(ledger._rows))


# --- The ledger ---------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=20), st.lists(st.booleans(), min_size=20, max_size=20))
def test_what_is_spent_adds_up_over_restarts(multipliers: list[int], restarts: list[bool]) -> None:
    ledger, total = DeviceLedger(), accounting.nothing()
    for number, (tenths, restart) in enumerate(zip(multipliers, restarts, strict=False)):
        cost = accounting.skellam(100, 100 * tenths, 50)
        ledger.privacy.pay(cost, OPEN_ENDED)
        ledger.masked(model(number), b"")
        total = total + cost
        ledger = restarted(ledger) if restart else ledger
    assert np.allclose(ledger.privacy.spent(OPEN_ENDED), total)
    assert ledger.privacy.rounds == len(multipliers)
    assert ledger.privacy.bare == 0
    assert ledger.privacy.epsilon(OPEN_ENDED) == pytest.approx(accounting.epsilon(total, 1e-5))


def test_a_budget_is_kept_to_the_last_round() -> None:
    ledger, policy = DeviceLedger(), capped(3)
    for number in range(3):
        ledger.privacy.pay(COST, policy)
        ledger.masked(model(number), b"")
        ledger = restarted(ledger)
    before = dict(ledger._rows)
    with pytest.raises(
        RefusedError,
        match=r"spent: epsilon is 1\.85 of 1\.84744 at delta 1e-05, and one more round would make it 2\.17",
    ) as caught:
        ledger.privacy.pay(COST, policy)
    assert caught.value.cause == "privacy-budget"
    assert ledger._rows == before
    ledger.privacy.check(COST, OPEN_ENDED)  # without a limit there is nothing to refuse
    ledger.privacy.check(COST, capped(4))  # a policy may be loosened, by the operator


def test_a_round_without_noise_is_more_than_any_budget() -> None:
    ledger = DeviceLedger()
    ledger.masked(model(1), b"")
    assert ledger.privacy.epsilon(OPEN_ENDED) == math.inf
    with pytest.raises(RefusedError, match="it was in 1 rounds without noise"):
        restarted(ledger).privacy.check(COST, Policy(epsilon_max=1e6))


def test_forgotten_joins_count_as_the_worst_that_the_policy_allows() -> None:
    ledger = DeviceLedger()
    ledger.put_back(5, "digits", 3, 1)
    assert ledger.forgotten == 5
    with pytest.raises(RefusedError, match="5 joins are forgotten"):
        ledger.privacy.check(COST, Policy(epsilon_max=1e6))
    floor = Policy(epsilon_max=1e6, noise_min=2.0)
    ledger.privacy.check(COST, floor)
    # The most that a round could have cost: a sketch, over a roster of which 22 members are honest.
    worst = accounting.round_cost(calibrate(2.0, n_max=32, dimension=10, a_min=32, sketch=64), sketched=True)
    assert (ledger.privacy.spent(floor) >= 5 * worst).all()


@pytest.mark.parametrize("damage", [b"", b"1234", bytes(8 * 75 - 1), np.full(len(accounting.ORDERS), -1.0).tobytes()])
def test_a_damaged_budget_is_noticed(damage: bytes) -> None:
    with pytest.raises(LocalError, match="privacy budget is damaged"):
        DeviceLedger({"privacy/spent": damage})


# --- A device in rounds -------------------------------------------------------------------------------------------


def marks_before_vector(rig: Rig, name: str) -> list[str]:
    return [mark.key for mark in rig.remembered[name]]


def test_a_round_with_noise_is_paid_for_before_its_vector_is_sent() -> None:
    rig = rig_of()
    rig.run()
    assert rig.group.stage is GroupStage.SUMMING
    total, count = rig.group.unmask(rig.vector)
    assert np.array_equal(total, rig.sum_of(rig.names)) and count == 6
    for name in rig.names:
        ledger = rig.ledgers[name]
        assert np.allclose(ledger.privacy.spent(OPEN_ENDED), COST)
        assert (ledger.privacy.rounds, ledger.privacy.bare) == (1, 0)
    effects_of = [mark.key for mark in rig.remembered["pi-0"]]
    assert effects_of.index("privacy/spent") < effects_of.index(f"masked/{model(1).hex()}")


def test_each_device_adds_its_own_noise_of_the_right_size() -> None:
    rig = rig_of()
    rig.run()
    scale = RingScale.of(rig.opened.manifest)
    assert scale.noise == NOISE
    vectors = [rig.encoded[name].view(np.int16).astype(np.float64)[:DIMENSION] for name in rig.names]
    for vector in vectors:  # an update is a small part of it
        assert vector.var() == pytest.approx(NOISE.variance, rel=0.35)
    assert np.abs(np.corrcoef(vectors) - np.eye(6)).max() < 0.25
    for name in rig.names:
        assert not rig.encoded[name][DIMENSION:].any()  # nobody tells metrics


def test_a_device_whose_budget_is_spent_joins_no_round_and_says_why() -> None:
    policy = capped(2)
    rig = rig_of(1, policy)
    rig.run()
    rig = rig_of(2, policy, rig.ledgers)
    rig.run()
    rig = rig_of(3, policy, rig.ledgers)
    for name in rig.names:
        before = dict(rig.ledgers[name]._rows)
        with pytest.raises(RefusedError, match="the privacy budget is spent") as caught:
            rig.devices[name].join()
        assert caught.value.cause == "privacy-budget"
        assert rig.devices[name].stage is DeviceStage.INVITED
        assert rig.ledgers[name]._rows == before


def test_a_budget_that_another_task_has_spent_meanwhile_is_noticed_before_masking() -> None:
    rig = rig_of(1, capped(1))
    rig.joined()
    me = next(name for name in rig.names if rig.devices[name].stage is DeviceStage.DEALT)
    rig.ledgers[me].privacy.pay(COST, OPEN_ENDED)
    rig.ledgers[me].masked(model(99), b"")
    with pytest.raises(RefusedError, match="privacy budget"):
        rig.devices[me].trained(rig.update(me), METRICS)
    assert f"masked/{model(1).hex()}" not in rig.ledgers[me]._rows


def test_a_sketch_is_paid_for_before_it_is_told() -> None:
    rig = rig_of(sketch=K)
    noise = RingScale.of(rig.opened.manifest).noise
    assert noise is not None
    plain, sketched = (accounting.round_cost(noise, sketched=told) for told in (False, True))
    rig.attesting = False
    rig.run()
    for name in rig.names:  # masked, and U signed; nobody was asked for a sketch yet
        assert np.allclose(rig.ledgers[name].privacy.spent(OPEN_ENDED), plain)
    rig = rig_of(sketch=K)
    rig.run()
    assert rig.group.stage is GroupStage.SUMMING
    for name in rig.names:
        ledger = rig.ledgers[name]
        assert np.allclose(ledger.privacy.spent(OPEN_ENDED), sketched)
        assert ledger.privacy.rounds == 1
        keys = [mark.key for mark in rig.remembered[name] if isinstance(mark, Remember)]
        assert keys.count("privacy/spent") == 2


def test_a_round_with_sketches_is_joined_only_if_there_is_room_for_them() -> None:
    plain = accounting.round_cost(calibrate(Z, n_max=6, dimension=DIMENSION, sketch=K), sketched=False)
    policy = Policy(epsilon_max=accounting.epsilon(2 * plain, 1e-5))
    with pytest.raises(RefusedError, match="privacy budget"):
        rig_of(policy=policy, sketch=K).devices["pi-0"].join()
    assert rig_of(policy=policy).devices["pi-0"].join()


def test_a_sketch_that_the_budget_has_no_room_for_any_more_is_not_told() -> None:
    noise = calibrate(Z, n_max=6, dimension=DIMENSION, sketch=K)
    policy = Policy(epsilon_max=accounting.epsilon(accounting.round_cost(noise, sketched=True), 1e-5))
    rig = rig_of(policy=policy, sketch=K)
    rig.hold = lambda way, name, kind: (way, name, kind) == ("down", "pi-0", topics.ATTEST)
    rig.run()
    rig.ledgers["pi-0"].privacy.pay(COST, OPEN_ENDED)
    rig.ledgers["pi-0"].masked(model(99), b"")
    held = next(data for _, _, kind, data in rig.held if kind == topics.ATTEST)
    device: DeviceRound = rig.devices["pi-0"]
    with pytest.raises(RefusedError, match="privacy budget"):
        device.receive(topics.ATTEST, held)
    assert device.stage is not DeviceStage.ATTESTED
    assert not any(key.startswith("sketched/") for key in rig.ledgers["pi-0"]._rows)


def test_a_vector_is_not_masked_if_its_sketch_could_not_be_told() -> None:
    noise = calibrate(Z, n_max=6, dimension=DIMENSION, sketch=K)
    policy = Policy(epsilon_max=accounting.epsilon(accounting.round_cost(noise, sketched=True), 1e-5))
    rig = rig_of(policy=policy, sketch=K)
    rig.joined()
    ledger = rig.ledgers["pi-0"]
    ledger.privacy.pay(COST, OPEN_ENDED)
    ledger.masked(model(99), b"")
    with pytest.raises(RefusedError, match="privacy budget"):
        rig.devices["pi-0"].trained(rig.update("pi-0"), METRICS)
    assert np.allclose(ledger.privacy.spent(OPEN_ENDED), COST)


def test_the_manifests_a_min_binds_the_roster() -> None:
    rig = rig_of(a_min=6)
    assert RingScale.of(rig.opened.manifest).noise == calibrate(Z, n_max=6, dimension=DIMENSION, a_min=6)
    rig.run()
    assert rig.group.roster is not None and rig.group.roster.a_min == 6
    assert rig.group.stage is GroupStage.SUMMING
    rig = rig_of(a_min=6)
    rig.dies = {"pi-3": topics.MASKED}
    rig.run()
    assert rig.group.aborted is not None and rig.group.aborted.cause == "too-few-survivors"
    rig = rig_of(a_min=6)
    rig.silent = {"pi-3"}
    rig.run()
    assert rig.group.aborted is not None and rig.group.aborted.cause == "too-few-joined"
