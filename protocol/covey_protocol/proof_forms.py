"""The forms that a proof can have; what each has to show stands in ``proof_checks``, the whole in ``proofs``."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from covey_protocol.envelope import MAX_ENVELOPE_BYTES
from covey_protocol.errors import RefusedError
from covey_protocol.messages import EntryArray, Signed
from covey_protocol.payload import Digest, Key, Name, Payload, prepare, read, write
from covey_protocol.proof_round import ProofRound
from covey_protocol.thresholds import ROSTER_MAX

MAX_PROOF_BYTES = MAX_ENVELOPE_BYTES
VERSION: Literal[1] = 1
SignedOnce: TypeAlias = Literal["survivors", "accept", "report", "masked"]
_Report = Annotated[bytes, msgspec.Meta(max_length=16 * 1024)]


class FalseSelfMask(Payload, frozen=True, kw_only=True, tag="self-mask", tag_field="lie"):
    """A false sketch of a self-mask: the signed head, the report, and b_i."""

    head: Signed
    report: _Report
    seed: Key


class FalsePairMask(Payload, frozen=True, kw_only=True, tag="pair-mask", tag_field="lie"):
    """A false sketch of the mask with ``peer``: the signed head, the report, and one end's masking secret z."""

    head: Signed
    report: _Report
    peer: Name
    secret: Key


class BadShare(Payload, frozen=True, kw_only=True, tag="bad-share", tag_field="lie"):
    """An entry of no use: the dealer's signed leaves, the entry, and the keys that it says to have made it with."""

    leaves: Signed
    receiver: Name
    entry: EntryArray
    answer: Signed


class CommittedShare(Payload, frozen=True, kw_only=True):
    """One share as a receiver revealed it, with the entry that holds its commitment."""

    receiver: Name
    entry: EntryArray
    share: Key


class WrongSecret(Payload, frozen=True, kw_only=True, tag="wrong-secret", tag_field="lie"):
    """Shares of another secret than was published: the dealer's signed leaves, and t shares."""

    leaves: Signed
    which: Literal["masking", "self-mask"]
    shares: Annotated[list[CommittedShare], msgspec.Meta(max_length=ROSTER_MAX)]


class FalseComplaint(Payload, frozen=True, kw_only=True, tag="false-complaint", tag_field="lie"):
    """A complaint of a good entry: the complaint, the list D by digests, and all that is needed to open the entry.

    The ephemeral key is in its clamped form, so that there is only one.
    """

    complaint: Signed
    dealt: Annotated[list[tuple[Name, Digest]], msgspec.Meta(max_length=ROSTER_MAX)]
    dealer: Name
    leaves: Signed
    entry: EntryArray
    ephemeral: Key


class SecondSignature(Payload, frozen=True, kw_only=True, tag="second-signature", tag_field="lie"):
    """Two things of a kind, of which an honest device signs one a round; the lesser payload first."""

    kind: SignedOnce
    first: Signed
    second: Signed


Lie: TypeAlias = FalseSelfMask | FalsePairMask | BadShare | WrongSecret | FalseComplaint | SecondSignature


class Proof(Payload, frozen=True, kw_only=True):
    """A proof against ``device``."""

    version: Literal[1]
    fleet: Name
    device: Name
    round: ProofRound
    lie: Lie

    def names(self) -> frozenset[str]:
        """Return the members whose joins matter."""
        lie = self.lie
        others = {
            *((lie.peer,) if isinstance(lie, FalsePairMask) else ()),
            *((lie.receiver,) if isinstance(lie, BadShare) else ()),
            *((lie.dealer,) if isinstance(lie, FalseComplaint) else ()),
            *((share.receiver for share in lie.shares) if isinstance(lie, WrongSecret) else ()),
        }
        return frozenset({self.device, *others})


def read_proof(data: bytes) -> Proof:
    """Read a proof without believing it.

    Raises:
        MalformedError: It is none.
        RefusedError: It holds something that this version does not know.
    """
    proof = read(Proof, data, max_bytes=MAX_PROOF_BYTES)
    if write(proof) != data:
        raise RefusedError("the proof holds fields that no proof has", cause="proof-form")
    return proof


prepare(globals())
