"""covey_aggregator.privacy and ``covey privacy``: what cannot be kept is refused, and what was spent is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.aggregator.fleet import DIMENSION, NO_SKETCHES, Fleet, make_homes, tiny_bundle

from covey_aggregator import privacy
from covey_aggregator.cli import cli
from covey_aggregator.home import DATABASE_FILE
from covey_aggregator.privacy import Privacy, check_policy
from covey_aggregator.records import GroupRecord, RoundRecord
from covey_aggregator.store import Store
from covey_aggregator.task import Task, load_task
from covey_protocol import accounting
from covey_protocol.errors import ConfigError
from covey_protocol.noise import Noise, calibrate
from covey_protocol.policy import Policy

RING: dict[str, Any] = {"group_size": 10, "dimension": 650, "sketch": 0}


def noise_of(**fields: Any) -> Noise:
    found = Privacy(**fields).noise(rounds=40, **RING)
    assert found is not None
    return found


def spends(noise: Noise, rounds: int = 40, *, sketched: bool = False) -> float:
    return accounting.epsilon(rounds * accounting.round_cost(noise, sketched=sketched), 1e-5)


@pytest.fixture
def make_fleet(tmp_path: Path) -> Callable[..., Fleet]:
    return lambda devices=12, **options: Fleet(tmp_path, devices, **options)


# --- Settings ------------------------------------------------------------------------------------------------------


def test_without_a_word_about_it_there_is_no_noise() -> None:
    assert Privacy().noise(rounds=40, **RING) is None
    assert not Privacy().on


@settings(deadline=None, max_examples=20)
@given(st.floats(0.5, 20), st.integers(1, 500))
def test_the_noise_follows_from_epsilon(epsilon: float, rounds: int) -> None:
    try:
        noise = Privacy(epsilon=epsilon).noise(rounds=rounds, **RING)
    except ConfigError:
        return
    assert noise is not None
    assert 0.97 * epsilon < spends(noise, rounds) <= epsilon


def test_a_budget_may_last_longer_than_the_task() -> None:
    assert noise_of(epsilon=8, rounds=50).multiplier == Privacy(epsilon=8).noise(rounds=50, **RING).multiplier  # type: ignore[union-attr]
    assert noise_of(epsilon=8, a_min=9).honest == 6
    assert noise_of(epsilon=8, a_min=9).variance < noise_of(epsilon=8).variance


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"delta": 1e-6, "a_min": 7}, "names neither"),
        ({"epsilon": 8, "rounds": 39}, "a budget for 39 rounds, and the task has 40"),
        ({"epsilon": 8, "a_min": 11}, "a_min 11: groups have 10 members"),
        (
            {"epsilon": 8, "noise_multiplier": 2.0},
            r"noise_multiplier 2 spends epsilon 1\d\.\d in 40 rounds, and 8 is allowed: that is enough for \d+ rounds, "
            r"or takes a multiplier of 4\.036",
        ),
        ({"noise_multiplier": 500.0}, "leaves 0 units of the ring"),
        ({"epsilon": 0.01}, "privacy: no noise up to 1000 keeps 40 rounds within"),
    ],
)
def test_settings_that_cannot_be_kept(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        noise_of(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"epsilon": 0},
        {"epsilon": -1},
        {"noise_multiplier": 0},
        {"noise_multiplier": 1e9},
        {"delta": 0},
        {"delta": 1},
        {"noise": 1},
    ],
)
def test_settings_that_mean_nothing(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, Privacy)


def test_what_devices_would_refuse_is_refused_before() -> None:
    noise = noise_of(epsilon=8)
    check_policy(None, Policy(), rounds=40, sketch=0)
    check_policy(noise, Policy(noise_min=4, epsilon_max=8), rounds=40, sketch=0)
    for policy, given_noise, words in (
        (Policy(noise_min=4.1), noise, "noise of 4.036: the policy's noise_min is 4.1"),
        (Policy(noise_min=0.1), None, "noise of 0: the policy's noise_min is 0.1"),
        (Policy(epsilon_max=4), None, "no noise: the policy's epsilon_max is 4"),
        (
            Policy(epsilon_max=4),
            noise,
            r"40 rounds spend epsilon 8 .* epsilon_max is 4: devices would stop after 1\d rounds",
        ),
        (Policy(epsilon_max=8, delta=1e-7), noise, "at delta 1e-07"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_policy(given_noise, policy, rounds=40, sketch=0)
    with pytest.raises(ConfigError, match="devices would stop after"):
        check_policy(calibrate(4.036, n_max=10, dimension=650, sketch=8), Policy(epsilon_max=8), rounds=40, sketch=8)


# --- What was spent --------------------------------------------------------------------------------------------------


def record(number: int, noise: Noise | None, *groups: GroupRecord, sketch: int = 0) -> RoundRecord:
    made = RoundRecord.aborted(number, 1, "00", 1.0, list(groups))
    return msgspec.structs.replace(made, noise=noise, sketch=sketch)


def group(*members: str, cause: str = "") -> GroupRecord:
    return GroupRecord(group="1-0-0", members=list(members), survivors=[], cause=cause)


def test_everybody_who_may_have_masked_is_counted() -> None:
    noise = calibrate(4.0, n_max=10, dimension=650, sketch=8)
    plain, sketched = (accounting.round_cost(noise, sketched=told) for told in (False, True))
    found = privacy.spent(
        [
            record(1, noise, group("a", "b")),
            record(2, noise, group("a", cause="too-few-revealed"), group("c", cause="too-few-dealt")),
            record(3, noise, group("b"), sketch=8),
        ]
    )
    assert found.keys() == {"a", "b"}
    assert (found["a"] == 2 * plain).all()
    assert (found["b"] == plain + sketched).all()
    assert accounting.epsilon(privacy.spent([record(1, None, group("a"))])["a"], 1e-5) == float("inf")
    both = privacy.together([found, {"a": plain, "d": plain}])
    assert (both["a"] == 3 * plain).all() and (both["d"] == plain).all()


# --- A task with noise --------------------------------------------------------------------------------------------


def test_a_task_with_noise_runs_to_its_end_and_every_ledger_agrees(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(8)
    fleet.start(rounds=3, group_size=8, attestation=NO_SKETCHES, privacy=Privacy(noise_multiplier=0.5, a_min=7))
    row = fleet.finish()
    records = fleet.records()
    assert (row.status, row.reason, len(records)) == ("done", "", 3)
    assert all(made.noise == calibrate(0.5, n_max=8, dimension=DIMENSION, a_min=7) for made in records)
    assert all(made.federated_accuracy is None and made.update_norm is None for made in records)
    found = privacy.spent(records)
    assert len(found) == 8
    for name, device in fleet.devices.items():
        assert device.ledger.privacy.spent(Policy()) == pytest.approx(found[name])


def test_a_task_that_devices_would_refuse_fails_before_its_first_round(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(8, policy=Policy(epsilon_max=1.0))
    fleet.start(rounds=3, attestation=NO_SKETCHES, privacy=Privacy(noise_multiplier=0.5))
    row = fleet.finish()
    assert row.status == "failed" and "devices would stop after 0 rounds" in row.reason
    assert not fleet.opened


# --- The command --------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Path:
    make_homes(tmp_path, policy=Policy(epsilon_max=10.0))
    (tmp_path / "tiny.bundle").write_bytes(tiny_bundle().encode())
    return tmp_path / "home"


def write_task(home: Path, **fields: Any) -> Path:
    path = home.parent / "task.yaml"
    base = {"name": "digits", "bundle": "tiny.bundle", "rounds": 20, "clip": 1.0, "attestation": {"sketch": "off"}}
    path.write_text(yaml.safe_dump({**base, **fields}))
    return path


def covey(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)], catch_exceptions=True)


def test_a_forecast_without_a_server(home: Path) -> None:
    path = write_task(home, privacy={"epsilon": 6})
    said = covey("privacy", "--home", home, "--forecast", path)
    assert said.exit_code == 0, said.output
    assert "each device stops at epsilon 10, delta 1e-05" in said.output
    assert "at the end epsilon 6" in said.output
    told = json.loads(covey("privacy", "--home", home, "--forecast", path, "--json").output)
    assert told["tasks"][0]["epsilon_at_end"] == pytest.approx(6, abs=0.05)
    assert told["tasks"][0]["rounds_within_policy"] > 20
    refused = covey("privacy", "--home", home, "--forecast", write_task(home, privacy={"epsilon": 11}))
    assert isinstance(refused.exception, ConfigError) and "devices would stop after" in str(refused.exception)


def test_what_tasks_have_cost_and_will(home: Path) -> None:
    task: Task = load_task(write_task(home, privacy={"epsilon": 6}))
    store = Store(home / DATABASE_FILE)
    store.add_task(task)
    noise = task.noise(DIMENSION, Policy(epsilon_max=10.0))
    assert noise is not None
    for number in range(1, 6):
        names = [f"pi-{index:02}" for index in range(12 if number == 1 else 11)]
        store.begin_round("digits", number, 1, bytes([number]) * 32)
        done = msgspec.structs.replace(record(number, noise, group(*names)), groups_aborted=0)
        store.end_round("digits", done, bytes([number]) * 32)
    told = json.loads(covey("privacy", "digits", "--home", home, "--json").output)
    (part,) = told["tasks"]
    assert (part["closed"], part["rounds"]) == (5, 20)
    assert part["epsilon"] == pytest.approx(spends(noise, 5), abs=1e-5)
    assert part["epsilon_at_end"] == pytest.approx(spends(noise, 20), abs=1e-5) == pytest.approx(6, abs=0.05)
    assert told["devices"]["pi-00"] == pytest.approx(spends(noise, 5), abs=1e-5)
    assert told["devices"]["pi-11"] == pytest.approx(spends(noise, 1), abs=1e-5)
    words = covey("privacy", "--home", home).output
    assert "5 of 20 rounds closed" in words and "and 2 more that have spent no more" in words
    assert "pi-11" not in words and "pi-11" in covey("privacy", "--home", home, "--devices").output
    assert "no task 'nobody'" in str(covey("privacy", "nobody", "--home", home).exception)


def test_whoever_asks_for_sketches_under_noise_is_told_what_they_are_worth(home: Path) -> None:
    asked = covey(
        "task", "start", write_task(home, name="asked", attestation={}, privacy={"epsilon": 6}), "--home", home
    )
    assert asked.exit_code == 0 and "sketches under noise find no poisoners" in asked.output
    plain = covey("task", "start", write_task(home, name="plain", privacy={"epsilon": 6}), "--home", home)
    assert plain.exit_code == 0 and "sketches under" not in plain.output


def test_a_task_without_noise_is_said_to_be_one(home: Path) -> None:
    make_homes(home.parent / "free")
    said = covey("privacy", "--home", home.parent / "free" / "home", "--forecast", write_task(home))
    assert "no noise: what its rounds tell about a device is not bounded" in said.output
    assert "no device ever stops" in said.output
