"""Devices that break the protocol itself: they lie about sketches, deal bad shares, or fall silent where it hurts.

Each is the protocol's own device but for one step, and signs its lies with its own key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from covey_protocol import cbor, envelope, shamir, topics
from covey_protocol.bundle import Float32
from covey_protocol.certificates import LEAVES
from covey_protocol.device_attestation import DeviceAttestation
from covey_protocol.device_round import DeviceRound
from covey_protocol.digest import digest
from covey_protocol.effects import Effect, Send
from covey_protocol.messages import Attestation, Leaves, ReportHead, Shares
from covey_protocol.payload import read
from covey_protocol.sharing import Entry
from covey_simulator.attack_kinds import AttackKind
from covey_simulator.attack_settings import Attack


def unclipped(update: Float32, clip: float) -> tuple[Float32, float]:
    """Return an update whose coordinates alone are bounded, and its norm.

    Clipping is a device's own act, which nobody can see under a mask, so a poisoner leaves it out. What bounds it is
    the ring: no coordinate can be larger than the clip, or the group's sum would give the attack away.
    """
    return np.clip(update, -clip, clip), float(np.linalg.norm(update))


class UnclippedRound(DeviceRound):
    """A poisoner's round: an honest one but for the clip."""

    clips = False

    def clip(self, update: Float32) -> tuple[Float32, float, float]:
        """Return the update as it is, as far as the ring can hold it."""
        bounded, norm = unclipped(update, self.opened.manifest.clip)
        return bounded, 1.0, norm


class HostileRound(DeviceRound):
    """A round of a device that breaks the protocol from some round on.

    Attributes:
        attack: What it does.
        accomplices: The names of all malicious devices.
    """

    attack: Attack
    accomplices: frozenset[str]

    @property
    def _begun(self) -> bool:
        return self.opened.round >= self.attack.start_round


class AttestationLiar(HostileRound):
    """Reports the sketch of another mask than it used.

    What the aggregator takes for the sketch of its update is then shifted, by as much as the lie is off. With manner
    ``own`` the lie is about its self-mask: nobody contradicts it until that mask is unmasked. With ``pair`` it is about
    the mask with one honest peer, who contradicts it. With ``together`` it is about the masks with all accomplices,
    who tell the same: nobody contradicts them, and what one gains the other loses.
    """

    def _on_survivors(self, body: bytes) -> list[Effect]:
        effects = super()._on_survivors(body)
        if self._begun and self._attestation is not None:
            fields = [field.name for field in dataclasses.fields(DeviceAttestation)]
            self._attestation = _LyingAttestation(
                **{name: getattr(self._attestation, name) for name in fields},
                manner=self.attack.manner or "",
                accomplices=self.accomplices,
            )
        return effects


@dataclasses.dataclass(frozen=True)
class _LyingAttestation(DeviceAttestation):
    manner: str
    accomplices: frozenset[str]

    def report(
        self,
        seed: bytes,
        self_mask_seed: bytes,
        pair_seeds: Mapping[str, bytes],
        sign: Callable[[str, ReportHead], bytes],
        ephemeral: bytes,
    ) -> Attestation:
        """Sketch masks of which some are made up."""
        friends = [name for name in pair_seeds if name in self.accomplices]
        strangers = [name for name in pair_seeds if name not in self.accomplices]
        lies = {"own": [self.name], "pair": strangers[:1], "together": friends}[self.manner]
        made_up = {name: made_up_mask(seed, self.name, name) for name in lies}
        pairs = {name: made_up.get(name, true) for name, true in pair_seeds.items()}
        return super().report(seed, made_up.get(self.name, self_mask_seed), pairs, sign, ephemeral)


class SharePoisoner(HostileRound):
    """Deals shares that will not do (the misbehaving clients of Bell et al. 2020, "Secure single-server aggregation").

    With manner ``garbled`` one peer's share cannot be opened: that peer complains, and its proof is the dealer's own
    signature. With ``wrong-secret`` all shares are sound, of another self-mask than was used: what they
    make up does not match the commitment in the dealer's JOIN, and the group has no sum.
    """

    def _on_roster(self, body: bytes) -> list[Effect]:
        if not self._begun:
            return super()._on_roster(body)
        if self.attack.manner == "wrong-secret":
            secrets = self._round_secrets()
            other = shamir.scalar(self._entropy(shamir.ENTROPY_BYTES))
            self._secrets = dataclasses.replace(secrets, self_mask=other)
            effects = super()._on_roster(body)
            self._secrets = secrets
            return effects
        *marks, sent = super()._on_roster(body)
        assert isinstance(sent, Send)
        bound = self._current().digest
        dealt = read(Shares, envelope.parse(sent.data).payload)
        (victim, array), *others = dealt.entries
        garbled = Entry(bytes([array[0][0] ^ 1]) + array[0][1:], *array[1:])
        leaves = read(Leaves, envelope.parse(dealt.leaves).payload).leaves
        place = next(member.place for member in self._current().members if member.name == victim)
        leaves[place] = garbled.leaf()
        self._leaves = self._sign(LEAVES, Leaves(leaves=leaves), bound)
        message = Shares(leaves=self._leaves, entries=[(victim, garbled.array()), *others])
        return [*marks, Send(topics.SHARES, self._sign(topics.SHARES, message, bound))]


class SketchWithholder(HostileRound):
    """Sends a masked vector and then no sketch of it."""

    def _on_attest(self, body: bytes) -> list[Effect]:
        return _silently(super()._on_attest(body)) if self._begun else super()._on_attest(body)


class UnmaskRefuser(HostileRound):
    """Agrees to a set and then reveals no share for it, so that others have to do."""

    def _on_unmask(self, body: bytes) -> list[Effect]:
        return _silently(super()._on_unmask(body)) if self._begun else super()._on_unmask(body)


def made_up_mask(seed: bytes, one: str, other: str) -> bytes:
    """Return a mask's seed that two liars agree on without a word."""
    return digest(cbor.encode([seed, *sorted({one, other})]), person=b"covey-lie")


def _silently(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Send)]


ROUNDS: dict[AttackKind, type[HostileRound]] = {
    "attestation-liar": AttestationLiar,
    "share-poisoner": SharePoisoner,
    "sketch-withholder": SketchWithholder,
    "unmask-refuser": UnmaskRefuser,
}


def round_class(attack: Attack, accomplices: frozenset[str]) -> type[DeviceRound]:
    """Return the rounds of a malicious device.

    Args:
        attack: What it does.
        accomplices: The names of all malicious devices.
    """
    base = DeviceRound if attack.stock else UnclippedRound
    if attack.kind not in ROUNDS:
        return base
    hostile = ROUNDS[attack.kind]
    return type(hostile.__name__, (hostile, base), {"attack": attack, "accomplices": accomplices})
