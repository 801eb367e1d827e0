"""Model checks of the round: any order, losses, repetitions and crashes; and a server that lies with its own keys.

Two machines. ``NetworkModel`` has an honest server and a hostile network: whatever arrives when, a closed group's sum
is exactly that of its survivors, and devices keep their promises. ``LyingServer`` has an honest network and a server,
with up to c colluding members, that signs whatever it likes: whatever it shows to whom, it never gets both secrets of
an honest member, and never the self-masks of fewer than three honest members. Beside random lies it plays two known
attacks on rounds without certificates and floors. ``LyingSketcher`` is that server in rounds with sketches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.protocol.rig import FLEET, SEALING, SERVER, Rig, make_manifest, signing_key

from covey_protocol import attest_stage, envelope, ring, topics
from covey_protocol.attest_stage import REPORT
from covey_protocol.effects import Deliver, Effect, Publish, Remember, Send
from covey_protocol.errors import PeerError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.messages import (
    Accept,
    Answer,
    Assent,
    Attest,
    Attestation,
    Complaint,
    Complaints,
    Consent,
    EphemeralKeys,
    ReportHead,
    Reveal,
    RevealedShares,
    Survivors,
    Unmask,
)
from covey_protocol.payload import read, write
from covey_protocol.prg import Ring
from covey_protocol.ring import Metrics
from covey_protocol.roster import survivors_digest
from covey_protocol.round_table import DeviceStage, GroupStage
from covey_protocol.sealing import open_sealed
from covey_protocol.thresholds import H_MIN, colluders

METRICS = Metrics(loss=1.0, accuracy=0.5, samples=10, norm=0.0)


class NetworkModel(RuleBasedStateMachine):
    """An honest server behind a network that delays, repeats and loses, and devices that crash."""

    @initialize(n=st.integers(4, 7))
    def begin(self, n: int) -> None:
        self.rig = Rig(n=n, dimension=8, seed="model")
        self.encoded: dict[str, Ring] = {}
        self.in_flight: list[tuple[str, str, str, bytes]] = []  # way, device, kind, data
        self.crashed: set[str] = set()
        self.consents: dict[str, set[bytes]] = {name: set() for name in self.rig.names}
        self.vectors: dict[str, set[bytes]] = {name: set() for name in self.rig.names}
        self.marked: set[str] = set()
        for name in self.rig.names:
            self.device(name, self.rig.devices[name].join())

    def device(self, name: str, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Remember):
                self.marked.add(f"{name}/{effect.key.split('/')[0]}")
            elif isinstance(effect, Send):
                self.note_sent(name, effect)
                way = "vector" if effect.transfer else "up"
                self.in_flight.append((way, name, effect.kind, effect.data))

    def note_sent(self, name: str, effect: Send) -> None:
        """Check rule 5 (marks before messages) and remember what was promised."""
        mark = {
            topics.JOIN: "sequence",
            topics.SHARES: "roster",
            topics.MASKED: "masked",
            topics.SURVIVORS: "signed",
            topics.UNMASK: "unmask",
            topics.COMPLAINT: "roster",
            topics.ANSWER: "roster",
        }[effect.kind]
        assert f"{name}/{mark}" in self.marked, f"{effect.kind} left {name} before its mark"
        if effect.kind == topics.SURVIVORS:
            self.consents[name].add(read(Consent, envelope.parse(effect.data).payload).survivors)
        if effect.kind == topics.MASKED and effect.transfer:
            self.vectors[name].add(effect.data)

    def server(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Publish):
                self.in_flight += [("down", name, effect.kind, effect.data) for name in self.rig.names]
            elif isinstance(effect, Deliver):
                self.in_flight.append(("down", effect.device, effect.kind, effect.data))

    def deliver(self, way: str, name: str, kind: str, data: bytes) -> None:
        group, now = self.rig.group, self.rig.now
        try:
            if way == "up":
                self.server(group.receive(kind, name, data, now))
            elif way == "vector":
                self.server(group.vector(name, data, now))
            elif name not in self.crashed:
                self.device(name, self.rig.devices[name].receive(kind, data))
        except PeerError:
            pass  # refused; the invariants say whether that was enough

    @rule(data=st.data())
    def deliver_any(self, data: st.DataObject) -> None:
        """Deliver any message in flight, out of its order."""
        if self.in_flight:
            at = data.draw(st.integers(0, len(self.in_flight) - 1))
            self.deliver(*self.in_flight.pop(at))

    @rule()
    def deliver_all(self) -> None:
        """Let the network work as it should for a while."""
        while self.in_flight:
            self.deliver(*self.in_flight.pop(0))

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        if self.in_flight:
            at = data.draw(st.integers(0, len(self.in_flight) - 1))
            self.deliver(*self.in_flight[at])

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if self.in_flight:
            self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """A device loses its memory: it sits the round out, whatever the server sends."""
        self.crashed.add(data.draw(st.sampled_from(self.rig.names)))

    @rule()
    def train(self) -> None:
        for name in self.rig.names:
            device = self.rig.devices[name]
            if name not in self.crashed and device.stage is DeviceStage.DEALT:
                with patch.object(ring, "encode", partial(self.record, name, ring.encode)):
                    self.device(name, device.trained(self.rig.update(name), METRICS))

    def record(self, name: str, encode: Callable[..., Ring], *arguments: object, **options: object) -> Ring:
        vector = encode(*arguments, **options)
        self.encoded[name] = vector.copy()
        return vector

    @rule()
    def time_runs_out(self) -> None:
        self.rig.now = self.rig.group.deadline
        self.server(self.rig.group.tick(self.rig.now))

    @invariant()
    def promises_hold(self) -> None:
        if not hasattr(self, "rig"):
            return
        assert all(len(signed) <= 1 for signed in self.consents.values())
        assert all(len(vectors) <= 1 for vectors in self.vectors.values()), "two masked vectors under the same keys"
        group = self.rig.group
        if group.stage is GroupStage.SUMMING and not getattr(self, "summed", False):
            self.summed = True
            assert group.roster is not None and len(group.survivors) >= group.roster.a_min
            total, count = group.unmask()
            expected = sum(self.encoded[name] for name in group.survivors)
            assert count == len(group.survivors)
            assert np.array_equal(total, np.asarray(expected, np.uint16))


class LyingServer(RuleBasedStateMachine):
    """A server that signs anything, with colluders among the members, after honest devices have sent their vectors."""

    sketch = 0

    @initialize(n=st.integers(6, 10), data=st.data())
    def begin(self, n: int, data: st.DataObject) -> None:
        self.rig = Rig(n=n, dimension=4, manifest=make_manifest(4, sketch=self.sketch), seed="liar")
        names = self.rig.names
        self.bad = set(data.draw(st.lists(st.sampled_from(names), max_size=colluders(n), unique=True)))
        silent = data.draw(st.sets(st.sampled_from(names), max_size=1)) - self.bad
        self.masked: dict[str, bytes] = {}
        self.rig.on_wire = self.watch
        self.rig.joined()
        self.rig.silent = set(silent)  # joins, then vanishes: D has a member without a vector
        self.rig.train()
        assert self.rig.group.roster is not None
        self.roster = self.rig.group.roster
        self.honest = [name for name in names if name not in self.bad and name not in silent]
        self.consents: dict[bytes, dict[str, bytes]] = {}
        self.sets: dict[bytes, tuple[str, ...]] = {}
        self.revealed: list[tuple[str, RevealedShares]] = []
        self.shown: dict[str, set[str]] = {name: set() for name in self.honest}  # dealer → receivers of opened entries

    def watch(self, way: str, name: str, kind: str, data: bytes) -> bytes:
        if way == "up" and kind == topics.MASKED:
            self.masked[name] = data
        # Devices never hear what the honest server would publish from here on.
        behind = (topics.SURVIVORS, topics.ATTEST, topics.ACCEPT, topics.UNMASK)
        return b"" if way == "down" and kind in behind else data

    def publish(self, kind: str, body: bytes) -> bytes:
        context = self.rig.opened.context(FLEET, kind, AGGREGATOR, self.roster.digest)
        return envelope.sign(body, context, SERVER)

    def members_with_vectors(self) -> list[str]:
        return [member.name for member in self.roster.members if member.name in self.masked]

    def show(self, chosen: list[str], devices: list[str]) -> bytes:
        """Show a set to some devices and keep the consents; colluders sign all they see."""
        message = self.publish(topics.SURVIVORS, write(Survivors(survivors=[(n, self.masked[n]) for n in chosen])))
        digest = self.digest_of(chosen)
        self.sets[digest] = tuple(chosen)
        signed = self.consents.setdefault(digest, {})
        for name in self.bad:
            signed[name] = self.rig.consent(name, digest)
        for name in devices:
            try:
                effects = self.rig.devices[name].receive(topics.SURVIVORS, message)
            except PeerError:
                continue
            signed[name] = next(effect.data for effect in effects if isinstance(effect, Send))
        return digest

    def ask(self, pool: dict[str, bytes], devices: list[str]) -> None:
        """Show a certificate made of some consents and keep the shares that it brings."""
        order = [member.name for member in self.roster.members if member.name in pool]
        message = self.publish(topics.UNMASK, write(Unmask(certificate=[(name, pool[name]) for name in order])))
        for name in devices:
            try:
                effects = self.rig.devices[name].receive(topics.UNMASK, message)
            except PeerError:
                continue
            sealed = next(read(Reveal, envelope.parse(e.data).payload).sealed for e in effects if isinstance(e, Send))
            opened = open_sealed(sealed, self.rig.opened.manifest.sealing_key, SEALING)
            self.revealed.append((name, read(RevealedShares, opened)))

    @rule(data=st.data())
    def show_survivors(self, data: st.DataObject) -> None:
        """Show a set of its own choice to devices of its own choice."""
        order = self.members_with_vectors()
        left_out = data.draw(st.sets(st.sampled_from(order), max_size=3))
        devices = data.draw(st.lists(st.sampled_from(self.honest), unique=True))
        self.show([name for name in order if name not in left_out], devices)

    @rule(data=st.data())
    def show_certificate(self, data: st.DataObject) -> None:
        """Show any consents it has, mixed as it likes, to any device."""
        if not self.consents:
            return
        pool: dict[str, bytes] = {}
        for digest in data.draw(st.lists(st.sampled_from(sorted(self.consents)), min_size=1, max_size=3)):
            pool = {**self.consents[digest], **pool}
        self.ask(pool, data.draw(st.lists(st.sampled_from(self.honest), unique=True)))

    @rule(data=st.data())
    def surround(self, data: st.DataObject) -> None:
        """Show each device another set, always with the victim in it, so that everybody else's secrets come out."""
        victim = data.draw(st.sampled_from(self.honest))
        order = self.members_with_vectors()
        others = [name for name in order if name != victim]
        for number, name in enumerate(self.honest):
            turned = others[number % len(others) :] + others[: number % len(others)]
            chosen = {victim, *turned[: self.roster.a_min - 1]}
            digest = self.show([n for n in order if n in chosen], [name])
            self.ask(self.consents[digest], [name])
            # Without a check of what was signed, a full certificate on one set would do for all.
            everything = {n: d for signed in self.consents.values() for n, d in signed.items()}
            self.ask(everything, [name])

    @rule(data=st.data())
    def complain(self, data: st.DataObject) -> None:
        """Bring complaints of colluders, and made-up ones of others, to any dealer, as many as it likes."""
        dealer = data.draw(st.sampled_from(self.honest))
        complaints = []
        for member in self.roster.members:
            if member.name == dealer or not data.draw(st.booleans()):
                continue
            signer = signing_key(member.name) if member.name in self.bad else SERVER
            context = self.rig.opened.context(FLEET, topics.COMPLAINT, member.name, self.roster.digest)
            complaints.append(
                (
                    member.name,
                    envelope.sign(
                        write(Complaint(dealt=self.rig.group._dealt_digest, dealers=[dealer])), context, signer
                    ),
                )
            )
        context = self.rig.opened.context(FLEET, topics.COMPLAINT, AGGREGATOR, self.roster.digest, dealer)
        message = envelope.sign(write(Complaints(complaints=complaints)), context, SERVER)
        try:
            effects = self.rig.devices[dealer].receive(topics.COMPLAINT, message)
        except PeerError:
            return
        sealed = next(read(Answer, envelope.parse(e.data).payload).sealed for e in effects if isinstance(e, Send))
        opened = open_sealed(sealed, self.rig.opened.manifest.sealing_key, SEALING)
        keys = read(EphemeralKeys, envelope.parse(opened).payload).keys
        self.shown[dealer] |= {receiver for receiver, _ in keys}

    @rule(data=st.data(), size=st.integers(1, 3))
    def shrink(self, data: st.DataObject, size: int) -> None:
        """Show everybody the same set, too small to hide anybody."""
        order = self.members_with_vectors()
        chosen = data.draw(st.lists(st.sampled_from(order), min_size=size, max_size=size, unique=True))
        digest = self.show([name for name in order if name in chosen], self.honest)
        self.ask(self.consents[digest], self.honest)

    def digest_of(self, names: list[str]) -> bytes:
        group = self.rig.group
        vectors = [(name, group._masked[name][1]) for name in names]
        return survivors_digest(group._dealt_digest, vectors)

    def restorable(self, kind: str) -> set[str]:
        """Return the honest members whose secret of one kind the server can restore, colluders' shares included."""
        counts: dict[str, int] = {}
        for _, shares in self.revealed:
            for dealer, _share in getattr(shares, kind):
                counts[dealer] = counts.get(dealer, 0) + 1
        known = {name: len(self.bad | self.shown[name]) for name in self.honest}
        return {name for name in self.honest if counts.get(name, 0) + known[name] >= self.roster.t}

    @invariant()
    def nothing_beyond_one_sum(self) -> None:
        if not hasattr(self, "revealed"):
            return
        assert all(receivers <= self.bad for receivers in self.shown.values()), "an entry of an honest pair was opened"
        self_masks, masking = self.restorable("self_mask"), self.restorable("masking")
        assert not self_masks & masking, "both secrets of an honest member can be restored"
        if self_masks:
            assert len(self_masks) >= H_MIN, f"the self-masks of {len(self_masks)} honest members alone"


class LyingSketcher(LyingServer):
    """The same server in rounds with sketches: it also makes up seeds and sets A, and shows them to whom it likes."""

    sketch = 8

    @initialize()
    def remember(self) -> None:
        self.reports: dict[str, set[bytes]] = {}
        self.heads: dict[bytes, dict[str, bytes]] = {}  # by seed
        self.assents: dict[bytes, dict[str, bytes]] = {}
        self.signed_for: dict[str, set[bytes]] = {}

    def attest(self, digest: bytes, pool: dict[str, bytes], devices: list[str], strange: bool = False) -> bytes:
        """Show some consents as the certificate on a set, with a seed that fits them or not; return the seed."""
        group, order = self.rig.grouping.group, [m.name for m in self.roster.members if m.name in pool]
        draws = [(name, read(Consent, envelope.parse(pool[name]).payload).draw) for name in order]
        entry = bytes(32) if strange else attest_stage.group_entry(group, digest, draws)
        entries = [(group, entry)]
        body = Attest(certificate=[(name, pool[name]) for name in order], entries=entries, watched=True)
        seed = attest_stage.shard_seed(entries)
        heads = self.heads.setdefault(seed, {})
        heads |= {name: self.rig.say(name, REPORT, ReportHead(seed=seed, report=bytes(32))) for name in self.bad}
        message = self.publish(topics.ATTEST, write(body))
        for name in devices:
            try:
                effects = self.rig.devices[name].receive(topics.ATTEST, message)
            except PeerError:
                continue
            assert len(pool) >= self.roster.t, "a sketch without a certificate on U"
            sent = [read(Attestation, envelope.parse(e.data).payload) for e in effects if isinstance(e, Send)]
            for report in sent:
                self.reports.setdefault(name, set()).add(report.head)
                heads[name] = report.head
        return seed

    def accept(self, digest: bytes, seed: bytes, chosen: list[str], devices: list[str]) -> bytes:
        """Show a set A to some devices and keep the assents; colluders sign all they see. Return its digest."""
        known = self.heads[seed]
        body = Accept(accepted=chosen, heads=[(name, known[name]) for name in chosen if name in known])
        message = self.publish(topics.ACCEPT, write(body))
        accepted = attest_stage.accepted_digest(digest, seed, chosen)
        signed = self.assents.setdefault(accepted, {})
        signed |= {name: self.rig.say(name, topics.ACCEPT, Assent(accepted=accepted)) for name in self.bad}
        for name in devices:
            try:
                effects = self.rig.devices[name].receive(topics.ACCEPT, message)
            except PeerError:
                continue
            signed[name] = next(effect.data for effect in effects if isinstance(effect, Send))
            self.signed_for.setdefault(name, set()).add(accepted)
        return accepted

    def everything(self) -> dict[str, bytes]:
        """Return one assent of everybody who has signed any set A."""
        return {name: data for signed in self.assents.values() for name, data in signed.items()}

    @rule(data=st.data())
    def attest_anything(self, data: st.DataObject) -> None:
        """Show any consents it has, mixed as it likes, with any seed, to any device."""
        if not self.consents:
            return
        digest = data.draw(st.sampled_from(sorted(self.consents)))
        pool = dict(self.consents[digest])
        if data.draw(st.booleans()):
            pool = {**self.consents[data.draw(st.sampled_from(sorted(self.consents)))], **pool}
        for name in data.draw(st.lists(st.sampled_from(sorted(pool)), max_size=3)) if pool else []:
            pool.pop(name, None)
        devices = data.draw(st.lists(st.sampled_from(self.honest), unique=True))
        self.attest(digest, pool, devices, strange=data.draw(st.booleans()))

    @rule(data=st.data())
    def accept_anything(self, data: st.DataObject) -> None:
        """Show any set A under any seed to any device, and ask for shares with any assents."""
        if not self.heads or not self.sets:
            return
        seed, digest = data.draw(st.sampled_from(sorted(self.heads))), data.draw(st.sampled_from(sorted(self.sets)))
        left_out = data.draw(st.sets(st.sampled_from(self.rig.names), max_size=3))
        chosen = [name for name in self.sets[digest] if name not in left_out]
        devices = data.draw(st.lists(st.sampled_from(self.honest), unique=True))
        accepted = self.accept(digest, seed, chosen, devices)
        pool = self.everything() if data.draw(st.booleans()) else self.assents[accepted]
        self.ask(pool, data.draw(st.lists(st.sampled_from(self.honest), unique=True)))

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """Play by the rules as far as a set A, so that the attacks below have something to begin with."""
        order = self.members_with_vectors()
        digest = self.show(order, self.honest)
        seed = self.attest(digest, self.consents[digest], self.honest)
        left_out = data.draw(st.sets(st.sampled_from(order), max_size=2))
        chosen = [name for name in order if name in self.heads[seed] and name not in left_out]
        accepted = self.accept(digest, seed, chosen, self.honest)
        self.ask(self.assents[accepted], self.honest)

    @rule(data=st.data())
    def surround_with_sets(self, data: st.DataObject) -> None:
        """Show each device another set A, always with the victim in it, and all assents together as the certificate."""
        victim, order = data.draw(st.sampled_from(self.honest)), self.members_with_vectors()
        digest = self.show(order, self.honest)
        seed = self.attest(digest, self.consents[digest], self.honest)
        others = [name for name in order if name != victim and name in self.heads[seed]]
        if victim not in self.heads[seed] or not others:
            return
        for number, name in enumerate(self.honest):
            turned = others[number % len(others) :] + others[: number % len(others)]
            chosen = {victim, *turned[: self.roster.a_min - 1]}
            self.accept(digest, seed, [n for n in order if n in chosen], [name])
            self.ask(self.everything(), [name])

    @invariant()
    def one_seed_and_one_set_a_device(self) -> None:
        if hasattr(self, "reports"):
            assert all(len(heads) == 1 for heads in self.reports.values()), "two sketches of one update"
            assert all(len(sets) == 1 for sets in self.signed_for.values()), "two sets A for one model"


class TestNetworkModel(NetworkModel.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TestLyingServer(LyingServer.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


class TestLyingSketcher(LyingSketcher.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
