"""The gradient of each operator, written in operators, one module a family.

A rule gets one node of the forward graph and the gradient of the loss with respect to the node's outputs; it appends
nodes and returns the gradient with respect to each input that is wanted. To support one more operator, add one function
to the family that it belongs to::

    @gradient("Neg")
    def _neg(call: Call) -> Gradients:
        return {0: call.emit("Neg", call.gradient)}

``STOPS`` lists operators whose result does not change when their input does by a little: no gradient passes them. A
loss is a rule without an incoming gradient; ``LOSSES`` has them by name.
"""

from __future__ import annotations

from covey_modelkit.gradients import convolution, elementwise, linear, normalisation, pooling, reductions, shape
from covey_modelkit.gradients.losses import LOSSES, Loss
from covey_modelkit.gradients.registry import RULES, STOPS, Call, Gradients, Rule, gradient

__all__ = ["FAMILIES", "LOSSES", "RULES", "STOPS", "Call", "Gradients", "Loss", "Rule", "gradient"]

FAMILIES = (elementwise, linear, convolution, pooling, normalisation, shape, reductions)
