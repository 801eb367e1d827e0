"""Sets of members and the signatures on them, checked alike by devices and by the aggregator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from covey_protocol import envelope, topics
from covey_protocol.digest import digest
from covey_protocol.errors import RefusedError
from covey_protocol.messages import Consent, Leaves, Masked
from covey_protocol.payload import read
from covey_protocol.roster import CheckedRoster, Member, OpenRound

LEAVES = "leaves"
"""What a dealer signs inside its SHARES message goes by a kind of its own, which is no topic."""


def check_leaves(data: bytes, dealer: Member, roster: CheckedRoster, opened: OpenRound, fleet: str) -> list[bytes]:
    """Return a dealer's leaves once its signature holds.

    Raises:
        PeerError: It does not, or the leaves do not fit the roster.
    """
    context = opened.context(fleet, LEAVES, dealer.name, roster.digest)
    leaves = read(Leaves, envelope.open_signed(data, context, dealer.key)).leaves
    if len(leaves) != len(roster):
        raise RefusedError(f"{dealer.name!r} signed {len(leaves)} leaves for a roster of {len(roster)}", cause="dealt")
    return list(leaves)


def read_masked(
    data: bytes, member: Member, *, roster: CheckedRoster, dealt_digest: bytes, opened: OpenRound, fleet: str
) -> Masked:
    """Return a member's signed MASKED message.

    Raises:
        PeerError: The signature does not hold, or the member was shown another list D than we were.
    """
    context = opened.context(fleet, topics.MASKED, member.name, roster.digest)
    masked = read(Masked, envelope.verify(opened.matches(data), context, member.key))
    if masked.dealt != dealt_digest:
        raise RefusedError(f"{member.name!r} masked over another list D", cause="dealt")
    return masked


def check_survivors(
    survivors: Sequence[tuple[str, bytes]],
    *,
    roster: CheckedRoster,
    dealt: Sequence[str],
    dealt_digest: bytes,
    opened: OpenRound,
    fleet: str,
) -> list[tuple[str, bytes]]:
    """Check a published set U.

    Returns:
        Names and vector digests, in roster order.

    Raises:
        RefusedError: U is smaller than a_min, or names somebody who did not deal.
        PeerError: A member's MASKED message does not hold.
    """
    members = roster.in_order([name for name, _ in survivors], "the set U")
    if len(members) < roster.a_min:
        raise RefusedError(f"a set of {len(members)} where a_min is {roster.a_min}", cause="a-min")
    strangers = {member.name for member in members} - set(dealt)
    if strangers:
        raise RefusedError(f"the set U names {sorted(strangers)}, who did not deal", cause="survivors")
    result = []
    for member, (_, data) in zip(members, survivors, strict=True):
        masked = read_masked(data, member, roster=roster, dealt_digest=dealt_digest, opened=opened, fleet=fleet)
        result.append((member.name, masked.vector.digest))
    return result


def draw_commitment(draw: bytes) -> bytes:
    """Return what a JOIN commits to r_i with."""
    return digest(draw, person=b"covey-draw")


def read_consent(data: bytes, member: Member, *, roster: CheckedRoster, opened: OpenRound, fleet: str) -> bytes:
    """Return the digest of the set U that a member signed.

    Raises:
        SignatureError: The signature does not hold.
        RefusedError: It opens another r_i than its JOIN committed to.
    """
    context = opened.context(fleet, topics.SURVIVORS, member.name, roster.digest)
    consent = read(Consent, envelope.verify(opened.matches(data), context, member.key))
    if draw_commitment(consent.draw) != member.join.draw:
        raise RefusedError(f"{member.name!r} opens another draw than it committed to", cause="draw")
    return consent.survivors


class Reader(Protocol):
    """Reads what a member signed: a consent to U, or an assent to A."""

    def __call__(self, data: bytes, member: Member, *, roster: CheckedRoster, opened: OpenRound, fleet: str) -> bytes:
        """Return the digest of the set."""


def check_certificate(
    certificate: Sequence[tuple[str, bytes]],
    signed: bytes,
    reader: Reader,
    *,
    roster: CheckedRoster,
    opened: OpenRound,
    fleet: str,
) -> None:
    """Check that t different members of the roster signed one set.

    Raises:
        RefusedError: They are fewer, or signed another set.
        SignatureError: A signature does not hold.
    """
    members = roster.in_order([name for name, _ in certificate], "the certificate")
    if len(members) < roster.t:
        raise RefusedError(f"a certificate of {len(members)} signatures where t is {roster.t}", cause="certificate")
    for member, (_, data) in zip(members, certificate, strict=True):
        if reader(data, member, roster=roster, opened=opened, fleet=fleet) != signed:
            raise RefusedError(f"{member.name!r} signed another set than we did", cause="certificate")
