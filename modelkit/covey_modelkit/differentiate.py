"""Reverse-mode differentiation of an ONNX graph: a walk from the outputs back to what is to be learnt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from covey_modelkit.gradients import RULES, STOPS, Call, Rule
from covey_modelkit.graph import GraphWriter
from covey_protocol.errors import ConfigError


def influenced(nodes: Sequence[onnx.NodeProto], wrt: Sequence[str]) -> set[str]:
    """Return the tensors that change when those of ``wrt`` do."""
    active = set(wrt)
    for node in nodes:
        if node.op_type not in STOPS and not active.isdisjoint(node.input):
            active.update(name for name in node.output if name)
    return active


def differentiate(
    writer: GraphWriter, nodes: Sequence[onnx.NodeProto], seeds: Mapping[str, str], wrt: Sequence[str]
) -> dict[str, str]:
    """Append the nodes that compute the gradient of a loss.

    Args:
        writer: Where the nodes go.
        nodes: The forward graph, in topological order as ONNX requires.
        seeds: For each output that the loss reads, the name of the loss's gradient with respect to it.
        wrt: The tensors whose gradient is wanted: parameters, inputs, or anything in between.

    Returns:
        Name of the gradient of each tensor of ``wrt``, in that order; those without influence are left out.

    Raises:
        ConfigError: A node on the way has no gradient rule.
    """
    active = influenced(nodes, wrt)
    pending: dict[str, list[str]] = {output: [gradient] for output, gradient in seeds.items()}
    for node in reversed(nodes):
        # Every reader of this node's outputs comes later, so has been visited: the sums are complete.
        gradients = tuple(_total(writer, pending, name) for name in node.output)
        wanted = frozenset(position for position, name in enumerate(node.input) if name in active)
        if not wanted or node.op_type in STOPS or all(gradient is None for gradient in gradients):
            continue
        for position, gradient in _rule_for(node)(Call(node, writer, gradients, wanted)).items():
            if position in wanted:
                pending.setdefault(node.input[position], []).append(gradient)
    found = {name: _total(writer, pending, name) for name in wrt}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def _total(writer: GraphWriter, pending: dict[str, list[str]], tensor: str) -> str | None:
    """Sum the gradients that the readers of a tensor sent back."""
    parts = pending.get(tensor)
    if not parts:
        return None
    if len(parts) > 1:
        pending[tensor] = parts = [writer.emit("Sum", parts, f"gradient.{tensor}")]
    return parts[0]


def _rule_for(node: onnx.NodeProto) -> Rule:
    rule = RULES.get(node.op_type)
    if rule is None:
        raise ConfigError(
            f"node {node.name!r} uses operator {node.op_type}, which covey cannot train through; replace it "
            f"by operators among {', '.join(sorted(RULES))}, train only what comes after it (--train), or move it "
            "into the preparation of the data"
        )
    return rule
