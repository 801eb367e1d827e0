"""How far an attack with a goal has reached it."""

from __future__ import annotations

from covey_agent.data import Dataset
from covey_agent.trainer import Trainer
from covey_protocol.bundle import Float32
from covey_simulator.attack_settings import Attack
from covey_simulator.attacks.backdoor import Trigger


def attack_success(
    attack: Attack, trainer: Trainer, weights: Float32, held_out: Dataset, span: tuple[float, float]
) -> float | None:
    """Return the share of held-out samples that the model takes for the attackers' target, as they wish.

    For backdoors these are the samples of all other classes with the whole trigger on them, for the targeted label-flip
    those of the source class.

    Args:
        attack: Theirs.
        trainer: Evaluates.
        weights: The model.
        held_out: Samples that nobody trained on.
        span: The least and the greatest value of the samples.

    Returns:
        None where the attack has no target, or nothing held out is of the kind.
    """
    if attack.target is None:
        return None
    if attack.source is not None:
        wanted, x = held_out.y == attack.source, held_out.x
    else:
        wanted, x = held_out.y != attack.target, Trigger(*span).stamped(held_out.x)
    if not wanted.any():
        return None
    targets = held_out.y[wanted] * 0 + attack.target
    return trainer.evaluate(weights, Dataset(x[wanted], targets))[1]
