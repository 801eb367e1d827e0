"""The operator's desk during real rounds: orders act, liars are out, and everything is written down and told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.aggregator.test_attesting import Sketching, lying

from covey_aggregator import alerts
from covey_aggregator.alerts import AlertBook
from covey_aggregator.audit import AuditLog, check
from covey_aggregator.cli import cli
from covey_aggregator.evidence_log import EvidenceLog
from covey_aggregator.reputation import State
from covey_protocol.errors import ConfigError

LIAR = "pi-3"


def run(fleet: Sketching, *arguments: str) -> Result:
    fleet.coordinator.commit()
    return CliRunner().invoke(cli, [*arguments, "--home", str(fleet.home.path)])


def summed(fleet: Sketching, name: str) -> list[bool]:
    return [any(name in detail.survivors for detail in record.details) for record in fleet.records()]


def test_orders_act_from_the_next_round_on(tmp_path: Path) -> None:
    fleet = Sketching(tmp_path, 12)
    fleet.start(rounds=6, group_size=6)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    answer = run(fleet, "device", "quarantine", LIAR, "--reason", "its camera was moved", "--wait", "0")
    assert answer.exit_code == 0, answer.output
    fleet.carry(fleet.coordinator.poll(fleet.now))
    assert fleet.state(LIAR) is State.QUARANTINED
    fleet.run_until(lambda: len(fleet.records()) == 4)
    fleet.restart()  # an order is not forgotten
    assert fleet.state(LIAR) is State.QUARANTINED
    assert run(fleet, "device", "release", LIAR, "--reason", "put back", "--wait", "0").exit_code == 0
    fleet.carry(fleet.coordinator.poll(fleet.now))
    assert fleet.state(LIAR) is State.PROBATION
    assert fleet.finish().status == "done"
    in_round = summed(fleet, LIAR)
    assert in_round[0]
    assert not any(in_round[2:4])  # the open round may have been decided on already
    assert [entry.kind for entry in AuditLog(fleet.store).entries(LIAR)][:2] == ["quarantined", "released"]


@pytest.mark.parametrize("own", [True, False])
def test_a_liar_is_out_shown_and_told_of_in_the_round_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    fleet = Sketching(tmp_path, 12)
    with monkeypatch.context() as patch:
        lying(patch, LIAR, own=own)
        fleet.start(rounds=2, group_size=6)
        assert fleet.finish().status == "done"
    rung = [alert for alert in AlertBook(fleet.store).after(0) if alert.kind == alerts.BANNED]
    assert [(alert.device, alert.round) for alert in rung] == [(LIAR, 1)]
    assert not any(summed(fleet, LIAR)[1:])
    shown = json.loads(run(fleet, "device", "show", LIAR, "--json", "--history").output)
    assert (shown["state"], shown["score"]) == ("banned", 0.0)
    file = tmp_path / "liar.proof"
    assert run(fleet, "audit", "proof", shown["proof"], "-o", str(file)).exit_code == 0
    verdict = run(fleet, "audit", "verify-proof", str(file))
    assert verdict.exit_code == 0
    assert "a false sketch of its" in verdict.output
    assert [entry["kind"] for entry in shown["history"]["decisions"]] == ["banned"]
    released = run(fleet, "device", "release", LIAR, "--reason", "please", "--wait", "0")
    assert isinstance(released.exception, ConfigError)
    assert "does not become less true" in str(released.exception)
    assert check(AuditLog(fleet.store).entries()).entries >= 3


def test_a_poisoner_is_told_of_in_the_round_that_expels_it(tmp_path: Path) -> None:
    fleet = Sketching(tmp_path, 12)
    fleet.devices[LIAR].factor = -1.0  # type: ignore[attr-defined]
    fleet.start(rounds=14, group_size=6)
    fleet.run_until(lambda: fleet.opened != [] and fleet.state(LIAR) is State.QUARANTINED)
    (alert,) = [alert for alert in AlertBook(fleet.store).after(0) if alert.kind == alerts.QUARANTINED]
    assert (alert.device, alert.round) == (LIAR, len(fleet.records()))
    lines = EvidenceLog(fleet.store).of(LIAR)
    assert [line.round for line in lines] == list(range(1, len(fleet.records()) + 1))
    assert (lines[-1].after, lines[-1].score) == ("quarantined", 0.0)
    assert lines[-1].parts.alignment > 0
    text = run(fleet, "device", "show", LIAR, "--history").output
    assert "-> quarantined" in text
    honest = EvidenceLog(fleet.store).of("pi-1")
    assert honest[-1].after != "quarantined"
