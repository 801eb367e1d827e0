"""CLEAR AND UNDEFENDED: the same fleet in one process, to compare with and for nothing else.

No masks, no signatures, no network: every single update is seen. It trains with the real trainer on the real slices,
with the same attackers (who do not clip) and the same clip for all others, so that what is left of a difference is
Covey's own doing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from covey_agent.data import Dataset
from covey_agent.trainer import DivergedError, Trainer
from covey_aggregator.rules import CONTAMINATION, RuleField, cap_norms, spoilt_groups
from covey_aggregator.rules import rule as find_rule
from covey_aggregator.rules.mean import Mean
from covey_protocol.bundle import Bundle, Float32
from covey_protocol.epochs import cut
from covey_protocol.ring import clip_norm
from covey_simulator.attacks import Coalition, malicious_devices
from covey_simulator.data import device_names
from covey_simulator.oddities import Diet
from covey_simulator.records import RoundRecord
from covey_simulator.scenario import Scenario

__all__ = ["RoundRecord", "run_clear"]

log = logging.getLogger("covey.simulator.baseline")


def run_clear(
    scenario: Scenario,
    *,
    attacked: bool,
    rule: RuleField,
    slices: Sequence[Dataset],
    held_out: Dataset,
    bundle: Bundle,
    on_round: Callable[[RoundRecord], None] | None = None,
) -> list[RoundRecord]:
    """Run a scenario's fleet in the clear.

    Each device's training seed follows from the scenario's seed, the round and the device, so the result is the same
    every time, and two baselines differ only in what their arguments say.

    Args:
        scenario: What to run.
        attacked: Whether the malicious devices attack; otherwise they are as honest as the rest.
        rule: ``mean`` is FedAvg over all devices with equal weights; other rules combine the means of groups that are
            cut like the fleet's, by the scenario's seed.
        slices: The devices' samples.
        held_out: What each round's new model is measured on.
        bundle: The model to start with.
        on_round: Told of each round as it ends.

    Raises:
        ConfigError: The rule is unknown.
        ValueError: The slices are not one for each device.
    """
    if len(slices) != scenario.devices:
        raise ValueError(f"{len(slices)} slices for {scenario.devices} devices")
    combine = find_rule(rule)
    log.warning(
        "CLEAR baseline (%s, rule %s): no masks, single updates are seen", "attacked" if attacked else "honest", combine
    )
    trainer = Trainer(bundle)
    malicious = malicious_devices(scenario) if attacked else frozenset[int]()
    diet = Diet(scenario, bundle, slices)
    coalition = Coalition(scenario, trainer, slices, malicious) if malicious else None
    groups = [list(range(scenario.devices))] if isinstance(combine, Mean) else _groups(scenario)
    weights = bundle.weights.copy()
    records = []
    for number in range(1, scenario.rounds + 1):
        started = time.perf_counter()
        updates = {
            index: update
            for index in range(scenario.devices)
            if index not in malicious
            and (update := _update(scenario, trainer, weights, diet.of(index, weights), number=number, index=index))
            is not None
        }
        hostile = malicious if number >= scenario.attack.joins_at else frozenset[int]()
        if coalition is not None:
            updates |= coalition.updates(number=number, weights=weights, honest=dict(updates), present=hostile)
        trained = time.perf_counter()
        rows, counts = [], []
        for group in groups:
            arrived = [updates[index] for index in group if index in updates]
            if arrived:
                rows.append(np.mean(arrived, axis=0).astype(np.float32))
                counts.append(len(arrived))
        if rows:
            weights = weights + combine(cap_norms(rows), spoilt_groups(counts, CONTAMINATION))
        combined = time.perf_counter()
        loss, accuracy = trainer.evaluate(weights, held_out)
        ended = time.perf_counter()
        here = scenario.devices - len(malicious) + len(hostile)
        records.append(
            RoundRecord(
                round=number,
                accuracy=accuracy,
                loss=loss,
                participants=here,
                accepted=len(updates),
                groups=len(rows),
                groups_aborted=len(groups) - len(rows),
                dropped=here - len(updates),
                seconds=ended - started,
                stage_seconds={
                    "training": trained - started,
                    "combining": combined - trained,
                    "evaluating": ended - combined,
                },
            )
        )
        if on_round is not None:
            on_round(records[-1])
    return records


def _update(
    scenario: Scenario, trainer: Trainer, weights: Float32, data: Dataset, *, number: int, index: int
) -> Float32 | None:
    """Return an honest device's update, clipped; None if its training diverged, which any device sits out."""
    try:
        result = trainer.train(weights, data, scenario.plan, seed=scenario.seed_for("training", number, index))
    except DivergedError as error:
        log.warning("clear baseline: round %d: device %d sits it out: %s", number, index + 1, error)
        return None
    return clip_norm(result.update, scenario.clip)[0]


def _groups(scenario: Scenario) -> list[list[int]]:
    order = scenario.generator("clear groups").permutation(scenario.devices)
    names = device_names(scenario.devices)
    index = {name: number for number, name in enumerate(names)}
    return [[index[name] for name in group] for group in cut([names[i] for i in order], scenario.group_size)]
