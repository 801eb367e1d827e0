"""Every attack in a small rehearsed fleet, and what the targeted ones reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_agent.trainer import Trainer
from covey_simulator.attack_kinds import KINDS
from covey_simulator.attacks import Coalition, malicious_devices
from covey_simulator.data import load_corpus, make_bundle, partition
from covey_simulator.engine.rehearse import rehearse
from covey_simulator.scenario import Scenario, parse_scenario


def fleet(attack: dict[str, Any], **changes: Any) -> Scenario:
    value = {
        "name": "zoo",
        "devices": 12,
        "samples_per_device": 20,
        "rounds": 3,
        "group_size": 6,
        "local": {"steps": 3, "batch_size": 20, "learning_rate": 0.3, "momentum": 0.0},
        "masking": "simulated",
        "signatures": False,
        "transport": "direct",
        "attestation": {"sketch": 16},
        "attack": {"fraction": 0.25, "start_round": 2, **attack},
    }
    return parse_scenario({**value, **changes}, origin="test", folder=Path())


@pytest.mark.parametrize("source", ["digits", "breast-cancer"])
def test_every_kind_runs_and_changes_what_is_learnt_from_its_round_on(source: str) -> None:
    calm = fleet({"kind": "none"}, data={"source": source})
    corpus = load_corpus(calm)
    trainer, slices = Trainer(make_bundle(calm, corpus)), partition(corpus.train, calm)
    losses: dict[str, list[float | None]] = {}
    kinds = [kind for kind in KINDS if not KINDS[kind].protocol]
    for kind in kinds:
        settings = {"scale": 2.0} if kind == "scaling" else {}
        what = fleet({"kind": kind, **settings}, data={"source": source})
        play = rehearse(what, trainer, slices, corpus.held_out)
        losses[kind] = [record.loss for record in play.records]
        assert np.isfinite(play.weights).all()
    for kind in kinds:
        if kind not in ("none", "sybil-wave"):  # the wave's devices are missing in the first round
            assert losses[kind][0] == losses["none"][0], kind
        assert kind == "none" or losses[kind][2] != losses["none"][2], kind


@pytest.mark.parametrize("attack", [{"kind": "model-replacement", "scale": 2.0}, {"kind": "distributed-backdoor"}])
def test_backdoors_open_where_nobody_looks(attack: dict[str, Any]) -> None:
    changes: dict[str, Any] = {"attestation": False, "rule": "mean", "rounds": 12, "clip": 20.0}
    reached = {}
    for kind, settings in (("none", {"kind": "none"}), ("attacked", {**attack, "start_round": 4, "fraction": 0.34})):
        what = fleet(settings, **changes)
        corpus = load_corpus(what)
        trainer, slices = Trainer(make_bundle(what, corpus)), partition(corpus.train, what)
        play = rehearse(what, trainer, slices, corpus.held_out)
        asked = fleet(attack, **changes)
        reached[kind] = Coalition(asked, trainer, slices, malicious_devices(asked)).success(
            play.weights, corpus.held_out
        )
    assert (reached["none"] or 0) < 0.3
    assert (reached["attacked"] or 0) > 0.6
