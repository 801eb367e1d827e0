"""What attackers see and what they answer.

They are taken to know everything: the model, every honest update, each other's data, and how the server judges. What a
defence withstands under these terms it withstands from anybody.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from covey_agent.data import Dataset
from covey_protocol.bundle import Float32
from covey_simulator.attack_settings import Attack


@dataclass(frozen=True, eq=False, kw_only=True)
class View:
    """One round, as the coalition of all malicious devices sees it.

    Args:
        round: Its number, from 1.
        weights: The model that it starts from.
        history: The models so far, this round's last.
        honest: What each honest device sends.
        own: What each malicious device that takes part would send if it were honest.
        train: The update of a malicious device on data of its choice, not clipped.
        data: A malicious device's own data.
        classes: Number of labels.
        input_gradient: For each sample the gradient of the present model's loss with respect to the sample.
        span: The least and the greatest value of all samples.
        clip: What honest devices clip to.
        rng: Randomness of this round.
        expelled: Malicious devices that are quarantined or banned; attackers notice when they are left out.
    """

    round: int
    weights: Float32
    history: Sequence[Float32]
    honest: Mapping[int, Float32]
    own: Mapping[int, Float32]
    train: Callable[[int, Dataset], Float32]
    data: Callable[[int], Dataset]
    classes: int
    input_gradient: Callable[[Dataset], Float32]
    span: tuple[float, float]
    clip: float
    rng: np.random.Generator
    expelled: frozenset[int] = frozenset()

    @property
    def crowd(self) -> npt.NDArray[np.float64]:
        """The honest updates, one a row; those of the attackers' honest selves if nobody else is there."""
        rows = self.honest or self.own
        return np.stack([rows[index] for index in sorted(rows)]).astype(np.float64)

    def all_send(self, update: npt.NDArray[np.floating]) -> dict[int, Float32]:
        """Return the answer in which every malicious device sends the same."""
        same = update.astype(np.float32)
        return dict.fromkeys(self.own, same)


class Attacker(ABC):
    """The mind behind all malicious devices of a scenario; lives as long as the task.

    Args:
        attack: What to do, and from which round on.
        malicious: All malicious devices, also those that are not in every round.
    """

    def __init__(self, attack: Attack, malicious: frozenset[int]) -> None:
        self.attack, self.malicious = attack, malicious

    def updates(self, view: View) -> dict[int, Float32]:
        """Return what each malicious device of a round sends; honest updates before the attack's first round.

        A repeated attempt at a round may show the same view again.
        """
        return dict(view.own) if view.round < self.attack.start_round else self.poison(view)

    @abstractmethod
    def poison(self, view: View) -> dict[int, Float32]:
        """Return what each malicious device sends once the attack has begun."""

    @property
    def scale(self) -> float:
        """How hard; 1 for kinds without such a setting."""
        return 1.0 if self.attack.scale is None else self.attack.scale


def unit(vector: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return a vector of length 1 in the same direction; zeros stay."""
    length = float(np.linalg.norm(vector))
    direction: npt.NDArray[np.float64] = vector / np.float64(length or 1.0)
    return direction


def median_norm(rows: npt.NDArray[np.floating]) -> float:
    """Return the median length of some rows."""
    return float(np.median(np.linalg.norm(rows, axis=1)))
