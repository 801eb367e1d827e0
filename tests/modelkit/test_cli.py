"""covey_modelkit.cli: bundles are built and shown, and mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from tests.modelkit.helpers import classifier, linear, node, normal

from covey_modelkit.cli import model
from covey_protocol.bundle import Bundle


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(model, [str(argument) for argument in arguments])


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    path = tmp_path / "digits.bundle"
    result = call("build", "--preset", "softmax", "--input", "64", "--classes", "10", "-o", path)
    assert result.exit_code == 0, result.output
    return path


def test_build_from_a_preset(digits: Path) -> None:
    bundle = Bundle.decode(digits.read_bytes())
    assert (bundle.manifest.name, bundle.dimension) == ("digits", 650)
    assert [file.name for file in digits.parent.iterdir()] == ["digits.bundle"]


def test_build_an_mlp(tmp_path: Path) -> None:
    path = tmp_path / "m.bundle"
    shape = ["--input", "1,4,4", "--classes", "3", "--hidden", "8,5", "--seed", "9", "--name", "mine"]
    result = call("build", "--preset", "mlp", *shape, "-o", path)
    assert result.exit_code == 0, result.output
    bundle = Bundle.decode(path.read_bytes())
    assert bundle.digest.hex() in result.output
    assert bundle.manifest.name == "mine"
    assert [spec.shape for spec in bundle.manifest.parameters] == [[16, 8], [8], [8, 5], [5], [5, 3], [3]]


def test_build_from_a_file(tmp_path: Path) -> None:
    onnx.save(linear(), tmp_path / "author.onnx")
    result = call("build", tmp_path / "author.onnx", "-o", tmp_path / "author.bundle")
    assert result.exit_code == 0, result.output
    assert Bundle.decode((tmp_path / "author.bundle").read_bytes()).manifest.name == "author"


def test_show(digits: Path) -> None:
    result = call("show", digits)
    assert result.exit_code == 0
    assert "output.weight" in result.output
    assert Bundle.decode(digits.read_bytes()).digest.hex() in result.output


def test_show_json(digits: Path) -> None:
    facts = json.loads(call("show", digits, "--json").output)
    assert facts["digest"] == Bundle.decode(digits.read_bytes()).digest.hex()
    assert facts["parameters"][0] == {"name": "output.weight", "shape": [64, 10]}
    assert (facts["input"], facts["classes"], facts["dimension"]) == ([64], 10, 650)
    assert facts["memory_of_32"] == Bundle.decode(digits.read_bytes()).memory(32) > 4 * 4 * 650


def narrow() -> onnx.ModelProto:
    """A model that gives as many numbers as it takes."""
    rng = np.random.default_rng(1)
    nodes = [node("MatMul", ["x", "body"], "h"), node("MatMul", ["h", "head"], "logits")]
    return classifier(nodes, {"body": normal(rng, 3, 2), "head": normal(rng, 2, 3)})


def test_what_is_trained_and_towards_what_can_be_said(tmp_path: Path) -> None:
    onnx.save(narrow(), tmp_path / "m.onnx")
    options = ["--loss", "huber", "--autoencoder", "--train", "he*", "--output-name", "logits"]
    result = call("build", tmp_path / "m.onnx", *options, "-o", tmp_path / "m.bundle")
    assert result.exit_code == 0, result.output
    manifest = Bundle.decode((tmp_path / "m.bundle").read_bytes()).manifest
    assert (manifest.loss, manifest.target, [spec.name for spec in manifest.parameters]) == ("huber", "input", ["head"])
    shown = call("show", tmp_path / "m.bundle").output
    assert "huber" in shown
    assert "buffers       none" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MODEL.onnx or a --preset"),
        (["m.onnx", "--preset", "mlp"], "MODEL.onnx or a --preset"),
        (["m.onnx", "--classes", "3"], "go with --preset"),
        (["--preset", "mlp", "--input", "6"], "needs --input and --classes"),
        (["--preset", "softmax", "--input", "6", "--classes", "3", "--hidden", "4"], "goes with --preset mlp"),
        (["--preset", "softmax", "--input", "6,x", "--classes", "3"], "not a list of positive sizes"),
        (["--preset", "softmax", "--input", "0", "--classes", "3"], "not a list of positive sizes"),
        (["--preset", "softmax", "--input", "6", "--classes", "1"], "classes"),
    ],
)
def test_wrong_options_are_explained(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = call("build", *arguments, "-o", tmp_path / "out.bundle")
    assert result.exit_code == 2
    assert message in result.output
    assert not list(tmp_path.iterdir())


def test_a_model_that_cannot_be_trained_is_one_line(tmp_path: Path) -> None:
    nodes = [node("Gemm", ["x", "w"], "h"), node("Selu", ["h"], "logits")]
    onnx.save(classifier(nodes, {"w": normal(np.random.default_rng(0), 3, 2)}), tmp_path / "m.onnx")
    result = call("build", tmp_path / "m.onnx", "-o", tmp_path / "m.bundle")
    assert result.exit_code == 1
    assert result.output.startswith("Error: node 'the-logits' uses operator Selu")
    assert not (tmp_path / "m.bundle").exists()


@pytest.mark.parametrize("command", [["show"], ["build", "-o", "x"]])
def test_unreadable_files_are_named(tmp_path: Path, command: list[str]) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"\xffneither of them")
    for path in (junk, tmp_path / "absent"):
        result = call(*command, path)
        assert result.exit_code == 1
        assert result.output.startswith(f"Error: {path}: ")


@pytest.mark.parametrize("command", ["build", "show"])
def test_help_has_examples(command: str) -> None:
    assert f"covey model {command} " in call(command, "--help").output.split("Examples:")[1]
