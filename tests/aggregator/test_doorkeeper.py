"""Whoever is not let in learns why, and whoever is nobody learns nothing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from tests.aggregator.fleet import FLEET, Fleet, provision, signed_state
from tests.aggregator.live import Agents, Live, Tap, enrol_agent, live_homes, until
from tests.aggregator.test_revocations import covey

from covey_agent.first_boot import open_or_enrol
from covey_agent.home import enrol, open_home
from covey_aggregator.alerts import SECOND_KEY
from covey_aggregator.doorkeeper import ANSWERS, SECONDS, Doorkeeper
from covey_protocol import identity, provisioning, topics
from covey_protocol.digest import content_digest, short
from covey_protocol.effects import Deliver
from covey_protocol.errors import RefusedError, SignatureError, StaleError
from covey_protocol.identity import Chain
from covey_protocol.refused import FOR_GOOD, read_refused
from covey_simulator.broker import RunningBroker

ONE = "pi-1"
ERROR = RefusedError("no", cause="revoked")


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path, 2)


def keeper(fleet: Fleet) -> Doorkeeper:
    return fleet.coordinator.doorkeeper


def test_an_answer_names_the_message_and_the_cause(fleet: Fleet) -> None:
    state = fleet.devices[ONE].state()
    [answer] = keeper(fleet).turn_away(ONE, state, ERROR, 0.0)
    assert isinstance(answer, Deliver)
    assert (answer.device, answer.kind) == (ONE, topics.REFUSED)
    key = bytes(fleet.home.key.verify_key)
    body = read_refused(answer.data, fleet=FLEET, device=ONE, aggregator_key=key)
    assert (body.state, body.cause, body.reason) == (content_digest(state), "revoked", "no")
    for fleet_name, device, signer in (("orchard", ONE, key), (FLEET, "pi-0", key), (FLEET, ONE, bytes(32))):
        with pytest.raises(SignatureError):
            read_refused(answer.data, fleet=fleet_name, device=device, aggregator_key=signer)


def test_strangers_cost_nothing(fleet: Fleet) -> None:
    desk, device = keeper(fleet), fleet.devices[ONE]
    stranger = SigningKey.generate()
    forged = identity.issue_token(
        stranger, FLEET, ONE, token_key=bytes(stranger.verify_key), profile="pi-4", not_after=0
    )
    endorsed = identity.endorse(stranger, FLEET, ONE, bytes(stranger.verify_key))
    for state in (
        b"",
        b"\xd2",
        signed_state(ONE, stranger, Chain(token=forged, endorsement=endorsed), 1),  # no token of the operator's
        signed_state(ONE, stranger, Chain(token=device.chain.token, endorsement=endorsed), 1),  # not endorsed
        signed_state(ONE, stranger, device.chain, 1),  # somebody else's chain
        fleet.devices["pi-0"].state(),  # another name
    ):
        assert desk.turn_away(ONE, state, ERROR, 0.0) == []
    assert desk._answered == {}


@pytest.mark.parametrize("cause", ["replayed", "went-back", "signature", "malformed"])
def test_only_what_is_for_good_is_said(fleet: Fleet, cause: str) -> None:
    assert cause not in FOR_GOOD
    assert keeper(fleet).turn_away(ONE, fleet.devices[ONE].state(), StaleError("late", cause=cause), 0.0) == []


def test_a_last_will_is_not_answered(fleet: Fleet) -> None:
    assert keeper(fleet).turn_away(ONE, fleet.devices[ONE].state("lost"), ERROR, 0.0) == []


def test_nobody_can_make_the_aggregator_talk(fleet: Fleet) -> None:
    desk = keeper(fleet)
    states = {f"x-{number}": fleet.make_device(f"x-{number}").state() for number in range(ANSWERS + 3)}
    said = [name for name, state in states.items() if desk.turn_away(name, state, ERROR, 1.0)]
    assert len(said) == ANSWERS
    assert not any(desk.turn_away(name, states[name], ERROR, 1.0 + SECONDS - 1) for name in states)
    assert len(desk._answered) == ANSWERS
    assert desk.turn_away("x-0", states["x-0"], ERROR, 1.0 + SECONDS)
    assert len(desk._answered) == 1
    assert not desk.turn_away("x-0", states["x-0"], ERROR, 1.0 + SECONDS + 1)  # there is room, and it was answered


# --- a real broker ------------------------------------------------------------------------------------------------


def test_a_second_home_of_one_token_learns_why_it_is_refused_and_the_operator_hears_of_both_keys(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    bundle = provisioning.encode(provision(operator, home, ONE, mosquitto.port))
    homes = []
    for place in ("first", "second"):
        file = tmp_path / f"{place}.bundle"
        file.write_text(bundle)
        homes.append(enrol(file, tmp_path / place))
    first, second = homes
    with Live(home) as live, Tap(mosquitto, f"covey/v1/{FLEET}/#") as tap:
        with Agents([first]):
            until(lambda: live.call(lambda: live.service.coordinator.registry.knows(ONE)), "the first home's enrolment")
        with Agents([second]) as agents:
            agent = agents.running[ONE].agent
            until(lambda: "second-key" in agent.holds, "the second home's refusal")
            assert agent.snapshot()["holds"] == agent.holds
            # What is said to the second says nothing to the first, and an old answer says nothing later.
            [answer] = tap.on(topics.down(FLEET, ONE, topics.REFUSED))
        [alert] = live.call(lambda: live.service.coordinator.chronicle.alerts.newest(5))
        assert alert.kind == SECOND_KEY
        for each in homes:
            assert short(bytes(each.key.verify_key)) in alert.text
            assert short(bytes(each.key.verify_key)) in agent.holds
        with Agents([first]) as agents:
            again = agents.running[ONE].agent
            until(lambda: live.service.coordinator.registry.online() != {}, "the first home's return")
            tap.publish(topics.down(FLEET, ONE, topics.REFUSED), answer)
            until(lambda: again.refusals.counts["replayed"] > 0, "the refusal of a refusal")
            assert again.holds == ""
        # Strangers are not spoken to.
        tap.publish(topics.up(FLEET, "pi-9", topics.STATE), b"\xd2\x00")
        until(lambda: live.service.refusals.counts.total() > 1, "the stranger's refusal")
        assert not tap.on(topics.down(FLEET, "pi-9", topics.REFUSED))


def test_a_card_with_a_bundle_on_it_becomes_a_device_by_itself(mosquitto: RunningBroker, tmp_path: Path) -> None:
    """As a person does it: the server makes a bundle, the card gets it, the device is switched on, and on again."""
    _, home = live_homes(tmp_path, mosquitto)
    covey("device", "add", ONE, "--home", str(home.path))
    [bundle] = (home.path / "bundles").glob("*.bundle")
    boot, place = tmp_path / "boot", tmp_path / "device"
    boot.mkdir()
    (boot / f"covey-{ONE}.bundle").write_bytes(bundle.read_bytes())
    script = "from covey_agent.cli import main; main()"
    command = [sys.executable, "-c", script, "run", "--home", str(place), "--boot", str(boot)]
    keys = set()
    with Live(home) as live:
        registry = live.service.coordinator.registry
        for _ in range(2):
            device = subprocess.Popen(command)
            try:
                until(lambda: ONE in registry.online(), "the device's arrival")
                keys.add(live.call(lambda: registry.key(ONE)))
            finally:
                device.terminate()
                device.wait(60)
            until(lambda: ONE not in registry.online(), "its leave")
        assert not list(boot.iterdir())
        # The same bundle on another card, or used again: everybody is told what is the matter.
        (boot / f"covey-{ONE}.bundle").write_bytes(bundle.read_bytes())
        with Agents([open_or_enrol(tmp_path / "copy", [boot], now=None)]) as agents:
            until(lambda: "second-key" in agents.running[ONE].agent.holds, "the copy's refusal")
    assert keys == {bytes(open_home(place).key.verify_key)}


def test_who_comes_with_an_expired_token_or_after_its_revocation_learns_it(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    late = tmp_path / "late.bundle"
    late.write_text(
        provisioning.encode(
            operator.provision(
                "late", profile="pi-4", seconds=600, delegation=home.delegation, broker=home.broker_for_devices()
            )
        )
    )
    devices = [enrol(late, tmp_path / "late"), enrol_agent(tmp_path, operator, home, ONE)]
    with Live(home, wall_clock=lambda: time.time() + 3600) as live:
        with Agents(devices) as agents:
            until(lambda: "(expired): token of 'late' expired" in agents.running["late"].agent.holds, "its refusal")
            until(lambda: live.service.coordinator.registry.knows(ONE), "the other's enrolment")
        covey("device", "revoke", ONE, "--home", str(home.path), "--reason", "stolen")
        until(lambda: not live.service.coordinator.registry.knows(ONE), "the revocation")
        with Agents([open_home(devices[1].path)]) as agents:
            until(
                lambda: "(revoked): 'pi-1' was revoked" in agents.running[ONE].agent.holds, "the revoked one's answer"
            )
