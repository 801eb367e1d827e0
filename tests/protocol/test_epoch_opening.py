"""covey_protocol.epoch_opening and epoch_member: openings with silent devices, and with a server that lies."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from tests.protocol.rig import FLEET, SERVER, Entropy, make_trust, signing_key, snapshot

from covey_protocol import envelope, epoch_member, epochs, topics
from covey_protocol.effects import Effect, Note, Publish, Remember, Send
from covey_protocol.envelope import Context
from covey_protocol.epoch_member import EPOCH_KEY, GROUPING_KEY, OPENING_KEY, EpochMember
from covey_protocol.epoch_opening import ShardOpening, Stage
from covey_protocol.errors import LocalError, PeerError, RefusedError, StaleError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import Commitment, Commitments, EpochList, Groups, ListedMember, Opening
from covey_protocol.payload import Payload, read, write
from covey_protocol.policy import Policy

ME = "pi-0"
WINDOW = 10.0


class Hamlet:
    """One shard and its devices; ``silent`` maps a name to the first kind of message that it does not send."""

    def __init__(
        self,
        n: int,
        *,
        fresh: int = 0,
        floor: int = 4,
        size: int = 8,
        silent: dict[str, str] | None = None,
        dice: random.Random | None = None,
    ) -> None:
        self.names = [f"pi-{index}" for index in range(n)]
        self.silent, self.dice = silent or {}, dice
        self.policy = Policy(list_min=floor)
        self.opening = ShardOpening(
            fleet=FLEET,
            key=SERVER,
            epoch=5,
            shard=0,
            shard_bits=0,
            group_size=size,
            members={name: bytes(signing_key(name).verify_key) for name in self.names},
            probation=self.names[n - fresh :],
            list_min=floor,
            window=WINDOW,
        )
        self.trusts = {name: make_trust(self.policy) for name in self.names}
        self.devices = {name: self.device(name) for name in self.names}
        self.remembered: dict[str, dict[str, bytes]] = {name: {} for name in self.names}
        self.published: list[Publish] = []
        self.notes: list[Note] = []
        self.refused: list[PeerError] = []
        self.now = 0.0

    def device(self, name: str, remembered: dict[str, bytes] | None = None) -> EpochMember:
        return EpochMember(
            trust=self.trusts[name],
            device=name,
            key=signing_key(name),
            entropy=Entropy(f"epoch {name}"),
            remembered=remembered,
        )

    def run(self, effects: list[Effect] | None = None) -> None:
        todo = self.opening.start(self.now) if effects is None else effects
        while True:
            self.notes += [effect for effect in todo if isinstance(effect, Note)]
            publishes = [effect for effect in todo if isinstance(effect, Publish)]
            todo = []
            for publish in publishes:
                self.published.append(publish)
                for name, send in self.answers(publish):
                    todo += self.opening.receive(send.kind, name, send.data, self.now)
            if not todo:
                if self.opening.finished:
                    return
                self.now += WINDOW
                todo = self.opening.tick(self.now)

    def answers(self, publish: Publish) -> list[tuple[str, Send]]:
        sent = []
        for name, device in self.devices.items():
            try:
                effects = device.receive(publish.kind, publish.data)
            except PeerError as error:
                self.refused.append(error)
                continue
            for effect in effects:
                if isinstance(effect, Remember):
                    self.remembered[name][effect.key] = effect.value
                elif isinstance(effect, Send) and self.silent.get(name) != effect.kind:
                    sent.append((name, effect))
        if self.dice:
            self.dice.shuffle(sent)
        return sent


@settings(deadline=None, max_examples=30)
@given(st.integers(4, 45), st.data(), st.randoms(use_true_random=False))
def test_any_subset_may_be_silent_in_any_order(n: int, data: st.DataObject, dice: random.Random) -> None:
    fresh = data.draw(st.integers(0, n))
    kinds = st.sampled_from([topics.COMMITMENT, topics.OPENING])
    silent = data.draw(st.dictionaries(st.sampled_from([f"pi-{index}" for index in range(n)]), kinds, max_size=n // 3))
    hamlet = Hamlet(n, fresh=fresh, silent=silent, dice=dice)
    hamlet.run()
    never = {name for name, kind in silent.items() if kind == topics.COMMITMENT}
    closed = set(silent) - never
    restarted = epochs.too_many_unopened(n - len(never), n - len(silent))
    assert [note.cause for note in hamlet.notes].count("epoch-restart") == restarted
    if restarted:
        assert all(name in hamlet.notes[0].text for name in closed)
    # After a restart everybody who is still listed answers, unless they are too few for a list.
    if restarted and n - len(silent) < 4:
        assert hamlet.opening.stage is Stage.FAILED
        return
    if n - len(never) < 4:
        assert hamlet.opening.stage is Stage.FAILED
        return
    assert hamlet.opening.stage is Stage.GROUPED
    assert hamlet.opening.attempt == 1 + restarted
    assert all(isinstance(error, StaleError | RefusedError) for error in hamlet.refused)
    placed = {name: grouping for grouping in hamlet.opening.groups for name, _ in grouping.members}
    for name, device in hamlet.devices.items():
        if name in silent:
            assert device.grouping is None
        else:
            assert device.grouping == placed.get(name)
            assert hamlet.remembered[name][GROUPING_KEY] == (device.grouping.encode() if device.grouping else b"")
    assert set(placed) <= set(hamlet.names) - set(silent)


def test_the_largest_shard() -> None:
    # One device is real and checks messages of full size; the others only sign what is asked of them.
    names = [ME, *(f"pi-{index}-".ljust(63, "x") for index in range(1, 1000))]
    opening = ShardOpening(
        fleet=FLEET,
        key=SERVER,
        epoch=5,
        shard=0,
        shard_bits=0,
        group_size=10,
        members={name: bytes(signing_key(name).verify_key) for name in names},
        probation=(),
        list_min=1000,
        window=WINDOW,
    )
    device, value = Hamlet(4).device(ME), bytes(32)
    (publish,) = opening.start(0.0)
    for kind in (topics.COMMITMENT, topics.OPENING):
        assert isinstance(publish, Publish)
        digest = opening._list_digest if kind == topics.COMMITMENT else opening._commitments_digest()
        effects: list[Effect] = []
        for send in device.receive(publish.kind, publish.data):
            if isinstance(send, Send):
                effects += opening.receive(kind, ME, send.data, 0.0)
        for name in names[1:]:
            commitment = Commitment(commitment=epochs.commitment(value, name))
            body = commitment if kind == topics.COMMITMENT else Opening(value=value)
            effects += opening.receive(kind, name, signed(kind, body, name, digest), 0.0)
        (publish,) = effects
    assert isinstance(publish, Publish)
    device.receive(publish.kind, publish.data)
    assert [len(grouping.members) for grouping in opening.groups] == [10] * 100
    assert device.grouping in opening.groups


def test_below_the_floor_nothing_is_opened() -> None:
    hamlet = Hamlet(5, floor=6)
    (note,) = hamlet.opening.start(0.0)
    assert isinstance(note, Note)
    assert note.cause == "epoch-failed"
    assert hamlet.opening.finished
    silent = {"pi-1": topics.COMMITMENT}
    hamlet = Hamlet(6, floor=6, silent=silent)
    hamlet.run()
    assert hamlet.opening.stage is Stage.FAILED
    assert hamlet.notes[-1].cause == "epoch-failed"


def test_the_opening_waits_until_its_window_is_over() -> None:
    hamlet = Hamlet(6)
    hamlet.opening.start(100.0)
    assert hamlet.opening.tick(100.0 + WINDOW - 0.1) == []
    assert hamlet.opening.awaited() == set(hamlet.names)
    assert hamlet.opening.tick(100.0 + WINDOW)
    assert hamlet.opening.stage is Stage.FAILED


# --- what the aggregator refuses ----------------------------------------------------------------------------------


class Committing:
    """An opening that waits for commitments, and what devices would send."""

    def __init__(self, stage: Stage = Stage.COMMITTING) -> None:
        self.hamlet = Hamlet(6)
        (publish,) = self.hamlet.opening.start(0.0)
        assert isinstance(publish, Publish)
        self.commitments = dict(self.hamlet.answers(publish))
        self.openings: dict[str, Send] = {}
        if stage is Stage.OPENING:
            for name, send in self.commitments.items():
                for effect in self.hamlet.opening.receive(send.kind, name, send.data, 0.0):
                    assert isinstance(effect, Publish)
                    self.openings = dict(self.hamlet.answers(effect))

    def refused(self, kind: str, name: str, data: bytes, cause: str) -> None:
        before = snapshot(self.hamlet.opening)
        with pytest.raises(PeerError) as caught:
            self.hamlet.opening.receive(kind, name, data, 0.0)
        assert caught.value.cause == cause
        assert snapshot(self.hamlet.opening) == before


def signed(
    kind: str, body: Payload, name: str, roster: bytes, *, attempt: int = 1, key: SigningKey | None = None
) -> bytes:
    context = Context(fleet=FLEET, kind=kind, sender=name, round=5, attempt=attempt, roster=roster)
    return envelope.sign(write(body), context, key or signing_key(name))


def test_the_aggregator_checks_commitments() -> None:
    opening = Committing()
    send = opening.commitments[ME]
    body = Commitment(commitment=bytes(32))
    digest = opening.hamlet.opening._list_digest
    opening.refused(topics.COMMITMENT, "pi-9", send.data, "not-listed")
    opening.refused(topics.COMMITMENT, "pi-1", send.data, "signature")  # somebody else's
    opening.refused(topics.COMMITMENT, ME, signed(topics.COMMITMENT, body, ME, digest, key=SERVER), "signature")
    opening.refused(topics.COMMITMENT, ME, signed(topics.COMMITMENT, body, ME, bytes(32)), "signature")  # another list
    opening.refused(topics.COMMITMENT, ME, signed(topics.COMMITMENT, body, ME, digest, attempt=2), "stage")
    opening.refused(topics.OPENING, ME, send.data, "stage")
    opening.refused(topics.JOIN, ME, send.data, "stage")
    opening.hamlet.opening.receive(topics.COMMITMENT, ME, send.data, 0.0)
    opening.refused(topics.COMMITMENT, ME, send.data, "repeated")


def test_the_aggregator_checks_openings() -> None:
    opening = Committing(Stage.OPENING)
    send = opening.openings[ME]
    digest = opening.hamlet.opening._commitments_digest()
    body = Opening(value=bytes(32))
    opening.refused(topics.OPENING, ME, signed(topics.OPENING, body, ME, digest), "openings")
    opening.refused(topics.OPENING, ME, signed(topics.OPENING, body, ME, bytes(32)), "signature")
    opening.refused(topics.OPENING, "pi-1", send.data, "signature")
    opening.refused(topics.COMMITMENT, ME, opening.commitments[ME].data, "stage")
    opening.hamlet.opening.receive(topics.OPENING, ME, send.data, 0.0)
    opening.refused(topics.OPENING, ME, send.data, "repeated")


# --- what a device refuses ----------------------------------------------------------------------------------------


@cache
def opened_truly() -> Hamlet:
    hamlet = Hamlet(40, floor=20, fresh=2)
    hamlet.run()
    return hamlet


class Liar:
    """A server that may publish anything under its own key, and the true messages of one opening with 40 members."""

    def __init__(self, stage: epoch_member.Stage) -> None:
        self.true = {publish.kind: publish.data for publish in opened_truly().published}
        self.members = read(EpochList, envelope.parse(self.true[topics.EPOCH]).payload)
        self.commitments = read(Commitments, envelope.parse(self.true[topics.COMMITMENTS]).payload)
        self.groups = read(Groups, envelope.parse(self.true[topics.GROUPS]).payload)
        self.list_digest = epochs.list_digest(self.members)
        self.commitments_digest = epochs.commitments_digest(self.list_digest, dict(self.commitments.commitments))
        self.device = opened_truly().device(ME)
        for kind in (topics.EPOCH, topics.COMMITMENTS, topics.GROUPS):
            if self.device.stage is stage:
                break
            self.device.receive(kind, self.true[kind])
        self.next_kind = kind

    def publish(self, kind: str, body: Payload, /, **changes: object) -> bytes:
        roster = {topics.EPOCH: b"", topics.COMMITMENTS: self.list_digest, topics.GROUPS: self.commitments_digest}[kind]
        context = Context(fleet=FLEET, kind=kind, sender=AGGREGATOR, round=5, attempt=1, roster=roster)
        return envelope.sign(write(body), context.with_(**changes), SERVER)

    def refused(self, data: bytes, cause: str, kind: str | None = None) -> None:
        before = snapshot(self.device)
        with pytest.raises(PeerError) as caught:
            self.device.receive(kind or self.next_kind, data)
        assert caught.value.cause == cause, caught.value
        assert snapshot(self.device) == before

    def still_accepts_the_truth(self) -> None:
        assert self.device.receive(self.next_kind, self.true[self.next_kind])


def changed_list(**changes: object) -> Callable[[EpochList], EpochList]:
    return lambda true: EpochList(
        **{"shard": true.shard, "shard_bits": true.shard_bits, "group_size": true.group_size, "members": true.members}
        | changes  # type: ignore[arg-type]
    )


def changed_members(change: Callable[[list[ListedMember]], list[ListedMember]]) -> Callable[[EpochList], EpochList]:
    return lambda true: changed_list(members=change(list(true.members)))(true)


@pytest.mark.parametrize(
    ("lie", "cause"),
    [
        (changed_members(lambda all_: [one for one in all_ if one.device != ME]), "not-listed"),
        (changed_members(lambda all_: [*all_, all_[-1]]), "list"),
        (changed_members(lambda all_: all_[::-1]), "list"),
        (changed_members(lambda all_: all_[:19]), "list"),
        (changed_members(lambda all_: [ListedMember(device=ME, key=bytes(32)), *all_[1:]]), "list"),
        (changed_list(shard=1), "list"),
        (changed_list(shard_bits=1), "list"),
        (changed_list(shard=epochs.shard_of(ME, 6), shard_bits=6), "list"),  # mine, but not the others'
    ],
    ids=["without-me", "repeated", "disordered", "too-short", "another-key", "no-shard", "others-too", "foreign"],
)
def test_lies_in_the_list(lie: Callable[[EpochList], EpochList], cause: str) -> None:
    liar = Liar(epoch_member.Stage.WAITING)
    liar.refused(liar.publish(topics.EPOCH, lie(liar.members)), cause)
    liar.still_accepts_the_truth()


def without(pairs: list[tuple[str, bytes]], *names: str) -> list[tuple[str, bytes]]:
    return [pair for pair in pairs if pair[0] not in names]


@pytest.mark.parametrize(
    "lie",
    [
        lambda true: without(true, ME),
        lambda true: [(ME, bytes(32)), *without(true, ME)],
        lambda true: [*true, ("stranger", bytes(32))],
        lambda true: [*true, (true[3][0], bytes(32))],
        lambda true: [*true, true[3]],
        lambda true: true[:19],
    ],
    ids=["mine-dropped", "mine-changed", "stranger", "two-of-one", "repeated", "too-few"],
)
def test_lies_in_the_commitments(lie: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    liar = Liar(epoch_member.Stage.COMMITTED)
    body = Commitments(commitments=lie(list(liar.commitments.commitments)))
    liar.refused(liar.publish(topics.COMMITMENTS, body), "commitments")
    liar.still_accepts_the_truth()


@pytest.mark.parametrize(
    "lie",
    [
        lambda true: without(true, ME),
        lambda true: [(ME, bytes(32)), *without(true, ME)],
        lambda true: [*without(true, "pi-7"), ("pi-7", bytes(32))],
        lambda true: [*true, ("stranger", bytes(32))],
        lambda true: [*true, true[3]],
        lambda true: without(true, "pi-7", "pi-8", "pi-9"),
    ],
    ids=["mine-dropped", "mine-changed", "not-matching", "stranger", "repeated", "too-many-closed"],
)
def test_lies_in_the_openings(lie: Callable[[list[tuple[str, bytes]]], list[tuple[str, bytes]]]) -> None:
    liar = Liar(epoch_member.Stage.OPENED)
    openings = lie(list(liar.groups.openings))
    # With the groups that would follow from them, so that nothing but the openings is wrong.
    groups = epochs.groups(liar.members.members, dict(openings), liar.list_digest, liar.members.group_size)
    liar.refused(liar.publish(topics.GROUPS, Groups(openings=openings, groups=groups)), "openings")
    liar.still_accepts_the_truth()


def swapped(groups: list[list[str]]) -> list[list[str]]:
    first, second, *others = [list(group) for group in groups]
    first[0], second[0] = second[0], first[0]
    return [first, second, *others]


@pytest.mark.parametrize(
    "lie",
    [
        swapped,
        lambda true: true[::-1],
        lambda true: true[1:],
        lambda true: [true[0][::-1], *true[1:]],
        lambda true: [*true, ["stranger"]],
        lambda true: [true[0] + true[1], *true[2:]],
        lambda true: [],
    ],
    ids=["swapped", "reordered", "dropped", "order-within", "added", "joined", "none"],
)
def test_lies_in_the_groups(lie: Callable[[list[list[str]]], list[list[str]]]) -> None:
    liar = Liar(epoch_member.Stage.OPENED)
    body = Groups(openings=liar.groups.openings, groups=lie([list(group) for group in liar.groups.groups]))
    liar.refused(liar.publish(topics.GROUPS, body), "groups")
    liar.still_accepts_the_truth()


def test_two_in_forty_may_stay_closed() -> None:
    liar = Liar(epoch_member.Stage.OPENED)
    openings = without(list(liar.groups.openings), "pi-7", "pi-8")
    groups = epochs.groups(liar.members.members, dict(openings), liar.list_digest, liar.members.group_size)
    assert liar.device.receive(topics.GROUPS, liar.publish(topics.GROUPS, Groups(openings=openings, groups=groups)))


STAGES = {
    epoch_member.Stage.WAITING: topics.EPOCH,
    epoch_member.Stage.COMMITTED: topics.COMMITMENTS,
    epoch_member.Stage.OPENED: topics.GROUPS,
}


@pytest.mark.parametrize(("stage", "kind"), STAGES.items(), ids=STAGES)
def test_only_the_aggregators_signature_in_this_place_counts(stage: epoch_member.Stage, kind: str) -> None:
    liar = Liar(stage)
    body = {topics.EPOCH: liar.members, topics.COMMITMENTS: liar.commitments, topics.GROUPS: liar.groups}[kind]
    for changes in ({"fleet": "moor"}, {"kind": topics.OPEN}, {"sender": ME}, {"recipient": ME}, {"roster": b"x" * 32}):
        liar.refused(liar.publish(kind, body, **changes), "signature")
    context = Context(fleet=FLEET, kind=kind, sender=AGGREGATOR, round=5, attempt=1, roster=b"")
    liar.refused(envelope.sign(write(body), context, signing_key("pi-1")), "signature")
    if kind != topics.EPOCH:
        liar.refused(liar.publish(kind, body, attempt=2), "stage")
        liar.refused(liar.publish(kind, body, round=6), "stage")
    for other in set(STAGES.values()) - {kind, topics.EPOCH}:
        liar.refused(liar.true[other], "stage", kind=other)
    liar.refused(liar.true[kind], "stage", kind=topics.CLOSE)
    liar.still_accepts_the_truth()


@pytest.mark.parametrize("stage", [epoch_member.Stage.COMMITTED, epoch_member.Stage.OPENED, epoch_member.Stage.GROUPED])
@pytest.mark.parametrize(("epoch", "attempt"), [(5, 1), (5, 0), (4, 9), (0, 1), (-1, 1)])
def test_replayed_epochs_are_refused(stage: epoch_member.Stage, epoch: int, attempt: int) -> None:
    liar = Liar(stage)
    data = liar.publish(topics.EPOCH, liar.members, round=epoch, attempt=attempt)
    liar.refused(data, "replayed", kind=topics.EPOCH)


def test_a_restart_and_a_newer_epoch_are_taken_up_with_a_new_value() -> None:
    liar = Liar(epoch_member.Stage.OPENED)
    values = {liar.device._value}
    for epoch, attempt in ((5, 2), (6, 1)):
        data = liar.publish(topics.EPOCH, liar.members, round=epoch, attempt=attempt)
        mark, _, send = liar.device.receive(topics.EPOCH, data)
        assert mark == Remember(EPOCH_KEY, f"{epoch}.{attempt}".encode())
        assert isinstance(send, Send)
        values.add(liar.device._value)
        assert liar.device.stage is epoch_member.Stage.COMMITTED
    assert len(values) == 3


def test_what_a_device_remembers_survives_a_restart() -> None:
    hamlet = Hamlet(8)
    hamlet.run()
    again = hamlet.device(ME, hamlet.remembered[ME])
    assert again.grouping == hamlet.devices[ME].grouping
    assert again.stage is epoch_member.Stage.WAITING
    with pytest.raises(StaleError) as caught:
        again.receive(topics.EPOCH, hamlet.published[0].data)
    assert caught.value.cause == "replayed"


def test_the_mark_is_remembered_before_anything_is_sent() -> None:
    liar = Liar(epoch_member.Stage.WAITING)
    effects = liar.device.receive(topics.EPOCH, liar.true[topics.EPOCH])
    assert [type(effect) for effect in effects] == [Remember, Remember, Send]
    assert [type(effect) for effect in liar.device.receive(topics.COMMITMENTS, liar.true[topics.COMMITMENTS])] == [
        Remember,
        Send,
    ]


def test_a_restart_in_the_middle_goes_on_with_the_same_value() -> None:
    """Whoever is killed after it has opened is in the groups, and must be able to check them."""
    true, remembered = Liar(epoch_member.Stage.WAITING).true, dict[str, bytes]()
    whole, cut = (opened_truly().device(ME) for _ in range(2))
    for kind in (topics.EPOCH, topics.COMMITMENTS, topics.GROUPS):
        expected, effects = whole.receive(kind, true[kind]), cut.receive(kind, true[kind])
        assert effects == expected
        remembered |= {effect.key: effect.value for effect in effects if isinstance(effect, Remember)}
        cut = opened_truly().device(ME, remembered)
        assert cut.stage is (whole.stage if kind != topics.GROUPS else epoch_member.Stage.WAITING)
        assert (cut.grouping, cut._value) == (whole.grouping, whole._value if kind != topics.GROUPS else b"")
    assert remembered[OPENING_KEY] == b""


def test_an_opening_that_is_no_longer_the_newest_is_not_gone_on_with() -> None:
    device = Liar(epoch_member.Stage.WAITING).device
    effects = device.receive(topics.EPOCH, opened_truly().published[0].data)
    remembered = {effect.key: effect.value for effect in effects if isinstance(effect, Remember)}
    again = opened_truly().device(ME, {**remembered, EPOCH_KEY: b"6.1"})
    assert again.stage is epoch_member.Stage.WAITING


@pytest.mark.parametrize("damage", [b"\xff", b"\x80", b"\x84\x82\x05\x01\x40\x40\x80"])
def test_a_damaged_opening_is_named(damage: bytes) -> None:
    with pytest.raises(LocalError, match="the stored opening is damaged"):
        opened_truly().device(ME, {EPOCH_KEY: b"5.1", OPENING_KEY: damage})
