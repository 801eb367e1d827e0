"""Device keys change while the fleet learns: pins move forward, records stay, and a second line of keys rings."""

from __future__ import annotations

import shutil
from pathlib import Path

from nacl.signing import SigningKey
from tests.aggregator.fleet import FLEET, Device, Fleet, signed_state
from tests.aggregator.live import Agents, Live, enrol_agent, live_homes, live_task, until

from covey_agent.home import open_home
from covey_agent.rotation import rotate
from covey_aggregator.alerts import SECOND_KEY
from covey_protocol import identity, topics
from covey_protocol.digest import short
from covey_protocol.identity import Chain
from covey_simulator.broker import RunningBroker

ONE = "pi-1"


def renewed(device: Device, key: SigningKey) -> Chain:
    return identity.renew(device.chain, device.key, FLEET, device.name, bytes(key.verify_key))


def change(fleet: Fleet, name: str = ONE) -> SigningKey:
    """Let a device change its key, as it does at a restart; return the old one."""
    device, old = fleet.devices[name], fleet.devices[name].key
    new = SigningKey.generate()
    device.chain, device.key = renewed(device, new), new
    device.member._key = new
    fleet.to_server(name, topics.STATE, device.state(again=True))
    return old


def causes(fleet: Fleet) -> list[str]:
    return [error.cause for who, error in fleet.refused if who == "aggregator"]


def test_a_device_goes_on_under_its_new_key_in_the_same_group_also_after_a_restart(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 6)
    fleet.start(rounds=4, group_size=6)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    sequence = fleet.coordinator.registry.sequences[ONE]
    change(fleet)
    key = bytes(fleet.devices[ONE].key.verify_key)
    assert fleet.coordinator.registry.key(ONE) == key
    fleet.run_until(lambda: len(fleet.records()) == 3)
    assert ONE in fleet.records()[-1].details[0].survivors
    assert fleet.coordinator.registry.sequences[ONE] > sequence
    fleet.coordinator.commit()
    fleet.restart()
    assert fleet.coordinator.registry.key(ONE) == key
    assert fleet.finish().status == "done"
    assert ONE in fleet.records()[-1].details[0].survivors
    assert {opened.manifest.epoch for opened in fleet.opened} == {1}
    assert "second-key" not in causes(fleet)


def test_the_next_epoch_lists_the_new_key(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 6)
    fleet.start(rounds=4, group_size=6, epoch_rounds=2)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    change(fleet)
    assert fleet.finish().status == "done"
    assert fleet.opened[-1].manifest.epoch == 2
    assert ONE in fleet.records()[-1].details[0].survivors
    [grouping] = fleet.store.groupings()
    assert dict(grouping.members)[ONE] == bytes(fleet.devices[ONE].key.verify_key)


def test_what_the_former_key_says_is_late_and_what_another_line_says_rings(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 4)
    device, first = fleet.devices[ONE], fleet.devices[ONE].chain
    before = device.state()
    old = change(fleet)
    for restarted in (False, True):
        fleet.refused.clear()
        fleet.to_server(ONE, topics.STATE, before)  # played back
        assert causes(fleet) == ["former-key"]
        thief = SigningKey.generate()  # who had the old key
        forked = identity.renew(first, old, FLEET, ONE, bytes(thief.verify_key))
        fleet.to_server(ONE, topics.STATE, signed_state(ONE, thief, forked, 99))
        assert causes(fleet)[1:] == ["second-key"]
        for key in (thief, device.key):
            assert short(bytes(key.verify_key)) in str(fleet.refused[-1][1])
        assert fleet.coordinator.registry.key(ONE) == bytes(device.key.verify_key)
        if not restarted:
            fleet.coordinator.commit()
            fleet.restart()


def test_a_disk_that_was_put_back_to_before_the_change_is_told_so(mosquitto: RunningBroker, tmp_path: Path) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    before = enrol_agent(tmp_path, operator, home, ONE)
    image = tmp_path / "image"
    shutil.copytree(before.path, image)
    with Live(home) as live:
        registry = live.service.coordinator.registry
        with Agents([before]):
            until(lambda: ONE in registry.online(), "its arrival")
        changed = rotate(before.path)
        with Agents([changed]):
            until(lambda: live.call(lambda: registry.key(ONE)) == bytes(changed.key.verify_key), "the change")
        with Agents([open_home(image)]) as agents:
            until(lambda: "(former-key): 'pi-1' shows key" in agents.running[ONE].agent.holds, "what is the matter")
        assert live.call(lambda: live.service.coordinator.chronicle.alerts.newest(9)) == []


def test_a_revoked_device_comes_back_under_no_later_key(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 4)
    fleet.revoke(ONE)
    fleet.refused.clear()
    change(fleet)
    assert causes(fleet) == ["revoked"]
    changed = "pi-2"
    change(fleet, changed)
    fleet.revoke(changed)
    assert fleet.coordinator.registry.drop_revoked() == []
    assert not fleet.coordinator.registry.knows(changed)


def test_a_fleet_follows_a_device_that_changes_its_key_in_the_middle_of_a_task(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    names = [f"pi-{number}" for number in range(5)]
    homes = {name: enrol_agent(tmp_path, operator, home, name) for name in names}
    path, old = homes[ONE].path, homes[ONE].key
    with Live(home) as live, Agents(homes[name] for name in names if name != ONE) as agents:

        def survived() -> int:
            records = live.call(lambda: live.service.store.rounds("digits"))
            return sum(ONE in group.survivors for record in records for group in record.details)

        live.service.store.add_task(live_task(tmp_path, rounds=100_000, devices_min=5, group_size=5, settle=0.2))
        with Agents([homes[ONE]]):
            until(lambda: survived() >= 1, "a round under the first key")
        changed = rotate(path)
        before = survived()
        with Agents([changed]) as again:
            until(lambda: survived() >= before + 2, "rounds under the next key")
            assert not again.running[ONE].agent.holds
        assert (path / "device.key").read_bytes() == bytes(changed.key)
        assert not (path / "device.next").exists()
        assert open_home(path).key != old
        pinned = [each.agent._trust.pins for each in agents.running.values()]
        assert all(pins.tokens_of(changed.keys[1]) for pins in pinned)
        # A thief of the card as it was comes with another change of the same key.
        thief = SigningKey.generate()
        chain = identity.renew(homes[ONE].stored.chain, old, FLEET, ONE, bytes(thief.verify_key))
        topic = topics.up(FLEET, ONE, topics.STATE)
        live.call(lambda: live.service.on_message(topic, signed_state(ONE, thief, chain, 1 << 30)))
        alerts = live.call(lambda: live.service.coordinator.chronicle.alerts.newest(9))
        [alert] = [each for each in alerts if each.kind == SECOND_KEY]
        for key in (thief, changed.key):
            assert short(bytes(key.verify_key)) in alert.text
        live.service.store.set_status("digits", "stopping", "enough")
        live.until_ended()
