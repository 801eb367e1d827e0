"""Tasks of every kind of model, with a real broker and real agents: no labels, running statistics, dropout, Adam."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tests.aggregator.live import FEATURES, Agents, Live, enrol_agent, live_homes, live_task

from covey_modelkit import build_bundle
from covey_protocol.plan import Plan
from covey_simulator.broker import RunningBroker

HIDDEN = 8


def narrow() -> onnx.ModelProto:
    """An autoencoder with batch normalisation and dropout."""
    rng = np.random.default_rng(4)
    stored = {
        "down": rng.standard_normal((FEATURES, HIDDEN)) * 0.2,
        "scale": np.ones(HIDDEN),
        "bias": np.zeros(HIDDEN),
        "mean": np.zeros(HIDDEN),
        "variance": np.ones(HIDDEN),
        "up": rng.standard_normal((HIDDEN, FEATURES)) * 0.2,
        "ratio": np.array(0.1),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "down"], ["h"], name="down"),
        helper.make_node("BatchNormalization", ["h", "scale", "bias", "mean", "variance"], ["n"], name="norm"),
        helper.make_node("Tanh", ["n"], ["t"], name="bend"),
        helper.make_node("Dropout", ["t", "ratio"], ["d"], name="drop"),
        helper.make_node("MatMul", ["d", "up"], ["y"], name="up"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", FEATURES]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "narrow", ends[:1], ends[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_an_autoencoder_is_federated(mosquitto: RunningBroker, tmp_path: Path) -> None:
    bundle = build_bundle(narrow(), name="narrow", loss="mse", autoencoder=True)
    manifest = bundle.manifest
    assert ([spec.name for spec in manifest.buffers], manifest.noise) == (["mean", "variance"], [[HIDDEN]])
    path, held_out = tmp_path / "narrow.bundle", tmp_path / "held-out.npz"
    path.write_bytes(bundle.encode())
    np.savez(held_out, x=np.random.default_rng(0).normal(size=(50, FEATURES)).astype(np.float32))
    operator, home = live_homes(tmp_path, mosquitto)
    names = [f"pi-{number}" for number in range(5)]
    with Live(home) as live, Agents(enrol_agent(tmp_path, operator, home, name) for name in names) as agents:
        plan = Plan(epochs=5, batch_size=8, learning_rate=0.01, optimiser="adam", weight_decay=0.01, proximal=0.1)
        task = live_task(
            tmp_path,
            bundle=str(path),
            held_out=str(held_out),
            rounds=3,
            devices_min=5,
            settle=0.1,
            local=plan,
            clip=5.0,
        )
        live.service.store.add_task(task)
        live.until_ended()
        assert live.status() == "done"
        records = [record for record in live.service.store.rounds("digits") if record.accepted]
        first, last = records[0], records[-1]
        assert first.loss is not None
        assert last.loss is not None
        assert last.loss < first.loss
        # The first weights are the bundle's; the averaged statistics are those of the devices' data by now.
        latest = np.asarray(agents.seen[-1][1])
        statistics = latest[manifest.trainable :]
        assert np.abs(statistics[HIDDEN:] - 1).max() > 0.05
        assert (statistics[HIDDEN:] > 0).all()
