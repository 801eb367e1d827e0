"""Probes in a rehearsed fleet: a backdoor that agrees with everybody is found by what it teaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from covey_agent.trainer import Trainer
from covey_simulator.attacks import malicious_devices
from covey_simulator.attacks.success import attack_success
from covey_simulator.data import device_names, load_corpus, make_bundle, partition
from covey_simulator.engine.rehearse import rehearse
from covey_simulator.roles import odd_devices
from covey_simulator.scenario import Scenario, parse_scenario


def scenario(seed: int, **changes: Any) -> Scenario:
    value = {
        "name": "probes",
        "seed": seed,
        "devices": 50,
        "samples_per_device": 40,
        "partition": {"dirichlet": 0.5, "repeat": True},
        "rounds": 18,
        "group_size": 10,
        "local": {"epochs": 5, "batch_size": 40, "learning_rate": 0.3, "momentum": 0.0},
        "adaptive_clip": True,
        "attestation": {"sketch": 16},
        "transport": "direct",
        "masking": "simulated",
        "signatures": False,
        "attack": {"kind": "model-replacement", "scale": 1.0, "fraction": 0.2},
    }
    return parse_scenario({**value, **changes}, origin="test", folder=Path())


def played(seed: int, **changes: Any) -> tuple[float, float, float]:
    """Return the backdoor's success, and the shares of attackers and honest devices in quarantine."""
    told = scenario(seed, **changes)
    corpus = load_corpus(told)
    trainer = Trainer(make_bundle(told, corpus))
    play = rehearse(told, trainer, partition(corpus.train, told), corpus.held_out)
    names = device_names(told.devices)
    hostile = {names[index] for index in malicious_devices(told)}
    success = attack_success(told.attack, trainer, play.weights, corpus.held_out, (0.0, 1.0))
    assert success is not None
    out = play.expelled[-1]
    return success, len(out & hostile) / len(hostile), len(out - hostile) / (len(names) - len(hostile))


@pytest.mark.parametrize("signatures", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_mild_backdoor_is_expelled_by_what_it_teaches(signatures: bool) -> None:
    without = played(1)
    assert without[0] > 0.2
    assert without[1:] == (0, 0)
    success, caught, wronged = played(1, probes=True, signatures=signatures)
    assert success < without[0] / 2
    assert caught >= 0.7
    assert wronged == 0


def test_devices_of_one_class_are_excused_for_differing() -> None:
    out = {}
    for probes in (False, True):
        oddities = {"kind": "one-class", "fraction": 0.2}
        told = scenario(1, rounds=10, probes=probes, attack={"kind": "none"}, oddities=oddities)
        corpus = load_corpus(told)
        trainer = Trainer(make_bundle(told, corpus))
        play = rehearse(told, trainer, partition(corpus.train, told), corpus.held_out)
        out[probes] = play.expelled[-1]
    names = device_names(50)
    assert len(out[False] & {names[index] for index in odd_devices(told)}) >= 3
    assert out[True] == set()
