"""covey_protocol.roster: a device shares its secrets with nobody that it has not checked by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from tests.protocol.rig import (
    FLEET,
    LOW_ORDER,
    OPERATOR,
    SERVER,
    TASK,
    Rig,
    make_chain,
    make_manifest,
    make_trust,
    sign_open,
    signing_key,
)

from covey_protocol import envelope, identity, roster, topics
from covey_protocol.effects import Send
from covey_protocol.epochs import Grouping
from covey_protocol.errors import MalformedError, PeerError, RefusedError, SignatureError, StaleError
from covey_protocol.identity import Chain, PinnedKeys
from covey_protocol.messages import Join, Roster
from covey_protocol.payload import read, write
from covey_protocol.policy import Policy
from covey_protocol.roster import CheckedRoster, OpenRound, Trust

ME = "pi-0"
N, T, A_MIN = 6, 5, 4


class Bench:
    """Six true joins, and a roster made from whatever a test puts in their place."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.rig = Rig(n=N)
        self.trust = make_trust(policy)
        self.joins: dict[str, bytes] = {}
        for name, device in self.rig.devices.items():
            (self.joins[name],) = [effect.data for effect in device.join() if isinstance(effect, Send)]
        self.sent = self.joins[ME]
        self.sequence_of: Callable[[str], int] = lambda name: 0

    def forge(self, name: str, *, signer: str = "", grouping: Grouping | None = None, **changes: Any) -> None:
        """Let a member sign another join than its true one."""
        join = msgspec.structs.replace(read(Join, envelope.parse(self.joins[name]).payload), **changes)
        context = self.rig.opened.context(FLEET, topics.JOIN, name, (grouping or self.rig.grouping).digest())
        self.joins[name] = envelope.sign(write(join), context, signing_key(signer or name))

    def check(
        self, joins: list[tuple[str, bytes]] | None = None, opened: OpenRound | None = None, **changes: Any
    ) -> CheckedRoster:
        opened = opened or self.rig.opened
        body = Roster(manifest=opened.digest, joins=joins or list(self.joins.items()), t=T, a_min=A_MIN)
        return roster.check_roster(
            write(msgspec.structs.replace(body, **changes)),
            opened=opened,
            grouping=self.rig.grouping,
            trust=self.trust,
            own=(ME, self.sent),
            sequence_of=self.sequence_of,
        )

    def refused(self, cause: str, joins: list[tuple[str, bytes]] | None = None, **changes: Any) -> PeerError:
        with pytest.raises(PeerError) as caught:
            self.check(joins, **changes)
        assert caught.value.cause == cause, caught.value
        assert self.trust.pins._pins == {}  # nothing of a refused roster stays
        return caught.value


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_true_roster(bench: Bench) -> None:
    checked = bench.check()
    assert [member.name for member in checked.members] == bench.rig.names
    assert [member.place for member in checked.members] == list(range(N))
    assert [member.key for member in checked.members] == [key for _, key in bench.rig.grouping.members]
    assert (len(checked), checked.t, checked.a_min) == (N, T, A_MIN)
    assert checked.member("pi-3") is checked.members[3]
    assert checked.member("pi-9") is None
    assert len(bench.trust.pins._pins) == N


def test_part_of_the_group_is_enough(bench: Bench) -> None:
    joins = [pair for pair in bench.joins.items() if pair[0] != "pi-2"]
    checked = bench.check(joins, t=4)
    assert [(member.place, member.name) for member in checked.members][1:3] == [(1, "pi-1"), (2, "pi-3")]


def test_its_digest_covers_all_of_it(bench: Bench) -> None:
    first = bench.check().digest
    bench.forge("pi-1", sequence=2)
    assert bench.check().digest != first


# --- members ------------------------------------------------------------------------------------------------------


def test_chains_that_do_not_lead_to_the_operator(bench: Bench) -> None:
    bench.forge("pi-1", chain=make_chain("pi-1", operator=SERVER))
    assert isinstance(bench.refused("signature"), SignatureError)


@pytest.mark.parametrize("chain", [make_chain("pi-1", fleet="moor"), make_chain("pi-2")], ids=["fleet", "device"])
def test_chains_of_others(bench: Bench, chain: Chain) -> None:
    bench.forge("pi-1", chain=chain)
    bench.refused("signature")


def test_a_join_that_its_member_did_not_sign(bench: Bench) -> None:
    for signer in ("pi-2", "token pi-1", "aggregator"):
        bench.forge("pi-1", signer=signer)
        bench.refused("signature")


def test_a_join_for_another_grouping(bench: Bench) -> None:
    grouping = replace(bench.rig.grouping, epoch=2)
    bench.forge("pi-1", grouping=grouping)
    bench.refused("signature")


@pytest.mark.parametrize("changes", [{"round": 2}, {"attempt": 2}, {"task": "letters"}])
def test_a_join_of_another_round(bench: Bench, changes: dict[str, Any]) -> None:
    join = envelope.parse(bench.joins["pi-1"]).payload
    context = bench.rig.opened.context(FLEET, topics.JOIN, "pi-1", bench.rig.grouping.digest()).with_(**changes)
    bench.joins["pi-1"] = envelope.sign(join, context, signing_key("pi-1"))
    assert isinstance(bench.refused("wrong-round"), StaleError)


def test_a_key_that_is_not_the_epochs(bench: Bench) -> None:
    second = signing_key("second")
    endorsement = identity.endorse(signing_key("token pi-1"), FLEET, "pi-1", bytes(second.verify_key))
    bench.forge("pi-1", signer="second", chain=Chain(token=make_chain("pi-1").token, endorsement=endorsement))
    bench.refused("key")


def test_a_second_key_for_a_pinned_token(bench: Bench) -> None:
    token = identity.token_id(make_chain("pi-1").token)
    bench.trust = replace(bench.trust, pins=PinnedKeys({token: bytes(32)}))
    with pytest.raises(RefusedError) as caught:
        bench.check()
    assert caught.value.cause == "second-key"


def test_two_members_with_one_token(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # Tokens name their device, so this takes an operator's mistake; the roster does not rely on there being none.
    monkeypatch.setattr(identity, "token_id", lambda token: b"t" * 32)
    monkeypatch.setattr(PinnedKeys, "check", lambda self, who: None)
    bench.refused("same-token")


def test_a_member_who_was_shown_another_manifest(bench: Bench) -> None:
    bench.forge("pi-1", manifest=bytes(32))
    bench.refused("manifest")


@pytest.mark.parametrize("field", ["mask_key", "share_key"])
@pytest.mark.parametrize("key", LOW_ORDER, ids=lambda key: key[:4].hex())
def test_low_order_keys(bench: Bench, field: str, key: bytes) -> None:
    changes: dict[str, Any] = {field: key}
    bench.forge("pi-1", **changes)
    assert "'pi-1'" in str(bench.refused("low-order-key"))


@pytest.mark.parametrize("seen", [1, 2, 100])
def test_a_sequence_that_does_not_go_up(bench: Bench, seen: int) -> None:
    bench.sequence_of = lambda name: seen if name == "pi-1" else 0
    assert "'pi-1'" in str(bench.refused("sequence"))
    bench.forge("pi-1", sequence=seen + 1)
    bench.check()


def test_ones_own_sequence_is_not_a_peers(bench: Bench) -> None:
    bench.sequence_of = lambda name: 9 if name == ME else 0
    bench.check()


# --- the list -----------------------------------------------------------------------------------------------------


def test_repeated_members(bench: Bench) -> None:
    joins = list(bench.joins.items())
    bench.refused("roster", [*joins[:2], joins[1], *joins[2:5]])


def test_members_out_of_order(bench: Bench) -> None:
    joins = list(bench.joins.items())
    bench.refused("roster", [joins[0], joins[2], joins[1], *joins[3:]])


def test_a_member_of_another_group(bench: Bench) -> None:
    foreign = Rig(n=8)
    (join,) = [effect.data for effect in foreign.devices["pi-7"].join() if isinstance(effect, Send)]
    bench.refused("roster", [*list(bench.joins.items())[:5], ("pi-7", join)])


def test_a_join_under_another_name(bench: Bench) -> None:
    bench.joins["pi-1"] = bench.joins["pi-2"]
    bench.refused("signature")


def test_ones_own_join_replaced_or_left_out(bench: Bench) -> None:
    true = dict(bench.joins)
    bench.forge(ME, sequence=7)
    assert "another join of this device" in str(bench.refused("roster"))
    bench.joins = true
    late = bench.refused("roster", list(true.items())[1:], t=4)
    assert "before this device's join had come" in str(late)


def test_rosters_below_the_minimum() -> None:
    for policy, manifest in ((Policy(n_min=7), make_manifest(50)), (None, make_manifest(50, n_min=7))):
        bench = Bench(policy)
        bench.refused("roster", opened=replace(bench.rig.opened, manifest=manifest))


def test_rosters_above_the_maximum(bench: Bench) -> None:
    bench.refused("roster", opened=replace(bench.rig.opened, manifest=make_manifest(50, n_max=5)))


@pytest.mark.parametrize("changes", [{"t": 4}, {"t": 6}, {"a_min": 5}, {"t": 1}, {"a_min": 6}])
def test_thresholds_are_not_the_servers_to_choose(bench: Bench, changes: dict[str, Any]) -> None:
    bench.refused("roster", **changes)


def test_the_policys_a_min_counts() -> None:
    bench = Bench(Policy(a_min=5))
    bench.refused("roster")
    assert bench.check(a_min=5).a_min == 5
    assert roster.required(6, Policy(a_min=5)) == (5, 5)
    assert roster.required(10, Policy(a_min=5)) == (7, 6)


def test_the_policys_t_min_counts() -> None:
    bench = Bench(Policy(t_min=6))
    bench.refused("roster")
    assert bench.check(t=6).t == 6
    assert roster.required(6, Policy(t_min=6)) == (6, 4)
    assert roster.required(10, Policy(t_min=6)) == (7, 6)


@pytest.mark.parametrize("policy", [Policy(t_min=7), Policy(a_min=7)])
def test_a_roster_that_cannot_reach_a_floor(policy: Policy) -> None:
    bench = Bench(policy)
    bench.refused("roster", t=7)
    bench.refused("roster", a_min=7)


def test_a_roster_for_another_manifest(bench: Bench) -> None:
    bench.refused("manifest", manifest=bytes(32))


# --- order, digests and the manifest ------------------------------------------------------------------------------


def test_in_order(bench: Bench) -> None:
    checked = bench.check()
    assert [member.place for member in checked.in_order(["pi-1", "pi-4"], "it")] == [1, 4]
    for names in (["pi-4", "pi-1"], ["pi-1", "pi-1"], ["pi-1", "pi-9"], ["pi-9"]):
        with pytest.raises(RefusedError, match="this list") as caught:
            checked.in_order(names, "this list")
        assert caught.value.cause == "roster"


def test_digests_cover_names_order_and_content() -> None:
    lists = [[("a", b"1"), ("b", b"2")], [("b", b"2"), ("a", b"1")], [("a", b"2"), ("b", b"1")], [("a", b"1")]]
    assert len({roster.dealt_digest(one) for one in lists}) == 4
    assert len({roster.survivors_digest(b"d" * 32, one) for one in lists}) == 4
    assert roster.survivors_digest(b"d" * 32, lists[0]) != roster.survivors_digest(bytes(32), lists[0])
    one, two = Grouping(1, "1-s-0", ()), Grouping(1, "1-s-1", ())
    sets = {roster.set_digest(*parts) for parts in ((one, ["a", "b"]), (one, ["a"]), (two, ["a"]))}
    assert len(sets) == 3


def test_reading_a_manifest() -> None:
    manifest, trust = make_manifest(50), make_trust()
    opened = roster.read_open(sign_open(manifest, 7, 2), TASK, trust)
    assert (opened.task, opened.round, opened.attempt, opened.manifest) == (TASK, 7, 2, manifest)
    again = roster.read_open(sign_open(make_manifest(50, clip=4.0), 7, 2), TASK, trust)
    assert again.digest != opened.digest


def test_manifests_of_others_are_refused() -> None:
    manifest, trust = make_manifest(50), make_trust()
    for key in (OPERATOR, signing_key(ME)):
        with pytest.raises(SignatureError):
            roster.read_open(sign_open(manifest, key=key), TASK, trust)
    with pytest.raises(SignatureError):
        roster.read_open(sign_open(manifest), "letters", trust)
    with pytest.raises(SignatureError):
        roster.read_open(sign_open(manifest), TASK, replace(trust, fleet="moor"))
    with pytest.raises(MalformedError):
        roster.read_open(sign_open(manifest)[:-1], TASK, trust)


def test_manifests_below_the_policy_are_refused() -> None:
    for trust, manifest in (
        (make_trust(Policy(n_min=6)), make_manifest(50)),
        (make_trust(), make_manifest(50, masking=False)),
    ):
        assert isinstance(trust, Trust)
        with pytest.raises(RefusedError) as caught:
            roster.read_open(sign_open(manifest), TASK, trust)
        assert caught.value.cause == "policy"
