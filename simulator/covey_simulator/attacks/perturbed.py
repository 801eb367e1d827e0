"""Manipulated training inputs: what the camera saw is not what is trained on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from covey_agent.data import Dataset
from covey_protocol.bundle import Float32
from covey_simulator.attacks.view import Attacker, View

STEP_SHARE = 2.5


class PerturbedInputs(Attacker):
    """Trains on its own samples, perturbed against the incoming model; labels stay, the client is everybody's.

    With one step this is FGSM (Goodfellow, Shlens and Szegedy 2015, "Explaining and harnessing adversarial examples"),
    with more PGD (Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks").
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return each device's update on perturbed samples."""
        assert self.attack.epsilon is not None and self.attack.steps is not None
        epsilon, steps = self.attack.epsilon, self.attack.steps
        return {
            index: view.train(index, perturbed(view.data(index), view.input_gradient, epsilon, steps, view.span))
            for index in view.own
        }


def perturbed(
    data: Dataset, gradient: Callable[[Dataset], Float32], epsilon: float, steps: int, span: tuple[float, float]
) -> Dataset:
    """Return samples moved up the loss: x ← Π(x + α · sign ∂loss/∂x), ``steps`` times.

    Π keeps every value within ``epsilon`` of where it was and within the span; α is ε for one step, else 2.5 ε / steps.

    Args:
        data: The samples as they are.
        gradient: Of the loss with respect to each sample.
        epsilon: Bound on the change of each value.
        steps: How many.
        span: The least and the greatest value that a sample may have.
    """
    stride = np.float32(epsilon if steps == 1 else STEP_SHARE * epsilon / steps)
    low, high = np.maximum(data.x - epsilon, span[0]), np.minimum(data.x + epsilon, span[1])
    x = data.x
    for _ in range(steps):
        x = np.clip(x + stride * np.sign(gradient(Dataset(x, data.y))), low, high).astype(np.float32)
    return Dataset(x, data.y)
