"""Writes the models in this folder and ``losses.npz``: what PyTorch makes of them in 20 steps of training.

    python tests/modelkit/vectors/make.py [--keras PYTHON]

from the checkout's root. PyTorch 2.13.0 is far too much for the suite's environment: the script installs it into
``.venv/bench-torch``, as pinned in ``benchmarks/constraints-torch.txt``, and goes on there. All randomness is numpy's
or PyTorch's, seeded; PyTorch trains in float64, so that what differs from it is Covey's rounding alone. scikit-learn's
models are converted by skl2onnx in the same environment. ``--keras`` names an interpreter that has TensorFlow (2.21.0)
and tf2onnx (1.17.0), which do not go together with the rest; without it Keras's model is left as it is.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
STEPS, ROWS, SAMPLES = 20, 16, 64
SEED = 21


def batch(step: int, sample: tuple[int, ...], loss: str, output: int) -> tuple[Any, Any]:
    """Return x and y of one step; the tests make the same ones."""
    import numpy as np  # noqa: PLC0415

    rng = np.random.default_rng([SEED, step])
    x = rng.standard_normal((ROWS, *sample)).astype(np.float32)
    flat = x.reshape(ROWS, -1)
    if loss == "cross-entropy":
        return x, flat[:, :output].argmax(axis=1)
    if loss == "binary-cross-entropy":
        return x, (flat[:, :output] > 0).astype(np.float32)
    return x, x if loss == "mse" else np.tanh(flat[:, :output] * 2)


def models(torch: Any) -> dict[str, tuple[Any, tuple[int, ...], str, str]]:
    """Return name: model, shape of a sample, loss, optimiser."""
    nn = torch.nn

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        """A transformer's block of one head, and a classifier on the mean of its tokens."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
            self.heads, self.out, self.last = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)
            self.feed = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

        def forward(self, x: Any) -> Any:
            q, k, v = self.heads(self.first(x)).chunk(3, -1)
            x = x + self.out(torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v)
            return self.last((x + self.feed(self.second(x))).mean(1))

    return {
        "mlp": (
            nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3)),
            (6,),
            "cross-entropy",
            "sgd",
        ),
        "cnn1d": (
            nn.Sequential(
                nn.Conv1d(2, 8, 5, stride=2, padding=2),
                nn.LeakyReLU(0.1),
                nn.AvgPool1d(2),
                nn.Conv1d(8, 8, 3, dilation=2, groups=2),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(32, 3),
            ),
            (2, 32),
            "huber",
            "sgd",
        ),
        "cnn2d": (
            nn.Sequential(
                nn.Conv2d(1, 6, 3, padding=1),
                nn.BatchNorm2d(6),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(6, 8, 3, stride=2, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(8, 3),
            ),
            (1, 10, 10),
            "cross-entropy",
            "sgd",
        ),
        "transformer": (Block(), (5, 8), "cross-entropy", "adam"),
        "autoencoder": (
            nn.Sequential(
                nn.Conv1d(1, 4, 4, stride=2, padding=1),
                nn.ELU(),
                nn.Conv1d(4, 2, 4, stride=2, padding=1),
                nn.Tanh(),
                nn.ConvTranspose1d(2, 4, 4, stride=2, padding=1),
                nn.ELU(),
                nn.ConvTranspose1d(4, 1, 4, stride=2, padding=1),
            ),
            (1, 16),
            "mse",
            "adam",
        ),
        "bits": (
            nn.Sequential(nn.Linear(6, 12), nn.Softplus(), nn.Linear(12, 4)),
            (6,),
            "binary-cross-entropy",
            "sgd",
        ),
    }


def export(torch: Any, model: Any, sample: tuple[int, ...], path: Path, *, dynamo: bool) -> None:
    """Export a model so that it can be trained: batch normalisation and dropout as they are, nothing folded."""
    model.train()
    example = torch.zeros((2, *sample))
    if dynamo:
        # Optimising folds batch normalisations into what comes before them.
        normalised = any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in model.modules())
        shapes = ({0: "batch"},)
        torch.onnx.export(
            model, (example,), path, dynamo=True, dynamic_shapes=shapes, optimize=not normalised, external_data=False
        )
        import onnx  # noqa: PLC0415

        slim = onnx.load(path)
        for part in (*slim.graph.node, *slim.graph.initializer, *slim.graph.value_info, *slim.graph.input, slim.graph):
            part.ClearField("metadata_props")  # source lines: folders of this machine
        slim.ClearField("metadata_props")
        onnx.save(slim, path)
    else:
        torch.onnx.export(
            model,
            (example,),
            path,
            dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING,
            do_constant_folding=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
        )


def optimiser(torch: Any, name: str, parameters: Any) -> Any:
    """Return the optimiser of the tests' plans."""
    if name == "adam":
        return torch.optim.AdamW(parameters, lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.01)


def train(torch: Any, model: Any, sample: tuple[int, ...], loss: str, how: str) -> dict[str, Any]:
    """Return the losses of the steps, and what the model says afterwards of the first batch."""
    import numpy as np  # noqa: PLC0415

    functions = torch.nn.functional
    costs = {
        "cross-entropy": functions.cross_entropy,
        "binary-cross-entropy": functions.binary_cross_entropy_with_logits,
        "mse": functions.mse_loss,
        "huber": functions.huber_loss,
    }
    model = model.double().train()
    output = int(np.prod(model(torch.zeros((2, *sample)).double()).shape[1:]))
    # That look moved the running statistics.
    for part in model.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            part.reset_running_stats()
    steps, losses = optimiser(torch, how, model.parameters()), []
    for step in range(STEPS):
        x, y = (torch.from_numpy(np.asarray(array)) for array in batch(step, sample, loss, output))
        value = costs[loss](model(x.double()), y if y.dtype == torch.int64 else y.double())
        steps.zero_grad()
        value.backward()
        steps.step()
        losses.append(value.item())
    model.eval()
    after = model(torch.from_numpy(batch(0, sample, loss, output)[0]).double()).detach().numpy()
    return {"losses": np.array(losses), "after": after, "facts": np.array([loss, how])}


def from_pytorch() -> None:
    """Write PyTorch's models, by both exporters, and their losses."""
    import numpy as np  # noqa: PLC0415
    import torch  # type: ignore[import-not-found] # noqa: PLC0415

    vectors: dict[str, Any] = {}
    torch.manual_seed(SEED)
    for name, (model, sample, loss, how) in models(torch).items():
        for dynamo in (False, True):
            export(torch, model, sample, HERE / f"{name}-{'dynamo' if dynamo else 'torchscript'}.onnx", dynamo=dynamo)
        vectors |= {f"{name}.{key}": value for key, value in train(torch, model, sample, loss, how).items()}
    np.savez_compressed(HERE / "losses.npz", **vectors)


def from_sklearn() -> None:
    """Write scikit-learn's models as skl2onnx converts them, with what they say of some samples."""
    import numpy as np  # noqa: PLC0415
    import skl2onnx  # type: ignore[import-not-found] # noqa: PLC0415
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: PLC0415

    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((SAMPLES, 5)).astype(np.float32)
    three, two = x[:, :3].argmax(axis=1), (x[:, 0] > 0).astype(int)
    fitted = {
        "logistic-three": LogisticRegression().fit(x, three),
        "logistic-two": LogisticRegression().fit(x, two),
        "mlp-classifier": MLPClassifier((6,), max_iter=50, random_state=0).fit(x, three),
        "mlp-two": MLPClassifier((6,), max_iter=50, random_state=0).fit(x, two),
        "mlp-regressor": MLPRegressor(hidden_layer_sizes=(6,), max_iter=50, random_state=0).fit(x, x[:, 0] * x[:, 1]),
    }
    said: dict[str, Any] = {"x": x}
    for name, model in fitted.items():
        kind = skl2onnx.common.data_types.FloatTensorType([None, 5])
        converted = skl2onnx.convert_sklearn(model, initial_types=[("x", kind)], target_opset=18)
        (HERE / f"sklearn-{name}.onnx").write_bytes(converted.SerializeToString())
        said[name] = model.predict_proba(x) if hasattr(model, "predict_proba") else model.predict(x)
    np.savez_compressed(HERE / "sklearn.npz", **said)


KERAS = """
import sys
import numpy as np, tensorflow as tf, tf2onnx
tf.keras.utils.set_random_seed(21)
layers = tf.keras.layers
# Biases of zero would be left out by the converter.
drawn = {"bias_initializer": "random_normal"}
model = tf.keras.Sequential([
    layers.Input((8, 8, 1)),
    layers.Conv2D(4, 3, padding="same", activation="relu", **drawn),
    layers.BatchNormalization(),
    layers.MaxPooling2D(),
    layers.Dropout(0.2),
    layers.Flatten(),
    layers.Dense(3, activation="softmax", **drawn),
])
signature = [tf.TensorSpec((None, 8, 8, 1), tf.float32, name="x")]
call = tf.function(lambda x: model(x, training=False), input_signature=signature)
made, _ = tf2onnx.convert.from_function(call, signature, opset=18)
open(sys.argv[1] + "/keras.onnx", "wb").write(made.SerializeToString())
x = np.random.default_rng(21).standard_normal((5, 8, 8, 1)).astype("f4")
np.savez_compressed(sys.argv[1] + "/keras.npz", x=x, y=np.asarray(model(x, training=False)))
"""


def main(arguments: list[str]) -> None:
    """Make everything, in the environment that has PyTorch."""
    if importlib.util.find_spec("torch") is None:
        sys.path.insert(0, str(ROOT))
        from benchmarks._anchor_env import anchor_python  # noqa: PLC0415

        needed = ("torch", "onnx", "onnxscript", "skl2onnx", "scikit-learn")
        python = anchor_python("torch", ROOT / "benchmarks" / "constraints-torch.txt", *needed)
        if python is None:
            raise SystemExit(1)
        subprocess.run([python, __file__, *arguments], check=True)
        return
    from_pytorch()
    from_sklearn()
    if arguments[:1] == ["--keras"]:
        subprocess.run([arguments[1], "-c", KERAS, HERE], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
