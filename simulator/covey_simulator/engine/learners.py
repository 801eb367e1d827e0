"""Training in a rehearsed fleet: what every device that takes part in a round hands in."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from covey_agent.data import Dataset
from covey_agent.trainer import DivergedError, Trainer, TrainResult
from covey_protocol.bundle import Float32
from covey_protocol.ring import clip_norm
from covey_simulator.attacks import Coalition
from covey_simulator.engine.parts import Work
from covey_simulator.oddities import Diet
from covey_simulator.scenario import Scenario

log = logging.getLogger("covey.simulator.engine")


class Learners:
    """All devices' training, by index.

    A device's batches follow from the scenario's seed, the round and the device, whatever level the fleet is rehearsed
    at, and in the clear baselines too.

    Args:
        scenario: What is run.
        trainer: Trains for everybody.
        slices: The devices' samples.
        malicious: Who attacks; nobody for a run without attack.
    """

    def __init__(
        self, scenario: Scenario, trainer: Trainer, slices: Sequence[Dataset], malicious: frozenset[int]
    ) -> None:
        self.scenario, self.trainer, self.slices, self.malicious = scenario, trainer, slices, malicious
        self._diet = Diet(scenario, trainer.bundle, slices)
        self._coalition = Coalition(scenario, trainer, slices, malicious) if malicious else None

    def works(
        self,
        number: int,
        weights: Float32,
        *,
        present: Sequence[int],
        clip: float,
        expelled: frozenset[int] = frozenset(),
    ) -> dict[int, Work]:
        """Return what those who are present hand in; whose training diverges sits the round out.

        Args:
            number: The round.
            weights: Its model.
            present: Who takes part.
            clip: What honest devices clip to.
            expelled: Who is kept out for what they did; attackers see that of their own.
        """
        works = {}
        for index in present:
            if index not in self.malicious:
                result = self._train(number, weights, index)
                if result is not None:
                    works[index] = Work(result)
        hostile = [index for index in present if index in self.malicious]
        if self._coalition is not None and hostile:
            honest = {index: clip_norm(work.result.update, clip)[0] for index, work in works.items()}
            poison = self._coalition.updates(
                number=number,
                weights=weights,
                honest=honest,
                present=hostile,
                clip=clip,
                expelled=expelled & self.malicious,
            )
            works |= {index: self._poisoned(weights, index, update) for index, update in poison.items()}
        return works

    def updates(self, works: Mapping[int, Work], clip: float) -> dict[int, Float32]:
        """Return the updates as they leave the devices, before any rounding."""
        return {
            index: clip_norm(work.result.update, clip)[0] if work.clips else work.bounded(clip)[0]
            for index, work in works.items()
        }

    def success(self, weights: Float32, held_out: Dataset) -> float | None:
        """Return how far the attack has reached its goal with a model; None for attacks without such a goal."""
        return self._coalition.success(weights, held_out) if self._coalition is not None else None

    def _train(self, number: int, weights: Float32, index: int) -> TrainResult | None:
        scenario = self.scenario
        seed = scenario.seed_for("training", number, index)
        try:
            return self.trainer.train(weights, self._diet.of(index, weights), scenario.plan, seed=seed)
        except DivergedError as error:
            log.warning("round %d: device %d sits it out: %s", number, index + 1, error)
            return None

    def _poisoned(self, weights: Float32, index: int, update: Float32) -> Work:
        data = self.slices[index]
        loss, accuracy = self.trainer.evaluate(weights, data)
        steps = self.scenario.plan.steps_for(len(data))
        return Work(TrainResult(update, loss, accuracy, len(data), steps), clips=self.scenario.attack.stock)
