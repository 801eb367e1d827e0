"""covey_protocol.device_round: a real device among real peers, with a server that tries everything.

``paused`` carries a round up to the message that a device is about to get. A test then hands it something else, sees it
refused without a trace, and sees the true message accepted afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from tests.protocol.rig import METRICS as SOME
from tests.protocol.rig import SEALING, SERVER, Rig, make_manifest, signing_key, snapshot

from covey_protocol import envelope, masking, roster, shamir, sharing, topics
from covey_protocol.certificates import LEAVES
from covey_protocol.effects import Effect, Note, Remember, Send
from covey_protocol.epochs import Grouping
from covey_protocol.errors import LocalError, PeerError, RefusedError, SignatureError, StaleError, StateError
from covey_protocol.messages import (
    Abort,
    Blob,
    Close,
    Complaint,
    Dealt,
    Decline,
    Delta,
    Leaves,
    Masked,
    Reveal,
    RevealedShares,
    Roster,
    Shares,
    Survivors,
    Unmask,
)
from covey_protocol.payload import Payload, read
from covey_protocol.policy import Policy
from covey_protocol.ring import METRICS
from covey_protocol.round_table import DEVICE_TABLE, DeviceStage, GroupStage
from covey_protocol.sealing import open_sealed
from covey_protocol.sharing import Entry

ME, OTHER = "pi-0", "pi-1"
ORDER = [topics.ROSTER, topics.DEALT, topics.SURVIVORS, topics.UNMASK, topics.CLOSE, topics.ABORT]
BLOB = Blob(digest=bytes(32), bytes=4)
CLOSE = Close(model=BLOB, delta=Delta(base=bytes(32), blob=BLOB), groups_closed=1, groups_aborted=0, participants=6)
ABORT = Abort(cause="too-few-dealt", reason="3 of 6 members dealt")
Pairs = list[tuple[str, bytes]]
T = TypeVar("T", bound=Payload)


def paused(kind: str, rig: Rig | None = None, *, train: bool = True) -> Rig:
    """Return a rig in which everything has happened but that ``ME`` gets its message of ``kind``."""
    rig = rig or Rig(n=6)
    later = ORDER[ORDER.index(kind) :]
    rig.hold = lambda way, name, kind_: way == "down" and name == ME and kind_ in later
    rig.joined()
    if train:
        rig.train()
        if rig.silent:
            rig.late()
            rig.train()
            rig.late()
    return rig


def held(rig: Rig, kind: str) -> bytes:
    return next(data for _, _, kind_, data in rig.held if kind_ == kind)


def body_of(rig: Rig, kind: str, type_: type[T]) -> T:
    return read(type_, envelope.parse(held(rig, kind)).payload)


def refused(rig: Rig, kind: str, data: bytes, cause: str) -> PeerError:
    device = rig.devices[ME]
    before = snapshot(device)
    with pytest.raises(PeerError) as caught:
        device.receive(kind, data)
    assert caught.value.cause == cause, caught.value
    assert snapshot(device) == before
    return caught.value


def proceeds(rig: Rig, kind: str) -> list[Effect]:
    """The true message is still taken, whatever came before it."""
    effects = rig.devices[ME].receive(kind, held(rig, kind))
    assert rig.devices[ME].stage is not None
    return effects


def without(pairs: Pairs, *names: str) -> Pairs:
    return [pair for pair in pairs if pair[0] not in names]


def changed(pairs: Pairs, name: str, data: bytes) -> Pairs:
    return [(name_, data if name_ == name else data_) for name_, data_ in pairs]


def flipped(data: bytes, at: int = -1) -> bytes:
    result = bytearray(data)
    result[at] ^= 1
    return bytes(result)


# --- JOIN ---------------------------------------------------------------------------------------------------------


def test_a_device_goes_through_a_round() -> None:
    rig = Rig(n=6)
    rig.run()
    assert {device.stage for device in rig.devices.values()} == {DeviceStage.UNMASKED}
    device = rig.devices[ME]
    device.receive(topics.CLOSE, rig.serve(topics.CLOSE, CLOSE))
    assert device.finished
    assert device.closed == CLOSE


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"noise": 900.0}, "unsupported"),
        ({"masking": False}, "unsupported"),
        ({"epoch": 2}, "epoch"),
    ],
)
def test_manifests_that_a_device_does_not_join(changes: dict[str, object], cause: str) -> None:
    rig = Rig(n=6, manifest=make_manifest(50, **changes), policy=Policy(clear_updates=True))  # type: ignore[arg-type]
    device = rig.devices[ME]
    before = snapshot(device)
    with pytest.raises(RefusedError) as caught:
        device.join()
    assert caught.value.cause == cause
    assert snapshot(device) == before


def test_a_round_is_joined_once_in_a_devices_life() -> None:
    rig = Rig(n=6)
    rig.devices[ME].join()
    with pytest.raises(StaleError):
        rig.devices[ME].join()
    restarted = rig.make_device(ME)  # with the same ledger: a crash loses the round's secrets
    with pytest.raises(StaleError) as caught:
        restarted.join()
    assert caught.value.cause == "replayed"
    older = replace(rig.opened, round=0)
    rig.opened = older
    with pytest.raises(StaleError):
        rig.make_device(ME).join()


def test_everything_is_remembered_before_it_is_sent() -> None:
    rig = Rig(n=6)
    steps: list[list[Effect]] = []
    carry = rig.from_device

    def recorded(name: str, effects: list[Effect]) -> None:
        steps.append(effects)
        carry(name, effects)

    rig.from_device = recorded  # type: ignore[method-assign]
    rig.run()
    kinds = set()
    for effects in steps:
        sends = [index for index, effect in enumerate(effects) if isinstance(effect, Send)]
        marks = [index for index, effect in enumerate(effects) if isinstance(effect, Remember)]
        if sends:
            kinds |= {effect.kind for effect in effects if isinstance(effect, Send)}
            assert marks
            assert max(marks) < min(sends)
    assert kinds == {topics.JOIN, topics.SHARES, topics.MASKED, topics.SURVIVORS, topics.UNMASK}
    keys = {mark.key.split("/")[0] for mark in rig.remembered[ME]}
    assert keys == {"sequence", "round", "peer", "roster", "masked", "signed", "exposure", "unmask", "pin"}


# --- every message in every stage ---------------------------------------------------------------------------------


@cache
def true_messages() -> dict[str, bytes]:
    """What a device gets in an undisturbed round; the rig makes the same bytes every time."""
    rig = Rig(n=6)
    rig.run()
    messages = {kind: rig.sent(ME, kind, "down") for kind in ORDER[:4]}
    return messages | {topics.CLOSE: rig.serve(topics.CLOSE, CLOSE), topics.ABORT: rig.serve(topics.ABORT, ABORT)}


def at(stage: DeviceStage) -> Rig:
    match stage:
        case DeviceStage.INVITED:
            return Rig(n=6)
        case DeviceStage.JOINED:
            return paused(topics.ROSTER)
        case DeviceStage.SHARED:
            return paused(topics.DEALT)
        case DeviceStage.DEALT:
            return paused(topics.SURVIVORS, train=False)
        case DeviceStage.MASKED:
            return paused(topics.SURVIVORS)
        case DeviceStage.SIGNED:
            return paused(topics.UNMASK)
        case DeviceStage.DECLINED:
            rig = paused(topics.SURVIVORS)
            rig.devices[ME].decline("test", "wants to go")
            return rig
        case _:
            rig = paused(topics.CLOSE)
            if stage is DeviceStage.CLOSED:
                rig.devices[ME].receive(topics.CLOSE, true_messages()[topics.CLOSE])
            elif stage is DeviceStage.ABORTED:
                rig.devices[ME].receive(topics.ABORT, true_messages()[topics.ABORT])
            return rig


STAGES = [stage for stage in DeviceStage if stage not in (DeviceStage.ATTESTED, DeviceStage.ACCEPTED)]


@pytest.mark.parametrize("stage", STAGES)
def test_messages_out_of_their_stage_change_nothing(stage: DeviceStage) -> None:
    rig = at(stage)
    assert rig.devices[ME].stage is stage
    for kind, data in true_messages().items():
        if kind not in DEVICE_TABLE[stage]:
            refused(rig, kind, data, "stage")
    if stage is not DeviceStage.DEALT:
        with pytest.raises(StaleError):
            rig.devices[ME].trained(rig.update(ME), SOME)
    if stage is not DeviceStage.INVITED:
        with pytest.raises(StaleError):
            rig.devices[ME].join()
    refused(rig, topics.JOIN, true_messages()[topics.CLOSE], "kind")
    if held_kinds := [kind for kind in ORDER[:4] if kind in DEVICE_TABLE[stage] and stage is not DeviceStage.DEALT]:
        assert held(rig, held_kinds[0]) == true_messages()[held_kinds[0]]
        proceeds(rig, held_kinds[0])


PAUSES = ORDER[:4]


@pytest.mark.parametrize("kind", PAUSES)
def test_messages_of_another_place_change_nothing(kind: str) -> None:
    rig = paused(kind)
    genuine = held(rig, kind)
    types: dict[str, type[Payload]] = {
        topics.ROSTER: Roster,
        topics.DEALT: Dealt,
        topics.SURVIVORS: Survivors,
        topics.UNMASK: Unmask,
    }
    payload = read(types[kind], envelope.parse(genuine).payload)
    recipient = ME if kind == topics.DEALT else ""
    places: list[dict[str, Any]] = [{"round": 2}, {"attempt": 2}, {"task": "letters"}]
    for changes in places:
        data = rig.serve(kind, payload, **{"recipient": recipient, **changes})
        assert isinstance(refused(rig, kind, data, "wrong-round"), StaleError)
    places = [{"fleet": "moor"}, {"sender": OTHER}, {"kind": topics.OPEN}, {"roster": b"x" * 32}, {"recipient": OTHER}]
    for changes in places:
        data = rig.serve(kind, payload, **{"recipient": recipient, **changes})
        assert isinstance(refused(rig, kind, data, "signature"), SignatureError)
    refused(rig, kind, rig.serve(kind, payload, key=signing_key(OTHER), recipient=recipient), "signature")
    refused(rig, kind, genuine[:-1], "truncated")
    refused(rig, kind, flipped(genuine), "signature")
    refused(rig, kind, rig.serve(kind, ABORT, recipient=recipient), "malformed")
    proceeds(rig, kind)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if topics.ABORT in DEVICE_TABLE[stage]])
@pytest.mark.parametrize("kind", [topics.CLOSE, topics.ABORT])
def test_the_end_comes_in_any_stage_and_takes_the_secrets(stage: DeviceStage, kind: str) -> None:
    rig = at(stage)
    device = rig.devices[ME]
    assert device._secrets is not None
    device.receive(kind, true_messages()[kind])
    assert device.finished
    assert (device.closed, device.aborted) == ((CLOSE, None) if kind == topics.CLOSE else (None, ABORT))
    left: Any = (device._secrets, device._own_shares, device._held)
    assert left == (None, None, {})


# --- ROSTER (the checks themselves are in test_roster.py) ---------------------------------------------------------


def test_a_roster_that_does_not_hold_is_refused() -> None:
    rig = paused(topics.ROSTER)
    true = body_of(rig, topics.ROSTER, Roster)
    for lie, cause in (
        (msgspec.structs.replace(true, t=4), "roster"),
        (msgspec.structs.replace(true, joins=list(true.joins)[1:], t=4), "roster"),
        (msgspec.structs.replace(true, joins=changed(list(true.joins), OTHER, dict(true.joins)["pi-2"])), "signature"),
    ):
        refused(rig, topics.ROSTER, rig.serve(topics.ROSTER, lie), cause)
    proceeds(rig, topics.ROSTER)


def test_a_peer_that_restored_an_old_disk_is_refused() -> None:
    rig = paused(topics.ROSTER)
    rig.ledgers[ME].saw_peer(OTHER, 1)
    refused(rig, topics.ROSTER, held(rig, topics.ROSTER), "sequence")


def test_shares_go_to_everybody_and_fit_their_leaves() -> None:
    rig = paused(topics.DEALT)
    shares = read(Shares, envelope.parse(rig.sent(ME, topics.SHARES)).payload)
    assert [name for name, _ in shares.entries] == [*rig.names[1:], ME]
    assert [name for name, entry in shares.entries if not entry[0]] == [ME]  # nothing is sealed for oneself
    leaves = read(Leaves, envelope.parse(shares.leaves).payload).leaves
    entries = dict(shares.entries)
    assert leaves == [Entry(*entries[name]).leaf() for name in rig.names]
    secrets = rig.devices[ME]._secrets
    assert secrets is not None
    opened = [
        sharing.unseal(
            Entry(*array),
            roster=rig.bound(topics.SHARES, ME),
            dealer=ME,
            receiver=name,
            public=masking.public_key(rig.devices[name]._secrets.sharing),  # type: ignore[union-attr]
            secret=rig.devices[name]._secrets.sharing,  # type: ignore[union-attr]
        )
        for name, array in shares.entries
        if name != ME
    ]
    assert shamir.combine({place + 1: one.masking for place, one in enumerate(opened)}) == secrets.masking
    assert shamir.combine({place + 1: one.self_mask for place, one in enumerate(opened)}) == secrets.self_mask


# --- DEALT --------------------------------------------------------------------------------------------------------


def entries_without(true: Dealt, name: str) -> list[tuple[str, list[bytes]]]:
    return [(name_, array) for name_, array in true.entries if name_ != name]


def colluding_leaves(rig: Rig, dealer: str, leaves: Iterable[bytes], **changes: object) -> bytes:
    return rig.say(dealer, LEAVES, Leaves(leaves=list(leaves)), **changes)


def true_leaves(true: Dealt, dealer: str) -> list[bytes]:
    return list(read(Leaves, envelope.parse(dict(true.dealt)[dealer]).payload).leaves)


DEALT_LIES: dict[str, tuple[Callable[[Rig, Dealt], Dealt], str]] = {
    "entry-withheld": (lambda rig, true: Dealt(dealt=true.dealt, entries=entries_without(true, OTHER)), "dealt"),
    "entry-changed": (
        lambda rig, true: Dealt(
            dealt=true.dealt,
            entries=[
                *entries_without(true, OTHER),
                (
                    OTHER,
                    [flipped(part) if index == 0 else part for index, part in enumerate(dict(true.entries)[OTHER])],
                ),
            ],
        ),
        "dealt",
    ),
    "commitment-changed": (
        lambda rig, true: Dealt(
            dealt=true.dealt,
            entries=[
                *entries_without(true, OTHER),
                (
                    OTHER,
                    [flipped(part) if index == 2 else part for index, part in enumerate(dict(true.entries)[OTHER])],
                ),
            ],
        ),
        "dealt",
    ),
    "entry-of-another": (
        lambda rig, true: Dealt(
            dealt=true.dealt, entries=[*entries_without(true, OTHER), (OTHER, dict(true.entries)["pi-2"])]
        ),
        "dealt",
    ),
    "without-me": (lambda rig, true: Dealt(dealt=without(list(true.dealt), ME), entries=true.entries), "dealt"),
    "other-leaves-of-mine": (
        lambda rig, true: Dealt(
            dealt=changed(list(true.dealt), ME, colluding_leaves(rig, ME, [bytes(32)] * 6)), entries=true.entries
        ),
        "dealt",
    ),
    "too-few": (
        lambda rig, true: Dealt(dealt=without(list(true.dealt), "pi-4", "pi-5"), entries=true.entries),
        "dealt",
    ),
    "repeated": (lambda rig, true: Dealt(dealt=[*true.dealt, true.dealt[-1]], entries=true.entries), "roster"),
    "disordered": (lambda rig, true: Dealt(dealt=true.dealt[::-1], entries=true.entries), "roster"),
    "stranger": (
        lambda rig, true: Dealt(dealt=[*true.dealt, ("pi-9", true.dealt[0][1])], entries=true.entries),
        "roster",
    ),
    "leaves-of-another": (
        lambda rig, true: Dealt(dealt=changed(list(true.dealt), OTHER, dict(true.dealt)["pi-2"]), entries=true.entries),
        "signature",
    ),
    "leaves-of-another-roster": (
        lambda rig, true: Dealt(
            dealt=changed(
                list(true.dealt), OTHER, colluding_leaves(rig, OTHER, true_leaves(true, OTHER), roster=bytes(32))
            ),
            entries=true.entries,
        ),
        "signature",
    ),
    "leaves-that-do-not-fit": (
        lambda rig, true: Dealt(
            dealt=changed(list(true.dealt), OTHER, colluding_leaves(rig, OTHER, true_leaves(true, OTHER)[:5])),
            entries=true.entries,
        ),
        "dealt",
    ),
}


@pytest.mark.parametrize(("lie", "cause"), DEALT_LIES.values(), ids=DEALT_LIES)
def test_lies_in_the_dealt_list(lie: Callable[[Rig, Dealt], Dealt], cause: str) -> None:
    rig = paused(topics.DEALT)
    body = lie(rig, body_of(rig, topics.DEALT, Dealt))
    refused(rig, topics.DEALT, rig.serve(topics.DEALT, body, recipient=ME), cause)
    proceeds(rig, topics.DEALT)


def test_somebody_elses_dealt_list() -> None:
    rig = paused(topics.DEALT)
    refused(rig, topics.DEALT, rig.sent(OTHER, topics.DEALT, "down"), "signature")
    proceeds(rig, topics.DEALT)


def test_a_dealer_whose_share_does_not_open_is_noted_and_left_out() -> None:
    rig = paused(topics.DEALT)
    true = body_of(rig, topics.DEALT, Dealt)
    garbage = Entry(bytes(100), bytes(32), bytes(32))
    leaves = colluding_leaves(rig, OTHER, [garbage.leaf(), *true_leaves(true, OTHER)[1:]])
    entries = [*entries_without(true, OTHER), (OTHER, garbage.array())]
    body = Dealt(dealt=changed(list(true.dealt), OTHER, leaves), entries=entries)
    note, complaint = rig.devices[ME].receive(topics.DEALT, rig.serve(topics.DEALT, body, recipient=ME))
    assert isinstance(note, Note)
    assert isinstance(complaint, Send)
    assert complaint.kind == topics.COMPLAINT
    assert read(Complaint, envelope.parse(complaint.data).payload).dealers == [OTHER]
    assert note.cause == "bad-share"
    assert repr(OTHER) in note.text
    assert set(rig.devices[ME]._held) == {"pi-2", "pi-3", "pi-4", "pi-5"}
    assert rig.devices[ME].stage is DeviceStage.DEALT


# --- training -----------------------------------------------------------------------------------------------------


def test_updates_that_cannot_be_masked_change_nothing() -> None:
    rig = paused(topics.SURVIVORS, train=False)
    device = rig.devices[ME]
    before = snapshot(device)
    for update, error in (
        (np.zeros(49, np.float32), StateError),
        (np.zeros((50, 1), np.float32), StateError),
        (np.full(50, np.nan, np.float32), LocalError),
    ):
        with pytest.raises(error):
            device.trained(update, SOME)
        assert snapshot(device) == before
    assert device.trained(rig.update(ME), SOME)
    with pytest.raises(StaleError):
        device.trained(rig.update(ME), SOME)


def test_what_is_sent_is_clipped_and_masked() -> None:
    rig = paused(topics.SURVIVORS, train=False)
    device = rig.devices[ME]
    huge = np.full(50, 1e3, np.float32)
    mark, masked, blob = device.trained(huge, SOME)
    assert isinstance(mark, Remember)
    assert isinstance(masked, Send)
    assert isinstance(blob, Send)
    signed = read(Masked, envelope.parse(masked.data).payload)
    assert (signed.vector.digest, signed.vector.bytes) == (mark.value, len(blob.data))
    assert len(blob.data) == 2 * (50 + len(METRICS))
    assert signed.dealt == device._dealt_digest


# --- SURVIVORS ----------------------------------------------------------------------------------------------------


def masked_by(rig: Rig, name: str, dealt: bytes | None = None, vector: bytes = bytes(32)) -> bytes:
    digest = rig.devices[ME]._dealt_digest if dealt is None else dealt
    return rig.say(name, topics.MASKED, Masked(dealt=digest, vector=Blob(digest=vector, bytes=108)))


SURVIVORS_LIES: dict[str, tuple[Callable[[Rig, Pairs], Pairs], str]] = {
    "below-a-min": (lambda rig, true: true[:3], "a-min"),
    "nobody": (lambda rig, true: [], "a-min"),
    "repeated": (lambda rig, true: [*true[:3], true[2]], "roster"),
    "disordered": (lambda rig, true: true[::-1], "roster"),
    "stranger": (lambda rig, true: [*true, ("pi-9", true[0][1])], "roster"),
    "another-vector-of-mine": (lambda rig, true: changed(true, ME, masked_by(rig, ME)), "survivors"),
    "over-another-list": (lambda rig, true: changed(true, OTHER, masked_by(rig, OTHER, bytes(32))), "dealt"),
    "not-signed": (lambda rig, true: changed(true, OTHER, flipped(dict(true)[OTHER])), "signature"),
    "signed-by-another": (lambda rig, true: changed(true, OTHER, dict(true)["pi-2"]), "signature"),
    "of-another-round": (
        lambda rig, true: changed(
            true,
            OTHER,
            rig.say(OTHER, topics.MASKED, Masked(dealt=rig.devices[ME]._dealt_digest, vector=BLOB), round=0),
        ),
        "wrong-round",
    ),
}


@pytest.mark.parametrize(("lie", "cause"), SURVIVORS_LIES.values(), ids=SURVIVORS_LIES)
def test_lies_about_the_survivors(lie: Callable[[Rig, Pairs], Pairs], cause: str) -> None:
    rig = paused(topics.SURVIVORS)
    true = body_of(rig, topics.SURVIVORS, Survivors)
    refused(
        rig, topics.SURVIVORS, rig.serve(topics.SURVIVORS, Survivors(survivors=lie(rig, list(true.survivors)))), cause
    )
    proceeds(rig, topics.SURVIVORS)


def test_survivors_who_did_not_deal() -> None:
    rig = paused(topics.SURVIVORS, Rig(n=6, dies={"pi-5": topics.SHARES}))
    true = body_of(rig, topics.SURVIVORS, Survivors)
    assert [name for name, _ in true.survivors] == rig.names[:5]
    lie = Survivors(survivors=[*true.survivors, ("pi-5", masked_by(rig, "pi-5"))])
    refused(rig, topics.SURVIVORS, rig.serve(topics.SURVIVORS, lie), "survivors")
    proceeds(rig, topics.SURVIVORS)


def test_the_policys_a_min_counts_for_survivors() -> None:
    rig = paused(topics.SURVIVORS, Rig(n=6, policy=Policy(a_min=5)))
    true = list(body_of(rig, topics.SURVIVORS, Survivors).survivors)
    refused(rig, topics.SURVIVORS, rig.serve(topics.SURVIVORS, Survivors(survivors=true[:4])), "a-min")
    assert rig.devices[ME].receive(topics.SURVIVORS, rig.serve(topics.SURVIVORS, Survivors(survivors=true[:5])))


def test_two_sets_get_one_signature() -> None:
    rig = paused(topics.SURVIVORS)
    true = list(body_of(rig, topics.SURVIVORS, Survivors).survivors)
    proceeds(rig, topics.SURVIVORS)
    for other in (true[:5], true[1:], true):
        refused(rig, topics.SURVIVORS, rig.serve(topics.SURVIVORS, Survivors(survivors=other)), "stage")


def test_a_device_that_is_still_training_signs_a_set_without_itself() -> None:
    rig = Rig(n=6)
    rig.joined()
    rig.devices[ME].trained = lambda update, metrics: []  # type: ignore[method-assign]
    rig.train()
    rig.late()
    assert rig.group.survivors == tuple(rig.names[1:])
    assert rig.group.stage is GroupStage.SUMMING
    assert rig.devices[ME].stage is DeviceStage.UNMASKED


def second_round(policy: Policy, **manifest: object) -> tuple[Rig, Rig]:
    """A first round that everybody ended, and a second one with the same ledgers, one device less in its sum."""
    first = Rig(n=6, policy=policy)
    first.run()
    changes = make_manifest(50, **manifest)  # type: ignore[arg-type]
    second = Rig(
        n=6, policy=policy, ledgers=first.ledgers, round=2, manifest=changes, seed="second", dies={"pi-5": "vector"}
    )
    return first, paused(topics.SURVIVORS, second)


def test_one_sum_for_one_model_across_rounds() -> None:
    """Whether or not the first sum came about: two sums on one model that differ by one member give it away."""
    for dies in ({}, {"pi-1": topics.SURVIVORS, "pi-2": topics.SURVIVORS}):
        first = Rig(n=6, dies=dict(dies))
        first.run()
        assert (first.group.aborted is None) == (not dies)
        again = Rig(n=6, ledgers=first.ledgers, round=2, seed="second")
        with pytest.raises(RefusedError) as caught:
            again.devices[ME].join()
        assert caught.value.cause == "spent-model"
        assert again.devices[ME].stage is DeviceStage.INVITED


def test_another_model_may_have_another_set() -> None:
    _, second = second_round(Policy(), model=Blob(digest=b"n" * 32, bytes=200))
    assert proceeds(second, topics.SURVIVORS)
    assert second.ledgers[ME].exposure() == 2


def test_a_device_at_its_exposure_cap_joins_no_round() -> None:
    policy = Policy(exposure_max=1)
    first = Rig(n=6, policy=policy)
    first.run()
    manifest = make_manifest(50, model=Blob(digest=b"n" * 32, bytes=200))
    second = Rig(n=6, policy=policy, ledgers=first.ledgers, round=2, manifest=manifest, seed="second")
    with pytest.raises(RefusedError, match="in 1 different sums, the policy's exposure_max is 1") as caught:
        second.devices[ME].join()
    assert caught.value.cause == "exposure"
    assert second.devices[ME].stage is DeviceStage.INVITED


def test_exposure_is_capped_by_the_policy() -> None:
    rig = paused(topics.SURVIVORS, Rig(n=6, policy=Policy(exposure_max=1)))
    rig.ledgers[ME].sign_set(b"n" * 32, b"U" * 32, "1-0-0", b"S" * 32, 1)  # in another task, meanwhile
    refused(rig, topics.SURVIVORS, held(rig, topics.SURVIVORS), "exposure")


# --- UNMASK -------------------------------------------------------------------------------------------------------


def consent(rig: Rig, name: str, survivors: bytes, **changes: object) -> tuple[str, bytes]:
    return name, rig.consent(name, survivors, **changes)


def signed_set(rig: Rig) -> bytes:
    return rig.devices[ME]._survivors_digest


UNMASK_LIES: dict[str, tuple[Callable[[Rig, Pairs], Pairs], str]] = {
    "one-short": (lambda rig, true: true[:4], "certificate"),
    "none": (lambda rig, true: [], "certificate"),
    "repeated": (lambda rig, true: [*true[:4], true[3]], "roster"),
    "disordered": (lambda rig, true: true[::-1], "roster"),
    "stranger": (lambda rig, true: [*true[:4], ("pi-9", true[4][1])], "roster"),
    "another-set": (
        lambda rig, true: [consent(rig, name, b"x" * 32) for name, _ in true],
        "certificate",
    ),
    "one-on-another-set": (lambda rig, true: [*true[:4], consent(rig, true[4][0], b"x" * 32)], "certificate"),
    "not-signed": (lambda rig, true: changed(true, true[2][0], flipped(true[2][1])), "signature"),
    "signed-by-another": (lambda rig, true: changed(true, true[2][0], true[3][1]), "signature"),
    "of-another-attempt": (
        lambda rig, true: [*true[:4], consent(rig, true[4][0], signed_set(rig), attempt=2)],
        "wrong-round",
    ),
    "of-another-roster": (
        lambda rig, true: [*true[:4], consent(rig, true[4][0], signed_set(rig), roster=bytes(32))],
        "signature",
    ),
}


@pytest.mark.parametrize(("lie", "cause"), UNMASK_LIES.values(), ids=UNMASK_LIES)
def test_lies_in_the_certificate(lie: Callable[[Rig, Pairs], Pairs], cause: str) -> None:
    rig = paused(topics.UNMASK)
    true = list(body_of(rig, topics.UNMASK, Unmask).certificate)
    assert len(true) == 5
    refused(rig, topics.UNMASK, rig.serve(topics.UNMASK, Unmask(certificate=lie(rig, true))), cause)
    proceeds(rig, topics.UNMASK)


def test_a_certificate_on_a_set_that_this_device_did_not_sign() -> None:
    # Everybody else colludes and signs another set; this device signed the true one.
    rig = paused(topics.UNMASK)
    true = body_of(paused(topics.SURVIVORS), topics.SURVIVORS, Survivors).survivors
    vectors = [(name, read(Masked, envelope.parse(data).payload).vector.digest) for name, data in true][1:]
    other = roster.survivors_digest(rig.devices[ME]._dealt_digest, vectors)
    certificate = [consent(rig, name, other) for name in rig.names[1:]]
    refused(rig, topics.UNMASK, rig.serve(topics.UNMASK, Unmask(certificate=certificate)), "certificate")
    proceeds(rig, topics.UNMASK)


@pytest.mark.parametrize("stage", [DeviceStage.JOINED, DeviceStage.SHARED, DeviceStage.DEALT, DeviceStage.MASKED])
def test_no_share_without_a_signature_of_ones_own(stage: DeviceStage) -> None:
    rig = at(stage)
    certificate = body_of(paused(topics.UNMASK), topics.UNMASK, Unmask)
    refused(rig, topics.UNMASK, rig.serve(topics.UNMASK, certificate), "stage")


def revealed_by(rig: Rig, name: str) -> RevealedShares:
    sealed = read(Reveal, envelope.parse(rig.sent(name, topics.UNMASK)).payload).sealed
    return read(RevealedShares, open_sealed(sealed, rig.opened.manifest.sealing_key, SEALING))


def test_never_both_kinds_of_share_for_one_member() -> None:
    rig = Rig(n=10, dies={"pi-2": topics.SHARES, "pi-4": topics.MASKED, "pi-6": "vector"})
    rig.run()
    assert rig.group.stage is GroupStage.SUMMING
    for name in set(rig.names) - rig.silent:
        shares = revealed_by(rig, name)
        in_sum, dropped = [one for one, _ in shares.self_mask], [one for one, _ in shares.masking]
        assert in_sum == [one for one in rig.names if one not in ("pi-2", "pi-4", "pi-6")]
        assert dropped == ["pi-4", "pi-6"]


def test_what_is_revealed_can_be_read_by_the_aggregator_alone() -> None:
    rig = Rig(n=6)
    rig.run()
    sealed = read(Reveal, envelope.parse(rig.sent(ME, topics.UNMASK)).payload).sealed
    for share in rig.devices[ME]._held.values():
        assert share.self_mask not in sealed
    with pytest.raises(RefusedError):
        open_sealed(sealed, masking.public_key(bytes(SERVER)), bytes(SERVER))


def test_a_device_of_another_group_refuses_the_roster() -> None:
    rig = paused(topics.ROSTER)
    rig.devices[ME]._grouping = Grouping(1, "1-s-9", rig.grouping.members[:5])
    refused(rig, topics.ROSTER, held(rig, topics.ROSTER), "roster")


def test_secrets_are_never_shown() -> None:
    rig = paused(topics.UNMASK)
    device = rig.devices[ME]
    assert device._secrets is not None
    shown = repr(vars(device)) + repr(rig.notes) + repr(rig.held)
    for secret in (device._secrets.masking, device._secrets.self_mask, device._secrets.sharing):
        assert repr(secret)[2:-1] not in shown


# --- DECLINE and ABORT --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [stage for stage in STAGES if topics.DECLINE in DEVICE_TABLE[stage]])
def test_whoever_declines_forgets_its_secrets_and_says_so(stage: DeviceStage) -> None:
    rig = at(stage)
    device = rig.devices[ME]
    sends = [effect for effect in device.decline("diverged", "no " * 200) if isinstance(effect, Send)]
    assert [effect.kind for effect in sends] == [topics.DECLINE]
    assert read(Decline, envelope.parse(sends[0].data).payload).cause == "diverged"
    assert (device.stage, device._secrets, device._own_shares, device._held) == (DeviceStage.DECLINED, None, None, {})
    with pytest.raises(StaleError):
        device.decline("diverged", "again")


def test_an_abort_of_another_group_is_none_of_ours() -> None:
    rig = at(DeviceStage.MASKED)
    foreign = rig.serve(topics.ABORT, ABORT, roster=b"x" * 32)
    refused(rig, topics.ABORT, foreign, "signature")
    refused(rig, topics.ABORT, rig.serve(topics.ABORT, ABORT, roster=b""), "signature")


def test_two_open_rounds_cannot_both_mask_for_one_model() -> None:
    """Joined side by side, as two tasks may be: whoever masks first spends the model."""
    first = Rig(n=6)
    second = Rig(n=6, ledgers=first.ledgers, round=2, seed="second")
    first.joined()
    second.joined()
    first.train()
    assert first.group.stage is GroupStage.SUMMING
    device = second.devices[ME]
    assert device.stage is DeviceStage.DEALT
    with pytest.raises(RefusedError) as caught:
        device.trained(second.update(ME), SOME)
    assert caught.value.cause == "spent-model"
    assert device.stage is DeviceStage.DEALT
