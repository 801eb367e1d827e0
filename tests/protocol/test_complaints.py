"""covey_protocol.complaints: whoever spoils a share, or says so without reason, is the one to be named."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.protocol.rig import SEALING, Rig, snapshot

from covey_protocol import envelope, topics
from covey_protocol.certificates import LEAVES
from covey_protocol.complaints import KEYS
from covey_protocol.effects import Note, Send
from covey_protocol.errors import PeerError
from covey_protocol.messages import Answer, Complaint, Complaints, EphemeralKeys, Leaves, RevealedShares, Shares
from covey_protocol.payload import read, write
from covey_protocol.round_table import DeviceStage, GroupStage
from covey_protocol.sealing import open_sealed, seal_anonymously
from covey_protocol.sharing import Entry
from covey_protocol.thresholds import colluders

CHEAT, VICTIM = "pi-3", "pi-0"
GARBAGE = Entry(b"x" * 80, bytes(32), bytes(32))


def deal_garbage(rig: Rig, dealer: str, data: bytes, receivers: Iterable[str]) -> bytes:
    """Return a dealer's SHARES with entries for some receivers that nobody can open, signed as they should be."""
    body = read(Shares, envelope.parse(data).payload)
    leaves = list(read(Leaves, envelope.parse(body.leaves).payload).leaves)
    for name in receivers:
        leaves[rig.names.index(name)] = GARBAGE.leaf()
    entries = [(name, GARBAGE.array() if name in receivers else array) for name, array in body.entries]
    signed = rig.say(dealer, LEAVES, Leaves(leaves=leaves))
    return rig.say(dealer, topics.SHARES, Shares(leaves=signed, entries=entries))


class Cheats:
    """Carries a rig's messages, with dealers that deal garbage and keep to their story afterwards.

    Their machines are told of their own changed leaves, so they go on as if nothing were wrong.
    """

    def __init__(self, garbage: dict[str, set[str]], *, answer: bool = True) -> None:
        self.garbage, self.answer = garbage, answer
        self.rig: Rig | None = None

    def __call__(self, way: str, name: str, kind: str, data: bytes) -> bytes:
        assert self.rig is not None
        if (way, kind) == ("up", topics.SHARES) and self.garbage.get(name):
            changed = deal_garbage(self.rig, name, data, self.garbage[name])
            self.rig.devices[name]._leaves = read(Shares, envelope.parse(changed).payload).leaves
            return changed
        if (way, kind) == ("up", topics.ANSWER) and not self.answer and name in self.garbage:
            return b""
        return data

    def start(self, n: int = 6, **changes: object) -> Rig:
        self.rig = Rig(n=n, on_wire=self, **changes)  # type: ignore[arg-type]
        return self.rig


def closes(rig: Rig) -> None:
    assert rig.group.stage is GroupStage.SUMMING, rig.group.aborted
    total, _ = rig.group.unmask()
    assert np.array_equal(total, rig.sum_of(rig.group.survivors))


def complain(rig: Rig, sender: str, *dealers: str) -> bytes:
    return rig.say(sender, topics.COMPLAINT, Complaint(dealt=rig.group._dealt_digest, dealers=list(dealers)))


def of_victim(rig: Rig) -> Complaint:
    return Complaint(dealt=rig.group._dealt_digest, dealers=[VICTIM])


def relay(rig: Rig, to: str, *complaints: tuple[str, bytes]) -> bytes:
    return rig.serve(topics.COMPLAINT, Complaints(complaints=list(complaints)), recipient=to)


def dealt(n: int = 6) -> Rig:
    """Return a rig in which everybody has its shares and nobody has masked."""
    rig = Rig(n=n)
    rig.joined()
    assert rig.group.stage is GroupStage.MASKING
    return rig


def refused(rig: Rig, name: str, kind: str, data: bytes, cause: str) -> None:
    before = snapshot(rig.group)
    with pytest.raises(PeerError) as caught:
        rig.group.receive(kind, name, data, rig.now)
    assert caught.value.cause == cause, caught.value
    assert snapshot(rig.group) == before


# --- the right one is named ---------------------------------------------------------------------------------------


def test_a_dealer_of_garbage_is_proven_and_the_round_goes_on() -> None:
    rig = Cheats({CHEAT: {VICTIM}}).start()
    rig.run()
    assert set(rig.group.complaints.blamed) == {CHEAT}
    assert rig.group.complaints.bad == {(CHEAT, VICTIM)}
    assert [note.text for note in rig.notes if note.cause == "blamed"]
    closes(rig)


def test_a_dealer_whose_garbage_makes_its_secret_unrestorable_ends_the_round_and_is_named() -> None:
    rig = Cheats({CHEAT: {"pi-0", "pi-1"}}).start()  # t is 5 of 6
    rig.run()
    assert rig.group.aborted is not None
    assert rig.group.aborted.cause == "bad-shares"
    assert rig.group.causers == {CHEAT}
    assert set(rig.group.complaints.blamed) == {CHEAT}
    # At once, not at the end of a window.
    assert rig.now == 0


def test_a_dealer_that_does_not_answer_is_the_cause_but_not_proven() -> None:
    cheats = Cheats({CHEAT: {"pi-0", "pi-1"}}, answer=False)
    rig = cheats.start()
    rig.run()
    assert rig.group.aborted is not None
    assert rig.group.aborted.cause == "bad-shares"
    assert rig.group.causers == {CHEAT}
    assert not rig.group.complaints.blamed


def test_a_false_complaint_is_proven_and_gains_nothing() -> None:
    rig = dealt()
    rig.from_group(rig.group.receive(topics.COMPLAINT, CHEAT, complain(rig, CHEAT, VICTIM), rig.now))
    rig.pump()
    assert set(rig.group.complaints.blamed) == {CHEAT}
    assert not rig.group.complaints.open
    # It reveals nothing of the victim's; with one more member silent, exactly t are left, and its share is needed.
    rig.silent.add("pi-5")

    def keep(way: str, name: str, kind: str, data: bytes) -> bytes:
        if (way, name, kind) != ("up", CHEAT, topics.UNMASK):
            return data
        public = rig.opened.manifest.sealing_key
        shares = read(RevealedShares, open_sealed(read_sealed(data), public, SEALING))
        kept = [(dealer, share) for dealer, share in shares.self_mask if dealer != VICTIM]
        sealed = seal_anonymously(write(RevealedShares(self_mask=kept, masking=shares.masking)), public, b"e" * 32)
        return rig.say(name, kind, Answer(sealed=sealed))  # the same form as a reveal

    rig.on_wire = keep
    rig.train()
    for _ in range(3):
        if not rig.group.finished:
            rig.late()
    assert not [error for error in rig.errors if error.cause == "withheld"]
    closes(rig)


def read_sealed(data: bytes) -> bytes:
    return read(Answer, envelope.parse(data).payload).sealed


def test_a_share_that_is_kept_back_without_a_complaint_is_refused() -> None:
    rig = dealt()

    def keep(way: str, name: str, kind: str, data: bytes) -> bytes:
        if (way, name, kind) != ("up", CHEAT, topics.UNMASK):
            return data
        public = rig.opened.manifest.sealing_key
        shares = read(RevealedShares, open_sealed(read_sealed(data), public, SEALING))
        sealed = seal_anonymously(
            write(RevealedShares(self_mask=shares.self_mask[1:], masking=shares.masking)), public, b"e" * 32
        )
        return rig.say(name, kind, Answer(sealed=sealed))

    rig.on_wire = keep
    rig.silent.add("pi-5")
    rig.train()
    for _ in range(3):
        rig.late()
    assert [error.cause for error in rig.errors] == ["withheld"]
    assert rig.group.aborted is not None
    assert CHEAT in rig.group.causers


# --- what a dealer answers ----------------------------------------------------------------------------------------


def device_refuses(rig: Rig, name: str, data: bytes, cause: str) -> None:
    before = snapshot(rig.devices[name])
    with pytest.raises(PeerError) as caught:
        rig.devices[name].receive(topics.COMPLAINT, data)
    assert caught.value.cause == cause, caught.value
    assert snapshot(rig.devices[name]) == before


def test_an_answer_shows_the_key_of_one_entry_and_of_no_other() -> None:
    rig = dealt()
    data = relay(rig, VICTIM, (CHEAT, complain(rig, CHEAT, VICTIM)))
    note, answer = rig.devices[VICTIM].receive(topics.COMPLAINT, data)
    assert isinstance(note, Note)
    assert isinstance(answer, Send)
    plain = open_sealed(read_sealed(answer.data), rig.opened.manifest.sealing_key, SEALING)
    assert [name for name, _ in read(EphemeralKeys, envelope.parse(plain).payload).keys] == [CHEAT]
    device_refuses(rig, VICTIM, data, "repeated")


LIES: dict[str, tuple[Callable[[Rig], bytes], str]] = {
    "complaint-of-nobody": (lambda rig: relay(rig, VICTIM, (CHEAT, b"")), "unsigned"),
    "signed-by-another": (lambda rig: relay(rig, VICTIM, (CHEAT, complain(rig, "pi-4", VICTIM))), "signature"),
    "signed-by-the-server": (
        lambda rig: relay(rig, VICTIM, (CHEAT, rig.serve(topics.COMPLAINT, of_victim(rig)))),
        "signature",
    ),
    "of-another-round": (
        lambda rig: relay(rig, VICTIM, (CHEAT, rig.say(CHEAT, topics.COMPLAINT, of_victim(rig), round=2))),
        "wrong-round",
    ),
    "of-another-roster": (
        lambda rig: relay(rig, VICTIM, (CHEAT, rig.say(CHEAT, topics.COMPLAINT, of_victim(rig), roster=bytes(32)))),
        "signature",
    ),
    "about-another": (lambda rig: relay(rig, VICTIM, (CHEAT, complain(rig, CHEAT, "pi-4"))), "complaint"),
    "from-a-stranger": (lambda rig: relay(rig, VICTIM, ("pi-9", complain(rig, CHEAT, VICTIM))), "roster"),
    "from-itself": (lambda rig: relay(rig, VICTIM, (VICTIM, complain(rig, VICTIM, VICTIM))), "complaint"),
    "about-another-list": (
        lambda rig: relay(
            rig, VICTIM, (CHEAT, rig.say(CHEAT, topics.COMPLAINT, Complaint(dealt=bytes(32), dealers=[VICTIM])))
        ),
        "dealt",
    ),
    "for-another": (lambda rig: relay(rig, "pi-4", (CHEAT, complain(rig, CHEAT, VICTIM))), "signature"),
    "none": (lambda rig: relay(rig, VICTIM), "repeated"),
}


@pytest.mark.parametrize(("lie", "cause"), LIES.values(), ids=LIES)
def test_a_server_cannot_make_up_complaints(lie: Callable[[Rig], bytes], cause: str) -> None:
    rig = dealt()
    device_refuses(rig, VICTIM, lie(rig), cause)


@pytest.mark.parametrize("n", [4, 6, 9, 12])
def test_a_dealer_shows_no_more_than_colluders_know_already(n: int) -> None:
    rig = dealt(n)
    for number in range(1, n):
        sender = rig.names[number]
        data = relay(rig, VICTIM, (sender, complain(rig, sender, VICTIM)))
        if number <= colluders(n):
            rig.devices[VICTIM].receive(topics.COMPLAINT, data)
        else:
            device_refuses(rig, VICTIM, data, "complaint")
    rig = dealt(n)
    everybody = [(name, complain(rig, name, VICTIM)) for name in rig.names[1:]]
    device_refuses(rig, VICTIM, relay(rig, VICTIM, *everybody), "complaint")


def test_a_dealer_answers_nothing_once_shares_are_revealed() -> None:
    rig = dealt()
    rig.train()
    assert rig.devices[VICTIM].stage is DeviceStage.UNMASKED
    device_refuses(rig, VICTIM, relay(rig, VICTIM, (CHEAT, complain(rig, CHEAT, VICTIM))), "stage")


# --- what the aggregator takes ------------------------------------------------------------------------------------


def test_complaints_that_make_no_sense_are_refused() -> None:
    rig = dealt()
    refused(rig, CHEAT, topics.COMPLAINT, complain(rig, CHEAT, CHEAT), "complaint")
    refused(rig, CHEAT, topics.COMPLAINT, complain(rig, CHEAT, "pi-9"), "complaint")
    refused(rig, CHEAT, topics.COMPLAINT, complain(rig, CHEAT, VICTIM, VICTIM), "complaint")
    refused(rig, CHEAT, topics.COMPLAINT, complain(rig, "pi-4", VICTIM), "signature")
    rig.group.receive(topics.COMPLAINT, CHEAT, complain(rig, CHEAT, VICTIM), rig.now)
    refused(rig, CHEAT, topics.COMPLAINT, complain(rig, CHEAT, VICTIM), "repeated")


def test_nobody_complains_of_who_did_not_deal() -> None:
    rig = Rig(n=6, dies={CHEAT: topics.SHARES})
    rig.joined()
    rig.late()
    assert CHEAT not in rig.group.dealt
    refused(rig, VICTIM, topics.COMPLAINT, complain(rig, VICTIM, CHEAT), "complaint")
    refused(rig, CHEAT, topics.COMPLAINT, complain(rig, CHEAT, VICTIM), "complaint")
    sealed = seal_anonymously(rig.say(CHEAT, KEYS, EphemeralKeys(keys=[])), rig.opened.manifest.sealing_key, b"e" * 32)
    refused(rig, CHEAT, topics.ANSWER, rig.say(CHEAT, topics.ANSWER, Answer(sealed=sealed)), "complaint")


def test_complaints_come_too_early_or_too_late() -> None:
    rig = Rig(n=6, hold=lambda way, name, kind: (way, kind) == ("down", topics.ROSTER))
    rig.joined()
    refused(rig, CHEAT, topics.COMPLAINT, complain(rig, CHEAT, VICTIM), "stage")
    rig = dealt()
    rig.train()
    refused(rig, CHEAT, topics.COMPLAINT, complain(rig, CHEAT, VICTIM), "stage")


def test_an_answer_that_nobody_asked_for_is_refused() -> None:
    rig = dealt()
    public = rig.opened.manifest.sealing_key

    def answer(*keys: tuple[str, bytes]) -> bytes:
        sealed = seal_anonymously(rig.say(VICTIM, KEYS, EphemeralKeys(keys=list(keys))), public, b"e" * 32)
        return rig.say(VICTIM, topics.ANSWER, Answer(sealed=sealed))

    refused(rig, VICTIM, topics.ANSWER, answer((CHEAT, bytes(32))), "complaint")
    rig.group.receive(topics.COMPLAINT, CHEAT, complain(rig, CHEAT, VICTIM), rig.now)
    refused(rig, VICTIM, topics.ANSWER, answer((CHEAT, b"k" * 32), ("pi-4", b"k" * 32)), "complaint")
    refused(rig, VICTIM, topics.ANSWER, answer((CHEAT, b"k" * 32), (CHEAT, b"k" * 32)), "complaint")
    refused(rig, VICTIM, topics.ANSWER, rig.say(VICTIM, topics.ANSWER, Answer(sealed=b"x" * 90)), "sealed")
    # A key that is not the entry's is no defence.
    rig.from_group(rig.group.receive(topics.ANSWER, VICTIM, answer((CHEAT, b"k" * 32)), rig.now))
    assert set(rig.group.complaints.blamed) == {VICTIM}


def test_survivors_are_not_named_while_an_answer_may_still_save_the_round() -> None:
    def hold(way: str, name: str, kind: str) -> bool:
        return (way, kind) == ("up", topics.ANSWER)

    rig = dealt()
    rig.hold = hold
    for liar in ("pi-4", "pi-5"):
        rig.from_group(rig.group.receive(topics.COMPLAINT, liar, complain(rig, liar, VICTIM), rig.now))
    rig.pump()
    rig.train()
    assert rig.group.stage is GroupStage.MASKING
    (message,) = [message for message in rig.held if message[2] == topics.ANSWER]  # the second was more than c
    rig.hold = lambda way, name, kind: False
    rig.from_group(rig.group.receive(message[2], message[1], message[3], rig.now))
    rig.pump()
    assert set(rig.group.complaints.blamed) == {"pi-4"}
    closes(rig)


# --- any coalition under a third ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(4, 10), st.data())
def test_no_honest_member_is_ever_blamed(n: int, data: st.DataObject) -> None:
    names = [f"pi-{index}" for index in range(n)]
    bad = data.draw(st.lists(st.sampled_from(names), max_size=colluders(n), unique=True))
    garbage = {name: data.draw(st.sets(st.sampled_from([x for x in names if x != name]))) for name in bad}
    cheats = Cheats(garbage, answer=data.draw(st.booleans()))
    rig = cheats.start(n=n)
    rig.joined()
    for name in bad:
        about = sorted(data.draw(st.sets(st.sampled_from([x for x in names if x != name]))))
        if about and rig.group.stage is GroupStage.MASKING and name in rig.group.dealt:
            try:
                rig.from_group(rig.group.receive(topics.COMPLAINT, name, complain(rig, name, *about), rig.now))
            except PeerError:
                assert garbage  # it has complained already, of another who deals garbage
        rig.pump()
    rig.run() if rig.group.stage is GroupStage.JOINING else finish(rig)
    assert set(rig.group.complaints.blamed) <= set(bad)
    if rig.group.aborted is not None:
        assert rig.group.causers <= set(bad)
        assert rig.group.causers
        assert any(garbage.values()), "false complaints alone have made a group abort"
    else:
        closes(rig)


def finish(rig: Rig) -> None:
    for _ in range(6):
        rig.train()
        if rig.group.finished:
            return
        rig.late()


def test_a_complaint_can_be_played_as_nothing_else() -> None:
    rig = dealt()
    data = complain(rig, CHEAT, VICTIM)
    for kind in (topics.MASKED, topics.ANSWER):
        refused(rig, CHEAT, kind, data, "signature")
