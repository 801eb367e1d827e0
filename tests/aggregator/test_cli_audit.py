"""``covey audit`` and ``covey alerts``: from a device that lied to somebody else who believes it for good reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from nacl.signing import SigningKey
from tests.aggregator.fleet import FLEET, Device, Fleet
from tests.aggregator.liveness import SharePoisoner

from covey_aggregator.cli import cli, main
from covey_protocol import topics
from covey_protocol.device_round import DeviceRound
from covey_protocol.effects import Effect, Send
from covey_protocol.messages import Complaint

LIAR = "pi-2"


class FalseComplainer(DeviceRound):
    """Complains of a dealer whose share is good."""

    def _on_dealt(self, body: bytes) -> list[Effect]:
        effects = super()._on_dealt(body)
        victim = next(member.name for member in self._dealt if member.name != self.name)
        complaint = Complaint(dealt=self._dealt_digest, dealers=[victim])
        return [*effects, Send(topics.COMPLAINT, self._sign(topics.COMPLAINT, complaint, self._current().digest))]


class LyingFleet(Fleet):
    """A fleet with one liar."""

    lie: type[DeviceRound] = FalseComplainer

    def make_device(self, name: str) -> Device:
        """Make a device, the liar if it is its name."""
        device = super().make_device(name)
        device.round_class = self.lie if name == LIAR else DeviceRound
        return device


class PoisonedFleet(LyingFleet):
    """A fleet with a dealer of wrong shares."""

    lie = SharePoisoner


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments), catch_exceptions=True)


def lied_in(fleet: Fleet) -> str:
    """Run a round in which somebody lies, and return the home."""
    fleet.start(rounds=1, group_size=6, attempts=1)
    fleet.finish()
    fleet.store.commit()
    return str(fleet.home.path)


@pytest.mark.parametrize(("kind", "words"), [(LyingFleet, "complained"), (PoisonedFleet, "another self-mask secret")])
def test_a_lie_is_proven_to_somebody_who_was_not_there(tmp_path: Path, kind: type[Fleet], words: str) -> None:
    fleet = kind(tmp_path, 6)
    home, file = lied_in(fleet), tmp_path / "pi-2.proof"
    (listed,) = json.loads(run("audit", "proofs", "--home", home, "--json").output)
    assert (listed["device"], words in listed["lie"]) == (LIAR, True)
    assert listed["id"] in run("audit", "proofs", "--home", home).output
    assert run("audit", "proof", listed["id"], "--home", home, "-o", str(file)).exit_code == 0
    key = fleet.operator.public_key.hex()
    answer = run("audit", "verify-proof", str(file), "--operator-key", key, "--fleet", FLEET)
    assert answer.exit_code == 0, answer.output
    assert "The proof holds" in answer.output
    assert LIAR in answer.output and words in answer.output
    verdict = json.loads(run("audit", "verify-proof", str(file), "--home", home, "--json").output)
    assert (verdict["holds"], verdict["device"], verdict["round"]) == (True, LIAR, 1)
    assert verdict["key"] == bytes(fleet.devices[LIAR].key.verify_key).hex()
    # It is in the audit log, and rang.
    assert f"{LIAR} is proven to have lied" in run("alerts", "--home", home).output
    entry = next(entry for entry in map(json.loads, exported(home)[:-1]) if entry["kind"] == "banned")
    assert entry["device"] == LIAR
    assert entry["data"]["proof"].startswith(listed["id"])


def exported(home: str) -> list[str]:
    return run("audit", "export", "--home", home).output.splitlines()


def test_a_proof_that_does_not_hold_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet, file = LyingFleet(tmp_path, 6), tmp_path / "proof"
    home = lied_in(fleet)
    run("audit", "proof", LIAR, "--home", home, "-o", str(file))
    good, other = file.read_bytes(), bytes(SigningKey.generate().verify_key).hex()

    def verify(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["covey", "audit", "verify-proof", str(file), *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    key = ["--operator-key", fleet.operator.public_key.hex()]
    assert verify(*key, "--fleet", FLEET) == 0
    assert verify("--operator-key", str(fleet.home.path / "operator.pub"), "--fleet", FLEET) == 0
    assert verify(*key, "--fleet", "orchard") == 1
    assert verify("--operator-key", other, "--fleet", FLEET) == 1
    assert verify(*key) == 2
    assert verify("--operator-key", "xyz", "--fleet", FLEET) == 2
    file.write_bytes(good.replace(b"pi-2", b"pi-1"))
    capsys.readouterr()
    assert verify(*key, "--fleet", FLEET) == 1
    assert "covey: " in capsys.readouterr().err
    file.write_bytes(good[:-1])
    assert verify(*key, "--fleet", FLEET) == 1


def test_no_proof_where_nobody_lied(tmp_path: Path) -> None:
    home = lied_in(Fleet(tmp_path, 6))
    assert "no device is proven" in run("audit", "proofs", "--home", home).output
    assert "no alerts" in run("alerts", "--home", home).output
    answer = run("audit", "proof", LIAR, "--home", home, "-o", str(tmp_path / "x"))
    assert "no proofs are called" in str(answer.exception)


def test_the_log_of_a_home_and_its_export_are_checked(tmp_path: Path) -> None:
    fleet, file = LyingFleet(tmp_path, 6), tmp_path / "audit.jsonl"
    home = lied_in(fleet)
    assert run("audit", "export", "--home", home, "-o", str(file)).exit_code == 0
    checked = json.loads(run("audit", "verify", "--home", home, "--json").output)
    assert not checked["signed"]
    signed = json.loads(run("audit", "verify", str(file), "--home", home, "--json").output)
    assert signed == {**checked, "signed": True}
    assert "signed by the aggregator" in run("audit", "verify", str(file), "--home", home).output
    assert run("audit", "verify", "--home", home, "--expect", checked["digest"][:10]).exit_code == 0
    assert "cut off" in str(run("audit", "verify", "--home", home, "--expect", "00" * 32).exception)
    file.write_text(file.read_text().replace("complained", "complains", 1))
    assert "not as it was written" in str(run("audit", "verify", str(file), "--home", home).exception)
    fleet.store.change("UPDATE audit SET device = 'pi-0' WHERE kind = 'banned'")
    fleet.store.commit()
    assert "not as it was written" in str(run("audit", "verify", "--home", home).exception)
