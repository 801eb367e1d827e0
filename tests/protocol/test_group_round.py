"""covey_protocol.group_round and unmasking: whole rounds, silent members, and members that cheat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.rig import (
    LOW_ORDER,
    SEALING,
    SERVER,
    Entropy,
    Rig,
    make_chain,
    make_manifest,
    signing_key,
    snapshot,
)

from covey_protocol import envelope, identity, ring, shamir, topics
from covey_protocol.certificates import LEAVES
from covey_protocol.digest import content_digest
from covey_protocol.effects import Expect, Note, Publish, Send
from covey_protocol.errors import PeerError, RefusedError, StaleError, StateError
from covey_protocol.messages import Blob, Decline, Join, Leaves, Masked, Reveal, RevealedShares, Shares
from covey_protocol.payload import read, write
from covey_protocol.policy import Policy
from covey_protocol.ring import RingScale
from covey_protocol.round_table import DeviceStage, GroupStage
from covey_protocol.sealing import open_sealed, seal_anonymously
from covey_protocol.sharing import Entry
from covey_protocol.sharing import Shares as SharedPair
from covey_protocol.thresholds import accepted_min, threshold

VECTOR = "vector"
KINDS = [topics.JOIN, topics.SHARES, topics.MASKED, VECTOR, topics.SURVIVORS, topics.UNMASK]
CHEAT = "pi-3"


def closes_with(rig: Rig, *silent: str) -> None:
    """The group ends with exactly the sum over everybody but ``silent``."""
    assert rig.group.stage is GroupStage.SUMMING, rig.group.aborted
    expected = [name for name in rig.names if name not in silent]
    assert rig.group.survivors == tuple(expected)
    total, count = rig.group.unmask()
    assert count == len(expected)
    assert np.array_equal(total, rig.sum_of(expected))
    rig.group.close()
    assert str(rig.group.stage) == "closed"


def refused(rig: Rig, kind: str, name: str, data: bytes, cause: str) -> PeerError:
    before = snapshot(rig.group)
    with pytest.raises(PeerError) as caught:
        if kind == VECTOR:
            rig.group.vector(name, data, rig.now)
        else:
            rig.group.receive(kind, name, data, rig.now)
    assert caught.value.cause == cause, caught.value
    assert snapshot(rig.group) == before
    return caught.value


# --- whole rounds -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(4, 12), st.data())
def test_any_members_may_fall_silent_at_any_stage(n: int, data: st.DataObject) -> None:
    dies = data.draw(
        st.dictionaries(st.sampled_from([f"pi-{index}" for index in range(n)]), st.sampled_from(KINDS), max_size=n)
    )
    rig = Rig(n=n, dimension=20, dies=dies, repeat=data.draw(st.sampled_from([1, 2])))
    rig.run()

    def left(*kinds: str) -> list[str]:
        return [name for name in rig.names if dies.get(name) not in kinds]

    members, dealers = left(topics.JOIN), left(topics.JOIN, topics.SHARES)
    survivors = left(*KINDS[:4])
    signers, revealers = left(*KINDS[:5]), left(*KINDS)
    t, a_min = threshold(len(members)), accepted_min(len(members))
    if len(members) < 4:
        cause = "too-few-joined"
    elif len(dealers) < max(t, a_min):
        cause = "too-few-dealt"
    elif len(survivors) < a_min:
        cause = "too-few-survivors"
    elif len(signers) < t:
        cause = "too-few-signed"
    elif len(revealers) < t:
        cause = "too-few-revealed"
    else:
        cause = ""
    if cause:
        assert rig.group.stage is GroupStage.ABORTED
        assert rig.group.aborted is not None
        assert rig.group.aborted.cause == cause
        assert rig.group.aborted.reason
        told = {name for name in rig.names if rig.devices[name].stage is DeviceStage.ABORTED}
        assert told == {name for name in rig.names if name not in rig.silent}
    else:
        closes_with(rig, *(set(rig.names) - set(survivors)))
    for note in rig.notes:
        if note.cause == "missing":
            named = set(note.text.partition("no answer from ")[2].split(", "))
            assert named <= set(dies)


@pytest.mark.parametrize("n", [4, 5, 6, 32])
def test_nobody_is_silent(n: int) -> None:
    rig = Rig(n=n, dimension=10)
    rig.run()
    assert rig.now == 0  # no stage waited for its window
    assert all(isinstance(error, StaleError) for error in rig.errors)  # answers beyond the quorum
    closes_with(rig)


def test_ten_devices_three_of_them_lost_on_the_way() -> None:
    rig = Rig(n=10, dies={"pi-1": topics.SHARES, "pi-5": topics.MASKED, "pi-7": topics.SURVIVORS})
    rig.run()
    assert rig.now == 20  # SHARES and MASKED waited for the lost; t members were enough for the rest
    closes_with(rig, "pi-1", "pi-5")


def test_two_more_lost_before_unmasking_abort_the_group() -> None:
    lost = {"pi-1": topics.SHARES, "pi-5": topics.MASKED, "pi-7": topics.SURVIVORS}
    for kind, cause in ((topics.UNMASK, "too-few-revealed"), (topics.SURVIVORS, "too-few-signed")):
        rig = Rig(n=10, dies={**lost, "pi-2": kind, "pi-8": kind})
        rig.run()
        assert rig.group.stage is GroupStage.ABORTED
        assert rig.group.aborted is not None
        assert rig.group.aborted.cause == cause
        assert "5" in rig.group.aborted.reason
        assert "7" in rig.group.aborted.reason
        assert rig.devices["pi-0"].aborted == rig.group.aborted


def test_more_than_one_block_of_masks() -> None:
    rig = Rig(n=4, dimension=70_000)
    rig.run()
    closes_with(rig)


def test_the_mean_is_that_of_the_updates() -> None:
    rig = Rig(n=6, dimension=300, dies={"pi-2": VECTOR})
    rig.run()
    total, count = rig.group.unmask()
    scale = RingScale(rig.opened.manifest.clip, rig.opened.manifest.n_max)
    assert ring.out_of_range(total, count, scale) == 0
    mean, metrics = ring.decode_mean(total, count, scale)
    updates = [ring.clip_norm(rig.update(name), scale.clip)[0] for name in rig.names if name != "pi-2"]
    assert np.abs(mean - np.mean(updates, axis=0)).max() <= scale.step * 1.001
    assert metrics.accuracy == pytest.approx(0.5, abs=0.001)
    assert metrics.samples == pytest.approx(40, abs=4)


def test_a_group_remembers_one_vector_and_nothing_at_its_end() -> None:
    rig = Rig(n=6)
    rig.run()
    vectors = [value for value in vars(rig.group).values() if isinstance(value, np.ndarray)]
    assert [vector.size for vector in vectors] == [54]
    rig.group.close()
    assert not any(isinstance(value, np.ndarray) for value in vars(rig.group).values())
    assert (rig.group._shares, rig.group._revealed) == ({}, {})


def test_rosters_are_cut_at_the_manifests_maximum() -> None:
    rig = Rig(n=6, manifest=make_manifest(50, n_max=5))
    rig.run()
    closes_with(rig, "pi-5")
    assert rig.devices["pi-5"].stage is DeviceStage.JOINED


def test_the_policys_floors_count() -> None:
    manifest = make_manifest(50, n_min=5)
    rig = Rig(n=6, manifest=manifest, dies={"pi-1": topics.JOIN, "pi-2": topics.JOIN})
    rig.run()
    assert rig.group.aborted is not None
    assert rig.group.aborted.cause == "too-few-joined"
    rig = Rig(n=6, policy=Policy(a_min=6), dies={"pi-1": VECTOR})
    rig.run()
    assert rig.group.aborted is not None
    assert rig.group.aborted.cause == "too-few-survivors"


def test_windows() -> None:
    rig = Rig(n=6)
    rig.silent = set(rig.names[:2])
    assert rig.group.deadline == 10
    rig.joined()
    assert rig.group.tick(9.9) == []
    assert rig.group.awaited() == {"pi-0", "pi-1"}
    missing, roster = rig.group.tick(10.0)
    assert isinstance(missing, Note)
    assert "pi-0, pi-1" in missing.text
    assert isinstance(roster, Publish)
    assert rig.group.deadline == 20
    assert rig.group.tick(19.0) == []


def test_aborting_by_hand() -> None:
    rig = Rig(n=6)
    rig.joined()
    note, publish = rig.group.abort("stopped", "the operator stopped the task")
    assert isinstance(note, Note)
    assert isinstance(publish, Publish)
    assert rig.group.finished
    rig.from_group([publish])
    rig.pump()
    assert {device.stage for device in rig.devices.values()} == {DeviceStage.ABORTED}
    assert rig.group.tick(1e9) == []
    with pytest.raises(StaleError):
        rig.group.abort("again", "")


# --- messages that break a rule -----------------------------------------------------------------------------------


def stopped_before(kind: str, **fields: Any) -> tuple[Rig, bytes]:
    """A round in which everything was sent but ``CHEAT``'s message of ``kind``, and that message."""
    rig = Rig(n=6, **fields)
    way, wanted = (VECTOR, topics.MASKED) if kind == VECTOR else ("up", kind)
    rig.hold = lambda way_, name, kind_: way_ == way and name == CHEAT and kind_ == wanted
    if kind in (topics.SURVIVORS, topics.UNMASK):  # a quorum goes on without it, so somebody else waits too
        rig.hold = lambda way_, name, kind_: way_ == way and kind_ == wanted and name in (CHEAT, "pi-5")
    rig.joined()
    rig.train()
    return rig, next(data for _, name, _, data in rig.held if name == CHEAT)


def proceeds(rig: Rig, kind: str, data: bytes) -> None:
    """The true message is still taken, and the round closes with everybody."""
    rig.hold = lambda way, name, kind_: False
    if kind == VECTOR:
        rig.from_group(rig.group.vector(CHEAT, data, rig.now))
    else:
        rig.from_group(rig.group.receive(kind, CHEAT, data, rig.now))
    rig.pump()
    rig.train()
    for _, name, kind_, held in rig.held:
        if name != CHEAT and not rig.group.finished:
            rig.from_group(rig.group.receive(kind_, name, held, rig.now))
            rig.pump()
    if rig.group.stage is GroupStage.MASKING:  # only the announcement was let through
        vector = next(held for way, name, _, held in rig.wire if way == VECTOR and name == CHEAT)
        rig.from_group(rig.group.vector(CHEAT, vector, rig.now))
        rig.pump()
    closes_with(rig)


@pytest.mark.parametrize("kind", [topics.JOIN, topics.SHARES, topics.MASKED, topics.SURVIVORS, topics.UNMASK])
def test_messages_of_another_place(kind: str) -> None:
    rig, true = stopped_before(kind)
    payload = envelope.parse(true).payload

    def resigned(key: str = CHEAT, **changes: Any) -> bytes:
        bound = rig.bound(kind, CHEAT)
        context = rig.opened.context("meadow", kind, CHEAT, bound).with_(**changes)
        return envelope.sign(payload, context, signing_key(key))

    assert resigned() == true
    for changes in ({"round": 2}, {"attempt": 2}, {"task": "letters"}):
        refused(rig, kind, CHEAT, resigned(**changes), "wrong-round")
    for changes in ({"fleet": "moor"}, {"kind": topics.STATE}, {"sender": "pi-1"}, {"recipient": "pi-1"}):
        refused(rig, kind, CHEAT, resigned(**changes), "signature")
    refused(rig, kind, CHEAT, resigned(roster=bytes(32)), "signature")
    refused(rig, kind, CHEAT, resigned(key="pi-1"), "signature")
    refused(rig, kind, CHEAT, true[:-1], "truncated")
    refused(rig, kind, CHEAT, true[:-1] + bytes([true[-1] ^ 1]), "signature")
    refused(rig, kind, "pi-9", true, "roster")
    for other in (topics.STATE, topics.OPENING, topics.WANT, topics.DEALT, "nonsense"):
        refused(rig, other, CHEAT, true, "kind")
    for other in (topics.JOIN, topics.SHARES, topics.MASKED, topics.SURVIVORS, topics.UNMASK):
        if other != kind:
            refused(rig, other, CHEAT, true, "stage")
    proceeds(rig, kind, true)


def forged_join(rig: Rig, true: bytes, **changes: object) -> bytes:
    join = msgspec.structs.replace(read(Join, envelope.parse(true).payload), **changes)
    return rig.say(CHEAT, topics.JOIN, join)


def test_joins() -> None:
    rig, true = stopped_before(topics.JOIN)
    rig.group._sequences[CHEAT] = 1
    refused(rig, topics.JOIN, CHEAT, true, "sequence")
    rig.group._sequences.clear()
    refused(rig, topics.JOIN, CHEAT, forged_join(rig, true, manifest=bytes(32)), "manifest")
    refused(rig, topics.JOIN, CHEAT, forged_join(rig, true, mask_key=LOW_ORDER[0]), "low-order-key")
    refused(rig, topics.JOIN, CHEAT, forged_join(rig, true, share_key=LOW_ORDER[5]), "low-order-key")
    refused(rig, topics.JOIN, CHEAT, forged_join(rig, true, chain=make_chain(CHEAT, operator=SERVER)), "signature")
    refused(rig, topics.JOIN, CHEAT, forged_join(rig, true, chain=make_chain("pi-1")), "signature")
    refused(rig, topics.JOIN, "pi-1", rig.sent("pi-1", topics.JOIN), "repeated")
    stranger = Rig(n=7).devices["pi-6"]
    (join,) = [effect.data for effect in stranger.join() if hasattr(effect, "data")]
    refused(rig, topics.JOIN, "pi-6", join, "roster")
    proceeds(rig, topics.JOIN, true)


def test_a_join_with_a_second_key_for_its_token() -> None:
    rig, true = stopped_before(topics.JOIN)
    token = identity.token_id(make_chain(CHEAT).token)
    rig.group._trust.pins._pins[token] = (bytes(32),)
    refused(rig, topics.JOIN, CHEAT, true, "second-key")
    rig.group._trust.pins._pins.clear()
    proceeds(rig, topics.JOIN, true)


def test_joins_with_one_token(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, true = stopped_before(topics.JOIN)
    with monkeypatch.context() as patch:
        patch.setattr("covey_protocol.identity.token_id", lambda token: rig.group._joins["pi-1"][1].token)
        refused(rig, topics.JOIN, CHEAT, true, "same-token")
    proceeds(rig, topics.JOIN, true)


def test_a_join_sequence_is_remembered() -> None:
    rig = Rig(n=6)
    rig.run()
    assert rig.group._sequences == dict.fromkeys(rig.names, 1)


def test_shares() -> None:
    rig, true = stopped_before(topics.SHARES)
    body = read(Shares, envelope.parse(true).payload)
    entries = list(body.entries)
    name, (ciphertext, *commitments) = entries[0]
    garbage = Entry(b"x" * 50, bytes(32), bytes(32))
    leaves = list(read(Leaves, envelope.parse(body.leaves).payload).leaves)

    def shares(leaves: bytes = body.leaves, entries: list[tuple[str, list[bytes]]] = entries) -> bytes:
        return rig.say(CHEAT, topics.SHARES, Shares(leaves=leaves, entries=entries))

    refused(rig, topics.SHARES, CHEAT, shares(entries=entries[1:]), "share")
    refused(rig, topics.SHARES, CHEAT, shares(entries=[e for e in entries if e[0] != CHEAT]), "share")
    refused(rig, topics.SHARES, CHEAT, shares(entries=[(name, garbage.array()), *entries[1:]]), "share")
    refused(
        rig, topics.SHARES, CHEAT, shares(entries=[(name, [ciphertext, *commitments[::-1]]), *entries[1:]]), "share"
    )
    refused(rig, topics.SHARES, CHEAT, shares(entries=[*entries, (name, garbage.array())]), "share")
    refused(rig, topics.SHARES, CHEAT, shares(rig.say(CHEAT, LEAVES, Leaves(leaves=leaves[:5]))), "dealt")
    refused(rig, topics.SHARES, CHEAT, shares(rig.say(CHEAT, LEAVES, Leaves(leaves=leaves), roster=b"")), "signature")
    others = read(Shares, envelope.parse(rig.sent("pi-1", topics.SHARES)).payload)
    refused(rig, topics.SHARES, CHEAT, shares(others.leaves), "signature")
    refused(rig, topics.SHARES, "pi-1", rig.sent("pi-1", topics.SHARES), "repeated")
    proceeds(rig, topics.SHARES, true)


def test_masked_messages() -> None:
    rig, true = stopped_before(topics.MASKED)
    body = read(Masked, envelope.parse(true).payload)
    blob = body.vector

    def masked(**changes: object) -> bytes:
        return rig.say(CHEAT, topics.MASKED, msgspec.structs.replace(body, **changes))

    for size in (0, 107, 109, 216):
        data = masked(vector=Blob(digest=blob.digest, bytes=size))
        assert repr(CHEAT) in str(refused(rig, topics.MASKED, CHEAT, data, "size"))
    refused(rig, topics.MASKED, CHEAT, masked(dealt=bytes(32)), "dealt")
    refused(rig, topics.MASKED, "pi-1", rig.sent("pi-1", topics.MASKED), "repeated")
    before = rig.group.receive(topics.MASKED, CHEAT, true, rig.now)
    assert before == [Expect(CHEAT, blob.digest, 108)]


def test_masked_messages_of_a_member_who_did_not_deal() -> None:
    rig = Rig(n=6, dies={CHEAT: topics.SHARES})
    rig.joined()
    rig.late()
    assert rig.group.stage is GroupStage.MASKING
    body = Masked(dealt=rig.group._dealt_digest, vector=Blob(digest=bytes(32), bytes=108))
    refused(rig, topics.MASKED, CHEAT, rig.say(CHEAT, topics.MASKED, body), "dealt")


def test_vectors() -> None:
    rig, true = stopped_before(VECTOR)
    assert repr(CHEAT) in str(refused(rig, VECTOR, CHEAT, bytes(108), "digest"))
    for size in (0, 2, 107, 106, 110):
        assert repr(CHEAT) in str(refused(rig, VECTOR, CHEAT, bytes(size), "size"))
    refused(rig, VECTOR, CHEAT, true[:-1] + bytes([true[-1] ^ 1]), "digest")
    refused(rig, VECTOR, "pi-1", true, "stage")  # whose own has arrived
    refused(rig, VECTOR, "pi-9", true, "stage")
    proceeds(rig, VECTOR, true)


@pytest.mark.parametrize("size", [0, 1, 2, 106, 110])
def test_a_vector_of_another_size_than_signed(size: int) -> None:
    # Its digest is the signed one, its length is not; nothing of it may reach the sum.
    rig, _ = stopped_before(topics.MASKED)
    blob = bytes(size)
    true = read(Masked, envelope.parse(rig.held[0][3]).payload)
    lie = msgspec.structs.replace(true, vector=Blob(digest=content_digest(blob), bytes=108))
    rig.group.receive(topics.MASKED, CHEAT, rig.say(CHEAT, topics.MASKED, lie), rig.now)
    refused(rig, VECTOR, CHEAT, blob, "size")
    rig.late()
    closes_with(rig, CHEAT)


def test_a_vector_before_its_announcement() -> None:
    rig, _ = stopped_before(topics.MASKED)
    refused(rig, VECTOR, CHEAT, bytes(108), "stage")


def test_a_cheat_whose_vector_does_not_fit_is_left_out() -> None:
    rig = Rig(n=6)
    rig.on_wire = lambda way, name, kind, data: bytes(108) if (way, name) == (VECTOR, CHEAT) else data
    rig.run()
    assert any(isinstance(error, RefusedError) and repr(CHEAT) in str(error) for error in rig.errors)
    closes_with(rig, CHEAT)


def test_consents() -> None:
    rig, true = stopped_before(topics.SURVIVORS)
    other = rig.consent(CHEAT, bytes(32))
    assert repr(CHEAT) in str(refused(rig, topics.SURVIVORS, CHEAT, other, "survivors"))
    refused(rig, topics.SURVIVORS, "pi-1", rig.sent("pi-1", topics.SURVIVORS), "repeated")
    proceeds(rig, topics.SURVIVORS, true)


# --- reveals ------------------------------------------------------------------------------------------------------


def opened(rig: Rig, data: bytes) -> RevealedShares:
    sealed = read(Reveal, envelope.parse(data).payload).sealed
    return read(RevealedShares, open_sealed(sealed, rig.opened.manifest.sealing_key, SEALING))


def resealed(rig: Rig, shares: RevealedShares) -> bytes:
    sealed = seal_anonymously(write(shares), rig.opened.manifest.sealing_key, Entropy("reseal")(32))
    return rig.say(CHEAT, topics.UNMASK, Reveal(sealed=sealed))


Held = dict[str, SharedPair]
Change = Callable[[dict[str, bytes], dict[str, bytes], Held], tuple[dict[str, bytes], dict[str, bytes]]]
REVEAL_LIES: dict[str, Change] = {
    "changed-self-mask": lambda self_mask, masking, held: ({**self_mask, "pi-1": self_mask["pi-0"]}, masking),
    "changed-masking": lambda self_mask, masking, held: (self_mask, {"pi-4": self_mask["pi-0"]}),
    "masking-of-a-survivor": lambda self_mask, masking, held: (self_mask, {**masking, "pi-1": held["pi-1"].masking}),
    "self-mask-of-the-dropped": lambda self_mask, masking, held: (
        {**self_mask, "pi-4": held["pi-4"].self_mask},
        masking,
    ),
    "of-a-stranger": lambda self_mask, masking, held: ({**self_mask, "pi-9": self_mask["pi-1"]}, masking),
    "no-scalar": lambda self_mask, masking, held: ({**self_mask, CHEAT: b"\xff" * 32}, masking),
    "zero": lambda self_mask, masking, held: ({**self_mask, CHEAT: shamir.ZERO}, masking),
}


@pytest.mark.parametrize("lie", REVEAL_LIES.values(), ids=REVEAL_LIES)
def test_bad_reveals_are_blamed_on_their_revealer_and_the_round_closes(lie: Change) -> None:
    def tampered(way: str, name: str, kind: str, data: bytes) -> bytes:
        if (way, name, kind) != ("up", CHEAT, topics.UNMASK):
            return data
        shares = opened(rig, data)
        self_mask, masking = lie(dict(shares.self_mask), dict(shares.masking), rig.devices[CHEAT]._held)
        return resealed(rig, RevealedShares(self_mask=list(self_mask.items()), masking=list(masking.items())))

    rig = Rig(n=7, on_wire=tampered, dies={"pi-4": topics.MASKED})
    rig.run()
    (error,) = [error for error in rig.errors if error.cause == "reveal"]
    assert str(error).startswith(repr(CHEAT))
    closes_with(rig, "pi-4")


def test_reveals_that_do_not_open() -> None:
    rig, true = stopped_before(topics.UNMASK)
    refused(rig, topics.UNMASK, CHEAT, rig.say(CHEAT, topics.UNMASK, Reveal(sealed=b"x" * 100)), "sealed")
    sealed = seal_anonymously(b"\xa0", rig.opened.manifest.sealing_key, bytes([1]) * 32)
    refused(rig, topics.UNMASK, CHEAT, rig.say(CHEAT, topics.UNMASK, Reveal(sealed=sealed)), "malformed")
    refused(rig, topics.UNMASK, "pi-1", rig.sent("pi-1", topics.UNMASK), "repeated")
    proceeds(rig, topics.UNMASK, true)


def test_a_wrong_share_of_its_own_is_refused_like_any_other() -> None:
    def tampered(way: str, name: str, kind: str, data: bytes) -> bytes:
        if (way, name, kind) != ("up", CHEAT, topics.UNMASK):
            return data
        shares = opened(rig, data)
        own = {**dict(shares.self_mask), CHEAT: shamir.scalar(bytes([7]) * 64)}
        return resealed(rig, RevealedShares(self_mask=list(own.items()), masking=shares.masking))

    rig = Rig(n=6, on_wire=tampered)
    rig.joined()
    rig.group._restorable = lambda: len(rig.group._revealed) == 5  # type: ignore[method-assign]  # of all others
    rig.train()
    assert [error.cause for error in rig.errors if CHEAT in str(error)] == ["reveal"]
    assert CHEAT not in rig.group._revealed
    closes_with(rig)


def test_a_dealer_of_another_self_mask_is_named() -> None:
    rig = Rig(n=6)
    deals_another(rig, "self_mask")
    rig.run()
    assert rig.group.stage is GroupStage.SUMMING
    with pytest.raises(RefusedError, match=rf"'{CHEAT}' dealt .* self-mask") as caught:
        rig.group.unmask()
    assert (caught.value.cause, caught.value.culprits) == ("dealer", (CHEAT,))


def test_all_dealers_of_other_secrets_are_named_at_once() -> None:
    rig = Rig(n=6, dies={"pi-5": VECTOR})
    deals_another(rig, "self_mask")
    deals_another(rig, "self_mask", "pi-4")
    deals_another(rig, "masking", "pi-5")
    rig.run()
    with pytest.raises(RefusedError) as caught:
        rig.group.unmask()
    assert caught.value.culprits == (CHEAT, "pi-4", "pi-5")


def test_a_reason_too_long_for_its_message_is_cut() -> None:
    rig = Rig(n=4)
    rig.joined()
    rig.from_group(rig.group.abort("bad-sum", "x" * 1000))
    rig.pump()
    assert not rig.errors
    assert {device.stage for device in rig.devices.values()} == {DeviceStage.ABORTED}


def test_a_dealer_of_another_masking_secret_is_named() -> None:
    rig = Rig(n=6, dies={CHEAT: VECTOR})
    deals_another(rig, "masking")
    rig.run()
    assert rig.group.stage is GroupStage.SUMMING
    with pytest.raises(RefusedError, match=rf"'{CHEAT}' dealt .* masking") as caught:
        rig.group.unmask()
    assert caught.value.cause == "dealer"


def deals_another(rig: Rig, secret: str, cheat: str = CHEAT) -> None:
    """Let a member share another secret than the one it joined with."""
    device = rig.devices[cheat]
    join = device.join

    def joined() -> Any:
        effects = join()
        assert device._secrets is not None
        device._secrets = replace(device._secrets, **{secret: shamir.scalar(bytes([9]) * 64)})
        return effects

    device.join = joined  # type: ignore[method-assign]


def test_a_sum_is_taken_only_when_it_can_be() -> None:
    rig = Rig(n=6)
    with pytest.raises(StateError):
        rig.group.unmask()
    with pytest.raises(StaleError):
        rig.group.close()


# --- DECLINE ------------------------------------------------------------------------------------------------------


def test_nobody_waits_for_who_declines() -> None:
    """One leaves before the roster, one after dealing: the round closes at once with the sum of the others."""
    rig = Rig(n=8)
    rig.joined()
    assert rig.group.stage is GroupStage.MASKING  # everybody joined and dealt without a time-out
    rig.from_device("pi-7", rig.devices["pi-7"].decline("diverged", "training failed"))
    rig.train()
    assert rig.group.finished and rig.group.aborted is None
    assert rig.now == 0.0, "a stage had to time out"
    assert rig.group.survivors == tuple(rig.names[:7])
    total, count = rig.group.unmask()
    assert count == 7
    assert np.array_equal(total, np.asarray(sum(rig.encoded[name] for name in rig.names[:7]), np.uint16))


def test_declines_are_signed_once_and_by_members() -> None:
    rig = Rig(n=6)
    rig.joined()
    (decline,) = [e.data for e in rig.devices["pi-5"].decline("why", "because") if isinstance(e, Send)]
    for name, data in (("pi-4", decline), ("stranger", decline), ("pi-5", decline[:-1] + b"x")):
        with pytest.raises(PeerError):
            rig.group.receive(topics.DECLINE, name, data, rig.now)
        assert not rig.group.declined
    rig.group.receive(topics.DECLINE, "pi-5", decline, rig.now)
    with pytest.raises(StaleError):
        rig.group.receive(topics.DECLINE, "pi-5", decline, rig.now)
    assert rig.group.declined == {"pi-5": "because"}


def test_a_group_that_too_many_leave_aborts_at_once_and_names_them() -> None:
    rig = Rig(n=6)
    rig.joined()
    for name in ("pi-3", "pi-4", "pi-5"):
        rig.from_device(name, rig.devices[name].decline("refused", "the model jumped"))
    rig.train()
    assert rig.group.aborted is not None and rig.group.aborted.cause == "too-few-survivors"
    assert rig.now == 0.0
    assert rig.group.causers == {"pi-3", "pi-4", "pi-5"}


def test_whoever_fell_out_in_an_earlier_stage_has_caused_the_abort_too() -> None:
    rig = Rig(n=6, dies={"pi-0": topics.SHARES, "pi-1": topics.SURVIVORS})  # t = 5: the first alone does no harm
    rig.run()
    assert rig.group.aborted is not None and rig.group.aborted.cause == "too-few-signed"
    assert rig.group.causers == {"pi-0", "pi-1"}
    assert rig.group.revealers == frozenset()


def test_a_group_that_closes_knows_who_did_their_part_to_the_end() -> None:
    rig = Rig(n=10, dies={"pi-3": topics.SURVIVORS, "pi-4": topics.UNMASK})
    rig.run()
    closes_with(rig)
    assert len(rig.group.revealers) == threshold(10)
    assert not rig.group.revealers & {"pi-3", "pi-4"}


@pytest.mark.parametrize("kind", [topics.JOIN, topics.SHARES, topics.MASKED])
def test_nobody_waits_for_a_lost_member_longer_than_told(kind: str) -> None:
    rig = Rig(n=6, dies={"pi-2": kind})

    def at(now: float) -> None:
        rig.now = now
        rig.from_group(rig.group.tick(now))
        rig.pump()
        rig.train()

    rig.joined()
    rig.train()
    waiting = rig.group.stage
    assert rig.group.awaited() == {"pi-2"}
    rig.group.lost("pi-2", until=3.0)
    rig.group.lost("pi-2", until=2.0)  # said again, by a broker that repeats itself
    at(2.9)
    assert rig.group.stage is waiting
    rig.group.returned("pi-2")
    at(3.0)
    assert rig.group.stage is waiting  # it is there again
    rig.group.lost("pi-2", until=4.0)
    for _ in range(5):
        at(4.0)
    closes_with(rig, "pi-2")
    lost = [note.text for note in rig.notes if note.cause == "lost"]
    assert lost
    assert all(text.endswith("not waiting for pi-2") for text in lost)


def test_a_lost_member_may_answer_all_the_same() -> None:
    rig = Rig(n=6, hold=lambda way, name, kind: (way, name, kind) == ("up", "pi-2", topics.SHARES))
    rig.joined()
    rig.group.lost("pi-2", until=3.0)
    (held,) = rig.held
    rig.from_group(rig.group.receive(topics.SHARES, "pi-2", held[3], 2.0))
    rig.pump()
    rig.train()
    closes_with(rig)


def declined_by(rig: Rig, name: str) -> bytes:
    (data,) = [effect.data for effect in rig.devices[name].decline("why", "because") if isinstance(effect, Send)]
    return data


def test_whoever_leaves_before_the_roster_is_not_on_it_nor_comes_back() -> None:
    rig, true = stopped_before(topics.JOIN)
    decline, join = declined_by(rig, "pi-1"), rig.sent("pi-1", topics.JOIN)
    rig.group.receive(topics.DECLINE, "pi-1", decline, rig.now)
    refused(rig, topics.JOIN, "pi-1", join, "sequence")  # the broker may deliver it again
    rig.from_group(rig.group.receive(topics.JOIN, CHEAT, true, rig.now))
    assert rig.group.roster is not None
    assert [member.name for member in rig.group.roster.members] == [name for name in rig.names if name != "pi-1"]


def test_only_members_of_the_roster_leave_once_it_stands() -> None:
    rig = Rig(n=6, dies={CHEAT: topics.JOIN})
    rig.joined()
    rig.late()
    assert rig.group.stage is GroupStage.MASKING
    refused(
        rig, topics.DECLINE, CHEAT, rig.say(CHEAT, topics.DECLINE, Decline(cause="why", reason="because")), "roster"
    )
    refused(
        rig, topics.DECLINE, "pi-9", rig.say(CHEAT, topics.DECLINE, Decline(cause="why", reason="because")), "roster"
    )


def test_nobody_leaves_a_round_that_is_over() -> None:
    rig = Rig(n=6)
    rig.run()
    assert rig.group.stage is GroupStage.SUMMING
    refused(rig, topics.DECLINE, CHEAT, rig.say(CHEAT, topics.DECLINE, Decline(cause="why", reason="because")), "stage")


@pytest.mark.parametrize("policy", [Policy(t_min=6), Policy(a_min=6)])
def test_too_few_for_the_policys_floors_abort_before_the_roster(policy: Policy) -> None:
    whole = Rig(n=6, policy=policy)
    whole.run()
    assert whole.group.roster is not None
    assert (whole.group.roster.t, whole.group.roster.a_min) == (max(5, policy.t_min), max(4, policy.a_min))
    assert whole.group.stage is GroupStage.SUMMING
    short = Rig(n=6, policy=policy, silent={"pi-3"})
    short.run()
    assert short.group.aborted is not None
    assert (short.group.aborted.cause, short.group.roster) == ("too-few-joined", None)
