"""The operator changes its key: at home, on the server, and in a fleet that goes on meanwhile."""

from __future__ import annotations

import functools
import shutil
import time
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from tests.agent.cuts import Cut, PowerCut, steps
from tests.aggregator.console import Run
from tests.aggregator.fleet import FLEET, Device, make_homes, provision, signed_state
from tests.aggregator.live import Agents, Live, Tap, enrol_agent, live_homes, live_task, until
from tests.aggregator.test_requests import Apart

from covey_agent.runtime import Agent
from covey_aggregator import accepting, passphrase
from covey_aggregator.home import DATABASE_FILE, ServerHome, follow, open_server, take_succession
from covey_aggregator.operator import KEY_FILE, NEXT_KEY_FILE, SUCCESSION_REPLY, OperatorHome, open_operator
from covey_aggregator.registry import Registry
from covey_aggregator.requests import read_reply
from covey_aggregator.revocations import read_kept, read_stored, revoke, settle
from covey_aggregator.rotating import rotate
from covey_aggregator.store import Store
from covey_aggregator.succession_file import FILE
from covey_protocol import envelope, identity, topics
from covey_protocol.errors import ConfigError, PeerError, SignatureError
from covey_protocol.identity import Chain
from covey_protocol.messages import Manifest
from covey_protocol.payload import read
from covey_protocol.revocation import Revocation
from covey_simulator.broker import RunningBroker

GONE = Revocation(token=bytes(32), key=b"", device="gone", reason="lost")


@pytest.fixture(autouse=True)
def quick_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passphrase, "MODERATE", passphrase.Cost(1, 8192))


def chain_of(operator: SigningKey, name: str, key: SigningKey) -> Chain:
    """Return the chain of a device that somebody has invited who holds an operator's key."""
    secret = SigningKey.generate()
    token = identity.issue_token(operator, FLEET, name, token_key=bytes(secret.verify_key), profile="pi-4", not_after=0)
    return Chain(token=token, endorsement=identity.endorse(secret, FLEET, name, bytes(key.verify_key)))


def invited(tmp_path: Path) -> tuple[OperatorHome, ServerHome, bytes]:
    """Return homes, one token that was issued, and somebody revoked."""
    operator, home = make_homes(tmp_path)
    token = provision(operator, home, "pi-0").token
    store = Store(home.path / DATABASE_FILE)
    accepting.take_list(home, store, revoke(operator, [GONE], None), None)
    store.close()
    return operator, home, token


def whole(path: Path, old: bytes) -> bool:
    """Check that an operator's home is whole, and say whether its key has changed."""
    home = open_operator(path)
    assert bytes(home.key.verify_key) == home.public_key
    delegated, listed = home.delegated(), read_kept(home)
    assert delegated is not None
    assert listed is not None
    assert home.signed_policy()
    assert [entry.device for entry in listed.entries] == ["gone"]
    if home.public_key == old:
        assert home.succession is None
        return False
    assert home.succession is not None
    assert home.former == (old,)
    assert not (path / NEXT_KEY_FILE).exists()
    return True


def test_a_changed_key_vouches_for_all_that_stands_and_the_old_secret_is_gone(tmp_path: Path) -> None:
    operator, _, token = invited(tmp_path)
    seed, before, policy = bytes(operator.key), operator.delegated(), operator.signed_policy()
    same = tmp_path / "same file"
    same.hardlink_to(operator.path / KEY_FILE)
    home, finished = rotate(operator.path)
    assert not finished
    assert same.read_bytes() == bytes(len(seed))
    assert whole(operator.path, operator.public_key)
    after = home.delegated()
    assert before is not None
    assert after is not None
    assert after.aggregator_key == before.aggregator_key
    assert after.version > before.version
    assert home.signed_policy() != policy
    assert home.succession is not None
    assert identity.token_id(token) in home.succession.tokens
    for file in operator.path.rglob("*"):
        assert not file.is_file() or seed not in file.read_bytes(), file
    assert (operator.path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    server = open_server(tmp_path / "home")
    for stale in (lambda: operator.delegate(bytes(32)), lambda: provision(operator, server, "x")):
        with pytest.raises(ConfigError, match="was changed a moment ago"):
            stale()
    assert whole(operator.path, operator.public_key)


def test_a_cut_anywhere_leaves_a_home_that_has_rotated_or_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, _, _ = invited(tmp_path)
    original = tmp_path / "original"
    shutil.copytree(operator.path, original)
    count = steps(monkeypatch, lambda: rotate(operator.path))
    outcomes = set()
    for at in range(count):
        shutil.rmtree(operator.path)
        shutil.copytree(original, operator.path)
        with pytest.raises(PowerCut), Cut(monkeypatch, at):
            rotate(operator.path)
        looked = tmp_path / "looked"
        shutil.copytree(operator.path, looked)
        complete = (looked / FILE).exists() and not (looked / NEXT_KEY_FILE).exists()
        outcomes.add(whole(looked, operator.public_key))
        shutil.rmtree(looked)
        if not complete:  # there was nothing left to do, and nothing that would show that nobody was told
            rotate(operator.path)
        assert whole(operator.path, operator.public_key)
        home = open_operator(operator.path)
        assert home.succession is not None
        seed = bytes(operator.key_file.key)
        assert not any(seed in file.read_bytes() for file in operator.path.rglob("*") if file.is_file())
        assert read_reply(operator.path / SUCCESSION_REPLY).succession == home.succession.encoded()
    assert outcomes == {False, True}


def test_finishing_may_be_cut_off_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, _, _ = invited(tmp_path)
    real = Path.replace

    def stop(self: Path, target: Path) -> Path:
        done = real(self, target)
        if Path(target).name == FILE:
            raise PowerCut
        return done

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(Path, "replace", stop)
        rotate(operator.path)
    begun = tmp_path / "begun"
    shutil.copytree(operator.path, begun)
    count = steps(monkeypatch, lambda: open_operator(operator.path))
    for at in range(count):
        shutil.rmtree(operator.path)
        shutil.copytree(begun, operator.path)
        for _ in range(2):
            with pytest.raises(PowerCut), Cut(monkeypatch, min(at, 3)):
                open_operator(operator.path)
        with pytest.raises(PowerCut), Cut(monkeypatch, at):
            open_operator(operator.path)
        assert whole(operator.path, operator.public_key)


def test_both_passphrases_are_asked_for_and_a_wrong_one_changes_nothing(tmp_path: Path) -> None:
    operator, _, _ = invited(tmp_path)
    operator.protect(b"old")
    before = {path.name: path.read_bytes() for path in operator.path.iterdir() if path.is_file()}
    with pytest.raises(ConfigError, match="passphrase is wrong"):
        rotate(operator.path, ask=lambda: b"guess", new=lambda: b"new")
    assert {path.name: path.read_bytes() for path in operator.path.iterdir() if path.is_file()} == before
    rotate(operator.path, ask=lambda: b"old", new=lambda: b"new")
    with pytest.raises(ConfigError, match="passphrase is wrong"):
        _ = open_operator(operator.path, lambda: b"old").key
    assert open_operator(operator.path, lambda: b"new").key


def test_a_home_that_has_signed_for_nobody_has_nothing_to_hand_over(tmp_path: Path, run: Run) -> None:
    run("operator", "init", tmp_path / "op", "--fleet", FLEET)
    assert "has signed for no server yet" in run("operator", "rotate", tmp_path / "op").err


def test_an_old_copy_of_the_key_in_the_new_home_is_named(tmp_path: Path) -> None:
    operator, _, _ = invited(tmp_path)
    copy = (operator.path / KEY_FILE).read_bytes()
    rotate(operator.path)
    (operator.path / KEY_FILE).write_bytes(copy)
    with pytest.raises(ConfigError, match="has been followed by another key"):
        open_operator(operator.path)


def moved(path: Path, old: bytes) -> bool:
    """Check that a server home is whole, and say whether it goes by the operator's next key."""
    home, store = open_server(path), Store(path / DATABASE_FILE)
    trust = home.trust({})
    settle(store, operator_key=home.operator_key, fleet=FLEET, succession=home.succession)
    listed = read_stored(store, operator_key=home.operator_key, fleet=FLEET)
    store.close()
    assert home.word is not None
    assert home.signed_policy
    assert listed is not None
    assert [entry.device for entry in listed.entries] == ["gone"]
    assert trust.operator_key == home.operator_key
    assert trust.successions.wanted is None
    return home.operator_key != old


def test_a_server_takes_it_at_any_cut_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    operator, server, _ = invited(tmp_path)
    old = operator.public_key
    operator, _ = rotate(operator.path)
    original = tmp_path / "original"
    shutil.copytree(server.path, original)
    count = steps(monkeypatch, lambda: follow(server, operator))
    assert moved(server.path, old)
    outcomes = set()
    for at in range(count):
        shutil.rmtree(server.path)
        shutil.copytree(original, server.path)
        with pytest.raises(PowerCut), Cut(monkeypatch, at):
            follow(open_server(server.path), operator)
        outcomes.add(moved(server.path, old))
        follow(open_server(server.path), operator)
        assert moved(server.path, old)
        assert follow(open_server(server.path), operator) == []
    assert outcomes == {False, True}


def test_a_server_takes_no_rival_no_older_one_and_none_of_another_operator(tmp_path: Path) -> None:
    operator, server, _ = invited(tmp_path)
    thief = tmp_path / "thief"
    shutil.copytree(operator.path, thief)
    rival, _ = rotate(thief)
    first, _ = rotate(operator.path)
    second, _ = rotate(operator.path)
    assert second.succession is not None
    assert second.succession.checked.version == 2
    assert follow(server, second)  # two at once
    stranger, _ = rotate(make_homes(tmp_path / "x")[0].path)
    for worse in (rival, stranger):
        assert worse.succession is not None
        with pytest.raises(ConfigError, match=r"there: .*(has signed two successions|does not lead on)"):
            take_succession(open_server(server.path), worse.succession.encoded(), "there")
    assert first.succession is not None
    assert take_succession(open_server(server.path), first.succession.encoded(), "there") == []
    assert open_server(server.path).operator_key == second.public_key


def test_a_reply_takes_it_to_a_server_elsewhere(tmp_path: Path, run: Run) -> None:
    apart = Apart(tmp_path, run)
    apart.start()
    old = apart.server.operator_key
    run("device", "add", "pi", "--home", apart.home)
    run("accept", apart.home, apart.sign("tokens"))
    done = run("operator", "rotate", apart.op)
    assert done.code == 0, done.err
    reply = apart.op / SUCCESSION_REPLY
    out = run("accept", apart.home, reply).out
    assert f"the operator's key is {apart.operator.public_key.hex()} from now on; 1 earlier tokens count" in out
    assert run("accept", apart.home, reply).out.endswith("nothing new\n")
    assert apart.server.former.keys == (old,)
    run("device", "add", "later", "--home", apart.home)
    assert "later is invited" in run("accept", apart.home, apart.sign("tokens-later")).out
    assert apart.operator.succession is not None
    assert len(apart.operator.issued()) == 2


def test_a_server_that_has_not_heard_of_it_gets_it_with_the_next_answer(tmp_path: Path, run: Run) -> None:
    apart = Apart(tmp_path, run)
    apart.start()
    run("operator", "rotate", apart.op)
    run("device", "add", "pi", "--home", apart.home)
    out = run("accept", apart.home, apart.sign("tokens")).out
    assert "the operator's key is" in out
    assert "pi is invited" in out
    assert apart.server.operator_key == apart.operator.public_key


def test_an_answer_of_the_key_before_is_not_given_again(tmp_path: Path, run: Run) -> None:
    apart = Apart(tmp_path, run)
    apart.start()
    run("device", "add", "pi", "--home", apart.home)
    apart.sign("tokens")
    run("operator", "rotate", apart.op)
    done = run("operator", "sign", apart.op, apart.request("tokens"), "--out", apart.stick)
    assert done.code != 0
    assert "was answered before the operator's key was changed" in done.err


def test_commands_with_the_operator_at_hand_take_it_along(tmp_path: Path, run: Run) -> None:
    operator, server, _ = invited(tmp_path)
    store = Store(server.path / DATABASE_FILE)
    store.invite("pi-0", "pi-4", 0, bytes([7]) * 32)
    rotate(operator.path)
    done = run("device", "revoke", "pi-0", "--home", server.path, "--reason", "x")
    assert done.code == 0, done.err
    assert "with 2 entries" in done.out
    assert open_server(server.path).operator_key == open_operator(operator.path).public_key
    again = run("init", server.path)
    assert again.code == 0, again.err


def test_the_aggregator_drops_who_is_not_on_the_list_and_lets_nobody_of_the_old_key_in(tmp_path: Path) -> None:
    operator, server, _ = invited(tmp_path)
    old, store, now = operator.key, Store(server.path / DATABASE_FILE), time.time()
    good, evil = Device("pi-1", operator, server), SigningKey.generate()
    registry = Registry(server.trust({}), store)
    registry.state("pi-1", good.state(), now)
    registry.state("evil", signed_state("evil", evil, chain_of(old, "evil", evil), 1), now)  # the key was stolen before
    assert follow(server, rotate(operator.path).operator)
    server = open_server(server.path)
    registry = Registry(server.trust(store.pins()), store)
    assert (registry.knows("pi-1"), registry.knows("evil")) == (True, False)
    assert "evil is known no longer: token of 'evil' is by the operator's former key" in str(store.events())
    for name in ("evil", "thing"):  # and after
        with pytest.raises(SignatureError) as caught:
            registry.state(name, signed_state(name, evil, chain_of(old, name, evil), 9), now)
        assert caught.value.cause == "former-operator"
    registry.state("pi-1", good.state(again=True), now)
    key = SigningKey.generate()
    chain = chain_of(open_operator(operator.path).key, "later", key)
    assert registry.state("later", signed_state("later", key, chain, 1), now).new


def opened(tap: Tap) -> list[Manifest]:
    return [
        read(Manifest, envelope.parse(data).payload)
        for data in tap.on(topics.pub(FLEET, topics.OPEN, "digits"))
        if data
    ]


def goes_by(agent: Agent) -> bytes:
    return agent._trust.operator_key


def test_a_fleet_goes_on_when_its_operator_changes_its_key(mosquitto: RunningBroker, tmp_path: Path) -> None:
    operator, home = live_homes(tmp_path, mosquitto)
    store = Store(home.path / DATABASE_FILE)
    accepting.take_list(home, store, revoke(operator, [GONE], None), None)
    store.close()
    old = operator.key
    names = [f"pi-{number}" for number in range(6)]
    homes = {name: enrol_agent(tmp_path, operator, home, name) for name in names}
    sleeper = homes.pop("pi-5")
    with Tap(mosquitto) as tap, Live(home) as live:

        def goes_on(*wanted: str) -> None:
            """Wait for a round that began after now and in which all of these are summed."""
            begun = live.call(lambda: len(live.service.store.rounds("digits"))) + 1  # one may be open
            until(
                lambda: any(
                    {name for group in record.details for name in group.survivors} >= set(wanted)
                    for record in live.call(lambda: live.service.store.rounds("digits"))[begun:]
                ),
                f"a round of {wanted}",
            )

        def all_go_by(agents: Agents) -> bool:
            return {goes_by(each.agent) for each in agents.running.values()} == {operator.public_key}

        with Agents([sleeper]) as asleep:
            until(lambda: live.call(lambda: live.service.coordinator.registry.knows("pi-5")), "its first arrival")
            assert goes_by(asleep.running["pi-5"].agent) == operator.public_key
        with Agents(homes.values()) as agents:
            live.service.store.add_task(
                live_task(tmp_path, rounds=100_000, devices_min=5, group_size=8, settle=0.2, epoch_rounds=3)
            )
            goes_on(*homes)
            for _ in range(2):  # in the middle of a task
                operator, _ = rotate(operator.path)
                follow(open_server(home.path), operator)
                until(lambda: all_go_by(agents), "the change")
                goes_on(*homes)
            assert opened(tap)[-1].succession == 2
            # Who has slept through both, and who comes new.
            later = enrol_agent(tmp_path, operator, open_server(home.path), "later")
            with Agents([sleeper, later]) as others:
                everybody = [*homes, "pi-5", "later"]
                goes_on(*everybody)
                assert all_go_by(others)
                assert not any(each.agent.holds for each in others.running.values())
                # A thief with the old secret, and what he signs.
                thief = SigningKey.generate()
                chain = chain_of(old, "evil", thief)
                tap.publish(topics.up(FLEET, "evil", topics.STATE), signed_state("evil", thief, chain, 1), retain=True)
                word = identity.issue_delegation(old, FLEET, bytes(thief.verify_key), 1 << 50, 0)
                tap.publish(topics.pub(FLEET, topics.DELEGATION), word, retain=True)
                refusals = live.service.refusals.counts
                until(lambda: live.call(lambda: refusals["former-operator"]) >= 1, "its refusal")
                assert not live.call(lambda: live.service.coordinator.registry.knows("evil"))
                for each in [*agents.running.values(), *others.running.values()]:
                    trust, counts = each.agent._trust, each.agent.refusals.counts
                    until(functools.partial(lambda found: found["signature"] >= 1, counts), "its refusal by devices")
                    assert trust.aggregator_key == bytes(home.key.verify_key)
                    with pytest.raises(PeerError, match="by the operator's former key"):
                        trust.identify(chain, "evil")
                goes_on(*everybody)
        live.service.store.set_status("digits", "stopping", "enough")
        live.until_ended()
