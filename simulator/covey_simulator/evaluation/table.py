"""All results of an evaluation, by place: means and worst cases over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from covey_simulator.evaluation.grid import NONE, Cell
from covey_simulator.evaluation.jobs import Job
from covey_simulator.evaluation.measure import Part, Result


class Place(NamedTuple):
    """A row of the tables: what is not the seed."""

    setting: str
    attack: str
    fraction: float


@dataclass(frozen=True)
class Spread:
    """Numbers over seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return float(np.mean(self.values))

    @property
    def least(self) -> float:
        """The smallest."""
        return min(self.values)

    @property
    def most(self) -> float:
        """The largest."""
        return max(self.values)


class Table:
    """Results by place and part.

    Args:
        results: What the jobs gave. Cells over a broker stand apart: their seeds are there in another row already.
    """

    def __init__(self, results: Mapping[Job, Result]) -> None:
        self._results: dict[tuple[Place, Part], dict[int, Result]] = {}
        self.broker: dict[Cell, Result] = {}
        self.levels: dict[str, int] = {}
        for job, result in results.items():
            cell = job.cell
            if job.part == "covey":
                self.levels[cell.level] = self.levels.get(cell.level, 0) + 1
            if cell.level == "broker":
                self.broker[cell] = result
                continue
            place = Place(cell.setting, cell.attack, cell.fraction)
            self._results.setdefault((place, job.part), {})[cell.seed] = result

    def places(self) -> list[Place]:
        """Return all places, in the order of their cells."""
        return list(dict.fromkeys(place for place, _ in self._results))

    def seeds(self) -> list[int]:
        """Return all seeds."""
        return sorted({seed for by_seed in self._results.values() for seed in by_seed})

    def results(self, place: Place, part: Part = "covey") -> dict[int, Result]:
        """Return a place's results by seed; none where it was not run."""
        return self._results.get((place, part), {})

    def spread(self, place: Place, value: Callable[[Result], float | None], part: Part = "covey") -> Spread | None:
        """Return a number over the seeds; None where it is not known."""
        return _spread(value(result) for result in self.results(place, part).values())

    def lost(self, place: Place) -> Spread | None:
        """Return, over seeds, by how much accuracy falls behind the same fleet without attack."""
        calm = self.results(Place(place.setting, NONE, 0.0))
        ours = self.results(place)
        return _spread(calm[seed].accuracy - result.accuracy for seed, result in ours.items() if seed in calm)

    def behind_fedavg(self, place: Place) -> Spread | None:
        """Return, over seeds, by how much accuracy falls behind FedAvg on clear updates in the same place."""
        clear, ours = self.results(place, "fedavg"), self.results(place)
        return _spread(clear[seed].accuracy - result.accuracy for seed, result in ours.items() if seed in clear)


def _spread(values: Iterable[float | None]) -> Spread | None:
    known = tuple(value for value in values if value is not None)
    return Spread(known) if known else None
