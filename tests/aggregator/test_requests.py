"""An operator who is elsewhere: requests of a server, what is signed, what is taken in."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import msgspec
import pytest
import yaml
from nacl.signing import SigningKey
from tests.aggregator.console import Run
from tests.aggregator.fleet import Device

from covey_aggregator import accepting, requests, signing
from covey_aggregator.home import (
    DATABASE_FILE,
    DELEGATION_FILE,
    KEY_FILE,
    NEXT_KEY_FILE,
    POLICY_FILE,
    SETTINGS_FILE,
    ServerHome,
    open_server,
)
from covey_aggregator.operator import ISSUED, OperatorHome, open_operator
from covey_aggregator.registry import Registry
from covey_aggregator.requests import (
    Reply,
    Request,
    Wanted,
    WantsDelegation,
    WantsTokens,
    read_reply,
    read_request,
    reply_text,
    request_text,
)
from covey_aggregator.revocations import read_kept
from covey_aggregator.store import Store
from covey_protocol import identity, provisioning
from covey_protocol.errors import ConfigError
from covey_protocol.policy import Policy, sign_policy
from covey_protocol.provisioning import Broker
from covey_protocol.revocation import Revocation, sign_list


class Apart:
    """An operator's home and a server's that never see each other: only files go to and fro."""

    def __init__(self, folder: Path, run: Run) -> None:
        self.run, self.op, self.home, self.stick = run, folder / "vault" / "op", folder / "home", folder / "stick"
        assert run("operator", "init", self.op, "--fleet", "meadow").code == 0
        key = open_operator(self.op).public_key.hex()
        done = run("init", self.home, "--fleet", "meadow", "--operator-key", key, "--broker", "10.0.0.1:1884")
        assert (done.code, "waits for the operator's word" in done.out) == (0, True)

    @property
    def server(self) -> ServerHome:
        return open_server(self.home, waiting=True)

    @property
    def operator(self) -> OperatorHome:
        return open_operator(self.op)

    @property
    def store(self) -> Store:
        return Store(self.home / DATABASE_FILE)

    def request(self, name: str) -> Path:
        (path,) = (self.home / "requests").glob(f"{name}*.request")
        return path

    def sign(self, name: str) -> Path:
        """Carry a request to the operator, and return the reply."""
        done = self.run("operator", "sign", self.op, self.request(name), "--out", self.stick)
        assert done.code == 0, done.err
        return self.stick / f"{self.request(name).stem}.reply"

    def start(self) -> None:
        """Get the first delegation."""
        assert self.run("accept", self.home, self.sign("delegation")).code == 0


@pytest.fixture
def apart(tmp_path: Path, run: Run) -> Apart:
    return Apart(tmp_path, run)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_home_without_a_delegation_does_not_serve_and_says_what_is_missing(apart: Apart) -> None:
    line = apart.run("serve", apart.home).line
    assert "delegation.cbor: not there yet: the operator has to sign for this server" in line
    assert f"covey accept {apart.home}" in line
    assert not (apart.home / DELEGATION_FILE).exists()


def test_a_delegation_goes_there_and_back(apart: Apart) -> None:
    done = apart.run("operator", "sign", apart.op, apart.request("delegation"), "--out", apart.stick)
    key = bytes(apart.server.key.verify_key).hex()
    assert f"make {key} the key of the fleet's aggregator" in done.out
    assert "IN PLACE OF" not in done.out
    answer = apart.run("accept", apart.home, apart.stick / "delegation.reply")
    assert "policy 1 is in place" in answer.out
    assert "the delegation is in place, until " in answer.out
    server = open_server(apart.home)
    assert server.word is not None
    assert not server.delegation_due(int(time.time()))
    assert not list((apart.home / "requests").iterdir())
    before = files(apart.home)
    assert apart.run("accept", apart.home, apart.stick / "delegation.reply").out.endswith(": nothing new\n")
    assert files(apart.home) == before


def test_a_request_is_signed_once(apart: Apart) -> None:
    first = apart.sign("delegation").read_bytes()
    done = apart.run("operator", "sign", apart.op, apart.request("delegation"), "--out", apart.stick)
    assert "answered before" in done.out
    assert (apart.stick / "delegation.reply").read_bytes() == first


def test_tokens_are_made_by_the_operator_and_their_secrets_never_reach_the_server(apart: Apart) -> None:
    apart.start()
    done = apart.run("device", "add", "pi", "--count", 2, "--home", apart.home, "--expires", "2h")
    assert (done.code, "operator's home is not at hand" in done.out) == (0, True)
    path = apart.request("tokens")
    assert path.stat().st_mode & 0o777 == 0o600
    said = apart.run("operator", "sign", apart.op, path, "--out", apart.stick).out
    assert "invite 2 with profile pi-4" in said
    secrets = []
    for name in ("pi-01", "pi-02"):
        bundle = provisioning.decode((apart.op / "bundles" / f"{name}.bundle").read_text())
        bundle.check(int(time.time()))
        assert (bundle.device, bundle.broker.host, bundle.delegation) == (name, "10.0.0.1", apart.server.delegation)
        assert (apart.op / "bundles" / f"{name}.bundle").stat().st_mode & 0o777 == 0o600
        secrets.append(bundle.token_secret)
    reply = apart.stick / f"{path.stem}.reply"
    out = apart.run("accept", apart.home, reply).out
    assert "pi-01 is invited; its bundle is with the operator" in out
    assert apart.run("accept", apart.home, reply).out.endswith("nothing new\n")
    assert not path.exists()
    assert [entry[0] for entry in apart.store.invited()] == ["pi-01", "pi-02"]
    for name, content in {**files(apart.home), **files(apart.stick)}.items():
        assert not any(secret in content or secret.hex().encode() in content for secret in secrets), name
    parts = b"".join(each for each in read_reply(reply).tokens)
    assert not any(secret in parts for secret in secrets)
    assert [line.split()[1] for line in apart.operator.issued()] == ["pi-01", "pi-02"]


def test_a_name_that_was_invited_before_is_pointed_out(apart: Apart) -> None:
    apart.start()
    for number in range(2):
        apart.run("device", "add", "pi", "--home", apart.home, "--expires", f"{number + 1}d")
        said = apart.run("operator", "sign", apart.op, apart.request("tokens"), "--out", apart.stick).out
        assert ("WAS INVITED BEFORE" in said) == bool(number)
        apart.request("tokens").unlink()


def enrol(apart: Apart, name: str) -> None:
    device = Device(name, apart.operator, open_server(apart.home))
    store = apart.store
    Registry(open_server(apart.home).trust({}), store).state(name, device.state(), time.time())
    store.close()


def test_a_revocation_goes_there_and_back(apart: Apart) -> None:
    apart.start()
    enrol(apart, "pi-kitchen")
    done = apart.run("device", "revoke", "pi-kitchen", "--home", apart.home, "--reason", "left on a train")
    assert "and not before" in done.out
    assert apart.store.revocations_version() == 0
    said = apart.run("operator", "sign", apart.op, apart.request("revoke"), "--out", apart.stick).out
    assert "shut out pi-kitchen for good (other)" in said
    assert "left on a train" not in said
    answer = apart.run("accept", apart.home, apart.stick / "revoke-pi-kitchen.reply")
    assert "pi-kitchen is revoked: list 1 with 1 entries" in answer.out
    assert apart.run("accept", apart.home, apart.stick / "revoke-pi-kitchen.reply").out.endswith("nothing new\n")
    shown = apart.run("device", "show", "pi-kitchen", "--home", apart.home).out
    assert "left on a train" in shown
    again = apart.run("device", "revoke", "pi-kitchen", "--home", apart.home, "--reason", "x")
    assert again.out == "pi-kitchen was revoked before: list 1\n"


def test_a_token_may_not_go_by_another_name_in_a_revocation(apart: Apart) -> None:
    apart.start()
    apart.run("device", "add", "pi-attic", "--home", apart.home)
    apart.run("accept", apart.home, apart.sign("tokens"))
    store = apart.store
    store.change("UPDATE tokens SET name = 'pi-junk'")
    apart.run("device", "revoke", "pi-junk", "--home", apart.home, "--reason", "x")
    line = apart.run("operator", "sign", apart.op, apart.request("revoke")).line
    assert "calls the token of 'pi-attic' that of 'pi-junk'" in line
    assert read_kept(apart.operator) is None


def test_what_cannot_be_asked_by_anybody_else(apart: Apart, tmp_path: Path, run: Run) -> None:
    """Tokens and revocations are signed for the aggregator that the operator has signed for last, and nobody else."""
    run("device", "add", "pi", "--home", apart.home)
    assert "is not the one that" in run("operator", "sign", apart.op, apart.request("tokens")).line
    apart.start()
    assert run("operator", "sign", apart.op, apart.request("tokens")).code == 0
    other = SigningKey.generate()
    wants = WantsTokens(profile="pi-4", seconds=0, devices=[Wanted(device="evil", broker=Broker(host="x", port=1))])
    request = Request(
        fleet="meadow",
        operator_key=apart.operator.public_key,
        aggregator_key=bytes(other.verify_key),
        made=0,
        wants=wants,
    )
    path = requests.leave_request(tmp_path / "own", "evil", request, other)
    assert "which is not the one that" in run("operator", "sign", apart.op, path).line
    forged = msgspec.structs.replace(request, aggregator_key=bytes(apart.server.key.verify_key))
    path.write_text(request_text(forged, other))
    assert "not a request of an aggregator" in run("operator", "sign", apart.op, path).line
    assert "evil" not in (apart.op / ISSUED).read_text()


def test_a_request_to_another_operator_or_of_another_fleet_is_refused_by_name(apart: Apart, tmp_path: Path) -> None:
    for name, fleet, said in (("a", "meadow", "asks operator "), ("b", "forest", "is of fleet 'meadow', and")):
        assert apart.run("operator", "init", tmp_path / name, "--fleet", fleet).code == 0
        line = apart.run("operator", "sign", tmp_path / name, apart.request("delegation")).line
        assert said in line
        assert not (tmp_path / name / DELEGATION_FILE).exists()


@pytest.mark.parametrize("name", ["aggregator", "operator"])
def test_no_request_can_name_a_device_that_signs_as_something_else(apart: Apart, name: str) -> None:
    apart.start()
    server = apart.server
    accepting.ask_tokens(server, [Wanted(device=name, broker=Broker(host="x", port=1))], "pi-4", 0)
    assert "reserved" in apart.run("operator", "sign", apart.op, apart.request("tokens")).line


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"covey-request-1:", b"covey-request-1:!!!", b"covey-request-1:AAAA", b"covey-reply-1:AAAA"],
)
def test_what_is_no_request_or_reply_is_named(apart: Apart, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.file"
    path.write_bytes(content)
    assert "some.file: " in apart.run("operator", "sign", apart.op, path).line
    assert "some.file: " in apart.run("accept", apart.home, path).line


def test_a_request_that_is_cut_off_or_changed_anywhere_is_refused(apart: Apart, tmp_path: Path) -> None:
    path = tmp_path / "some.request"
    whole = apart.request("delegation").read_text()
    for at in range(len(requests.REQUEST), len(whole) - 1, 7):
        changed = whole[:at] + ("A" if whole[at] != "A" else "B") + whole[at + 1 :]
        for text in (whole[:at], changed):
            path.write_text(text)
            with pytest.raises(ConfigError, match=r"some\.request"):
                read_request(path)


def reply(apart: Apart, **changes: object) -> Reply:
    return msgspec.structs.replace(read_reply(apart.sign("delegation")), **changes)


def refused(apart: Apart, answer: Reply, said: str) -> None:
    before = files(apart.home)
    path = apart.stick / "forged.reply"
    path.write_text(reply_text(answer))
    assert said in apart.run("accept", apart.home, path).line
    for database in ("", "-wal", "-shm"):
        before.pop(f"{DATABASE_FILE}{database}", None)
    after = files(apart.home)
    assert {name: content for name, content in after.items() if not name.startswith(DATABASE_FILE)} == before


def test_a_reply_for_somebody_else_is_refused_by_name(apart: Apart) -> None:
    refused(apart, reply(apart, fleet="forest"), "is for fleet 'forest', and")
    refused(apart, reply(apart, operator_key=bytes(32)), "is of operator 000000000000, and")
    refused(apart, reply(apart, aggregator_key=bytes(32)), "is for aggregator key 000000000000, and")


def test_nothing_of_a_reply_counts_that_the_operator_has_not_signed(apart: Apart) -> None:
    good, other, own = reply(apart), SigningKey.generate(), apart.server.key
    policy = sign_policy(Policy(version=9), other, "meadow")
    refused(apart, msgspec.structs.replace(good, policy=policy), "forged.reply: ")
    now = int(time.time())
    delegation = identity.issue_delegation(other, "meadow", bytes(own.verify_key), now, now + 9)
    refused(apart, msgspec.structs.replace(good, delegation=delegation), "forged.reply: ")
    stranger = apart.operator.delegate(bytes(other.verify_key))
    refused(apart, msgspec.structs.replace(good, delegation=stranger), "its delegation is for another key")
    token = identity.issue_token(other, "meadow", "evil", token_key=bytes(32), profile="pi-4", not_after=0)
    refused(apart, msgspec.structs.replace(good, tokens=[token]), "forged.reply: ")
    head, body = sign_list([], 3, other, "meadow")
    refused(apart, msgspec.structs.replace(good, head=head, body=body), "forged.reply: ")
    head, _ = sign_list([], 3, apart.operator.key, "meadow")
    refused(apart, msgspec.structs.replace(good, head=head, body=b"x"), "forged.reply: ")
    assert apart.store.tokens() == {}
    assert apart.store.revocations_version() == 0


def test_old_replies_change_nothing_and_two_of_one_version_are_an_alarm(apart: Apart) -> None:
    old = apart.sign("delegation")
    kept = apart.stick / "old.reply"
    shutil.copy(old, kept)
    apart.run("accept", apart.home, old)
    (apart.op / "policy.yaml").write_text("n_min: 6\n")
    assert apart.run("renew", apart.home).code == 0
    out = apart.run("accept", apart.home, apart.sign("delegation")).out
    assert "policy 2 is in place" in out
    server = open_server(apart.home)
    assert (server.policy.n_min, server.policy.version) == (6, 2)
    assert apart.run("accept", apart.home, kept).out.endswith("nothing new\n")
    assert open_server(apart.home).delegation == server.delegation
    assert server.word is not None
    for change, said in (
        ({"policy": sign_policy(Policy(version=2), apart.operator.key, "meadow")}, "two policies of version 2"),
        (
            {
                "delegation": identity.issue_delegation(
                    apart.operator.key, "meadow", bytes(server.key.verify_key), server.word.version, 5
                )
            },
            "two delegations of version",
        ),
    ):
        refused(apart, msgspec.structs.replace(read_reply(kept), **{"policy": b"", "delegation": b"", **change}), said)
    apart.store.put_revocations(1, *sign_list([], 1, apart.operator.key, "meadow"))
    entry = Revocation(token=bytes(32), key=b"", device="pi", reason="other")
    head, body = sign_list([entry], 1, apart.operator.key, "meadow")
    answer = msgspec.structs.replace(read_reply(kept), policy=b"", delegation=b"", head=head, body=body)
    refused(apart, answer, "two revocation lists of version 1")


def test_a_changed_policy_goes_to_all_servers_without_a_request(apart: Apart) -> None:
    apart.start()
    (apart.op / "policy.yaml").write_text("list_min: 9\n")
    done = apart.run("operator", "sign", apart.op, "--out", apart.stick)
    assert "the policy, for all servers of fleet meadow" in done.out
    assert "policy 2 is in place" in apart.run("accept", apart.home, apart.stick / "policy.reply").out
    assert open_server(apart.home).policy.list_min == 9
    first = (apart.stick / "policy.reply").read_bytes()
    apart.run("operator", "sign", apart.op, "--out", apart.stick)
    assert (apart.stick / "policy.reply").read_bytes() == first  # no new version for what has not changed


def test_the_aggregators_own_key_changes_when_its_delegation_comes(apart: Apart) -> None:
    apart.start()
    old = bytes(apart.server.key)
    apart.run("renew", apart.home, "--new-key")
    assert bytes(open_server(apart.home).key) == old
    said = apart.run("operator", "sign", apart.op, apart.request("delegation"), "--out", apart.stick).out
    assert f"IN PLACE OF KEY {bytes(SigningKey(old).verify_key).hex()}" in said
    assert apart.run("accept", apart.home, apart.stick / "delegation.reply").code == 0
    server = open_server(apart.home)
    assert bytes(server.key) != old
    assert server.word is not None
    assert server.word.aggregator_key == bytes(server.key.verify_key)
    assert not (apart.home / NEXT_KEY_FILE).exists()
    assert (apart.home / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_change_of_key_that_was_cut_off_is_finished_by_whoever_opens_the_home(
    apart: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart.start()
    apart.run("renew", apart.home, "--new-key")
    new = (apart.home / NEXT_KEY_FILE).read_bytes()
    path = apart.sign("delegation")
    (apart.home / DELEGATION_FILE).write_bytes(read_reply(path).delegation)  # and the power went
    assert bytes(open_server(apart.home).key) == new
    assert (apart.home / KEY_FILE).read_bytes() == new


def test_an_answer_outlives_a_cut_while_it_is_written(apart: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    apart.start()
    apart.run("device", "add", "pi", "--home", apart.home)
    asked = signing.look(apart.operator, apart.request("tokens"))

    def no(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(signing, "reply_text", no)
        with pytest.raises(KeyboardInterrupt):
            signing.sign(apart.operator, asked, apart.stick)
    reply, bundle = signing.sign(apart.operator, asked, apart.stick)
    token = provisioning.decode(bundle.read_text()).token
    assert read_reply(reply).tokens == [token]


def test_a_delegation_about_to_end_is_asked_for_anew(apart: Apart) -> None:
    apart.start()
    server = apart.server
    assert server.word is not None
    third = server.word.not_after - 365 * 86400 // 3
    assert (server.delegation_due(third), server.delegation_due(third + 1)) == (False, True)
    never = msgspec.structs.replace(server.word, not_after=0)
    assert not ServerHome(apart.home, server.settings, server.key, b"", b"", Policy(), word=never).delegation_due(2**40)


def test_no_repr_of_a_request_shows_what_goes_into_bundles(apart: Apart) -> None:
    apart.start()
    broker = Broker(host="x", port=1, username="pi", password="geheim", key="PRIVATE KEY")
    path = accepting.ask_tokens(apart.server, [Wanted(device="pi", broker=broker)], "pi-4", 0)
    request, _ = read_request(path)
    shown = repr(request) + repr(signing.look(apart.operator, path)) + repr(apart.operator) + repr(apart.server)
    assert not [secret for secret in ("geheim", "PRIVATE KEY") if secret in shown]
    assert bytes(apart.operator.key).hex() not in shown
    assert repr(bytes(apart.operator.key)) not in shown


def test_a_folder_that_cannot_be_made_is_one_line(apart: Apart, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    answer = apart.run("operator", "sign", apart.op, apart.request("delegation"), "--out", tmp_path / "file" / "out")
    assert (answer.code, answer.err.count("\n"), "file" in answer.err) == (1, 1, True)


def test_wants_are_bounded(apart: Apart) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"wants": "tokens", "profile": "pi-4", "seconds": 0, "devices": []}, WantsTokens)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"wants": "tokens", "delegation": 1, "policy": 1}, WantsDelegation)


def test_the_settings_name_no_operator_home_then(apart: Apart) -> None:
    assert yaml.safe_load((apart.home / SETTINGS_FILE).read_text())["operator_home"] == ""
    assert not (apart.home / POLICY_FILE).exists()
