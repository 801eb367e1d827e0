"""The operator's word on the server: published, warned of, obeyed, and changed while the fleet goes on."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import msgspec
import pytest
from tests.aggregator.fleet import FLEET, Fleet, make_homes
from tests.aggregator.live import Agents, Live, Tap, enrol_agent, live_homes, live_task, until
from tests.aggregator.test_coordinator import causes
from tests.aggregator.test_revocations import covey

from covey_aggregator.authority import EXPIRED, EXPIRES, TIME_SECONDS, AuthorityDesk
from covey_aggregator.files import replace
from covey_aggregator.home import (
    DELEGATION_FILE,
    KEY_FILE,
    NEXT_KEY_FILE,
    POLICY_FILE,
    ServerHome,
    next_key,
    open_server,
)
from covey_aggregator.home_watch import HomeChanged, HomeWatch
from covey_aggregator.operator import POLICY_FILE as OPERATOR_POLICY
from covey_aggregator.operator import OperatorHome
from covey_aggregator.service import Service
from covey_protocol import envelope, identity, topics
from covey_protocol.effects import Effect, Note, Publish
from covey_protocol.envelope import Context, open_signed
from covey_protocol.errors import ConfigError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.policy import sign_policy
from covey_protocol.signed_time import read_time
from covey_simulator.broker import RunningBroker

DAY = 86400


def delegate(operator: OperatorHome, home: ServerHome, key: bytes, *, not_after: int = 0) -> None:
    """Leave the operator's newer word in a server home, as the command does."""
    before = open_server(home.path).word
    assert before is not None
    version = max(int(time.time()), before.version + 1)
    replace(home.path / DELEGATION_FILE, identity.issue_delegation(operator.key, FLEET, key, version, not_after))


def kinds(effects: object) -> list[str]:
    assert isinstance(effects, list)
    return [effect.kind for effect in effects if isinstance(effect, Publish)]


def with_expiry(home: ServerHome, operator: OperatorHome, not_after: int) -> ServerHome:
    delegate(operator, home, bytes(home.key.verify_key), not_after=not_after)
    return open_server(home.path)


def test_words_and_time_are_said_at_first_and_when_they_are_lost(tmp_path: Path) -> None:
    _, home = make_homes(tmp_path)
    now = [1.7e9]
    desk = AuthorityDesk(home, lambda: now[0])
    said = desk.poll()
    assert kinds(said) == [topics.DELEGATION, topics.POLICY, topics.TIME]
    assert all(isinstance(effect, Publish) and effect.retain and not effect.id for effect in said)
    assert desk.poll() == []
    now[0] += TIME_SECONDS
    [signed] = desk.poll()
    assert isinstance(signed, Publish)
    key = bytes(home.key.verify_key)
    assert read_time(signed.data, fleet=FLEET, aggregator_key=key) == int(now[0])
    assert desk.poll() == []
    desk.again()
    assert kinds(desk.poll()) == [topics.DELEGATION, topics.POLICY, topics.TIME]
    now[0] -= 5 * DAY  # the clock was set back: devices will not take it, but it goes on being said
    assert kinds(desk.poll()) == [topics.TIME]


def test_the_operator_is_warned_for_a_month_once_a_day(tmp_path: Path) -> None:
    operator, home = make_homes(tmp_path)
    now = [2e9]
    desk = AuthorityDesk(with_expiry(home, operator, 2_000_000_000 + 31 * DAY), lambda: now[0])

    def warned() -> list[str]:
        return [effect.text for effect in desk.poll() if isinstance(effect, Note) and effect.cause == EXPIRES]

    assert warned() == []
    now[0] += 1.5 * DAY
    assert warned() == ["the operator's delegation of this aggregator expires in 29 days: renew it"]
    assert warned() == []
    now[0] += DAY
    assert len(warned()) == 1
    now[0] += 40 * DAY
    assert warned() == []


def test_the_warning_is_an_event_and_a_warning_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    operator, home = make_homes(tmp_path)
    service = Service(with_expiry(home, operator, int(time.time()) + 5 * DAY))
    with caplog.at_level("INFO"):
        service._carry(service.coordinator.tick(1.0))
    [line] = [record for record in caplog.records if "expires in 4 days" in record.getMessage()]
    assert line.levelname == "WARNING"
    assert EXPIRES in [cause for _, _, cause, _ in service.store.events(0)]
    service.store.close()


def test_no_round_is_opened_behind_the_expiry_and_it_is_said_once(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 6)
    fleet.wall = float(int(time.time()))
    fleet.home = with_expiry(fleet.home, fleet.operator, int(fleet.wall + fleet.now) + 3600)
    fleet.restart()
    fleet.start(rounds=100, group_size=6)
    fleet.run_until(lambda: len(fleet.records()) == 1)
    fleet.wall += 3601
    opened = len(fleet.opened)
    with pytest.raises(AssertionError):
        fleet.run_until(lambda: len(fleet.opened) > opened + 1, 60)  # the one that is open is gone through with
    assert causes(fleet).count(EXPIRED) == 1
    assert "devices follow it no longer; renew it" in fleet.notes[-1].text
    fleet.home = with_expiry(fleet.home, fleet.operator, int(fleet.wall) + 400 * DAY)
    fleet.restart()
    before = len(fleet.records())
    fleet.run_until(lambda: len(fleet.records()) >= before + 2)


def test_every_round_brings_the_time_along_before_it_opens(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, 6)
    said: list[str] = []
    carry = fleet.carry

    def listen(effects: list[Effect]) -> None:
        said.extend(each.kind for each in effects if isinstance(each, Publish) and (each.data or not each.id))
        carry(effects)

    fleet.carry = listen  # type: ignore[method-assign]
    fleet.start(rounds=2, group_size=6)
    assert fleet.finish().status == "done"
    opened = [place for place, kind in enumerate(said) if kind == topics.OPEN]
    assert len(opened) == 2
    assert {said[place - 1] for place in opened} == {topics.TIME}
    assert said[:2] == [topics.DELEGATION, topics.POLICY]
    assert {device.time > 1.7e9 for device in fleet.devices.values()} == {True}
    assert not [who for who, _ in fleet.refused if who != "aggregator"]


def test_a_change_of_keys_that_is_cut_off_is_finished_at_the_next_start(tmp_path: Path) -> None:
    operator, home = make_homes(tmp_path)
    following = next_key(home.path)
    assert next_key(home.path) == following
    assert open_server(home.path).key == home.key  # nothing has been signed for it
    delegate(operator, home, bytes(following.verify_key))
    for _ in range(2):
        assert open_server(home.path).key == following
    assert not (home.path / NEXT_KEY_FILE).exists()
    assert (home.path / KEY_FILE).stat().st_mode & 0o077 == 0
    delegate(operator, home, bytes(32))
    with pytest.raises(ConfigError, match="is for another key"):
        open_server(home.path)


def test_a_changed_home_is_noticed_if_it_holds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    operator, home = make_homes(tmp_path)
    watch = HomeWatch(home)
    watch.check()
    replace(home.path / POLICY_FILE, home.signed_policy)  # the same again
    watch.check()
    replace(home.path / DELEGATION_FILE, b"half")
    watch.check()
    assert "is of no use as it is" in caplog.text
    delegate_from = msgspec.structs.replace(home.policy, version=2, n_min=5)
    replace(home.path / DELEGATION_FILE, home.delegation)
    watch.check()
    replace(home.path / POLICY_FILE, sign_policy(delegate_from, operator.key, FLEET))
    with pytest.raises(HomeChanged):
        watch.check()


# --- a real broker ------------------------------------------------------------------------------------------------


def test_a_fleet_goes_on_when_the_aggregators_key_and_the_policy_change_in_the_middle_of_a_task(
    mosquitto: RunningBroker, tmp_path: Path
) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    names = [f"pi-{number}" for number in range(5)]
    with (
        Tap(mosquitto, f"covey/v1/{FLEET}/pub/#") as tap,
        Live(home) as live,
        Agents(enrol_agent(tmp_path, operator, home, name) for name in names) as agents,
    ):
        running = [each.agent for each in agents.running.values()]

        def records() -> int:
            closed = functools.partial(live.service.store.rounds, "digits")
            return sum(record.accepted > 0 for record in live.call(closed))

        live.service.store.add_task(live_task(tmp_path, rounds=100_000, devices_min=5, group_size=5, settle=0.2))
        until(lambda: records() >= 1, "a round under the first key")

        covey("renew", str(home.path), "--new-key")
        following = open_server(home.path).key
        assert following != home.key
        until(lambda: live.service.link.connected.is_set() and open_server(home.path).key == following, "the next key")
        until(lambda: all(a._trust.aggregator_key == bytes(following.verify_key) for a in running), "its followers")
        before = records()
        until(lambda: records() >= before + 2, "rounds under the next key")

        # The old key, stolen now, is of no use to anybody.
        signature = [dict(agent.refusals.counts).get("signature", 0) for agent in running]
        opens = [data for data in tap.on(topics.pub(FLEET, topics.OPEN, "digits")) if data]
        last = envelope.parse(opens[-1])
        context = Context(
            fleet=FLEET, kind=topics.OPEN, sender=AGGREGATOR, task="stolen", round=last.round, attempt=last.attempt
        )
        tap.publish(topics.pub(FLEET, topics.OPEN, "stolen"), envelope.sign(last.payload, context, home.key))
        until(
            lambda: all(a.refusals.counts["signature"] > n for a, n in zip(running, signature, strict=True)),
            "refusals of the old key",
        )
        # So is an old delegation.
        replayed = [agent.refusals.counts["replayed"] for agent in running]
        tap.publish(topics.pub(FLEET, topics.DELEGATION), home.delegation, retain=True)
        until(lambda: all(a.refusals.counts["replayed"] > n for a, n in zip(running, replayed, strict=True)), "that")

        policy = operator.path / OPERATOR_POLICY
        policy.write_text(policy.read_text().replace("n_min: 4", "n_min: 5"))
        covey("renew", str(home.path))
        until(lambda: all(a._trust.policy.n_min == 5 for a in running), "the policy everywhere")
        before = records()
        until(lambda: records() >= before + 2, "rounds under the new policy")
        live.service.store.set_status("digits", "stopping", "enough")
        live.until_ended()
    times = tap.on(topics.pub(FLEET, topics.TIME))
    key = bytes(following.verify_key)
    context = Context(fleet=FLEET, kind=topics.TIME, sender=AGGREGATOR)
    assert open_signed(times[-1], context, key)
    assert abs(read_time(times[-1], fleet=FLEET, aggregator_key=key) - time.time()) < 300
