"""A step of local training: Covey's on onnxruntime beside PyTorch's, both on one thread, batches of 32.

``./run bench training`` gives both the same weights and the same batch, in turns, and compares the losses of 50 steps.
A step is everything from a batch in memory to moved weights and a loss that Python can read. Peak memory is that of the
whole process; the bundle is made in another.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks._anchor_env import anchor_python
from benchmarks._compare import Row, Side, arguments, report, take_turns
from benchmarks._nets import NETS, STEPS, weights
from covey_modelkit import build_bundle

HERE = Path(__file__).parent
OURS = Side(sys.executable, HERE / "_training.py")
GOALS = {"mlp-64-64-10": 1 / 3, "mlp-784-128-10": 1 / 3, "cnn": 1.0, "cnn-1d": 1.0}


def network(name: str) -> onnx.ModelProto:
    """Write a net as ONNX."""
    sample, layers = NETS[name]
    stored = iter(weights(name))
    nodes, tensors, last = [], [], "x"
    for place, (kind, *sizes) in enumerate(layers):
        inputs, attributes = [last], dict[str, Any]()
        if kind == "linear" or str(kind).startswith("conv"):
            for part in ("w", "b"):
                tensors.append(numpy_helper.from_array(next(stored), f"{place}.{part}"))
                inputs.append(tensors[-1].name)
        numbers = [int(size) for size in sizes]
        if kind == "linear":
            operator, attributes = "Gemm", {"transB": 1}
        elif kind == "relu":
            operator = "Relu"
        elif kind == "flatten":
            operator = "Flatten"
        elif kind == "pool2d":
            operator, attributes = "MaxPool", {"kernel_shape": numbers * 2, "strides": numbers * 2}
        else:
            rank = int(str(kind)[4])
            operator, attributes = "Conv", {"strides": [numbers[3]] * rank, "pads": [numbers[4]] * 2 * rank}
        last = f"{place}"
        nodes.append(helper.make_node(operator, inputs, [last], name=last, **attributes))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *sample])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", None])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def rows(options: argparse.Namespace, anchor: Side | None, folder: Path) -> list[Row]:
    """Measure every net."""
    found = []
    for name, most in GOALS.items():
        print(f"  {name}", file=sys.stderr)
        path = folder / f"{name}.bundle"
        path.write_bytes(build_bundle(network(name), name=name).encode())
        ours, theirs, facts = take_turns(
            OURS,
            anchor,
            "train",
            {"net": name, "bundle": str(path)},
            repeat=options.repeat,
            anchor_size={"net": name},
        )
        memory: list[list[float]] = [[float(facts["rss"])], []]
        if anchor is not None:
            np.testing.assert_allclose(facts["losses"], facts["anchor"]["losses"], rtol=1e-3, err_msg=name)
            memory[1] = [float(facts["anchor"]["rss"])]
        each = [[seconds / STEPS for seconds in column] for column in (ours, theirs)]
        found.append(Row(f"{name}, one step", "ms", each[0], each[1], most=most, facts=facts))
        found.append(Row(f"{name}, peak memory", "MB", memory[0], memory[1]))
    return found


def main() -> int:
    """Measure and report."""
    parser = arguments(__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeat", type=int, default=15, help="pairs of 50 steps that count; 15")
    parser.add_argument("--torch", type=Path, metavar="PYTHON", help="an interpreter that has PyTorch already")
    options = parser.parse_args()
    python = options.torch or anchor_python("torch", HERE / "constraints-torch.txt", "torch")
    anchor = Side(python, HERE / "_torch.py") if python is not None else None
    versions = OURS.versions() | (anchor.versions() if anchor is not None else {})
    with tempfile.TemporaryDirectory() as folder:
        return report("training", rows(options, anchor, Path(folder)), versions, options)


if __name__ == "__main__":
    sys.exit(main())
