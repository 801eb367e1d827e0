"""Who is there in a round, and who falls silent in the middle of it."""

from __future__ import annotations

from covey_protocol import topics
from covey_simulator.engine.parts import STAGES
from covey_simulator.scenario import Scenario

_ATTESTED = (topics.ATTEST, topics.ACCEPT)


class Attendance:
    """Presence by the scenario's chances; every device draws for itself.

    Args:
        scenario: Gives the chances and the seed.
        malicious: Who joins the fleet only when the attack has them join.
    """

    def __init__(self, scenario: Scenario, malicious: frozenset[int]) -> None:
        self._scenario, self._malicious = scenario, malicious
        kept = STAGES[1:] if scenario.attesting else [kind for kind in STAGES[1:] if kind not in _ATTESTED]
        self._stages = list(kept)

    def enrolled(self, number: int) -> list[int]:
        """Return the devices that belong to the fleet in a round."""
        late = self._malicious if number < self._scenario.attack.joins_at else frozenset[int]()
        return [index for index in range(self._scenario.devices) if index not in late]

    def present(self, number: int) -> list[int]:
        """Return those of them that take part in a round."""
        enrolled = self.enrolled(number)
        if self._scenario.participation == 1:
            return enrolled
        drawn = self._scenario.generator("participation", number).random(self._scenario.devices)
        return [index for index in enrolled if drawn[index] < self._scenario.participation]

    def silent_from(self, number: int, attempt: int) -> dict[int, str]:
        """Return who falls silent in an attempt, and the first message that each no longer sends."""
        if not self._scenario.dropout:
            return {}
        rng = self._scenario.generator("dropout", number, attempt)
        drops = rng.random(self._scenario.devices) < self._scenario.dropout
        stages = rng.integers(len(self._stages), size=self._scenario.devices)
        return {index: self._stages[stages[index]] for index in range(self._scenario.devices) if drops[index]}
