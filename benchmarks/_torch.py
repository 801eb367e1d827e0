"""PyTorch's side of training: eager, one thread."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # type: ignore[import-not-found]

from benchmarks._nets import MOMENTUM, NETS, RATE, STEPS, batch, weights
from benchmarks._worker import serve

torch.set_num_threads(1)
torch.set_num_interop_threads(1)


def model(name: str) -> Any:
    """Build a net with the weights that both sides have."""
    nn = torch.nn
    makers = {
        "linear": nn.Linear,
        "relu": nn.ReLU,
        "flatten": nn.Flatten,
        "pool2d": nn.MaxPool2d,
        "conv1d": nn.Conv1d,
        "conv2d": nn.Conv2d,
    }
    made = nn.Sequential(*(makers[str(kind)](*sizes) for kind, *sizes in NETS[name][1]))
    with torch.no_grad():
        for parameter, value in zip(made.parameters(), weights(name), strict=True):
            parameter.copy_(torch.from_numpy(value))
    return made


class Train:
    """Steps of SGD with momentum on one batch."""

    def __init__(self, net: str) -> None:
        self._net = net
        self._x, self._y = (torch.from_numpy(array) for array in batch(net))

    def inputs(self) -> Any:
        made = model(self._net)
        return made, torch.optim.SGD(made.parameters(), lr=RATE, momentum=MOMENTUM)

    def run(self, inputs: Any) -> list[float]:
        made, optimiser = inputs
        losses = []
        for _ in range(STEPS):
            optimiser.zero_grad()
            loss = torch.nn.functional.cross_entropy(made(self._x), self._y)
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses

    def check(self, losses: list[float]) -> dict[str, Any]:
        return {"losses": losses, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    serve({"train": Train}, {"torch": torch.__version__.split("+")[0]})
