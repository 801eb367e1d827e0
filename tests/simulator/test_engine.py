"""The fast level: sets by the protocol's thresholds, sums through the ring, and the same run from the same seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer, TrainResult
from covey_protocol import accounting, epochs, topics
from covey_protocol.epochs import Grouping
from covey_protocol.errors import ConfigError
from covey_protocol.ring import decode_mean
from covey_protocol.thresholds import accepted_min, threshold
from covey_simulator.attacks import malicious_devices
from covey_simulator.data import device_names, load_corpus, make_bundle, partition
from covey_simulator.engine.attendance import Attendance
from covey_simulator.engine.conductor import ATTEMPTS, Play, Step
from covey_simulator.engine.draws import Draws
from covey_simulator.engine.judge import RuleJudge
from covey_simulator.engine.parts import Accept, Finding, GroupOutcome, Order, RoundOutcome, Rounds, Work
from covey_simulator.engine.plain import PlainRounds
from covey_simulator.engine.rehearse import rehearse
from covey_simulator.scenario import Scenario, parse_scenario

DIMENSION = 300
SMALL: dict[str, Any] = {
    "name": "engine",
    "devices": 24,
    "samples_per_device": 20,
    "partition": {"dirichlet": 0.5, "repeat": True},
    "rounds": 4,
    "group_size": 8,
    "local": {"steps": 3, "batch_size": 20, "learning_rate": 0.3, "momentum": 0.0},
    "clip": 2.5,
    "masking": "simulated",
    "signatures": False,
    "transport": "direct",
    "attestation": {"sketch": 16},
}


def scenario(**changes: Any) -> Scenario:
    return parse_scenario({**SMALL, **changes}, origin="test", folder=Path())


def played(what: Scenario, on_step: Callable[[Step], None] | None = None, *, rounds: Rounds | None = None) -> Play:
    corpus = load_corpus(what)
    slices = partition(corpus.train, what)
    trainer = Trainer(make_bundle(what, corpus))
    return rehearse(what, trainer, slices, corpus.held_out, on_step=on_step, rounds=rounds)


def work(seed: int) -> Work:
    update = np.random.default_rng(seed).normal(0, 0.03, DIMENSION).astype(np.float32)
    return Work(TrainResult(update, 1.5, 0.5, 40, 5))


def everybody(finding: Finding) -> frozenset[str]:
    return frozenset(finding.sketches)


def attempt(
    n: int = 10,
    *,
    absent: int = 0,
    silent: dict[str, int] | None = None,
    sketch: int = 16,
    lot: int = 1,
    watched: bool = True,
    barred: int = 0,
    accept: Accept = everybody,
) -> tuple[GroupOutcome, RoundOutcome, Order]:
    """Run one group of n: some absent, some barred (the last ones), some silent from a kind of message on."""
    names = device_names(n)
    falls: dict[str, str] = {}
    others = iter(names)
    for kind, count in (silent or {}).items():
        falls |= {next(others): kind for _ in range(count)}
    order = Order(
        round=1,
        attempt=1,
        weights=np.zeros(DIMENSION, np.float32),
        clip=2.0,
        works={name: work(index) for index, name in enumerate(names[: n - absent])},
        silent_from=falls,
        sketch=sketch,
        lot=lot,
        watched=lambda members: watched,
    )
    draws = Draws(scenario())
    grouping = Grouping(1, "1-s-0", tuple((name, bytes(32)) for name in names))
    out = frozenset(names[n - barred :]) if barred else frozenset[str]()
    outcome = PlainRounds(draws, group_size=10).run(order, [grouping], out, accept)
    return outcome.groups["1-s-0"], outcome, order


def test_sums_what_the_accepted_encode() -> None:
    group, outcome, order = attempt(silent={topics.MASKED: 1})
    assert len(group.joined) == len(group.dealt) == 10
    assert group.survivors == group.summed == group.attested == tuple(device_names(10)[1:])
    assert group.total is not None
    mean, metrics = decode_mean(group.total, 9, outcome.scale)
    exact = np.mean([order.works[name].result.update for name in group.summed], axis=0)
    assert np.abs(mean - exact).max() < outcome.scale.step
    assert metrics.accuracy == pytest.approx(0.5, abs=0.01)
    assert group.finishers == frozenset(group.summed[:7]), "nobody waits for more than t"


def test_sketches_keep_lengths_in_the_updates_units() -> None:
    seen: dict[str, float] = {}

    def look(finding: Finding) -> frozenset[str]:
        seen.update({name: float(np.linalg.norm(sketch)) for name, sketch in finding.sketches.items()})
        return frozenset(finding.sketches)

    _, _, order = attempt(sketch=64, accept=look)
    norms = [float(np.linalg.norm(order.works[name].result.update)) for name in seen]
    assert np.mean(list(seen.values())) == pytest.approx(np.mean(norms), rel=0.1), "metrics are no part of a sketch"


@pytest.mark.parametrize("n", [4, 6, 7, 10, 16, 31])
def test_aborts_just_under_each_threshold(n: int) -> None:
    t, a_min = threshold(n), accepted_min(n)
    needed = {
        topics.SHARES: ("too-few-dealt", max(t, a_min)),
        topics.MASKED: ("too-few-survivors" if a_min >= t else "too-few-signed", max(t, a_min)),
        topics.SURVIVORS: ("too-few-signed" if t >= a_min else "too-few-accepted", max(t, a_min)),
        topics.ACCEPT: ("too-few-signed", t),
        topics.UNMASK: ("too-few-revealed", t),
    }
    for kind, (cause, fewest) in needed.items():
        assert not attempt(n, silent={kind: n - fewest})[0].aborted, kind
        group, outcome, _ = attempt(n, silent={kind: n - fewest + 1})
        assert group.aborted == cause, kind
        assert group.total is None and not group.summed
        assert group.causers == frozenset(device_names(n)[: n - fewest + 1])
        assert outcome.masked == (kind != topics.SHARES)


def test_a_set_under_a_min_is_not_summed() -> None:
    def first(count: int) -> Accept:
        return lambda finding: frozenset(sorted(finding.sketches)[:count])

    group, _, _ = attempt(10, accept=first(accepted_min(10)))
    assert not group.aborted and len(group.summed) == 6
    group, _, _ = attempt(10, accept=first(accepted_min(10) - 1))
    assert group.aborted == "too-few-accepted"
    assert group.causers == frozenset(device_names(10)[5:]), "those whom the rule refuses"


def test_only_those_who_attest_are_accepted_and_the_others_owe() -> None:
    owed: set[str] = set()

    def greedy(finding: Finding) -> frozenset[str]:
        owed.update(finding.owing)
        return frozenset(device_names(10))

    group, _, _ = attempt(10, silent={topics.ATTEST: 2}, accept=greedy)
    assert group.summed == group.attested == tuple(device_names(10)[2:])
    assert owed == set(device_names(10)[:2])


def test_groups_that_the_lot_spares_accept_all() -> None:
    def refuse(finding: Finding) -> frozenset[str]:
        raise AssertionError("nobody attests")

    group, outcome, _ = attempt(10, lot=1000, watched=False, accept=refuse)
    assert group.summed == group.survivors and not outcome.sketches
    group, outcome, _ = attempt(10, lot=1000, watched=True)
    assert len(outcome.sketches) == 10


def test_the_barred_are_on_no_roster_and_cause_nothing() -> None:
    group, _, _ = attempt(10, barred=5)
    assert group.joined == tuple(device_names(10)[:5]) and not group.aborted
    group, _, _ = attempt(10, barred=5, absent=7)
    assert group.aborted == "too-few-joined"
    assert group.causers == frozenset(device_names(10)[3:5])


def test_groups_follow_from_list_and_openings() -> None:
    rounds, what = PlainRounds(Draws(scenario()), group_size=8), device_names(24)
    listed = {name: name in what[:5] for name in what}
    groupings = rounds.open_epoch(3, listed)
    assert [grouping.group for grouping in groupings] == [epochs.group_id(3, "s", index) for index in range(3)]
    assert {name for name, _ in groupings[-1].members} == set(what[:5]), "newcomers make a group of their own"
    assert groupings == PlainRounds(Draws(scenario()), group_size=8).open_epoch(3, listed)
    assert groupings != rounds.open_epoch(4, listed)


def test_a_run_repeats_itself_and_follows_its_seed() -> None:
    what = scenario(attack={"kind": "sign-flip", "fraction": 0.25}, dropout=0.1, participation=0.9)
    first, again, other = played(what), played(what), played(scenario(seed=1))
    assert np.array_equal(first.weights, again.weights)
    assert first.expelled == again.expelled and first.scores == again.scores
    assert not np.array_equal(first.weights, other.weights)


def test_poisoners_are_expelled_and_honest_devices_stay() -> None:
    what = scenario(
        seed=1, devices=30, samples_per_device=40, rounds=12, attack={"kind": "sign-flip", "fraction": 0.2, "scale": 3}
    )
    steps: list[Step] = []
    play = played(what, steps.append)
    names = device_names(30)
    assert play.expelled[-1] == {names[index] for index in malicious_devices(what)}
    assert set(play.quarantined_at) == play.expelled[-1]
    assert all(not step.barred & set().union(*(g.joined for g in step.outcome.groups.values())) for step in steps)
    assert {len(scores) for scores in play.scores.values()} == {12}


def test_observing_expels_nobody_but_scores() -> None:
    what = scenario(rounds=10, reputation="observe", attack={"kind": "sign-flip", "fraction": 0.25, "scale": 3})
    steps: list[Step] = []
    play = played(what, steps.append)
    assert all(step.record.accepted == 24 and not step.barred for step in steps)
    assert any(opinion.state == "quarantined" for opinion in play.opinions.values())


def test_late_joiners_wait_for_an_early_epoch_and_are_grouped_by_themselves() -> None:
    what = scenario(
        devices=32, samples_per_device=40, rounds=10, attack={"kind": "label-flip", "fraction": 0.25, "joins_at": 9}
    )
    steps: list[Step] = []
    played(what, steps.append)
    assert {step.record.participants for step in steps[:9]} == {24}
    names = device_names(32)
    late = {names[index] for index in malicious_devices(what)}
    groups = [set(group.joined) for group in steps[9].outcome.groups.values()]
    assert late in groups and len(set[str]().union(*groups)) == 32


@pytest.mark.parametrize("replaced", [1, 2])
def test_who_replaces_devices_of_a_fleet_of_five_is_summed_before_long(
    replaced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a task; until it is trusted it is in one group with the others, and their group has sums."""
    what = scenario(devices=5 + replaced, samples_per_device=60, partition={"iid": True}, rounds=24)
    first = 10

    def enrolled(self: Attendance, number: int) -> list[int]:
        return list(range(5)) if number < first else list(range(replaced, 5 + replaced))

    monkeypatch.setattr(Attendance, "enrolled", enrolled)
    steps: list[Step] = []
    play = played(what, steps.append)
    new = device_names(5 + replaced)[5:]
    summed = [set(new) & set(group.summed) for step in steps for group in step.outcome.groups.values()]
    assert all(play.opinions[name].state == "trusted" for name in new)
    assert sum(len(names) == replaced for names in summed) >= 8
    assert not any(record.failed for record in play.records)


def test_dropouts_and_absentees_follow_their_chances() -> None:
    what = scenario(devices=400, participation=0.3, dropout=0.2)
    attendance = Attendance(what, frozenset())
    present = [len(attendance.present(number)) for number in range(1, 21)]
    assert 0.27 < np.mean(present) / 400 < 0.33
    silent = attendance.silent_from(1, 1)
    assert 0.12 < len(silent) / 400 < 0.28
    assert set(silent.values()) == {"shares", "masked", "survivors", "attest", "accept", "unmask"}
    assert silent != attendance.silent_from(1, 2)


def test_a_round_in_which_no_group_closes_is_tried_again_on_another_model() -> None:
    steps: list[Step] = []
    what = scenario(devices=8, rounds=3, dropout=0.4, seed=2)
    play = played(what, steps.append)
    failed = [step for step in steps if step.record.failed and step.outcome.masked]
    assert failed, "two in five fall silent"
    by_place = {(step.record.round, step.record.attempt): step for step in steps}
    for step in failed:
        following = by_place.get((step.record.round, step.record.attempt + 1))
        assert following is not None or step.record.attempt == ATTEMPTS
    models = [step.weights.tobytes() for step in steps if step.outcome.masked]
    assert len(set(models)) == len(models), "no model is used twice once somebody has masked for it"
    assert len(play.records) == 3


def test_slices_may_repeat_samples() -> None:
    what = scenario(devices=100, samples_per_device=40)
    corpus = load_corpus(what)
    slices = partition(corpus.train, what)
    assert {len(part) for part in slices} == {40} and len(slices) == 100
    single = scenario(devices=30, partition={"labels": 1, "repeat": True})
    parts = partition(corpus.train, single)
    assert {len(set(part.y.tolist())) for part in parts} == {1}
    assert len({int(part.y[0]) for part in parts}) == 10
    even = scenario(partition={"repeat": True})
    assert all(isinstance(part, Dataset) and len(part) == 20 for part in partition(corpus.train, even))


def test_the_quarantined_are_scored_on_while_their_group_can_afford_it() -> None:
    judge = RuleJudge()
    names = device_names(20)
    judge.admit(names)
    small, large = (
        Grouping(1, f"1-s-{at}", tuple((name, b"") for name in names[10 * at : 10 * at + 10])) for at in (0, 1)
    )
    for name in (*names[:3], *names[10:12]):
        judge.book.quarantine(name, "test")
    judge.book.ban(names[19], "test")
    assert judge.out() == {*names[:3], *names[10:12], names[19]}
    # Ten members need six in a sum, and two in ten may be missing: at most two that are not summed.
    assert judge.barred([small, large]) == {*names[:3], *names[10:12], names[19]}
    judge.book.release(names[10], "test")
    judge.book.release(names[2], "test")
    assert judge.barred([small, large]) == {names[19]}
    assert RuleJudge(enforce=False).barred([small, large]) == frozenset()


def test_nobody_is_a_newcomer_to_a_new_fleet() -> None:
    judge = RuleJudge()
    judge.admit(device_names(8))
    assert not judge.newcomers() and not judge.trusts(device_names(8))


def test_proven_liars_are_banned() -> None:
    steps: list[Step] = []
    what = scenario(
        devices=16,
        rounds=3,
        signatures=True,
        masking=True,
        reputation="observe",  # a rule that acts refuses such a sketch, and the mask of who is refused stays hidden
        attack={"kind": "attestation-liar", "manner": "own", "fraction": 0.0625},
    )
    play = played(what, steps.append)
    names = device_names(16)
    (liar,) = (names[index] for index in malicious_devices(what))
    assert steps[0].outcome.liars.keys() == {liar}
    assert play.opinions[liar].state == "banned" and play.quarantined_at == {liar: 1}
    assert all(liar not in group.joined for step in steps[1:] for group in step.outcome.groups.values())


def test_a_fleet_with_noise_tells_what_it_costs_round_by_round() -> None:
    steps: list[Step] = []
    what = scenario(rounds=3, attestation=False, privacy={"epsilon": 20, "a_min": 8})
    play = played(what, steps.append)
    noise = steps[0].outcome.scale.noise
    assert noise is not None and noise.honest == 8 - 2
    cost = accounting.round_cost(noise, sketched=False)
    told = [record.epsilon for record in play.records]
    assert told == pytest.approx([accounting.epsilon(number * cost, 1e-5) for number in (1, 2, 3)])
    assert 19.5 < (told[-1] or 0) <= 20
    assert all(record.federated_accuracy is None for record in play.records)
    assert [record.epsilon for record in played(scenario(rounds=1, attestation=False)).records] == [None]
    assert {step.outcome.scale.clip for step in steps} == {what.clip}


def test_sketches_and_the_devices_that_are_asked_more_cost_more() -> None:
    asked = played(scenario(rounds=2, privacy={"noise_multiplier": 1.0})).records[-1].epsilon
    spared = played(scenario(rounds=2, attestation=False, privacy={"noise_multiplier": 1.0})).records[-1].epsilon
    assert asked is not None and spared is not None and asked > 1.5 * spared


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"masking": False, "signatures": True, "attestation": False, "privacy": {"epsilon": 8}}, "without masks"),
        ({"privacy": {"a_min": 6}}, "names neither"),
        ({"privacy": {"epsilon": 8, "a_min": 9}}, "a_min exceeds"),
        ({"privacy": {"epsilon": 8, "rounds": 3}}, "fewer than the scenario's"),
        ({"privacy": {"epsilon": 8, "noise": 3}}, "unknown field"),
    ],
)
def test_privacy_that_contradicts_the_rest(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        scenario(**changes)
