"""Rosters: what both sides check about a round's members, and the digests that later signatures build on.

A roster is a group's joins as they were signed. Whoever uses one checks every member by itself: identity chain up to
the operator, key as in the epoch's list, order as in the grouping, one slot a token, fresh sequence number, the same
manifest as one's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from covey_protocol import cbor, envelope, identity, masking, topics
from covey_protocol.digest import content_digest, digest, short
from covey_protocol.envelope import Context
from covey_protocol.epochs import Grouping
from covey_protocol.errors import RefusedError, StaleError
from covey_protocol.identity import AGGREGATOR, Chain, DeviceIdentity, PinnedKeys
from covey_protocol.messages import Join, Manifest, Roster
from covey_protocol.payload import read
from covey_protocol.policy import Policy
from covey_protocol.revocation import Revocation, Revocations
from covey_protocol.succession import Successions
from covey_protocol.thresholds import accepted_min, threshold

PAIR = "pair"


@dataclass
class Trust:
    """What a device or an aggregator takes for granted: the outcome of enrolment and the operator's newer words.

    All of one side's checks share one object, so that a newer word counts everywhere from the moment it is taken.

    Attributes:
        fleet: Fleet name.
        operator_key: Ed25519 public key at the root of all chains.
        aggregator_key: The delegated Ed25519 public key; see ``warrants``.
        policy: The operator's floors; see there.
        pins: Tokens and the keys they were seen with.
        revocations: What is known of the operator's revocation list.
        successions: What is known of the operator's keys of before.
    """

    fleet: str
    operator_key: bytes
    aggregator_key: bytes
    policy: Policy
    pins: PinnedKeys
    revocations: Revocations = field(default_factory=Revocations)
    successions: Successions = field(default_factory=Successions)

    def identify(self, chain: Chain, device: str, now: int | None = None) -> DeviceIdentity:
        """Follow a chain up to the operator's key, or to one of before where that counts; as ``verify_chain``."""
        return identity.verify_chain(
            chain,
            operator_key=self.operator_key,
            fleet=self.fleet,
            device=device,
            now=now,
            former=self.successions.former,
        )

    def revoked(self, key: bytes, *tokens: bytes) -> Revocation | None:
        """Return the entry of the revocation list that a device falls under, if there is one.

        Args:
            key: Its key; the tokens that it was seen with count too.
            tokens: Its token, where it is shown now.
        """
        return self.revocations.find(key, [*tokens, *self.pins.tokens_of(key)])

    def check_member(self, name: str, key: bytes, *tokens: bytes) -> None:
        """Refuse a device that the operator has revoked; arguments as in ``revoked``.

        Raises:
            RefusedError: Its key or one of its tokens is on the list.
        """
        found = self.revoked(key, *tokens)
        if found is not None:
            raise RefusedError(
                f"{name!r} was revoked ({found.reason}), says list {self.revocations.held}", cause="revoked"
            )


@dataclass(frozen=True)
class OpenRound:
    """A manifest and where it stands; ``digest`` is that of ``body``, the payload of OPEN as it was published."""

    task: str
    round: int
    attempt: int
    manifest: Manifest
    digest: bytes
    body: bytes = field(default=b"", repr=False)

    def context(self, fleet: str, kind: str, sender: str, roster: bytes = b"", recipient: str = "") -> Context:
        """Return the signing context of one of this round's messages."""
        return Context(
            fleet=fleet,
            kind=kind,
            sender=sender,
            recipient=recipient,
            task=self.task,
            round=self.round,
            attempt=self.attempt,
            roster=roster,
        )

    def pair_context(self, fleet: str, roster: bytes) -> bytes:
        """Return the encoded context that the seeds of pairwise masks are derived in."""
        return self.context(fleet, PAIR, "", roster).encoded()

    def matches(self, data: bytes) -> envelope.Envelope:
        """Parse a message of this round.

        Raises:
            MalformedError: It is no signed message.
            StaleError: Its header names another task, round or attempt.
        """
        message = envelope.parse(data)
        place = (message.task, message.round, message.attempt)
        if place != (self.task, self.round, self.attempt):
            raise StaleError(
                f"message for task {message.task!r}, round {message.round}.{message.attempt}; "
                f"open is {self.task!r}, {self.round}.{self.attempt}",
                cause="wrong-round",
            )
        return message


def read_open(data: bytes, task: str, trust: Trust) -> OpenRound:
    """Read and check an OPEN message.

    Raises:
        PeerError: It is malformed, not signed by the aggregator, or below the operator's policy.
    """
    message = envelope.parse(data)
    place = Context(
        fleet=trust.fleet,
        kind=topics.OPEN,
        sender=AGGREGATOR,
        task=task,
        round=message.round,
        attempt=message.attempt,
    )
    body = envelope.verify(message, place, trust.aggregator_key)
    manifest = read(Manifest, body)
    trust.policy.check(manifest)
    return OpenRound(task, message.round, message.attempt, manifest, manifest_digest(body), body)


def manifest_digest(body: bytes) -> bytes:
    """Return the digest of an OPEN payload, to which joins and rosters are bound."""
    return digest(body, person=b"covey-manifest")


@dataclass(frozen=True)
class Member:
    """A checked member of a roster; ``place`` counts from 0, ``former`` are the keys that it had before."""

    place: int
    name: str
    key: bytes
    token: bytes
    join: Join
    former: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class CheckedRoster:
    """A roster that holds; ``digest`` is what all later signatures of the round are bound to."""

    members: tuple[Member, ...]
    digest: bytes
    t: int
    a_min: int

    def __len__(self) -> int:
        return len(self.members)

    def member(self, name: str) -> Member | None:
        """Return the member of that name."""
        return next((member for member in self.members if member.name == name), None)

    def in_order(self, names: Sequence[str], what: str) -> list[Member]:
        """Return the members of a list of names.

        Raises:
            RefusedError: A name is not on the roster, stands twice or out of order.
        """
        found = [self.member(name) for name in names]
        members = [member for member in found if member is not None]
        places = [member.place for member in members]
        if len(members) != len(names) or places != sorted(set(places)):
            raise RefusedError(f"{what} names strangers, or members twice or out of order", cause="roster")
        return members


def check_join(data: bytes, name: str, place: int, *, opened: OpenRound, grouping: Grouping, trust: Trust) -> Member:
    """Check one signed JOIN.

    Raises:
        PeerError: Naming the member and what does not hold.
    """
    keys = dict(grouping.members)
    message = opened.matches(data)
    join = read(Join, message.payload)
    who = trust.identify(join.chain, name)
    if keys.get(name) not in who.keys:  # it may have changed its key since the epoch began
        raise RefusedError(f"{name!r} joined with a key that is not the epoch's", cause="key")
    trust.pins.check(who)
    trust.check_member(name, who.key, who.token)
    envelope.verify(message, opened.context(trust.fleet, topics.JOIN, name, grouping.digest()), who.key)
    if join.manifest != opened.digest:
        raise RefusedError(
            f"{name!r} was shown manifest {short(join.manifest)}, we were shown {short(opened.digest)}",
            cause="manifest",
        )
    if join.revocations < opened.manifest.revocations:
        raise RefusedError(
            f"{name!r} joined with revocation list {join.revocations}; "
            f"the manifest names {opened.manifest.revocations}",
            cause="revocations",
        )
    trust.revocations.check_named(join.revocations, f"the join of {name!r}")
    masking.check_public_key(join.mask_key, f"masking key of {name!r}")
    masking.check_public_key(join.share_key, f"sharing key of {name!r}")
    return Member(place, name, who.key, who.token, join, who.former)


def check_sequences(members: Sequence[Member], last_seen: Callable[[str], int]) -> None:
    """Refuse a member whose join sequence does not go up: a restored disk would reuse its masks.

    Raises:
        RefusedError: Naming the member.
    """
    for member in members:
        if member.join.sequence <= last_seen(member.name):
            raise RefusedError(
                f"join sequence of {member.name!r} went back to {member.join.sequence}", cause="sequence"
            )


def roster_digest(body: bytes) -> bytes:
    """Return the digest of a ROSTER payload."""
    return digest(body, person=b"covey-roster")


def required(n: int, policy: Policy, a_min: int = 0) -> tuple[int, int]:
    """Return t and a_min for a roster of n under a policy, and under what the manifest says of a_min."""
    return max(threshold(n), policy.t_min), max(accepted_min(n), policy.a_min, a_min)


def check_roster(
    body: bytes,
    *,
    opened: OpenRound,
    grouping: Grouping,
    trust: Trust,
    own: tuple[str, bytes],
    sequence_of: Callable[[str], int],
) -> CheckedRoster:
    """Check a ROSTER payload as one of its members.

    Args:
        body: The payload, its envelope already verified.
        opened: The round.
        grouping: This device's place in the epoch.
        trust: See there.
        own: This device's name and the JOIN message it sent.
        sequence_of: The last join sequence seen from a member.

    Raises:
        PeerError: Naming the member and what does not hold.
    """
    roster = read(Roster, body)
    if roster.manifest != opened.digest:
        raise RefusedError("the roster was made for another manifest", cause="manifest")
    trust.successions.check_manifest(opened.manifest.succession)  # one may have come since this device joined
    n, limits = len(roster.joins), opened.manifest
    fewest = max(limits.n_min, trust.policy.roster_min, limits.a_min)
    if not fewest <= n <= limits.n_max:
        raise RefusedError(f"a roster of {n} where {fewest} to {limits.n_max} are allowed", cause="roster")
    t, a_min = required(n, trust.policy, limits.a_min)
    if (roster.t, roster.a_min) != (t, a_min):
        raise RefusedError(
            f"thresholds t={roster.t}, a_min={roster.a_min} where {n} members need {t} and {a_min}", cause="roster"
        )
    names = [name for name, _ in roster.joins]
    places = {name: place for place, (name, _) in enumerate(grouping.members)}
    if any(name not in places for name in names):
        raise RefusedError("the roster names somebody from outside this group", cause="roster")
    if names != sorted(set(names), key=places.__getitem__):
        raise RefusedError("the roster is not in the grouping's order, or repeats a member", cause="roster")
    if own[0] not in names:
        raise RefusedError("the roster was closed before this device's join had come", cause="roster")
    if dict(roster.joins)[own[0]] != own[1]:
        raise RefusedError("the roster holds another join of this device than the one it sent", cause="roster")
    members = [
        check_join(data, name, place, opened=opened, grouping=grouping, trust=trust)
        for place, (name, data) in enumerate(roster.joins)
    ]
    if len({member.token for member in members}) != n:
        raise RefusedError("two members of the roster hold the same token", cause="same-token")
    check_sequences([member for member in members if member.name != own[0]], sequence_of)
    for member in members:
        trust.pins.pin(identity.DeviceIdentity(member.name, member.key, member.token, "", member.former))
    return CheckedRoster(tuple(members), roster_digest(body), t, a_min)


def dealt_digest(dealt: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the digest of the list D with everybody's signed leaves."""
    return dealt_lines_digest([(name, content_digest(leaves)) for name, leaves in dealt])


def dealt_lines_digest(lines: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the digest of the list D from the digests of everybody's signed leaves."""
    return digest(cbor.encode([[name, leaves] for name, leaves in lines]), person=b"covey-dealt")


def survivors_digest(dealt: bytes, survivors: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the digest of U that members sign: the list D and every survivor's vector digest."""
    lines = [[name, vector] for name, vector in survivors]
    return digest(cbor.encode([dealt, lines]), person=b"covey-survivors")


def set_digest(grouping: Grouping, names: Sequence[str]) -> bytes:
    """Return the digest of a set of members, by which distinct sums over a group are counted."""
    return digest(cbor.encode([grouping.group, list(names)]), person=b"covey-set")
