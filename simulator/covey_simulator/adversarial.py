"""Adversarial samples: the loss's slope at the samples themselves, and samples moved up it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from covey_agent.data import Dataset
from covey_modelkit.differentiate import differentiate
from covey_modelkit.gradients import LOSSES
from covey_modelkit.graph import GraphWriter, infer_shapes, make_model
from covey_protocol.bundle import Bundle, Float32

STEP_SHARE = 2.5


class InputGradient:
    """∂ loss(model, x, y) / ∂x for each sample, from the graph that devices infer with.

    The graph is differentiated when it is first asked for.

    Args:
        bundle: The model.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def __call__(self, weights: Float32, data: Dataset) -> Float32:
        """Return the gradients, shaped like the samples.

        Raises:
            ConfigError: The model cannot be differentiated down to its input.
        """
        manifest = self._bundle.manifest
        session = self._session
        values = [*manifest.views(weights), data.x, data.y]
        names = [entry.name for entry in session.get_inputs()]
        mean: Float32 = session.run(None, dict(zip(names, values, strict=True)))[0]
        # The loss is a mean over the batch, and each sample enters its own term only.
        return mean * np.float32(len(data))

    @functools.cached_property
    def _session(self) -> ort.InferenceSession:
        graph = onnx.load_from_string(self._bundle.infer).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        writer = GraphWriter(infer_shapes(graph), constants)
        batch, labels = graph.input[-1], writer.fresh("labels")
        logits = graph.output[0].name
        _, slope = LOSSES[self._bundle.manifest.loss](writer, logits, labels)
        found = differentiate(writer, list(graph.node), {logits: slope}, [batch.name])
        whole = helper.make_graph(
            [*graph.node, *writer.nodes],
            "input_gradient",
            [*graph.input, helper.make_tensor_value_info(labels, TensorProto.INT64, [None])],
            [helper.make_tensor_value_info(found[batch.name], TensorProto.FLOAT, None)],
            [*graph.initializer, *writer.constants],
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        model = make_model(whole).SerializeToString()
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


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
