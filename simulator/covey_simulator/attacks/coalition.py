"""Where attackers get their view from, and what bounds their answer.

What the caller does not hand over is trained here from the devices' slices, and only if the attack looks at it: an
engine knows the honest updates already, a fleet of real agents has them under masks.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from covey_agent.data import Dataset
from covey_agent.trainer import DivergedError, Trainer
from covey_protocol.bundle import Float32
from covey_protocol.errors import ConfigError
from covey_protocol.ring import clip_norm
from covey_simulator.attacks.rounds import unclipped
from covey_simulator.attacks.success import attack_success
from covey_simulator.attacks.view import View
from covey_simulator.attacks.zoo import make_attacker
from covey_simulator.oddities import Diet
from covey_simulator.scenario import Scenario

if TYPE_CHECKING:
    from covey_simulator.adversarial import InputGradient


class Coalition:
    """The malicious devices of one run.

    Args:
        scenario: What they are in.
        trainer: Trains for them.
        slices: Every device's data, the honest ones' as well.
        malicious: Who belongs to it.
        round_number: Says which round is on, to ``update_of``. Without it, rounds are counted by the models that come
            in: each round has a new one, and a repeated attempt has the same.

    Raises:
        ConfigError: The attack names a class that the model does not have.
    """

    def __init__(
        self,
        scenario: Scenario,
        trainer: Trainer,
        slices: Sequence[Dataset],
        malicious: frozenset[int],
        *,
        round_number: Callable[[], int] | None = None,
    ) -> None:
        self.scenario, self.malicious = scenario, malicious
        self.attacker = make_attacker(scenario, malicious)
        self._trainer, self._slices, self._round_number = trainer, slices, round_number
        self._diet = Diet(scenario, trainer.bundle, slices)
        self._span = min(float(part.x.min()) for part in slices), max(float(part.x.max()) for part in slices)
        for name, label in (("source", scenario.attack.source), ("target", scenario.attack.target)):
            if label is not None and label >= trainer.bundle.manifest.classes:
                raise ConfigError(
                    f"scenario {scenario.name!r}: attack.{name} is {label}, "
                    f"the model has classes 0 to {trainer.bundle.manifest.classes - 1}"
                )
        self._lock = threading.Lock()
        self._history: list[Float32] = []
        self._answer: dict[int, Float32] = {}

    def updates(
        self,
        *,
        number: int,
        weights: Float32,
        honest: Mapping[int, Float32] | None = None,
        present: Iterable[int] | None = None,
        clip: float | None = None,
        expelled: frozenset[int] = frozenset(),
    ) -> dict[int, Float32]:
        """Return what the malicious devices of a round send, bounded as their client bounds it.

        Args:
            number: The round, from 1.
            weights: The model that it starts from.
            honest: What the honest devices send; None has them trained here when the attack asks.
            present: Which malicious devices take part; None means all.
            clip: What honest devices clip to; None takes the scenario's.
            expelled: See ``View``.
        """
        if not self._history or not np.array_equal(self._history[-1], weights):
            self._history.append(weights.copy())
        bound = self.scenario.clip if clip is None else clip
        others = [index for index in range(self.scenario.devices) if index not in self.malicious]
        taking_part = sorted(self.malicious if present is None else self.malicious.intersection(present))
        view = View(
            round=number,
            weights=weights,
            history=tuple(self._history),
            honest=self._lazily(others, number, weights, bound) if honest is None else honest,
            own=self._lazily(taking_part, number, weights, bound),
            train=lambda index, data: self._train(index, data, number, weights),
            data=self._slices.__getitem__,
            classes=self._trainer.bundle.manifest.classes,
            input_gradient=lambda data: self._gradient(weights, data),
            span=self._span,
            clip=bound,
            rng=self.scenario.generator("attack", number),
            expelled=expelled,
        )
        limit = clip_norm if self.scenario.attack.stock else unclipped
        return {index: limit(update, bound)[0] for index, update in self.attacker.updates(view).items()}

    def update_of(self, index: int, weights: Float32) -> Float32:
        """Return what one device sends for a model; the whole round is worked out when the first one asks."""
        with self._lock:
            if not self._answer or not np.array_equal(self._history[-1], weights):
                number = self._round_number() if self._round_number is not None else len(self._history) + 1
                self._answer = self.updates(number=number, weights=weights)
            return self._answer[index]

    def success(self, weights: Float32, held_out: Dataset) -> float | None:
        """Return how far the attack has reached its goal with a model, as ``attack_success`` says."""
        return attack_success(self.scenario.attack, self._trainer, weights, held_out, self._span)

    @functools.cached_property
    def _gradient(self) -> InputGradient:
        from covey_simulator.adversarial import InputGradient  # noqa: PLC0415 - onnx is heavy, and seldom needed

        return InputGradient(self._trainer.bundle)

    def _lazily(self, devices: Sequence[int], number: int, weights: Float32, clip: float) -> Mapping[int, Float32]:
        return _Lazily(
            devices,
            lambda index: clip_norm(self._train(index, self._diet.of(index, weights), number, weights), clip)[0],
        )

    def _train(self, index: int, data: Dataset, number: int, weights: Float32) -> Float32:
        """Train as the device itself would in the clear; an update that diverged counts as nothing learnt."""
        seed = self.scenario.seed_for("training", number, index)
        try:
            return self._trainer.train(weights, data, self.scenario.plan, seed=seed).update
        except DivergedError:
            return np.zeros_like(weights)


class _Lazily(Mapping[int, Float32]):
    """Updates that are trained when they are looked at."""

    def __init__(self, devices: Sequence[int], make: Callable[[int], Float32]) -> None:
        self._devices, self._make = dict.fromkeys(devices), make
        self._made: dict[int, Float32] = {}

    def __getitem__(self, index: int) -> Float32:
        if index not in self._devices:
            raise KeyError(index)
        if index not in self._made:
            self._made[index] = self._make(index)
        return self._made[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)
