"""Covey's side of training: what the agent runs, and nothing of the bench that made the bundle."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnxruntime as ort

from benchmarks._nets import BATCH, MOMENTUM, RATE, STEPS, batch
from benchmarks._worker import serve
from covey_agent.graphs import Graph, Stepper
from covey_protocol.bundle import GRAD_FILE, Bundle
from covey_protocol.plan import Plan


class Train:
    """Steps of SGD with momentum on one batch."""

    def __init__(self, net: str, bundle: str) -> None:
        self._bundle = Bundle.decode(Path(bundle).read_bytes())
        self._graph = Graph(self._bundle, GRAD_FILE, 1)
        self._x, self._y = batch(net)
        self._rows = np.arange(BATCH)

    def inputs(self) -> Stepper:
        plan = Plan(learning_rate=RATE, momentum=MOMENTUM)
        return Stepper(self._graph, self._bundle, self._bundle.weights, batch=BATCH, plan=plan)

    def run(self, stepper: Stepper) -> list[float]:
        return [stepper.step(self._x, self._y, self._rows) for _ in range(STEPS)]

    def check(self, losses: list[float]) -> dict[str, Any]:
        return {"losses": losses, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    serve({"train": Train}, {"onnxruntime": ort.__version__})
