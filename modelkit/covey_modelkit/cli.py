"""``covey model``: build trainable bundles and look into them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import onnx

from covey_modelkit.build import build_bundle
from covey_modelkit.gradients import LOSSES
from covey_modelkit.presets import mlp, softmax
from covey_protocol.bundle import MAX_BUNDLE_BYTES, Bundle
from covey_protocol.errors import ConfigError, CoveyError


def _sizes(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Read positive sizes separated by commas."""
    if value is None:
        return None
    try:
        sizes = tuple(int(part) for part in value.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise click.BadParameter(f"{value!r} is not a list of positive sizes like 64 or 1,28,28")
    return sizes


@click.group()
def model() -> None:
    """Build model bundles that devices can train."""


@model.command(
    epilog="""\b
Examples:
  covey model build classifier.onnx -o classifier.bundle
  covey model build forecast.onnx --loss huber -o forecast.bundle
  covey model build autoencoder.onnx --loss mse --autoencoder -o vibration.bundle
  covey model build big.onnx --train "head.*" -o head.bundle
  covey model build --preset softmax --input 64 --classes 10 -o digits.bundle
  covey model build --preset mlp --input 1,28,28 --classes 10 --hidden 64,32 -o mnist.bundle
"""
)
@click.argument("source", metavar="[MODEL.onnx]", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Bundle to write.")
@click.option("--name", help="Name of the model; by default that of the output file without its suffix.")
@click.option(
    "--loss", type=click.Choice(sorted(LOSSES)), default="cross-entropy", show_default=True, help="Of training."
)
@click.option("--autoencoder", is_flag=True, help="The model is to reproduce its input; data needs no y.")
@click.option(
    "--train", metavar="PATTERN", multiple=True, help='Train only weights of such names, like "head.*"; repeatable.'
)
@click.option("--output-name", metavar="NAME", help="Which output to train, where MODEL.onnx has several.")
@click.option("--preset", type=click.Choice(["softmax", "mlp"]), help="A ready-made model instead of MODEL.onnx.")
@click.option("--input", "shape", metavar="SIZES", callback=_sizes, help="Preset: one sample, like 64 or 1,28,28.")
@click.option("--classes", type=click.IntRange(min=2), help="Preset: number of labels.")
@click.option("--hidden", metavar="SIZES", callback=_sizes, help="Preset mlp: widths of hidden layers; 32.")
@click.option("--seed", type=click.IntRange(min=0), help="Preset: seed of the initial weights; 0.")
def build(
    *,
    source: Path | None,
    output: Path,
    name: str | None,
    loss: str,
    autoencoder: bool,
    train: tuple[str, ...],
    output_name: str | None,
    preset: str | None,
    shape: tuple[int, ...] | None,
    classes: int | None,
    hidden: tuple[int, ...] | None,
    seed: int | None,
) -> None:
    """Make a trainable bundle from an ONNX model or a preset.

    The model needs one float32 input, one output (logits for entropies: a final softmax or sigmoid is dropped), both
    batch first, and its weights stored inside; they become the parameters that devices train.
    """
    if (source is None) == (preset is None):
        raise click.UsageError("name either MODEL.onnx or a --preset")
    if source is not None and any(value is not None for value in (shape, classes, hidden, seed)):
        raise click.UsageError("--input, --classes, --hidden and --seed go with --preset")
    if preset is not None and (shape is None or classes is None):
        raise click.UsageError("--preset needs --input and --classes")
    if hidden is not None and preset != "mlp":
        raise click.UsageError("--hidden goes with --preset mlp")
    with _plain_errors():
        if source is not None:
            graph = _load(source)
        else:
            assert shape is not None
            assert classes is not None
            if preset == "mlp":
                graph = mlp(shape, classes, hidden or (32,), seed or 0)
            else:
                graph = softmax(shape, classes, seed or 0)
        bundle = build_bundle(
            graph,
            name=name or output.name.removesuffix(output.suffix),
            loss=loss,
            autoencoder=autoencoder,
            train=train,
            output=output_name,
        )
        data = bundle.encode()
        _write(output, data)
    click.echo(f"{output}: {bundle.dimension} parameters, {len(data)} bytes, digest {bundle.digest.hex()}")


@model.command(
    epilog="""\b
Examples:
  covey model show digits.bundle
  covey model show digits.bundle --json | jq .parameters
"""
)
@click.argument("bundle", metavar="BUNDLE", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def show(bundle: Path, as_json: bool) -> None:
    """Check a bundle and say what is in it."""
    with _plain_errors():
        try:
            # One byte more than is allowed is read at most, so that a file of any size is refused cheaply.
            with bundle.open("rb") as file:
                loaded = Bundle.decode(file.read(MAX_BUNDLE_BYTES + 1))
        except CoveyError as error:
            raise ConfigError(f"{bundle}: {error}") from error
    facts = _facts(loaded)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    tensors = {part: facts.pop(part) for part in ("parameters", "buffers")}
    losses = facts.pop("trace_losses")
    for key, value in facts.items():
        click.echo(f"{key:<14}{value}")
    click.echo(f"{'trace losses':<14}{' '.join(f'{loss:.4f}' for loss in losses)}")
    for part, listed in tensors.items():
        click.echo(part if listed else f"{part:<14}none")
        for tensor in listed:
            click.echo(f"  {tensor['name']:<40} {tensor['shape']}")


def _facts(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "digest": bundle.digest.hex(),
        "loss": manifest.loss,
        "input": manifest.input.shape,
        "output": manifest.output,
        "target": manifest.target,
        "classes": manifest.classes,
        "dimension": bundle.dimension,
        "opset": manifest.opset,
        "grad_bytes": len(bundle.grad),
        "infer_bytes": len(bundle.infer),
        "memory_of_32": bundle.memory(32),
        "trace_losses": manifest.trace.losses,
        "parameters": [{"name": spec.name, "shape": spec.shape} for spec in manifest.parameters],
        "buffers": [{"name": spec.name, "shape": spec.shape} for spec in manifest.buffers],
    }


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except OSError:
        raise
    except Exception as error:  # protobuf's errors depend on its implementation
        raise ConfigError(f"{path}: is not an ONNX model: {error}") from error


def _write(path: Path, data: bytes) -> None:
    """Write a file so that it is either there in full or not at all."""
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Show what went wrong as one line instead of a traceback."""
    try:
        yield
    except CoveyError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from error
