"""Revocation on the server: the operator signs, the service publishes, and who is revoked is gone at every stage."""

from __future__ import annotations

import fcntl
import functools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nacl.signing import SigningKey
from tests.aggregator.fleet import FLEET, Device, Fleet, make_homes, provision, signed_state
from tests.aggregator.live import Agents, Live, Tap, enrol_agent, live_homes, live_task, until
from tests.aggregator.test_coordinator import causes, check_never_again

from covey_agent.home import AgentHome
from covey_agent.trainer import Trainer, TrainResult
from covey_aggregator.coordinator import Phase
from covey_aggregator.home import DATABASE_FILE
from covey_aggregator.operator import OperatorHome
from covey_aggregator.revocations import FILE, LOCK, read_kept, revoke
from covey_aggregator.service import Service
from covey_aggregator.store import Store
from covey_protocol import envelope, identity, revocation, topics
from covey_protocol.bundle import Bundle
from covey_protocol.effects import Publish
from covey_protocol.envelope import Context
from covey_protocol.errors import ConfigError, PeerError, RefusedError, StaleError
from covey_protocol.identity import AGGREGATOR, Chain
from covey_protocol.messages import Manifest
from covey_protocol.payload import read, write
from covey_protocol.revocation import Revocation
from covey_protocol.round_table import GroupStage
from covey_simulator.broker import RunningBroker

ONE = "pi-3"


@pytest.fixture
def make_fleet(tmp_path: Path) -> Callable[..., Fleet]:
    return lambda devices=10, **options: Fleet(tmp_path, devices, **options)


def entry(number: int, name: str = "gone") -> Revocation:
    return Revocation(token=bytes([number]) * 32, key=b"", device=name, reason="lost")


def heads(fleet: Fleet) -> list[Publish]:
    return [effect for effect in fleet.published if effect.kind == topics.REVOCATIONS]


def members(fleet: Fleet, record: int = -1) -> set[str]:
    return {name for group in fleet.records()[record].details for name in group.members}


def refused_by_aggregator(fleet: Fleet) -> list[str]:
    return [error.cause for who, error in fleet.refused if who == "aggregator"]


def check(fleet: Fleet) -> None:
    """As ``check_never_again``, but the revoked device itself may find that it is left out."""
    fleet.refused = [(who, error) for who, error in fleet.refused if who != ONE]
    check_never_again(fleet)


# --- the operator's side ------------------------------------------------------------------------------------------


@pytest.fixture
def operator(tmp_path: Path) -> OperatorHome:
    return make_homes(tmp_path)[0]


def test_versions_go_up_and_nobody_gets_lost(operator: OperatorHome) -> None:
    assert read_kept(operator) is None
    first = revoke(operator, [entry(1)], None)
    second = revoke(operator, [entry(2), entry(1)], None)
    assert [(each.version, len(each.entries)) for each in (first, second)] == [(1, 1), (2, 2)]
    assert revoke(operator, [entry(1)], None) == second  # nothing new: nothing is signed
    assert read_kept(operator) == second
    assert (operator.path / FILE).stat().st_mode & 0o077 == 0


def test_a_list_that_the_operators_home_has_lost_is_taken_from_the_server(operator: OperatorHome) -> None:
    revoke(operator, [entry(1)], None)
    newest = revoke(operator, [entry(2)], None)
    (operator.path / FILE).unlink()
    third = revoke(operator, [entry(3)], newest)
    assert (third.version, len(third.entries)) == (3, 3)


def test_two_lists_of_one_version_stop_the_command(operator: OperatorHome) -> None:
    other = revoke(operator, [entry(1)], None)
    (operator.path / FILE).unlink()
    revoke(operator, [entry(2)], None)
    with pytest.raises(ConfigError, match="two revocation lists of version 1"):
        revoke(operator, [entry(3)], other)


def test_a_damaged_list_is_named(operator: OperatorHome) -> None:
    revoke(operator, [entry(1)], None)
    whole = (operator.path / FILE).read_bytes()
    for damaged in (b"", b"\x00", whole[:-1], whole[:-8] + bytes(8)):
        (operator.path / FILE).write_bytes(damaged)
        with pytest.raises(ConfigError, match=FILE):
            revoke(operator, [entry(2)], None)


def test_commands_at_one_time_never_sign_one_version_twice(operator: OperatorHome) -> None:
    threads = [
        threading.Thread(target=revoke, args=(operator, [entry(number)], None), daemon=True) for number in range(1, 4)
    ]
    with (operator.path / LOCK).open("w") as lock:  # another command is at work
        fcntl.flock(lock, fcntl.LOCK_EX)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(0.3)
            assert thread.is_alive()
        assert read_kept(operator) is None
    for thread in threads:
        thread.join(60)
    kept = read_kept(operator)
    assert kept is not None
    assert (kept.version, len(kept.entries)) == (3, 3)


# --- rounds -------------------------------------------------------------------------------------------------------


def test_the_next_round_goes_on_without_a_revoked_device(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet()
    fleet.start(rounds=3)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    assert ONE in members(fleet)
    fleet.revoke(ONE)
    assert fleet.finish().status == "done"
    assert ONE in members(fleet, 0)
    assert ONE not in members(fleet)
    assert len(members(fleet)) == 9
    assert [opened.manifest.revocations for opened in fleet.opened][-1] == 1
    assert [(head.id, head.retain) for head in heads(fleet)] == [("", True)]
    assert "revoked" in causes(fleet)
    check(fleet)


def test_a_join_of_a_device_that_is_revoked_before_the_roster_is_dropped(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(6)
    fleet.start(rounds=1, group_size=6)
    fleet.silent_from["pi-5"] = topics.JOIN  # the group waits for it
    fleet.run_until(lambda: "pi-5" in fleet.silent and not fleet._queue)
    assert fleet.coordinator.run is not None
    (group,) = fleet.coordinator.run.groups.values()
    assert (group.stage, group.awaited()) == (GroupStage.JOINING, {"pi-5"})
    before = fleet.now
    fleet.revoke(ONE)
    fleet.revoke("pi-5")
    assert fleet.finish().status == "done"
    assert members(fleet) == {"pi-0", "pi-1", "pi-2", "pi-4"}
    assert fleet.now <= before + 3  # nobody waited for a window to run out
    check(fleet)


@pytest.mark.parametrize("kind", [topics.SHARES, topics.MASKED, topics.SURVIVORS, topics.UNMASK])
def test_a_device_that_is_revoked_behind_the_roster_counts_as_silent(
    make_fleet: Callable[..., Fleet], kind: str
) -> None:
    fleet = make_fleet(7)
    fleet.start(rounds=1, group_size=7)
    fleet.silent_from[ONE] = kind
    fleet.run_until(lambda: ONE in fleet.silent)
    before = fleet.now
    fleet.revoke(ONE)
    assert fleet.finish().status == "done"
    assert fleet.now <= before + 3
    assert members(fleet) == set(fleet.devices)
    [detail] = fleet.records()[0].details
    assert (ONE in detail.survivors) == (kind in (topics.SURVIVORS, topics.UNMASK))
    check(fleet)


def test_nothing_of_a_revoked_device_is_taken_any_more(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(7)
    fleet.start(rounds=2, group_size=7)
    fleet.run_until(lambda: any(send.kind == topics.MASKED and not send.transfer for _, send in fleet.wire))
    fleet.revoke(ONE)
    assert not fleet.coordinator.registry.knows(ONE)
    with pytest.raises(StaleError) as caught:
        fleet.coordinator.vector(ONE, b"vector", fleet.now)
    assert caught.value.cause == "unknown-device"
    for kind in sorted(topics.UP_KINDS - {topics.STATE}):
        with pytest.raises(StaleError) as caught:
            fleet.coordinator.receive(topics.parse(topics.up(FLEET, ONE, kind)), b"", fleet.now)
        assert caught.value.cause == "unknown-device", kind
    assert fleet.finish().status == "done"
    assert ONE not in members(fleet)


def test_an_opening_that_lists_a_revoked_device_is_begun_anew(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(8)
    fleet.start(rounds=1)
    fleet.silent_from[ONE] = topics.OPENING
    fleet.run_until(lambda: ONE in fleet.silent and not fleet._queue)
    assert fleet.coordinator.phase is Phase.GROUPING
    fleet.revoke(ONE)
    fleet.run_until(lambda: fleet.coordinator.phase is Phase.ROUND)
    assert {opened.manifest.epoch for opened in fleet.opened} == {2}
    assert ONE not in {name for grouping in fleet.store.groupings() for name, _ in grouping.members}
    assert fleet.finish().status == "done"
    check(fleet)


def test_groups_that_lose_too_many_are_drawn_anew(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(10)
    fleet.start(rounds=3)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    lost = fleet.records()[0].details[0].members[:2]
    for name in lost:
        fleet.revoke(name)
    assert fleet.finish().status == "done"
    assert fleet.opened[-1].manifest.epoch == 2
    assert members(fleet) == set(fleet.devices) - set(lost)


def test_a_hostile_server_that_leaves_a_revoked_device_in_is_refused(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(6)
    fleet.start(rounds=3, group_size=6, attempts=1)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    fleet.revoke(ONE)
    fleet.coordinator.registry._gone.clear()
    fleet.coordinator._trust.revocations._by_token.clear()  # it forgets whom the list names
    fleet.coordinator._trust.revocations._keys.clear()
    fleet.announce(ONE)
    assert fleet.finish().status == "failed"
    assert {error.cause for who, error in fleet.refused if who not in ("aggregator", ONE)} == {"revoked"}


# --- the registry, restarts and what is published -----------------------------------------------------------------


def test_a_revoked_device_comes_back_under_no_key_and_no_token(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(6)
    device = fleet.devices[ONE]
    fleet.revoke(ONE)
    for _ in range(2):
        fleet.carry(fleet.coordinator.poll(fleet.now))
        assert ONE not in fleet.coordinator.registry.online()
        second = SigningKey.generate()
        endorsement = identity.endorse(device.secret, FLEET, ONE, bytes(second.verify_key))
        again = Device(ONE, fleet.operator, fleet.home)  # another token for the same name
        for state in (
            device.state(again=True),
            signed_state(ONE, second, Chain(token=device.chain.token, endorsement=endorsement), 99),
            again.state(),
        ):
            with pytest.raises(RefusedError) as caught:
                fleet.coordinator.registry.state(ONE, state, time.time())
            assert caught.value.cause in ("revoked", "second-key")
        fleet.restart()
    assert [row.name for row in fleet.store.devices()] == sorted(fleet.devices)  # its row stays, for people


def test_a_bundle_that_is_revoked_before_its_use_enrols_nobody(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(4)
    bundle = provision(fleet.operator, fleet.home, "late")
    fleet.store.invite("late", "pi-4", 0, identity.token_id(bundle.token))
    fleet.store.commit()
    fleet.revoke("late", "--category", "stolen")
    key, secret = SigningKey.generate(), SigningKey(bundle.token_secret)
    chain = Chain(token=bundle.token, endorsement=identity.endorse(secret, FLEET, "late", bytes(key.verify_key)))
    with pytest.raises(RefusedError, match=r"'late' was revoked \(stolen\)") as caught:
        fleet.coordinator.registry.state("late", signed_state("late", key, chain, 1), time.time())
    assert caught.value.cause == "revoked"
    fleet.arrive("fresh")
    assert fleet.coordinator.registry.knows("fresh")


def test_a_restart_publishes_the_head_again_and_entries_to_whoever_asks(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(6)
    fleet.revoke(ONE, taken_up=False)
    first = fleet.coordinator.poll(1.0)
    assert [(effect.kind, effect.retain) for effect in first if isinstance(effect, Publish)] == [
        (topics.REVOCATIONS, True),
        (topics.BLOB, False),
    ]
    assert [effect for effect in fleet.coordinator.poll(2.0) if isinstance(effect, Publish)] == []
    fleet.coordinator.commit()
    fleet.restart()
    (head,) = fleet.coordinator.poll(3.0)
    assert isinstance(head, Publish)
    assert (head.kind, head.id, head.retain, head.data) == (topics.REVOCATIONS, "", True, first[0].data)  # type: ignore[union-attr]
    read_head = revocation.verify_head(head.data, operator_key=fleet.operator.public_key, fleet=FLEET)
    body = fleet.coordinator.blob(read_head.entries.digest)
    assert body is not None
    assert [each.device for each in revocation.read_list(body, read_head)] == [ONE]
    assert fleet.coordinator.blob(bytes(32)) is None
    assert fleet.coordinator.poll(4.0) == []
    fleet.coordinator.revocations.again()  # the broker was started anew
    assert fleet.coordinator.poll(5.0) == [head]


def test_a_broker_that_has_forgotten_everything_is_told_the_head_again(tmp_path: Path) -> None:
    operator, home = make_homes(tmp_path)
    service = Service(home)
    service.store.put_revocations(1, *revocation.sign_list([entry(1)], 1, operator.key, FLEET))
    assert len(service.coordinator.poll(1.0)) == 2
    assert service.coordinator.poll(2.0) == []
    service.link.connections = 2
    service._on_connect(True)
    assert service.coordinator.poll(3.0) == []
    service._on_connect(False)
    assert [effect.kind for effect in service.coordinator.poll(4.0) if isinstance(effect, Publish)] == ["revocations"]
    service.store.close()


@pytest.mark.parametrize("taken_up", [True, False], ids=["before", "while-down"])
@pytest.mark.parametrize("kind", [topics.JOIN, topics.MASKED, topics.UNMASK])
def test_a_round_that_was_open_when_a_list_came_is_not_gone_on_with_after_a_restart(
    make_fleet: Callable[..., Fleet], kind: str, taken_up: bool
) -> None:
    fleet = make_fleet(7)
    fleet.start(rounds=2, group_size=7)
    for name in (ONE, "pi-0"):
        fleet.silent_from[name] = kind
    fleet.run_until(lambda: {ONE, "pi-0"} <= fleet.silent)
    fleet.silent.clear()
    fleet.silent_from.clear()
    fleet.revoke(ONE, taken_up=taken_up)
    fleet.restart()
    assert "abandoned" in causes(fleet)
    assert "and 1 has come since" in " ".join(note.text for note in fleet.notes)
    assert fleet.finish().status == "done"
    assert fleet.opened[-1].manifest.revocations == 1
    assert ONE not in members(fleet)
    assert len(members(fleet)) == 6
    check(fleet)


def test_an_opening_is_not_gone_on_with_whose_list_names_somebody_revoked_since(
    make_fleet: Callable[..., Fleet],
) -> None:
    fleet = make_fleet(8)
    fleet.start(rounds=1)
    fleet.silent_from[ONE] = topics.OPENING
    fleet.run_until(lambda: ONE in fleet.silent and not fleet._queue)
    fleet.revoke(ONE, taken_up=False)
    fleet.restart()
    assert "its list names pi-3, revoked since" in " ".join(note.text for note in fleet.notes)
    assert fleet.finish().status == "done"
    assert {opened.manifest.epoch for opened in fleet.opened} == {2}
    assert ONE not in members(fleet)
    check(fleet)


def stored(fleet: Fleet, signed: tuple[bytes, bytes], version: int) -> None:
    fleet.store._do("DELETE FROM revocations")
    fleet.store.put_revocations(version, *signed)
    fleet.store.commit()


def test_an_older_list_in_the_store_is_not_taken_up(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(4)
    key = fleet.operator.key
    stored(fleet, revocation.sign_list([entry(1)], 5, key, FLEET), 5)
    assert len(fleet.coordinator.poll(1.0)) == 2
    for signed, version, cause in (
        (revocation.sign_list([], 4, key, FLEET), 4, "replayed"),
        (revocation.sign_list([], 5, key, FLEET), 6, "second-list"),
        (revocation.sign_list([], 7, SigningKey.generate(), FLEET), 7, "signature"),
        ((revocation.sign_list([], 7, key, FLEET)[0], b"\xa0"), 7, "digest"),
    ):
        stored(fleet, signed, version)
        with pytest.raises(PeerError) as caught:
            fleet.coordinator.poll(2.0)
        assert caught.value.cause == cause
        assert fleet.coordinator._trust.revocations.held == 5


def test_a_damaged_list_keeps_the_service_from_starting(make_fleet: Callable[..., Fleet]) -> None:
    fleet = make_fleet(4)
    stored(fleet, (b"\xd2", b""), 1)
    with pytest.raises(ConfigError, match="the revocation list in the database"):
        fleet.restart()


def test_the_store_keeps_the_newest_list_and_the_operators_words(tmp_path: Path) -> None:
    store = Store(tmp_path / DATABASE_FILE)
    assert (store.revocations_version(), store.revocations()) == (0, None)
    for version in (1, 3, 2):
        store.put_revocations(version, b"head %d" % version, b"entries")
    store.note_revoked(b"t" * 32, "pi", "left on a train")
    store.note_revoked(b"t" * 32, "pi", "said again")
    store.invite("pi", "pi-4", 0, b"u" * 32)
    store.invite("pi", "pi-4", 0, b"v" * 32)
    store.close()
    store = Store(tmp_path / DATABASE_FILE)
    assert (store.revocations_version(), store.revocations()) == (3, (b"head 3", b"entries"))
    assert store.revoked() == {b"t" * 32: "left on a train"}
    assert store.tokens() == {b"u" * 32: "pi", b"v" * 32: "pi"}
    store.close()


# --- a real broker ------------------------------------------------------------------------------------------------


def covey(*arguments: str) -> str:
    """Run the command as an operator does, in a process of its own."""
    script = "from covey_aggregator.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.PIPE, text=True, timeout=60
    ).stdout


class Stalled(Agents):
    """Agents of which one trains only when it is told to; everybody else waits for it meanwhile."""

    def __init__(self, homes: Iterable[AgentHome], slow: str) -> None:
        self.slow, self.training, self.let_go = slow, threading.Event(), threading.Event()
        super().__init__(homes)

    def _maker(self, name: str) -> Callable[[Bundle], Trainer]:
        make = super()._maker(name)
        if name != self.slow:
            return make

        def stalled(of: Bundle) -> Trainer:
            trainer = make(of)
            train = trainer.train

            def wait(*args: Any, **options: Any) -> TrainResult:
                self.training.set()
                self.let_go.wait(60)
                return train(*args, **options)

            trainer.train = wait  # type: ignore[method-assign]
            return trainer

        return stalled


def test_a_device_that_is_revoked_in_the_middle_of_a_round_is_waited_for_no_longer(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    """Windows are ten minutes long: nothing but the operator's list can end the wait. What comes later is not taken."""
    operator, home = live_homes(tmp_path, mosquitto)
    homes = [enrol_agent(tmp_path, operator, home, f"pi-{number}") for number in range(6)]
    with (
        Tap(mosquitto, f"covey/v1/{FLEET}/dev/+/up/masked") as tap,
        Live(home) as live,
        Stalled(homes, ONE) as agents,
    ):
        records = functools.partial(live.call, lambda: live.service.store.rounds("digits"))
        live.service.store.add_task(live_task(tmp_path, rounds=2, devices_min=6, group_size=6, settle=0.2))
        assert agents.training.wait(60)
        until(lambda: len({topic for topic, _ in list(tap.heard)}) == 5, "the vectors of all others")
        assert records() == []
        covey("device", "revoke", ONE, "--home", str(home.path), "--reason", "stolen")
        until(lambda: bool(records()), "the round's end")
        agents.let_go.set()
        live.until_ended()
        first, second = records()
        [group] = first.details
        assert ONE in group.members
        assert sorted(group.survivors) == [device.device for device in homes if device.device != ONE]
        assert first.accepted == 5
        assert all(ONE not in group.members for group in second.details)
        until(lambda: "revoked" in agents.running[ONE].agent.holds, "the device's own words")


def test_a_fleet_learns_on_without_who_is_revoked_and_believes_no_older_list(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    names = [f"pi-{number}" for number in range(6)]
    place = topics.pub(FLEET, topics.REVOCATIONS)
    with (
        Tap(mosquitto, f"covey/v1/{FLEET}/#") as tap,
        Live(home) as live,
        Agents(enrol_agent(tmp_path, operator, home, name) for name in names) as agents,
    ):
        records = functools.partial(live.call, lambda: live.service.store.rounds("digits"))

        def joined() -> set[str]:
            return {name for group in records()[-1].details for name in group.members}

        live.service.store.add_task(live_task(tmp_path, rounds=100_000, devices_min=6, group_size=6, settle=0.2))
        until(lambda: bool(records()), "a round of all")
        assert joined() == set(names)
        for version, gone in enumerate(["pi-3", "pi-4"], 1):
            said = covey("device", "revoke", gone, "--home", str(home.path), "--reason", "stolen")
            assert said == f"{gone} is revoked: list {version} with {version} entries\n"
            until(lambda gone=gone: gone not in joined(), "a round without the revoked device")  # type: ignore[misc]
            until(lambda gone=gone: gone not in joined(), "and another")  # type: ignore[misc]
        left = sorted(set(names) - {"pi-3", "pi-4"})
        since = len(records())
        until(lambda: len(records()) >= since + 2, "further rounds")
        assert all(set(group.members) <= set(left) for group in records()[-1].details)
        assert "was revoked (other)" in agents.running["pi-3"].agent.snapshot()["holds"]

        # The server, or the broker, plays an older list back, and the server opens a round under it.
        heads = tap.on(place)
        assert len(heads) == 2
        others = [agents.running[name].agent for name in left]
        tap.publish(place, heads[0], retain=True)
        opened = [data for data in tap.on(topics.pub(FLEET, topics.OPEN, "digits")) if data][-1]
        manifest = read(Manifest, envelope.parse(opened).payload)
        for version in (1, 0):
            context = Context(
                fleet=FLEET, kind=topics.OPEN, sender=AGGREGATOR, task="old", round=1, attempt=2 - version
            )
            body = write(msgspec.structs.replace(manifest, revocations=version))
            tap.publish(topics.pub(FLEET, topics.OPEN, "old"), envelope.sign(body, context, home.key))
        until(lambda: all(agent.refusals.counts["revocations"] >= 2 for agent in others), "refusals by all")
        assert all(agent.refusals.counts["replayed"] >= 1 for agent in others)
        assert {agent.ledger.revocations.held for agent in others} == {2}
        joins = [
            envelope.parse(data).task for topic, data in list(tap.heard) if topics.parse(topic).kind == topics.JOIN
        ]
        assert "old" not in joins
        live.service.store.set_status("digits", "stopping", "enough")
        live.until_ended()
    assert [row.name for row in Store(home.path / DATABASE_FILE).devices()] == names
