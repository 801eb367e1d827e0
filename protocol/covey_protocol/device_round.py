"""The device's side of a round.

Bytes in, effects out. Every message is checked completely before anything changes: a message that breaks a rule leaves
the machine where it was. What the device never does, whoever asks: share with a member it has not checked itself, sign
two sets in one round or for one model, reveal a share without a certificate of t signatures on the set it signed, or
reveal both kinds of share for one member. The round's secrets live in this object alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from nacl.signing import SigningKey
from numpy.typing import NDArray

from covey_protocol import accounting, envelope, identity, masking, prg, ring, roster, sharing, topics
from covey_protocol.attest_stage import read_assent
from covey_protocol.certificates import LEAVES, check_certificate, check_survivors, draw_commitment, read_consent
from covey_protocol.complaints import KEYS, Answers
from covey_protocol.dealing import deal, take_in
from covey_protocol.device_attestation import DeviceAttestation
from covey_protocol.digest import content_digest
from covey_protocol.effects import Effect, Note, Remember, Send
from covey_protocol.epochs import Grouping
from covey_protocol.errors import ConfigError, RefusedError, StateError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.ledger import DeviceLedger
from covey_protocol.machine import Machine
from covey_protocol.messages import (
    Abort,
    Accept,
    Answer,
    Assent,
    Attest,
    Blob,
    Close,
    Complaint,
    Complaints,
    Consent,
    Dealt,
    Decline,
    EphemeralKeys,
    Join,
    Leaves,
    Masked,
    Reveal,
    RevealedShares,
    Shares,
    Survivors,
    Unmask,
)
from covey_protocol.payload import Payload, read, write
from covey_protocol.ring import Metrics, RingScale
from covey_protocol.roster import CheckedRoster, Member, OpenRound, Trust
from covey_protocol.round_table import DEVICE_TABLE, TRAINED, DeviceStage
from covey_protocol.sealing import seal_anonymously
from covey_protocol.sketch import K_MAX, K_MIN


class DeviceRound:
    """One device in one round.

    Args:
        name: This device.
        key: Its signing key.
        chain: Its identity chain.
        trust: What enrolment gave it.
        grouping: Its place in the manifest's epoch.
        opened: The checked manifest.
        ledger: Its marks.
        entropy: Source of uniform bytes; on a device the operating system's.
    """

    clips = True  # simulated attackers do not

    def __init__(
        self,
        *,
        name: str,
        key: SigningKey,
        chain: identity.Chain,
        trust: Trust,
        grouping: Grouping,
        opened: OpenRound,
        ledger: DeviceLedger,
        entropy: Callable[[int], bytes],
    ) -> None:
        self.name, self.opened = name, opened
        self._key, self._chain, self._trust = key, chain, trust
        self._grouping, self._ledger, self._entropy = grouping, ledger, entropy
        self._machine = Machine(DEVICE_TABLE, DeviceStage.INVITED, f"round {opened.round} of {name}")
        self._secrets: masking.RoundSecrets | None = None
        self._join = b""
        self._roster: CheckedRoster | None = None
        self._own_shares: sharing.Shares | None = None
        self._leaves = b""
        self._answers: Answers | None = None
        self._dealt: tuple[Member, ...] = ()
        self._dealt_digest = b""
        self._held: dict[str, sharing.Shares] = {}
        self._masked = b""
        self._survivors: tuple[str, ...] = ()
        self._survivors_digest = b""
        self._attestation: DeviceAttestation | None = None
        self._seed = b""
        self._attesting = False
        self._head = b""
        self._summed: tuple[str, ...] = ()
        self._accepted_digest = b""
        self.closed: Close | None = None
        self.aborted: Abort | None = None

    @property
    def stage(self) -> DeviceStage:
        """What the device has done last."""
        return self._machine.state

    @property
    def finished(self) -> bool:
        """Whether the round is over for this device."""
        return self.stage in (DeviceStage.CLOSED, DeviceStage.ABORTED, DeviceStage.DECLINED)

    def join(self) -> list[Effect]:
        """Take part: make the round's keys and announce them.

        Raises:
            PeerError: The manifest asks for what this device refuses; nothing has changed.
        """
        self._machine.require(topics.JOIN)
        manifest = self.opened.manifest
        if not manifest.masking:
            raise RefusedError("this device serves masked rounds only", cause="unsupported")
        self._check_privacy()
        if manifest.sketch:
            if not K_MIN <= manifest.sketch <= K_MAX:
                raise RefusedError(f"no sketch has {manifest.sketch} numbers", cause="unsupported")
            self._ledger.check_sketch(manifest.sketch, self._trust.policy.sketch_budget)
        if manifest.epoch != self._grouping.epoch:
            raise RefusedError(
                f"the manifest uses epoch {manifest.epoch}, this device is in {self._grouping.epoch}", cause="epoch"
            )
        self._trust.successions.check_manifest(manifest.succession)
        if self._trust.successions.lacks(manifest.succession):
            raise RefusedError(f"succession {manifest.succession} of the operator's key is missing", cause="succession")
        known = self._trust.revocations
        known.check_manifest(manifest.revocations)
        known.check_named(manifest.revocations, "the manifest")
        self._trust.check_member(self.name, bytes(self._key.verify_key), identity.token_id(self._chain.token))
        self._ledger.check_round(self.opened.task, self.opened.round, self.opened.attempt)
        self._ledger.check_model(manifest.model.digest)
        self._ledger.check_exposure(self._trust.policy.exposure_max)
        sequence, remember = self._ledger.next_sequence()
        secrets = masking.RoundSecrets.from_entropy(self._entropy(masking.RoundSecrets.ENTROPY_BYTES))
        body = Join(
            manifest=self.opened.digest,
            mask_key=masking.public_key(masking.masking_key(secrets.masking)),
            share_key=masking.public_key(secrets.sharing),
            self_mask=masking.self_mask_commitment(secrets.self_mask),
            draw=draw_commitment(secrets.draw),
            sequence=sequence,
            chain=self._chain,
            revocations=known.held,
        )
        self._secrets = secrets
        self._join = self._sign(topics.JOIN, body, self._grouping.digest())
        self._machine.advance(topics.JOIN)
        joined = self._ledger.joined(self.opened.task, self.opened.round, self.opened.attempt)
        return [remember, joined, Send(topics.JOIN, self._join)]

    def _check_privacy(self) -> None:
        """Check before anything is sent that the ring has room for the noise, and the budget for sum and sketch."""
        try:
            noise = RingScale.of(self.opened.manifest).noise
        except ConfigError as error:
            raise RefusedError(str(error), cause="unsupported") from error
        if noise is not None:
            cost = accounting.round_cost(noise, sketched=bool(self.opened.manifest.sketch))
            self._ledger.privacy.check(cost, self._trust.policy)

    def receive(self, kind: str, data: bytes) -> list[Effect]:
        """Take one of the aggregator's messages.

        Raises:
            PeerError: It breaks a rule, or its stage is over; nothing has changed.
        """
        handlers = {
            topics.ROSTER: self._on_roster,
            topics.DEALT: self._on_dealt,
            topics.COMPLAINT: self._on_complaint,
            topics.SURVIVORS: self._on_survivors,
            topics.ATTEST: self._on_attest,
            topics.ACCEPT: self._on_accept,
            topics.UNMASK: self._on_unmask,
            topics.CLOSE: self._on_close,
            topics.ABORT: self._on_abort,
        }
        if kind not in handlers:
            raise RefusedError(f"{kind} is no message of a round", cause="kind")
        message = self.opened.matches(data)
        self._machine.require(kind)
        bound = self._roster.digest if self._roster else b""
        recipient = self.name if kind in topics.DOWN_KINDS else ""
        if kind in (topics.CLOSE, topics.ABORT):
            bound = b"" if kind == topics.CLOSE else self._grouping.digest()
        context = self.opened.context(self._trust.fleet, kind, AGGREGATOR, bound, recipient)
        effects = handlers[kind](envelope.verify(message, context, self._trust.aggregator_key))
        self._machine.advance(kind)
        self._forget()
        return effects

    def decline(self, cause: str, reason: str) -> list[Effect]:
        """Leave the round and say so; the secrets are forgotten and nothing more is sent.

        Args:
            cause: A fixed word.
            reason: In words, without anything secret; cut to 200 characters.

        Raises:
            StaleError: The round is over, or was never joined.
        """
        self._machine.require(topics.DECLINE)
        bound = self._roster.digest if self._roster else self._grouping.digest()
        message = self._sign(topics.DECLINE, Decline(cause=cause[:40], reason=reason[:200]), bound)
        self._machine.advance(topics.DECLINE)
        self._forget()
        return [Note(cause, f"left round {self.opened.round}: {reason}"), Send(topics.DECLINE, message)]

    def _forget(self) -> None:
        if self.finished:
            self._secrets, self._own_shares, self._answers, self._held = None, None, None, {}

    def trained(self, update: NDArray[np.float32], metrics: Metrics) -> list[Effect]:
        """Clip, round, mask and sign the update of local training.

        Args:
            update: Shape (d,): parameters after minus parameters before.
            metrics: About the incoming model; ``norm`` is filled in here.

        Raises:
            StaleError: The round is not waiting for it.
            RefusedError: The model was masked for, or the privacy budget spent, in another round since this one was
                joined.
            LocalError: The update is not finite or not of the model's size.
        """
        self._machine.require(TRAINED)
        self._ledger.check_model(self.opened.manifest.model.digest)  # another task may have masked for it since JOIN
        current, secrets = self._current(), self._round_secrets()
        manifest = self.opened.manifest
        if update.shape != (manifest.model.bytes // 4,):
            raise StateError(f"an update of shape {update.shape} for a model of {manifest.model.bytes // 4} parameters")
        bounded, factor, norm = self.clip(update)
        metrics = Metrics(loss=metrics.loss, accuracy=metrics.accuracy, samples=metrics.samples, norm=norm)
        scale = RingScale.of(manifest)
        self._check_privacy()
        vector = ring.encode(bounded, metrics, scale, self._entropy(prg.SEED_BYTES), factor, clips=self.clips)
        me = self._me()
        pairs = [
            (member.place, self._pair_seed(secrets, me, member)) for member in self._dealt if member.name != self.name
        ]
        masking.mask(vector, masking.self_mask_seed(secrets.self_mask), pairs, me.place)
        blob = vector.astype("<u2", copy=False).tobytes()
        digest = content_digest(blob)
        body = Masked(dealt=self._dealt_digest, vector=Blob(digest=digest, bytes=len(blob)))
        self._masked = self._sign(topics.MASKED, body, current.digest)
        paid: list[Remember] = []
        if scale.noise is not None:
            cost = accounting.round_cost(scale.noise, sketched=False)
            paid = self._ledger.privacy.pay(cost, self._trust.policy)
        self._machine.advance(TRAINED)
        return [
            *paid,
            self._ledger.masked(manifest.model.digest, digest),
            Send(topics.MASKED, self._masked),
            Send(topics.MASKED, blob, transfer=True),
        ]

    def clip(self, update: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, float]:
        """Return an update, the factor that brings it within the manifest's bound, and its norm before.

        Simulated attackers override this.
        """
        return update, *ring.clip_factor(update, self.opened.manifest.clip)

    def _on_roster(self, body: bytes) -> list[Effect]:
        checked = roster.check_roster(
            body,
            opened=self.opened,
            grouping=self._grouping,
            trust=self._trust,
            own=(self.name, self._join),
            sequence_of=self._ledger.peer_sequence,
        )
        self._roster = checked
        peers = [member for member in checked.members if member.name != self.name]
        dealing = deal(self._round_secrets(), self._me(), checked, self._entropy)
        self._answers, self._own_shares = Answers(self.name, dealing.ephemeral), dealing.own
        self._leaves = self._sign(LEAVES, Leaves(leaves=dealing.leaves), checked.digest)
        entries = [(name, entry.array()) for name, entry in dealing.entries.items()]
        body_out = Shares(leaves=self._leaves, entries=entries)
        marks: list[Effect] = [self._ledger.saw_peer(peer.name, peer.join.sequence) for peer in peers]
        for member in checked.members:
            marks += self._ledger.pin(member.token, self._trust.pins.pinned(member.token))
        rostered = self._ledger.rostered(self.opened.task, checked.digest)
        return [*marks, rostered, Send(topics.SHARES, self._sign(topics.SHARES, body_out, checked.digest))]

    def _on_dealt(self, body: bytes) -> list[Effect]:
        current, message = self._current(), read(Dealt, body)
        column = take_in(
            message,
            me=self._me(),
            secret=self._round_secrets().sharing,
            leaves=self._leaves,
            roster=current,
            opened=self.opened,
            fleet=self._trust.fleet,
        )
        self._dealt, self._held = column.dealers, column.shares
        self._dealt_digest = roster.dealt_digest(message.dealt)
        if not column.bad:
            return []
        complaint = self._sign(
            topics.COMPLAINT, Complaint(dealt=self._dealt_digest, dealers=list(column.bad)), current.digest
        )
        return [*(Note("bad-share", reason) for reason in column.bad.values()), Send(topics.COMPLAINT, complaint)]

    def _on_complaint(self, body: bytes) -> list[Effect]:
        """Show the aggregator the entries that peers complain of, each to its own receiver's account."""
        assert self._answers is not None
        complaints = read(Complaints, body).complaints
        keys = self._answers.answer(
            complaints,
            dealt=self._dealt_digest,
            roster=self._current(),
            opened=self.opened,
            fleet=self._trust.fleet,
        )
        signed = self._sign(KEYS, EphemeralKeys(keys=keys), self._current().digest)
        sealed = seal_anonymously(signed, self.opened.manifest.sealing_key, self._entropy(32))
        answer = self._sign(topics.ANSWER, Answer(sealed=sealed), self._current().digest)
        named = ", ".join(name for name, _ in keys)
        return [Note("complaint", f"answered a complaint of {named}"), Send(topics.ANSWER, answer)]

    def _on_survivors(self, body: bytes) -> list[Effect]:
        current = self._current()
        survivors = check_survivors(
            read(Survivors, body).survivors,
            roster=current,
            dealt=[member.name for member in self._dealt],
            dealt_digest=self._dealt_digest,
            opened=self.opened,
            fleet=self._trust.fleet,
        )
        mine = dict(read(Survivors, body).survivors).get(self.name)
        if mine is not None and mine != self._masked:
            raise RefusedError("the set U holds another vector of this device than it signed", cause="survivors")
        names = [name for name, _ in survivors]
        digest = roster.survivors_digest(self._dealt_digest, survivors)
        model = self.opened.manifest.model.digest
        if self.opened.manifest.sketch:  # what is summed is decided later
            marks = self._ledger.sign_survivors(model, digest)
        else:
            marks = self._ledger.sign_set(model, digest, *self._exposure(names))
        consent = self._sign(
            topics.SURVIVORS, Consent(survivors=digest, draw=self._round_secrets().draw), current.digest
        )
        self._survivors, self._survivors_digest, self._summed = tuple(names), digest, tuple(names)
        self._attestation = DeviceAttestation(
            self.name,
            self._grouping.group,
            self.opened,
            self._trust.fleet,
            current,
            self._survivors,
            digest,
            consent,
        )
        return [*marks, Send(topics.SURVIVORS, consent)]

    def _exposure(self, names: Sequence[str]) -> tuple[str, bytes, int]:
        members = roster.set_digest(self._grouping, names)
        return self._grouping.group, members, self._trust.policy.exposure_max

    def _on_attest(self, body: bytes) -> list[Effect]:
        manifest, attestation, secrets = self.opened.manifest, self._attested(), self._round_secrets()
        message = read(Attest, body)
        seed = attestation.seed(message)
        attesting = attestation.attests(message, seed)
        taking_part = attesting and self.name in self._survivors
        k = manifest.sketch if taking_part else 0
        scale = RingScale.of(manifest)
        if taking_part and scale.noise is not None:
            cost = accounting.round_cost(scale.noise, sketched=True) - accounting.round_cost(
                scale.noise, sketched=False
            )
            self._ledger.privacy.check(cost, self._trust.policy)
        marks = self._ledger.take_seed(manifest.model.digest, seed, k, self._trust.policy.sketch_budget)
        if taking_part and scale.noise is not None and marks:
            marks += self._ledger.privacy.pay_more(cost, self._trust.policy)
        self._seed, self._attesting = seed, attesting
        if not taking_part:
            return list(marks)
        me, bound = self._me(), self._current().digest
        report = attestation.report(
            seed,
            masking.self_mask_seed(secrets.self_mask),
            {other.name: self._pair_seed(secrets, me, other) for other in self._dealt if other.name != self.name},
            lambda kind, head: self._sign(kind, head, bound),
            self._entropy(32),
        )
        self._head = report.head
        return [*marks, Send(topics.ATTEST, self._sign(topics.ATTEST, report, bound))]

    def _on_accept(self, body: bytes) -> list[Effect]:
        message = read(Accept, body)
        digest = self._attested().accepted(message, self._seed, attesting=self._attesting, head=self._head)
        model = self.opened.manifest.model.digest
        marks = self._ledger.accept_set(model, digest, *self._exposure(message.accepted))
        self._summed, self._accepted_digest = tuple(message.accepted), digest
        return [*marks, Send(topics.ACCEPT, self._sign(topics.ACCEPT, Assent(accepted=digest), self._current().digest))]

    def _on_unmask(self, body: bytes) -> list[Effect]:
        current, certificate = self._current(), read(Unmask, body).certificate
        if self.opened.manifest.sketch and self.stage is not DeviceStage.ACCEPTED:
            raise RefusedError("no share without a certificate on the set A", cause="certificate")
        check_certificate(
            certificate,
            self._accepted_digest or self._survivors_digest,
            read_assent if self._accepted_digest else read_consent,
            roster=current,
            opened=self.opened,
            fleet=self._trust.fleet,
        )
        assert self._own_shares is not None
        held = {**self._held, self.name: self._own_shares}
        in_sum = set(self._summed)
        revealed = RevealedShares(
            self_mask=[(m.name, held[m.name].self_mask) for m in self._dealt if m.name in in_sum and m.name in held],
            masking=[(m.name, held[m.name].masking) for m in self._dealt if m.name not in in_sum and m.name in held],
        )
        sealed = seal_anonymously(write(revealed), self.opened.manifest.sealing_key, self._entropy(32))
        reveal = self._sign(topics.UNMASK, Reveal(sealed=sealed), current.digest)
        mark: Remember = self._ledger.unmasked(self.opened.task, content_digest(reveal))
        return [mark, Send(topics.UNMASK, reveal)]

    def _on_close(self, body: bytes) -> list[Effect]:
        self.closed = read(Close, body)
        return []

    def _on_abort(self, body: bytes) -> list[Effect]:
        self.aborted = read(Abort, body)
        return [Note("abort", f"group {self._grouping.group}: {self.aborted.reason}")]

    def _pair_seed(self, secrets: masking.RoundSecrets, me: Member, other: Member) -> bytes:
        return masking.pair_seed(
            masking.masking_key(secrets.masking),
            masking.PairParty(me.place, me.name, me.join.mask_key),
            masking.PairParty(other.place, other.name, other.join.mask_key),
            self.opened.pair_context(self._trust.fleet, self._current().digest),
        )

    def _sign(self, kind: str, body: Payload, bound: bytes) -> bytes:
        context = self.opened.context(self._trust.fleet, kind, self.name, bound)
        return envelope.sign(write(body), context, self._key)

    def _current(self) -> CheckedRoster:
        assert self._roster is not None
        return self._roster

    def _me(self) -> Member:
        me = self._current().member(self.name)
        assert me is not None
        return me

    def _attested(self) -> DeviceAttestation:
        if not self.opened.manifest.sketch:
            raise RefusedError("the manifest asks for no sketches", cause="unannounced")
        assert self._attestation is not None
        return self._attestation

    def _round_secrets(self) -> masking.RoundSecrets:
        assert self._secrets is not None
        return self._secrets
