"""What is kept of a round when it is over."""

from __future__ import annotations

import msgspec

from covey_protocol.noise import Noise


class GroupRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How one group fared; ``cause`` and ``reason`` are empty for a group that closed.

    ``survivors`` are in the sum. ``published`` is the set that was published to be signed for it, also when the group
    aborted behind that: U, or A where sketches are attested. ``rejected`` are those of U who are not in A.
    """

    group: str
    members: list[str]
    survivors: list[str]
    published: list[str] = []
    rejected: list[str] = []
    cause: str = ""
    reason: str = ""


class RoundRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One round of one task.

    ``accuracy`` and ``loss`` are of the new model on the held-out data, ``federated_accuracy`` and
    ``federated_loss`` of the model that the round began with, on the devices' own data: medians over groups of masked
    means. ``participants`` joined, ``accepted`` are in the sum, ``dropped`` joined but did not finish. Bytes are
    payload bytes that the aggregator received and published. ``seconds`` counts from OPEN to CLOSE, the time included
    in which the aggregator was down; ``resumed`` says how often it took the round up again. ``sketch`` is k, 0 for a
    round without sketches; ``attested`` devices told one, and ``rejected`` sent an update that was not summed. ``flag``
    says what is doubtful about the new model, if anything is. ``noise`` is what devices added; in rounds with noise
    they tell no metrics.
    """

    round: int
    attempt: int
    accuracy: float | None
    loss: float | None
    federated_accuracy: float | None
    federated_loss: float | None
    participants: int
    accepted: int
    rejected: int
    dropped: int
    groups: int
    groups_aborted: int
    seconds: float
    stage_seconds: dict[str, float]
    bytes_up: int
    bytes_down: int
    model: str
    clip: float
    update_norm: float | None
    details: list[GroupRecord]
    resumed: int = 0
    sketch: int = 0
    attested: int = 0
    flag: str = ""
    noise: Noise | None = None

    @staticmethod
    def aborted(round_: int, attempt: int, model: str, clip: float, details: list[GroupRecord]) -> RoundRecord:
        """Return the record of a round of which nothing is known but that it is over."""
        return RoundRecord(
            round=round_,
            attempt=attempt,
            accuracy=None,
            loss=None,
            federated_accuracy=None,
            federated_loss=None,
            participants=0,
            accepted=0,
            rejected=0,
            dropped=0,
            groups=len(details),
            groups_aborted=len(details),
            seconds=0.0,
            stage_seconds={},
            bytes_up=0,
            bytes_down=0,
            model=model,
            clip=clip,
            update_norm=None,
            details=details,
        )
