"""Scenarios: read strictly, with every default and range as said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from covey_aggregator.rules.geometric_median import GeometricMedian
from covey_aggregator.rules.multi_krum import MultiKrum
from covey_protocol.errors import ConfigError
from covey_protocol.plan import Plan
from covey_simulator.scenario import DEMO_PLAN, Scenario, demo_scenario, load_scenario, parse_scenario


def parsed(**fields: Any) -> Scenario:
    return parse_scenario({"name": "test", **fields}, origin="test.yaml", folder=Path("/scenarios"))


def test_reads_every_field(tmp_path: Path) -> None:
    path = tmp_path / "full.yaml"
    path.write_text(
        """
name: full
seed: 7
data: {source: file, path: samples.npz}
model: {onnx: model.onnx}
devices: 12
samples_per_device: 20
partition: {dirichlet: 0.5}
rounds: 3
group_size: 4
local: {epochs: 2, batch_size: 8, learning_rate: 0.05, momentum: 0.0}
clip: 2.5
attack: {kind: scaling, fraction: 0.25, scale: 10, start_round: 2}
rule: median
masking: off
transport: direct
"""
    )
    scenario = load_scenario(path)
    assert scenario.data.path == str(tmp_path / "samples.npz")
    assert scenario.model.onnx == str(tmp_path / "model.onnx")
    assert scenario.plan == Plan(epochs=2, batch_size=8, learning_rate=0.05, momentum=0.0)
    assert type(scenario.plan) is Plan
    assert (scenario.partition.dirichlet, scenario.partition.iid) == (0.5, None)
    assert (scenario.attack.kind, scenario.attack.scale, scenario.attack.start_round) == ("scaling", 10.0, 2)
    assert scenario.malicious_count == 3
    assert (scenario.rule, scenario.masking, scenario.transport) == ("median", False, "direct")


def test_a_rule_is_a_name_or_a_map() -> None:
    assert parsed(rule="geometric-median").across_groups == GeometricMedian()
    assert parsed(rule={"name": "multi-krum", "f": 2}).across_groups == MultiKrum(f=2)


def test_defaults_are_spelled_out() -> None:
    config = msgspec.to_builtins(parsed())
    assert config["model"] == {"preset": "mlp", "onnx": None}
    assert config["partition"] == {"iid": True, "dirichlet": None, "labels": None, "repeat": False}
    assert config["masking"] is True


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"privacy": {"budget": 1}}, "privacy"),
        ({"local": {"dropout": 0.5}}, "dropout` - at `local"),
        ({"attack": {"on_rounds": 3}}, "on_rounds has no meaning for none, leave it out - at `attack"),
        ({"attack": {"kind": "sign-flip", "victim": 3}}, "victim` - at `attack"),
        ({"attack": {"kind": "alien"}}, "attack.kind"),
        ({"attack": {"kind": "alie", "deviation": "std"}}, "deviation has no meaning for alie"),
        ({"attack": {"kind": "on-off", "inner": "label-flip", "scale": 2}}, "for on-off with inner label-flip"),
        ({"attack": {"kind": "on-off", "inner": "clones"}}, "inner is clones"),
        ({"attack": {"kind": "on-off", "on_rounds": 0}}, "attack.on_rounds"),
        ({"attack": {"kind": "targeted-label-flip", "source": 3, "target": 3}}, "both 3"),
        ({"attack": {"kind": "min-max", "deviation": "mean"}}, "attack.deviation"),
        ({"attack": {"kind": "model-replacement", "share": 0}}, "attack.share"),
        ({"attack": {"kind": "framing", "manner": "own"}}, "manner is own, must be copy or push for framing"),
        (
            {
                "attack": {"kind": "unmask-refuser"},
                "transport": "direct",
                "masking": "simulated",
                "signatures": False,
            },
            "unmask-refuser break the protocol's messages",
        ),
        (
            {
                "attack": {"kind": "attestation-liar"},
                "attestation": True,
                "transport": "direct",
                "masking": "simulated",
            },
            "lies about masks",
        ),
        ({"attack": {"kind": "unmask-refuser"}, "masking": False}, "unmask-refuser break the protocol's messages"),
        ({"attack": {"kind": "attestation-liar"}}, "attestation-liar and sketch-withholder need attestation"),
        ({"attack": {"kind": "unmask-refuser", "scale": 2}}, "for unmask-refuser with inner none"),
        ({"attack": {"kind": "sybil-wave"}}, "sybil-wave needs devices that join later"),
        ({"attack": {"kind": "sign-flip", "fraction": 1.1}}, "attack.fraction"),
        ({"attack": {"kind": "sign-flip", "scale": 0.0}}, "attack.scale"),
        ({"attack": {"kind": "sign-flip", "start_round": 0}}, "attack.start_round"),
        ({"attack": {"kind": "label-flip", "scale": 2.0}}, "scale has no meaning"),
        ({"data": {"source": "file"}}, "path is needed"),
        ({"data": {"source": "digits", "path": "x.npz"}}, "path is needed"),
        ({"model": {"preset": "cnn"}}, "model.preset"),
        ({"model": {"preset": "mlp", "onnx": "m.onnx"}}, "not both"),
        ({"partition": {"iid": True, "dirichlet": 1.0}}, "not two"),
        ({"partition": {"iid": False}}, "dirichlet: 0.5"),
        ({"partition": {"dirichlet": 0.0}}, "partition.dirichlet"),
        ({"local": {"learning_rate": -1.0}}, "learning_rate is -1.0"),
        ({"local": {"momentum": float("nan")}}, "local.momentum"),
        ({"clip": 0.0}, "clip"),
        ({"clip": float("inf")}, "clip"),
        ({"devices": 3}, "devices"),
        ({"devices": 10_001}, "devices"),
        ({"group_size": 3}, "group_size"),
        ({"group_size": 33}, "group_size"),
        ({"rounds": 0}, "rounds"),
        ({"seed": -1}, "seed"),
        ({"samples_per_device": -1}, "samples_per_device"),
        ({"masking": "pretended"}, "masking"),
        ({"masking": "simulated"}, "goes with transport: direct"),
        ({"signatures": False}, "signatures: false goes with"),
        ({"transport": "direct", "signatures": False}, "signatures: false goes with"),
        ({"masking": False, "attestation": True}, "attestation is about masked updates"),
        ({"attestation": {"sketch": 7}}, "8 to 64"),
        ({"attestation": {"sketch": 65}}, "8 to 64"),
        ({"attestation": {"lot": 0}}, "lot"),
        ({"attestation": {"lots": 1}}, "lots"),
        ({"attestation": True, "adaptive_clip": False}, "adaptive_clip: false is rehearsed"),
        ({"attestation": True, "transport": "direct", "devices": 1001}, "at most 1000 devices attest"),
        ({"probes": True}, "they need attestation"),
        ({"participation": 0.5}, "rehearsed with transport: direct"),
        ({"dropout": 0.5}, "rehearsed with transport: direct"),
        ({"attack": {"kind": "sign-flip", "joins_at": 3}}, "rehearsed with transport: direct"),
        ({"transport": "direct", "participation": 0.0}, "participation"),
        ({"transport": "direct", "dropout": 1.0}, "dropout"),
        ({"reputation": "ignore"}, "reputation"),
        ({"contamination": 0.5}, "contamination"),
        ({"partition": {"labels": 1}}, "labels go with repeat"),
        ({"partition": {"labels": 1, "dirichlet": 1.0, "repeat": True}}, "not two"),
        ({"transport": "http"}, "transport"),
        ({"rule": "krum"}, "rule 'krum': unknown; there are trimmed-mean"),
        ({"rule": {"name": "krum"}}, "rule.name"),
        ({"rule": {"name": "multi-krum", "f": -1}}, "rule.f"),
        ({"rule": {"name": "centred-clipping", "radius": float("inf")}}, "rule.radius"),
        ({"name": ""}, "name"),
        ({"name": "\x1b[2J"}, "printed"),
    ],
)
def test_refuses_by_path(fields: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=r"test\.yaml") as caught:
        parsed(**fields)
    assert where in str(caught.value)


@pytest.mark.parametrize("text", ["- a list\n", "", "name: [unclosed\n", "devices: 5\n"])
def test_refuses_files_that_are_no_scenario(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_scenario(path)


def test_refuses_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_scenario(tmp_path / "none.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_scenario(binary)


def test_demo_is_what_the_command_promises() -> None:
    demo = demo_scenario()
    assert (demo.devices, demo.rounds, demo.group_size, demo.malicious_count) == (30, 10, 6, 6)
    assert (demo.attack.kind, demo.attack.scale, demo.rule, demo.masking) == ("sign-flip", 5.0, "trimmed-mean", True)
    assert demo.attesting is not None and demo.reputation == "enforce"
    assert demo_scenario(attack="alie").attack.scale == 1.0
    assert demo_scenario(masking=False).attesting is None
    assert demo.plan == DEMO_PLAN
    assert demo.plan.steps_for(48) >= 40
    assert demo_scenario(attack="none").malicious_count == 0
    with pytest.raises(ConfigError, match="devices"):
        demo_scenario(devices=2)


def test_seeds_differ_by_purpose_and_scenario() -> None:
    one, other = demo_scenario(seed=1), demo_scenario(seed=2)
    assert one.seed_for("training", 1, 2) == demo_scenario(seed=1).seed_for("training", 1, 2)
    assert len({one.seed_for("a"), one.seed_for("b"), one.seed_for("a", 1), other.seed_for("a")}) == 4
    assert len(one.seed_for("a")) == 32
