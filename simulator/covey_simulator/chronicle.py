"""What is thought of the devices from round to round, whoever plays the aggregator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Opinion:
    """What is thought of one device.

    Attributes:
        state: In a word.
        expelled: Whether that keeps its updates out.
        score: 0 to 1, or None where devices are not scored.
        reason: In words.
    """

    state: str
    expelled: bool = False
    score: float | None = None
    reason: str | None = None


@dataclass
class Chronicle:
    """Opinions over a run.

    Attributes:
        quarantined_at: The round in which devices were expelled first, by name.
        scores: Each device's score after every round, by name; None where it had none.
        opinions: What was thought of the devices last.
        expelled: Who was expelled after each round.
    """

    quarantined_at: dict[str, int] = field(default_factory=dict)
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    opinions: dict[str, Opinion] = field(default_factory=dict)
    expelled: list[frozenset[str]] = field(default_factory=list)

    def note(self, number: int, opinions: Mapping[str, Opinion], names: Sequence[str]) -> None:
        """Take what is thought after a round.

        Args:
            number: The round.
            opinions: Of every device that is scored; empty where nobody is.
            names: All devices.
        """
        self.opinions = dict(opinions)
        self.expelled.append(frozenset(name for name, opinion in opinions.items() if opinion.expelled))
        for name in self.expelled[-1]:
            self.quarantined_at.setdefault(name, number)
        for name in names if opinions else ():
            opinion = opinions.get(name)
            self.scores.setdefault(name, []).append(opinion.score if opinion is not None else None)
