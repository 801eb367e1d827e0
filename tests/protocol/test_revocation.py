"""covey_protocol.revocation: the operator's list, its versions, and everybody who refuses whom it names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.rig import (
    FLEET,
    OPERATOR,
    SERVER,
    Rig,
    knowing,
    make_chain,
    make_manifest,
    make_trust,
    revocation_of,
    revoke,
    signing_key,
    snapshot,
)
from tests.protocol.test_epoch_opening import Hamlet
from tests.protocol.test_roster import ME, Bench

from covey_protocol import cbor, envelope, identity, topics
from covey_protocol.digest import content_digest, digest, short
from covey_protocol.effects import Note, Publish, Remember
from covey_protocol.envelope import Context
from covey_protocol.errors import ConfigError, LocalError, MalformedError, RefusedError, SignatureError, StaleError
from covey_protocol.identity import AGGREGATOR, DeviceIdentity
from covey_protocol.identity import OPERATOR as OPERATOR_NAME
from covey_protocol.ledger import DeviceLedger
from covey_protocol.messages import Blob, Join, RevocationHead
from covey_protocol.payload import read, write
from covey_protocol.revocation import (
    LIST_BYTES_MAX,
    LIST_MAX,
    Revocation,
    Revocations,
    read_list,
    sign_list,
    verify_head,
)
from covey_protocol.round_table import DeviceStage, GroupStage

ANCHOR = bytes(OPERATOR.verify_key)


def take(known: Revocations | DeviceLedger, head: bytes) -> object:
    if isinstance(known, DeviceLedger):
        return known.take_revocations(head, operator_key=ANCHOR, fleet=FLEET)
    return known.take_head(head, operator_key=ANCHOR, fleet=FLEET)


# --- the list -----------------------------------------------------------------------------------------------------


def test_round_trip() -> None:
    entries = [revocation_of("pi-1", key=True), revocation_of("pi-2")]
    head, body = sign_list(entries, 7, OPERATOR, FLEET)
    read_head = verify_head(head, operator_key=ANCHOR, fleet=FLEET)
    assert (read_head.version, read_head.entries) == (7, Blob(digest=content_digest(body), bytes=len(body)))
    assert read_list(body, read_head) == sorted(entries, key=lambda entry: entry.token)
    assert sign_list(entries[::-1], 7, OPERATOR, FLEET) == (head, body)


def test_only_the_operator_signs_lists_and_for_one_fleet() -> None:
    for head, _ in (sign_list([], 1, SERVER, FLEET), sign_list([], 1, OPERATOR, "moor")):
        with pytest.raises(SignatureError):
            verify_head(head, operator_key=ANCHOR, fleet=FLEET)
    payload = envelope.parse(sign_list([], 1, OPERATOR, FLEET)[0]).payload
    for changes in ({"kind": "policy"}, {"sender": AGGREGATOR}, {"recipient": "pi-1"}):
        context = Context(fleet=FLEET, kind=topics.REVOCATIONS, sender=OPERATOR_NAME).with_(**changes)
        with pytest.raises(SignatureError):
            verify_head(envelope.sign(payload, context, OPERATOR), operator_key=ANCHOR, fleet=FLEET)


def test_ten_thousand_devices_with_the_longest_names_fit() -> None:
    entries = [
        Revocation(
            token=digest(number.to_bytes(4, "big"), person=b"test"),
            key=digest(number.to_bytes(4, "big"), person=b"test-key"),
            device=f"{number:063d}",
            reason="compromised",
        )
        for number in range(LIST_MAX)
    ]
    head, body = sign_list(entries, 1, OPERATOR, FLEET)
    known = knowing((head, body))
    assert len(entries) > 10_000
    assert len(known.entries()) == LIST_MAX
    assert len(body) < LIST_BYTES_MAX
    assert len(head) < 300
    with pytest.raises(ConfigError, match="a list holds 16384"):
        sign_list([*entries, revocation_of("pi-1")], 2, OPERATOR, FLEET)


def signed_head(**changes: object) -> bytes:
    body = {"version": 1, "entries": {"digest": bytes(32), "bytes": 1}, **changes}
    return envelope.sign(cbor.encode(body), Context(fleet=FLEET, kind="revocations", sender="operator"), OPERATOR)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": 2**53 + 1},
        {"version": "1"},
        {"entries": None},
        {"entries": {"digest": bytes(31), "bytes": 1}},
        {"entries": {"digest": bytes(32), "bytes": LIST_BYTES_MAX + 1}},
        {"more": bytes(1024)},
    ],
)
def test_impossible_heads_are_refused(changes: dict[str, object]) -> None:
    assert verify_head(signed_head(note="unknown fields are tolerated"), operator_key=ANCHOR, fleet=FLEET)
    with pytest.raises(MalformedError):
        verify_head(signed_head(**changes), operator_key=ANCHOR, fleet=FLEET)


TOKEN, OTHER = bytes(32), b"\x01" * 32
BODIES = {
    "no-map": [],
    "no-entries": {},
    "short-token": {"entries": [[b"t", b"", "pi", "lost"]]},
    "long-key": {"entries": [[TOKEN, bytes(33), "pi", "lost"]]},
    "bad-name": {"entries": [[TOKEN, b"", "Pi!", "lost"]]},
    "no-reason": {"entries": [[TOKEN, b"", "pi"]]},
    "twice": {"entries": [[TOKEN, b"", "pi", "lost"], [TOKEN, b"", "pi", "lost"]]},
    "disordered": {"entries": [[OTHER, b"", "pi", "lost"], [TOKEN, b"", "po", "lost"]]},
}


@pytest.mark.parametrize("name", BODIES)
def test_entries_that_are_no_list_are_refused_and_change_nothing(name: str) -> None:
    known = knowing(revoke("pi-1"))
    body = cbor.encode(BODIES[name])
    head = write(RevocationHead(version=2, entries=Blob(digest=content_digest(body), bytes=len(body))))
    take(known, envelope.sign(head, Context(fleet=FLEET, kind="revocations", sender="operator"), OPERATOR))
    with pytest.raises(MalformedError):
        known.take_list(body)
    assert (known.seen, known.held, [entry.device for entry in known.entries()]) == (2, 1, ["pi-1"])


def test_an_entry_of_a_newer_writer_may_have_more_parts() -> None:
    body = cbor.encode({"entries": [[TOKEN, b"", "pi", "lost", "since 2031"]], "note": "x"})
    head = RevocationHead(version=1, entries=Blob(digest=content_digest(body), bytes=len(body)))
    assert [entry.device for entry in read_list(body, head)] == ["pi"]


# --- versions -----------------------------------------------------------------------------------------------------


def test_entries_are_those_that_the_newest_head_names() -> None:
    known = Revocations()
    first, second = revoke("pi-1", version=1), revoke("pi-1", "pi-2", version=2)
    with pytest.raises(StaleError):
        known.take_list(first[1])
    assert take(known, first[0]) is True
    assert take(known, first[0]) is False
    assert known.wanted == Blob(digest=content_digest(first[1]), bytes=len(first[1]))
    with pytest.raises(MalformedError):
        known.take_list(second[1])
    assert take(known, second[0]) is True
    assert known.wanted == Blob(digest=content_digest(second[1]), bytes=len(second[1]))
    assert (known.seen, known.held) == (2, 0)
    known.take_list(second[1])
    assert (known.seen, known.held) == (2, 2)
    assert known.wanted is None
    with pytest.raises(StaleError):
        known.take_list(second[1])


def test_older_lists_are_stale() -> None:
    known = knowing(revoke("pi-1", "pi-2", version=5))
    for version in (1, 4):
        with pytest.raises(StaleError) as caught:
            take(known, revoke("pi-1", version=version)[0])
        assert caught.value.cause == "replayed"
    assert (known.seen, known.held) == (5, 5)


def test_two_lists_of_one_version_are_an_alarm_that_names_the_operators_key() -> None:
    known = knowing(revoke("pi-1", version=3))
    with pytest.raises(RefusedError, match=short(ANCHOR)) as caught:
        take(known, revoke("pi-2", version=3)[0])
    assert caught.value.cause == "second-list"
    assert [entry.device for entry in known.entries()] == ["pi-1"]


@settings(deadline=None)
@given(versions=st.lists(st.integers(1, 6), max_size=12), entries=st.booleans())
def test_what_was_seen_never_goes_back(versions: list[int], entries: bool) -> None:
    known, newest = Revocations(), 0
    for version in versions:
        signed = revoke("pi-1", version=version)
        if version < newest:
            with pytest.raises(StaleError):
                take(known, signed[0])
        else:
            take(known, signed[0])
            if entries and known.wanted:
                known.take_list(signed[1])
        newest = max(newest, version)
        assert known.seen == newest
        assert known.held == (newest if entries else 0)


def test_the_ledger_keeps_what_was_seen_and_what_is_here() -> None:
    rows: dict[str, bytes] = {}

    def keep(effects: list[Remember]) -> None:
        rows.update({effect.key: effect.value for effect in effects})

    ledger = DeviceLedger()
    first, second = revoke("pi-1", version=1), revoke("pi-1", "pi-2", version=2)
    keep(ledger.take_revocations(first[0], operator_key=ANCHOR, fleet=FLEET))
    keep(ledger.take_revoked(first[1]))
    assert take(ledger, first[0]) == []
    keep(ledger.take_revocations(second[0], operator_key=ANCHOR, fleet=FLEET))

    again = DeviceLedger(rows).revocations  # the power went before the second list's entries came
    assert (again.seen, again.held, len(again.entries())) == (2, 1, 1)
    assert again.wanted == Blob(digest=content_digest(second[1]), bytes=len(second[1]))
    with pytest.raises(StaleError):
        take(again, first[0])
    keep(ledger.take_revoked(second[1]))
    whole = DeviceLedger(rows).revocations
    assert (whole.seen, whole.held, len(whole.entries()), whole.wanted) == (2, 2, 2, None)
    with pytest.raises(RefusedError) as caught:
        take(whole, revoke("pi-3", version=2)[0])
    assert caught.value.cause == "second-list"
    for key in ("revocations/head", "revocations/list"):
        with pytest.raises(LocalError, match="revocation list is damaged"):
            DeviceLedger({**rows, key: b"\x00"})


# --- who is meant -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [False, True])
def test_a_token_and_every_key_that_was_seen_with_it_are_meant(key: bool) -> None:
    trust = make_trust(revocations=knowing(revoke("pi-1", key=key)))
    mine, other = bytes(signing_key("pi-1").verify_key), bytes(signing_key("second").verify_key)
    token = identity.token_id(make_chain("pi-1").token)
    for wrong in ((mine, token), (other, token)):
        with pytest.raises(RefusedError, match=r"'pi-1' was revoked \(lost\), says list 1") as caught:
            trust.check_member("pi-1", *wrong)
        assert caught.value.cause == "revoked"
    assert (trust.revoked(mine) is not None) == key
    trust.pins.pin(DeviceIdentity("pi-1", mine, token, ""))
    assert trust.revoked(mine) is not None
    assert trust.revoked(other) is None
    trust.check_member("pi-1", other)  # a name decides nothing


# --- joins and rosters --------------------------------------------------------------------------------------------


def to_device(key: bool) -> Callable[[Bench], None]:
    def put(bench: Bench) -> None:
        knowing(revoke("pi-3", key=key), bench.trust.revocations)
        for name in bench.rig.names:
            if name != ME:
                bench.forge(name, revocations=1)

    return put


@pytest.mark.parametrize("key", [False, True], ids=["token", "key"])
def test_a_roster_with_a_revoked_member_is_refused(key: bool) -> None:
    bench = Bench()
    bench.check()
    bench = Bench()
    to_device(key)(bench)
    assert "'pi-3' was revoked" in str(bench.refused("revoked"))
    without = [pair for pair in bench.joins.items() if pair[0] != "pi-3"]
    assert len(bench.check(without, t=4)) == 5


def test_a_revoked_key_is_refused_under_another_token_too() -> None:
    bench = Bench()
    entry = revocation_of("pi-3", key=True)
    other = Revocation(token=bytes(32), key=entry.key, device="pi-3", reason="lost")
    knowing(sign_list([other], 1, OPERATOR, FLEET), bench.trust.revocations)
    bench.refused("revoked")


def test_a_roster_whose_member_holds_a_newer_list_is_refused() -> None:
    bench = Bench()
    knowing(revoke("pi-9", version=4), bench.trust.revocations)
    for name in bench.rig.names[1:]:
        bench.forge(name, revocations=4)
    bench.check()
    bench = Bench()
    knowing(revoke("pi-9", version=4), bench.trust.revocations)
    bench.forge("pi-2", revocations=5)
    assert "names revocation list 5, and only 4 is here" in str(bench.refused("revocations"))


def test_a_head_without_its_entries_does_not_count_as_here() -> None:
    bench = Bench()
    take(bench.trust.revocations, revoke("pi-9", version=4)[0])
    bench.forge("pi-2", revocations=4)
    bench.refused("revocations")


def test_a_member_that_has_not_waited_for_the_manifests_list_is_refused() -> None:
    bench = Bench()
    knowing(revoke("pi-9", version=4), bench.trust.revocations)
    opened = replace(bench.rig.opened, manifest=make_manifest(50, revocations=4))
    bench.forge(ME, revocations=4)
    bench.sent = bench.joins[ME]
    for name in bench.rig.names[2:]:
        bench.forge(name, revocations=4)
    with pytest.raises(RefusedError, match="'pi-1' joined with revocation list 0; the manifest names 4") as caught:
        bench.check(opened=opened)
    assert caught.value.cause == "revocations"


# --- a device in a round ------------------------------------------------------------------------------------------


def knowing_rig(version: int = 4, **options: object) -> Rig:
    """A rig all of whose members, and its aggregator, have a list that names somebody else."""
    signed = revoke("pi-9", version=version)
    rig = Rig(n=6, manifest=make_manifest(50, revocations=version), revocations=knowing(signed), **options)  # type: ignore[arg-type]
    for ledger in rig.ledgers.values():
        knowing(signed, ledger.revocations)
    return rig


def test_a_round_of_those_who_have_the_list() -> None:
    rig = knowing_rig()
    rig.run()
    assert rig.group.stage is GroupStage.SUMMING
    assert all(isinstance(error, StaleError) for error in rig.errors)
    assert {read(Join, envelope.parse(rig.sent(name, "join")).payload).revocations for name in rig.names} == {4}


def refuses_to_join(rig: Rig, cause: str, words: str) -> None:
    device = rig.devices[ME]
    before, marks = snapshot(device), dict(rig.ledgers[ME]._rows)
    with pytest.raises(RefusedError, match=words) as caught:
        device.join()
    assert caught.value.cause == cause
    assert snapshot(device) == before
    assert rig.ledgers[ME]._rows == marks


@pytest.mark.parametrize("entries", [True, False], ids=["here", "seen"])
def test_a_manifest_that_names_an_older_list_than_was_seen_is_refused(entries: bool) -> None:
    rig = knowing_rig()
    newer = revoke("pi-9", version=5)
    if entries:
        knowing(newer, rig.ledgers[ME].revocations)
    else:
        take(rig.ledgers[ME].revocations, newer[0])
    refuses_to_join(rig, "revocations", "names revocation list 4, .* 5: the server withholds a list")


def test_no_join_without_the_list_that_the_manifest_names() -> None:
    rig = Rig(n=6, manifest=make_manifest(50, revocations=1))
    refuses_to_join(rig, "revocations", "the manifest names revocation list 1, and only 0 is here")
    take(rig.ledgers[ME].revocations, revoke("pi-9")[0])
    refuses_to_join(rig, "revocations", "the manifest names revocation list 1, and only 0 is here")


@pytest.mark.parametrize("key", [False, True], ids=["token", "key"])
def test_who_is_revoked_itself_does_not_join(key: bool) -> None:
    rig = Rig(n=6, manifest=make_manifest(50, revocations=1))
    knowing(revoke(ME, key=key), rig.ledgers[ME].revocations)
    refuses_to_join(rig, "revoked", "'pi-0' was revoked")


def test_a_list_that_comes_between_join_and_roster_counts() -> None:
    rig = Rig(n=6, hold=lambda way, name, kind: (way, name, kind) == ("down", ME, topics.ROSTER))
    rig.run()
    knowing(revoke("pi-3"), rig.ledgers[ME].revocations)
    [(_, _, _, data)] = rig.held
    before = dict(rig.ledgers[ME]._rows)
    with pytest.raises(RefusedError) as caught:
        rig.devices[ME].receive(topics.ROSTER, data)
    assert caught.value.cause == "revoked"
    assert rig.ledgers[ME]._rows == before
    assert rig.devices[ME].stage is DeviceStage.JOINED


# --- the aggregator's side of a group -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 5])
def test_the_aggregator_takes_no_join_with_another_list_than_its_own(version: int) -> None:
    rig = knowing_rig(hold=lambda way, name, kind: (name, kind) == (ME, topics.JOIN))
    rig.joined()
    [(_, _, _, data)] = rig.held
    join = read(Join, envelope.parse(data).payload)
    forged = rig.say(ME, topics.JOIN, msgspec.structs.replace(join, revocations=version))
    before = snapshot(rig.group)
    with pytest.raises(RefusedError) as caught:
        rig.group.receive(topics.JOIN, ME, forged, 0)
    assert caught.value.cause == "revocations"
    assert snapshot(rig.group) == before
    assert rig.group.receive(topics.JOIN, ME, data, 0)


def test_the_aggregator_takes_no_join_of_a_revoked_device_and_does_not_wait_for_it() -> None:
    signed = revoke("pi-3", version=1, key=True)
    rig = Rig(n=6, manifest=make_manifest(50, revocations=1), revocations=knowing(signed))
    for name, ledger in rig.ledgers.items():
        if name != "pi-3":
            knowing(signed, ledger.revocations)
        else:  # it does as if it had another list of that version
            knowing(revoke("pi-9", version=1), ledger.revocations)
    assert "pi-3" not in rig.group.awaited()
    rig.run()
    assert [error.cause for error in rig.errors][:1] == ["revoked"]
    assert rig.group.stage is GroupStage.SUMMING
    assert rig.group.survivors == ("pi-0", "pi-1", "pi-2", "pi-4", "pi-5")


def test_a_join_of_a_device_that_is_revoked_before_the_roster_is_dropped() -> None:
    rig = Rig(n=6, dies={"pi-5": topics.JOIN})
    rig.joined()
    knowing(revoke("pi-3", key=True), rig.group._trust.revocations)
    assert rig.group.stage is GroupStage.JOINING
    effects = rig.group.new_list(0)
    assert [effect.cause for effect in effects if isinstance(effect, Note)] == ["revoked"]
    assert len(effects) == 1
    assert rig.group.awaited() == {"pi-5"}
    assert rig.group.new_list(0) == []  # said once
    rig.late()
    assert rig.group.roster is not None
    assert [member.name for member in rig.group.roster.members] == ["pi-0", "pi-1", "pi-2", "pi-4"]


def test_the_roster_is_published_when_only_a_revoked_device_was_awaited() -> None:
    rig = Rig(n=6, dies={"pi-5": topics.JOIN})
    rig.joined()
    knowing(revoke("pi-5", key=True), rig.group._trust.revocations)
    assert [effect.kind for effect in rig.group.new_list(0) if isinstance(effect, Publish)] == [topics.ROSTER]


def test_with_a_newer_list_joins_are_waited_for_no_longer_than_those_on_their_way_need() -> None:
    rig = Rig(n=6, dies={"pi-5": topics.JOIN})
    rig.joined()
    newer = revoke("pi-9")
    knowing(newer, rig.ledgers["pi-5"].revocations)
    with pytest.raises(RefusedError):
        rig.make_device("pi-5").join()  # so nobody need wait for it
    assert rig.group.deadline == 10
    assert rig.group.new_list(1) == []
    assert rig.group.deadline == 6
    rig.late()
    assert rig.group.new_list(6) == []
    assert (rig.group.stage, rig.group.deadline) == (GroupStage.MASKING, 16)


@pytest.mark.parametrize("kind", [topics.SHARES, topics.MASKED, topics.SURVIVORS, topics.UNMASK])
def test_a_device_that_is_revoked_behind_the_roster_counts_as_silent(kind: str) -> None:
    rig = Rig(n=6, dies={"pi-3": kind})
    rig.joined()
    rig.train()
    assert rig.group.stage is not GroupStage.JOINING
    waited = rig.group.awaited()
    knowing(revoke("pi-3", key=True), rig.group._trust.revocations)
    rig.from_group(rig.group.new_list(0))
    rig.pump()
    rig.train()
    if kind in (topics.SHARES, topics.MASKED):
        assert waited == {"pi-3"}
        assert "pi-3" not in rig.group.survivors
    assert rig.group.stage is GroupStage.SUMMING  # without waiting for any window to run out
    assert rig.now == 0
    assert rig.group.new_list(0) == []


# --- epochs -------------------------------------------------------------------------------------------------------


def test_an_epochs_list_with_a_revoked_member_is_refused() -> None:
    for pinned in (False, True):
        opening = Hamlet(6)
        trust = opening.trusts["pi-0"]
        knowing(revoke("pi-3", key=not pinned), trust.revocations)
        if pinned:
            key = bytes(signing_key("pi-3").verify_key)
            trust.pins.pin(DeviceIdentity("pi-3", key, identity.token_id(make_chain("pi-3").token), ""))
        (published,) = [effect for effect in opening.opening.start(0.0) if isinstance(effect, Publish)]
        before = snapshot(opening.devices["pi-0"])
        with pytest.raises(RefusedError) as caught:
            opening.devices["pi-0"].receive(topics.EPOCH, published.data)
        assert caught.value.cause == "revoked"
        assert snapshot(opening.devices["pi-0"]) == before
        assert opening.devices["pi-1"].receive(topics.EPOCH, published.data)
