"""A scenario at the level in this process that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_aggregator.probes import Gradients, Probes
from covey_simulator.attacks import malicious_devices
from covey_simulator.engine.conductor import Conductor, Play, Step
from covey_simulator.engine.draws import Draws
from covey_simulator.engine.judge import make_judge
from covey_simulator.engine.learners import Learners
from covey_simulator.engine.parts import Rounds
from covey_simulator.engine.plain import PlainRounds
from covey_simulator.engine.signed import SignedRounds
from covey_simulator.records import RoundRecord
from covey_simulator.scenario import Scenario


def rehearse(
    scenario: Scenario,
    trainer: Trainer,
    slices: Sequence[Dataset],
    held_out: Dataset,
    *,
    rounds: Rounds | None = None,
    on_round: Callable[[RoundRecord], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Play:
    """Run a scenario in this process, without a broker.

    The same scenario gives the same result every time, and at every level.

    Args:
        scenario: What is run; its transport is ``direct``.
        trainer: Trains for all devices, from its bundle's weights on.
        slices: The devices' samples.
        held_out: What each round's new model is measured on.
        rounds: The level; None takes the one that the scenario asks for.
        on_round: Told of each round as it ends.
        on_step: Told of each attempt, with all that came of it.
    """
    malicious = malicious_devices(scenario) if scenario.malicious_count else frozenset[int]()
    learners = Learners(scenario, trainer, slices, malicious)
    probes = Probes(Gradients(trainer.bundle, held_out.x, held_out.y)) if scenario.probes else None
    judge = make_judge(scenario, probes)
    level = rounds if rounds is not None else make_rounds(scenario)
    return Conductor(scenario, level, learners, judge, held_out, on_step=on_step).run(on_round)


def make_rounds(scenario: Scenario) -> Rounds:
    """Return the level that a scenario asks for."""
    if scenario.signatures:
        return SignedRounds(scenario)
    return PlainRounds(Draws(scenario), group_size=scenario.group_size)
