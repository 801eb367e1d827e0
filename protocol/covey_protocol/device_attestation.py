"""The device's part in ATTEST and ACCEPT: one sketch under one seed, one signature on one set A."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from covey_protocol import attest_stage
from covey_protocol.attest_stage import REPORT
from covey_protocol.digest import content_digest
from covey_protocol.errors import RefusedError
from covey_protocol.messages import Accept, Attest, Attestation, Report, ReportHead
from covey_protocol.payload import write
from covey_protocol.roster import CheckedRoster, OpenRound
from covey_protocol.sealing import seal_anonymously


@dataclass(frozen=True)
class DeviceAttestation:
    """One device in the attestation of one round.

    Attributes:
        name, group: The device and its group.
        opened, fleet, roster: The round.
        survivors: U, in roster order.
        survivors_digest: What the device signed.
        consent: Its signed consent to U.
    """

    name: str
    group: str
    opened: OpenRound
    fleet: str
    roster: CheckedRoster
    survivors: Sequence[str]
    survivors_digest: bytes
    consent: bytes

    def seed(self, attest: Attest) -> bytes:
        """Check an ATTEST payload and return ρ.

        Raises:
            RefusedError: No certificate on U, this device's consent or this group is missing, or is another one.
            SignatureError: A signature does not hold.
        """
        draws = attest_stage.open_draws(
            attest.certificate,
            survivors=self.survivors_digest,
            roster=self.roster,
            opened=self.opened,
            fleet=self.fleet,
        )
        if dict(attest.certificate).get(self.name) != self.consent:
            raise RefusedError("the seed was made without this device's draw", cause="seed")
        mine = attest_stage.group_entry(self.group, self.survivors_digest, draws)
        if dict(attest.entries).get(self.group) != mine:
            raise RefusedError(f"the seed was made without group {self.group}, or with another set", cause="seed")
        return attest_stage.shard_seed(attest.entries)

    def attests(self, attest: Attest, seed: bytes) -> bool:
        """Say whether this group attests in this round."""
        return attest.watched or attest_stage.drawn(seed, self.opened.manifest.lot)

    def report(
        self,
        seed: bytes,
        self_mask_seed: bytes,
        pair_seeds: Mapping[str, bytes],
        sign: Callable[[str, ReportHead], bytes],
        ephemeral: bytes,
    ) -> Attestation:
        """Sketch this device's masks. Heavy: as much work again as masking.

        Args:
            seed: ρ.
            self_mask_seed: b_i.
            pair_seeds: s_ij by the other member's name.
            sign: Signs a payload as a message of a kind.
            ephemeral: 32 uniform bytes.
        """
        manifest, matrix = self.opened.manifest, attest_stage.matrix(seed, self.opened)
        sketches = matrix.of_masks([self_mask_seed, *pair_seeds.values()]).astype("<u2", copy=False)
        own, *others = (sketch.tobytes() for sketch in sketches)
        body = write(Report(own=own, pairs=list(zip(pair_seeds, others, strict=True))))
        head = sign(REPORT, ReportHead(seed=seed, report=content_digest(body)))
        return Attestation(head=head, sealed=seal_anonymously(body, manifest.sealing_key, ephemeral))

    def accepted(self, accept: Accept, seed: bytes, *, attesting: bool, head: bytes) -> bytes:
        """Check an ACCEPT payload and return the digest of A.

        Args:
            accept: The payload.
            seed: ρ.
            attesting: Whether the group attests.
            head: The signed head of this device's own report, if it made one.

        Raises:
            PeerError: As ``attest_stage.check_accepted``.
            RefusedError: A holds another report of this device than it made.
        """
        attest_stage.check_accepted(
            accept.accepted,
            accept.heads,
            survivors=self.survivors,
            attesting=attesting,
            seed=seed,
            roster=self.roster,
            opened=self.opened,
            fleet=self.fleet,
        )
        if dict(accept.heads).get(self.name, head) != head:
            raise RefusedError("the set A holds another report of this device than it made", cause="accepted")
        return attest_stage.accepted_digest(self.survivors_digest, seed, accept.accepted)
