"""The verdict on a run, in words.

It never hides a number: what the fleet reached, what the same fleet reaches without a defence and without an attack all
stand in it, also where the defence did not help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from covey_aggregator.rules import CONTAMINATION, rule_name, spoilt_groups
from covey_aggregator.rules.mean import Mean
from covey_protocol.epochs import cut
from covey_simulator.data import device_names
from covey_simulator.records import Baseline, RoundRecord, Verdict, final_accuracy
from covey_simulator.scenario import DEMO_CLIP, DEMO_PLAN, Scenario

DEMO_ACCURACY = 0.90
DEMO_ACCURACY_OF_GROUPS_ALONE = 0.85
STRONG_SCALE = 5.0
# Closer together than this two runs are called equal: 359 held-out digits make one sample 0.28 points, and runs on
# other training seeds differ by about a point.
SAME = 0.01


def judge(
    scenario: Scenario,
    rounds: Sequence[RoundRecord],
    baselines: Mapping[str, Baseline],
    failures: Sequence[str] = (),
    *,
    expelled: int | None = None,
) -> Verdict:
    """Say whether a run did what was promised for its scenario.

    Args:
        scenario: What was run.
        rounds: What the fleet did.
        baselines: What the same fleet does in the clear.
        failures: What went wrong beyond the rounds' own records.
        expelled: How many of the malicious devices are out, where that is known.
    """
    bad, good = list(failures), []
    ran = {record.round for record in rounds}
    missing = [number for number in range(1, scenario.rounds + 1) if number not in ran]
    if missing:
        bad.append(f"{len(missing)} of {scenario.rounds} rounds are missing: {_listed(missing)}.")
    else:
        good.append(f"All {scenario.rounds} rounds were run.")
    failed = [record.round for record in rounds if record.failed]
    if failed:
        bad.append(f"Rounds in which no update was accepted: {_listed(failed)}.")
    reached, promised = final_accuracy(rounds), promised_accuracy(scenario)
    if reached is not None and promised is not None:
        sentence = f"Final accuracy {reached:.3f} on held-out samples; at least {promised:.2f} is promised here."
        (good if reached >= promised else bad).append(sentence)
    elif reached is not None:
        good.append(f"Final accuracy {reached:.3f} on held-out samples; nothing is promised for this scenario.")
    if expelled is not None and promises_expulsion(scenario):
        sentence = f"{expelled} of {scenario.malicious_count} malicious devices are expelled; all are promised here."
        (good if expelled >= scenario.malicious_count else bad).append(sentence)
    return Verdict(
        ok=not bad,
        promised_accuracy=promised,
        reasons=[*bad, *good],
        notes=[*_notes(scenario, reached, baselines), *_spent(scenario, rounds)],
    )


def promised_accuracy(scenario: Scenario) -> float | None:
    """Return the accuracy that this scenario must reach, or None where none is promised.

    Promised is what the demo was tuned and checked for: its data, plan and clip, at least ten rounds, at most a hundred
    devices of which at most a fifth flip the sign of their update; where nobody attests, of an unscaled one.
    """
    attack, attested = scenario.attack, scenario.attesting is not None and scenario.reputation == "enforce"
    mild = scenario.malicious_count == 0 or (
        attack.kind == "sign-flip" and attack.fraction <= 0.2 and (attested or (attack.scale or 0) <= 1)
    )
    demo = (
        scenario.data.source == "digits"
        and scenario.model.preset is not None
        and scenario.partition.dirichlet is None
        and scenario.samples_per_device == 0
        and scenario.plan == DEMO_PLAN
        and scenario.clip == DEMO_CLIP
    )
    if not (mild and demo and not scenario.privacy.on and scenario.rounds >= 10 and scenario.devices <= 100):
        return None
    return DEMO_ACCURACY if attested else DEMO_ACCURACY_OF_GROUPS_ALONE


def promises_expulsion(scenario: Scenario) -> bool:
    """Say whether all malicious devices must be out in the end: where an accuracy is promised under a strong attack."""
    attested = scenario.attesting is not None and scenario.reputation == "enforce"
    strong = (scenario.attack.scale or 0) >= STRONG_SCALE
    return attested and strong and scenario.malicious_count > 0 and promised_accuracy(scenario) is not None


def _notes(scenario: Scenario, reached: float | None, baselines: Mapping[str, Baseline]) -> list[str]:
    attack, notes = scenario.attack, []
    numbers = _numbers(reached, baselines)
    plain = isinstance(scenario.across_groups, Mean)
    rule = "The plain mean" if plain else f"The {rule_name(scenario.across_groups).replace('-', ' ')}"
    if scenario.malicious_count:
        clips = (
            f"They run everybody's client, which clips to {scenario.clip:g}."
            if attack.stock
            else f"They do not clip their updates; the others clip to {scenario.clip:g}."
        )
        notes.append(
            f"{scenario.malicious_count} of {scenario.devices} devices are malicious: {attack.words} from round "
            f"{attack.start_round}. {clips}"
        )
        strong = scenario.attesting is None and (attack.scale or 0) >= STRONG_SCALE
        if strong and scenario.malicious_count > _groups_withstood(scenario):
            notes.append(
                f"{rule} across masked groups alone cannot be relied on against this attack yet, however this run "
                f"ended: {scenario.malicious_count} malicious devices can spoil more groups than it withstands "
                f"({_groups_withstood(scenario)} of {_group_count(scenario)}), and inside a group nobody can tell them "
                f"from the others. {numbers}"
            )
        elif numbers:
            notes.append(numbers)
        bare = baselines.get("undefended")
        if bare is not None and bare.final_accuracy is not None and reached is not None:
            gained = reached - bare.final_accuracy
            if gained < SAME:
                notes.append(
                    f"{rule} did not help in this run: against the undefended baseline it gains "
                    f"{100 * gained:+.1f} points."
                )
        if scenario.attesting is None:
            notes.append(
                "Devices are not scored one by one: under the masks only sums of groups are seen, so nobody is "
                "expelled."
            )
        elif scenario.reputation == "observe":
            notes.append("Reputations are only observed: devices are scored, and nobody is refused or expelled.")
    if not plain and _group_count(scenario) < 3:
        notes.append(f"Groups: {_group_count(scenario)}. Nothing can be trimmed across fewer than three.")
    if scenario.masking and scenario.transport == "direct":
        notes.append(_rehearsed(scenario))
    if not scenario.masking:
        notes.append("MASKING IS OFF: the aggregator sees every single update. For laboratories only.")
    return notes


def _spent(scenario: Scenario, rounds: Sequence[RoundRecord]) -> list[str]:
    """Say what the rounds have cost in privacy."""
    epsilon = rounds[-1].epsilon if rounds else None
    if epsilon is None:
        return []
    said = f"{len(rounds)} rounds cost a device epsilon {epsilon:.3g} at delta {scenario.privacy.delta:g}."
    if scenario.attesting is not None:
        said += " Sketches are counted as if each told the device's whole noisy update."
    return [f"Devices add noise: {said}"]


def _rehearsed(scenario: Scenario) -> str:
    left_out = ["the broker"]
    if scenario.masking == "simulated":
        left_out.append("masks where they cancel exactly")
    if not scenario.signatures:
        left_out.append("signatures, shares and certificates")
    return f"Rehearsed in one process. Left out: {', '.join(left_out)}. What is learnt is the same."


def _group_count(scenario: Scenario) -> int:
    return len(_group_sizes(scenario))


def _group_sizes(scenario: Scenario) -> list[int]:
    return [len(group) for group in cut(device_names(scenario.devices), scenario.group_size)]


def _groups_withstood(scenario: Scenario) -> int:
    sizes = _group_sizes(scenario)
    return scenario.across_groups.withstands(len(sizes), spoilt_groups(sizes, CONTAMINATION))


def _numbers(reached: float | None, baselines: Mapping[str, Baseline]) -> str:
    shown = [(baselines[key].final_accuracy, words) for key, words in _WORDS.items() if key in baselines]
    if reached is None or not shown:
        return ""
    rest = ", ".join(f"{value:.3f} {words}" for value, words in shown if value is not None)
    return f"Final accuracy: {reached:.3f} this fleet, {rest}."


_WORDS = {"undefended": "undefended (clear baseline)", "no_attack": "without attack (clear baseline)"}


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:10])
    return shown if len(numbers) <= 10 else f"{shown} and {len(numbers) - 10} more"
