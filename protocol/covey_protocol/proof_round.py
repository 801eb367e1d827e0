"""The round that a proof is about, as far as the accused device has signed for it itself.

Whatever a device signs in a round is signed over its roster's digest, and an honest device signs nothing over a roster
that does not hold its own JOIN, or that was made for another manifest than its own. So one of its later signatures
vouches for the roster, and the roster for all joins in it and for the manifest, by digest: nothing here has to be
believed because the aggregator says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from covey_protocol import envelope, identity, masking, topics
from covey_protocol.errors import RefusedError
from covey_protocol.identity import NO_FORMER, Former
from covey_protocol.masking import PairParty
from covey_protocol.messages import Join, Manifest, Roster
from covey_protocol.payload import Count, Digest, Payload, prepare, read
from covey_protocol.roster import CheckedRoster, Member, OpenRound, manifest_digest, roster_digest

Body = Annotated[bytes, msgspec.Meta(max_length=256 * 1024)]
TaskName = Annotated[str, msgspec.Meta(max_length=63)]


class ProofRound(Payload, frozen=True, kw_only=True):
    """Where something was signed.

    Attributes:
        task, round, attempt: Which round it was.
        grouping: Digest of the group as the epoch drew it, over which joins are signed.
        manifest: The payload of OPEN.
        roster: The payload of ROSTER.
    """

    task: TaskName
    round: Count
    attempt: Count
    grouping: Digest
    manifest: Body
    roster: Body


@dataclass(frozen=True)
class CheckedRound:
    """A round whose parts fit together; who vouches for it is checked with the accused's own signature.

    Attributes:
        fleet, operator_key: Whose.
        opened: The manifest and where it stands.
        roster: The members that the proof needs, at their places; the others' joins are not looked at.
        names: Everybody on it, in order.
    """

    fleet: str
    operator_key: bytes
    opened: OpenRound
    roster: CheckedRoster
    names: tuple[str, ...]

    def member(self, name: str) -> Member:
        """Return a member whose join was checked.

        Raises:
            RefusedError: It is not on the roster.
        """
        member = self.roster.member(name)
        if member is None:
            raise RefusedError(f"{name!r} is not on the roster of the proof", cause="proof-roster")
        return member

    def place(self, name: str) -> int:
        """Return a member's place; errors as ``member``."""
        return self.member(name).place

    def party(self, name: str) -> PairParty:
        """Return one end of a pair; errors as ``member``."""
        member = self.member(name)
        return PairParty(member.place, member.name, member.join.mask_key)

    def signed(self, data: bytes, kind: str, member: Member) -> bytes:
        """Return the payload of something that a member signed in this round.

        Raises:
            PeerError: It did not.
        """
        context = self.opened.context(self.fleet, kind, member.name, self.roster.digest)
        return envelope.verify(self.opened.matches(data), context, member.key)


def check_round(
    place: ProofRound, names: frozenset[str], *, operator_key: bytes, fleet: str, former: Former = NO_FORMER
) -> CheckedRound:
    """Check that manifest, roster and the joins of some members belong together and to these members.

    Args:
        place: The round.
        names: The members whose joins matter.
        operator_key, fleet, former: What the identity chains have to lead to.

    Raises:
        PeerError: Naming what does not hold.
    """
    manifest, roster = read(Manifest, place.manifest), read(Roster, place.roster)
    digest = manifest_digest(place.manifest)
    opened = OpenRound(place.task, place.round, place.attempt, manifest, digest, place.manifest)
    if roster.manifest != opened.digest:
        raise RefusedError("the roster of the proof was made for another manifest", cause="proof-manifest")
    on_it = [name for name, _ in roster.joins]
    if len(set(on_it)) < len(on_it):
        raise RefusedError("the roster of the proof names a member twice", cause="proof-roster")
    members = tuple(
        _check_join(data, name, at, opened, place.grouping, operator_key=operator_key, fleet=fleet, former=former)
        for at, (name, data) in enumerate(roster.joins)
        if name in names
    )
    checked = CheckedRoster(members, roster_digest(place.roster), roster.t, roster.a_min)
    return CheckedRound(fleet, operator_key, opened, checked, tuple(on_it))


def _check_join(
    data: bytes,
    name: str,
    at: int,
    opened: OpenRound,
    grouping: bytes,
    *,
    operator_key: bytes,
    fleet: str,
    former: Former,
) -> Member:
    message = opened.matches(data)
    join = read(Join, message.payload)
    who = identity.verify_chain(join.chain, operator_key=operator_key, fleet=fleet, device=name, former=former)
    envelope.verify(message, opened.context(fleet, topics.JOIN, name, grouping), who.key)
    masking.check_public_key(join.mask_key, f"masking key of {name!r}")
    return Member(at, name, who.key, who.token, join)


prepare(globals())
