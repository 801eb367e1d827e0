"""The verdict: promises kept or not, and every number that belongs beside them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from tests.simulator.records import report, rounds

from covey_simulator.scenario import Attestation, Partition, Scenario, demo_scenario
from covey_simulator.verdict import judge, promised_accuracy, promises_expulsion


def test_the_demo_passes_at_what_is_promised() -> None:
    calm = demo_scenario(malicious=0.0)
    verdict = report(calm, [0.9] * 10).verdict
    assert (verdict.ok, verdict.promised_accuracy) == (True, 0.9)
    verdict = report(calm, [0.99] * 9 + [0.899]).verdict
    assert not verdict.ok
    assert "0.899" in verdict.reasons[0]


def test_all_attackers_of_the_demo_must_be_out() -> None:
    scenario, run = demo_scenario(), rounds(*[0.95] * 10)
    assert judge(scenario, run, {}, expelled=6).ok
    verdict = judge(scenario, run, {}, expelled=5)
    assert not verdict.ok
    assert verdict.reasons[0] == "5 of 6 malicious devices are expelled; all are promised here."
    assert judge(scenario, run, {}).ok  # where it is not known


@pytest.mark.parametrize(
    ("scenario", "promised"),
    [
        (demo_scenario(), True),
        (demo_scenario(scale=1), False),
        (demo_scenario(malicious=0.0), False),
        (demo_scenario(attestation=False), False),
        (demo_scenario(attack="gaussian", scale=5), False),
        (msgspec.structs.replace(demo_scenario(), reputation="observe"), False),
    ],
)
def test_expulsion_is_promised_where_the_attack_is_strong(scenario: Scenario, promised: bool) -> None:
    assert promises_expulsion(scenario) == promised


def test_missing_rounds_fail() -> None:
    verdict = report(accuracies=[0.9] * 8).verdict
    assert not verdict.ok
    assert "2 of 10 rounds are missing: 9, 10." in verdict.reasons
    assert not report(rounds=[]).verdict.ok


@pytest.mark.parametrize("changes", [{"accepted": 0}, {"accuracy": None}])
def test_a_failed_round_fails_the_run(changes: dict[str, Any]) -> None:
    records = rounds(*[0.95] * 10)
    records[3] = msgspec.structs.replace(records[3], **changes)
    verdict = report(rounds=records).verdict
    assert not verdict.ok
    assert "Rounds in which no update was accepted: 4." in verdict.reasons


def test_other_failures_fail_the_run() -> None:
    verdict = report(failures=["pi-07 crashed."]).verdict
    assert not verdict.ok
    assert verdict.reasons[0] == "pi-07 crashed."


def changed(**changes: Any) -> Scenario:
    return msgspec.structs.replace(demo_scenario(), **changes)


@pytest.mark.parametrize(
    ("scenario", "promised"),
    [
        (demo_scenario(), True),
        (demo_scenario(malicious=0.0, scale=10), True),
        (demo_scenario(attack="none"), True),
        (demo_scenario(scale=20), True),
        (demo_scenario(attestation=False), False),
        (demo_scenario(malicious=0.3), False),
        (demo_scenario(attack="gaussian"), False),
        (demo_scenario(rounds=9), False),
        (demo_scenario(devices=101), False),
        (changed(clip=1.0), False),
        (changed(samples_per_device=10), False),
        (changed(partition=Partition(dirichlet=0.1)), False),
        (changed(local=msgspec.structs.replace(demo_scenario().local, steps=1)), False),
    ],
)
def test_promises_only_what_was_tuned_for(scenario: Scenario, promised: bool) -> None:
    assert promised_accuracy(scenario) == (0.9 if promised else None)


def test_promises_less_where_nobody_attests() -> None:
    assert promised_accuracy(demo_scenario(attestation=False, scale=1)) == 0.85
    assert promised_accuracy(demo_scenario(attestation=False, scale=2)) is None
    assert promised_accuracy(msgspec.structs.replace(demo_scenario(), reputation="observe")) is None


def test_strong_attacks_are_said_plainly_with_their_numbers() -> None:
    scenario = demo_scenario(scale=5, attestation=False)
    verdict = report(scenario, [0.71] * 10).verdict
    assert verdict.ok
    assert verdict.promised_accuracy is None
    (note,) = [note for note in verdict.notes if "cannot be relied on against this attack yet" in note]
    assert "trimmed mean across masked groups alone" in note
    for number in ("0.710", "0.500", "0.960"):
        assert number in note


def test_a_strong_attack_by_few_is_not_called_lost() -> None:
    few = report(demo_scenario(scale=5, malicious=0.03, attestation=False)).verdict
    assert not any("cannot be relied on" in note for note in few.notes)
    assert any("0.930 this fleet" in note for note in few.notes)


@pytest.mark.parametrize(
    ("rule", "withstood"),
    [
        ("mean", False),
        ("trimmed-mean", True),
        ("median", True),
        ({"name": "multi-krum", "f": 1}, True),
        ("geometric-median", True),
    ],
)
def test_counts_what_each_rule_leaves_out(rule: Any, withstood: bool) -> None:
    value = {**msgspec.to_builtins(demo_scenario(scale=10, malicious=0.03, attestation=False)), "rule": rule}
    scenario = msgspec.convert(value, Scenario)
    notes = report(scenario).verdict.notes
    assert any("cannot be relied on" in note for note in notes) is not withstood


def test_says_when_the_defence_made_no_difference() -> None:
    def gained(fleet: float, undefended: float) -> bool:
        notes = report(accuracies=[fleet] * 10, undefended=rounds(*[undefended] * 10)).verdict.notes
        return any("did not help" in note for note in notes)

    assert gained(0.93, 0.93)
    assert gained(0.92, 0.94)
    assert not gained(0.93, 0.9)


def test_says_what_the_fleet_lacks() -> None:
    notes = " ".join(report(demo_scenario(devices=8, masking=False)).verdict.notes)
    assert "MASKING IS OFF" in notes
    assert "Groups: 1. Nothing can be trimmed" in notes
    assert "MASKING" not in " ".join(report().verdict.notes)
    assert "not scored one by one" not in " ".join(report().verdict.notes)
    alone = demo_scenario(attestation=False, scale=1)
    assert "not scored one by one" in " ".join(report(alone).verdict.notes)


def test_says_what_a_rehearsal_leaves_out_and_whether_devices_are_scored() -> None:
    scenario = msgspec.structs.replace(
        demo_scenario(scale=5.0), transport="direct", masking="simulated", signatures=False, attestation=Attestation()
    )
    notes = " ".join(report(scenario).verdict.notes)
    assert "Left out: the broker, masks where they cancel exactly, signatures, shares and certificates." in notes
    assert "not scored one by one" not in notes and "cannot be relied on" not in notes
    watched = msgspec.structs.replace(scenario, reputation="observe")
    assert "nobody is refused or expelled" in " ".join(report(watched).verdict.notes)
    assert "Left out" not in " ".join(report().verdict.notes)
