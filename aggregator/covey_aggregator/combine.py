"""From the groups' sums to a new model: the heavy part of a round's close, done off the event loop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from covey_aggregator.evaluate import Evaluator
from covey_aggregator.rules import AnyRule, Row, cap_norms, spoilt_groups, whole_groups
from covey_aggregator.rules.influence import Influence, weighted_median
from covey_protocol import model
from covey_protocol.model import Weights
from covey_protocol.prg import Ring
from covey_protocol.ring import Metrics, RingScale, decode_mean, norm, out_of_range

_DITHER = 1e-4
_TRIMMABLE = 2  # of fewer groups nothing can be trimmed, whatever is expected
_CAUTION = 0.5


@dataclass(frozen=True)
class GroupMean:
    """One group's outcome: mean update, shape (d,), mean metrics if any are told, and how many are in it."""

    update: Weights
    metrics: Metrics | None
    count: int


@dataclass(frozen=True)
class Combined:
    """A round's outcome."""

    weights: Weights
    delta: bytes
    accuracy: float | None
    loss: float | None
    federated_accuracy: float | None
    federated_loss: float | None
    update_norm: float | None
    flag: str = ""


def group_mean(total: Ring, count: int, scale: RingScale) -> GroupMean | None:
    """Decode a group's sum; None if no honest members can have produced it."""
    if out_of_range(total, count, scale):
        return None
    update, metrics = decode_mean(total, count, scale)
    return GroupMean(update, metrics if scale.noise is None else None, count)


def combine(
    weights: Weights,
    groups: Mapping[str, GroupMean],
    *,
    rule: AnyRule,
    contamination: float,
    evaluator: Evaluator | None,
    influence: Mapping[str, float] | None = None,
) -> Combined:
    """Combine the groups' means into the next model.

    Args:
        weights: The round's model.
        groups: At least one group.
        rule: Works across groups; with fewer than three there is nothing to trim.
        contamination: Share of hostile devices to be expected among those in the groups.
        evaluator: Measures the new model on held-out data, where there is any.
        influence: What each group counts for, above 0 and at most 1; None is 1 for all.

    Returns:
        The new model, reached exactly by the 16-bit delta that devices fetch. Where more groups may be spoilt than a
        robust rule withstands, the step is kept short, and ``flag`` says so.

    Raises:
        LocalError: A group's mean is not finite; the message names the group.
    """
    names = sorted(groups)
    means = [groups[name] for name in names]
    counts = np.array([influence[name] if influence else 1.0 for name in names])
    counts /= counts.max()
    rows = cap_norms([mean.update for mean in means], names=names, influence=counts)
    spoilt = spoilt_groups([mean.count for mean in means], contamination)
    step, flag = rule(rows, spoilt, None if counts.min() == 1 else counts), ""
    whole = whole_groups(counts)
    if whole > _TRIMMABLE and spoilt > (withstood := rule.withstands(whole, spoilt)) > 0:
        step = cap_step(step, rows, counts)
        flag = (
            f"{spoilt} of {len(rows)} groups may be spoilt and the rule withstands {withstood}: a short step was taken"
        )
    delta = model.make_delta(step)
    updated = model.apply_delta(weights, delta)
    loss, accuracy = evaluator(updated) if evaluator else (None, None)
    return Combined(
        weights=updated,
        delta=delta,
        accuracy=accuracy,
        loss=loss,
        federated_accuracy=_median("accuracy", means),
        federated_loss=_median("loss", means),
        update_norm=_median("norm", means),
        flag=flag,
    )


def _median(metric: str, means: Sequence[GroupMean]) -> float | None:
    """Return the median over groups of a metric, None where none is told."""
    told = [getattr(mean.metrics, metric) for mean in means if mean.metrics is not None]
    return float(np.median(told)) if told else None


def cap_step(step: Row, rows: Sequence[Row], influence: Influence) -> Row:
    """Shorten a step that may be poisoned to half the groups' median norm at most; its direction stays."""
    cap, size = _CAUTION * weighted_median(np.array([norm(row) for row in rows]), influence), norm(step)
    return step if size <= cap else step * np.float32(cap / size)


def dithered(weights: Weights, entropy: bytes) -> bytes:
    """Return a delta to a model that differs by a ten-thousandth of its size, in random directions.

    A round that failed after devices had signed a set cannot be tried again on the same model: they sign one set for
    one model, ever. The new one is close to the old, and what that can reveal is stated in the threat model.
    """
    size = float(np.linalg.norm(weights)) / math.sqrt(max(1, len(weights))) or 1.0
    rng = np.random.default_rng(int.from_bytes(entropy, "big"))
    return model.make_delta(rng.uniform(-1, 1, len(weights)).astype(np.float32) * np.float32(_DITHER * size))
