"""Manipulated training inputs: what the camera saw is not what is trained on."""

from __future__ import annotations

from covey_protocol.bundle import Float32
from covey_simulator.attacks.view import Attacker, View


class PerturbedInputs(Attacker):
    """Trains on its own samples, perturbed against the incoming model; labels stay, the client is everybody's.

    With one step this is FGSM (Goodfellow, Shlens and Szegedy 2015, "Explaining and harnessing adversarial examples"),
    with more PGD (Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks").
    """

    def poison(self, view: View) -> dict[int, Float32]:
        """Return each device's update on perturbed samples."""
        assert self.attack.epsilon is not None and self.attack.steps is not None
        epsilon, steps = self.attack.epsilon, self.attack.steps
        from covey_simulator.adversarial import perturbed  # noqa: PLC0415 - onnx is heavy, and seldom needed

        return {
            index: view.train(index, perturbed(view.data(index), view.input_gradient, epsilon, steps, view.span))
            for index in view.own
        }
