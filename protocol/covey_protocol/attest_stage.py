"""ATTEST and ACCEPT: what fixes the shard's seed, and the checks on reports and on the set A that both sides make.

The seed ρ of a shard's sketches is a digest of one entry for each group, and an entry covers the group's set U and all
r_i that its members opened with their consents. The vectors were signed before any r_i was opened, so nobody could
choose them to fit ρ. Signatures are left out: a signer can make many for one text.
"""

from __future__ import annotations

from collections.abc import Sequence

from covey_protocol import cbor, envelope, topics
from covey_protocol.certificates import check_certificate, read_consent
from covey_protocol.digest import digest
from covey_protocol.errors import RefusedError
from covey_protocol.messages import Assent, Consent, ReportHead
from covey_protocol.payload import read
from covey_protocol.roster import CheckedRoster, Member, OpenRound
from covey_protocol.sketch import SketchMatrix

REPORT = "report"
"""What a device signs inside its ATTEST message goes by a kind of its own, which is no topic."""


def group_entry(group: str, survivors: bytes, draws: Sequence[tuple[str, bytes]]) -> bytes:
    """Return a group's part in the seed: its set U, and the opened r_i by name in roster order."""
    lines = [[name, draw] for name, draw in draws]
    return digest(cbor.encode([group, survivors, lines]), person=b"covey-group-seed")


def shard_seed(entries: Sequence[tuple[str, bytes]]) -> bytes:
    """Return ρ.

    Raises:
        RefusedError: The entries are not in order, each group once.
    """
    groups = [group for group, _ in entries]
    if groups != sorted(set(groups)):
        raise RefusedError("the groups of the shard's seed are out of order, or named twice", cause="seed")
    return digest(cbor.encode([[group, entry] for group, entry in entries]), person=b"covey-shard-seed")


def drawn(seed: bytes, lot: int) -> bool:
    """Say whether groups that are not watched attest under this seed: in one round of ``lot``."""
    return int.from_bytes(digest(seed, person=b"covey-lot")[:8], "big") % lot == 0


def matrix(seed: bytes, opened: OpenRound) -> SketchMatrix:
    """Return P of a round: over the parameters alone.

    Metrics ride behind them in every vector. Their ring units are coarse, so in a sketch they would be about as long as
    the update, and much alike on all devices: directions would hardly tell devices apart.
    """
    manifest = opened.manifest
    return SketchMatrix(seed, manifest.model.bytes // 4, manifest.sketch)


def accepted_digest(survivors: bytes, seed: bytes, accepted: Sequence[str]) -> bytes:
    """Return the digest of A that members sign."""
    return digest(cbor.encode([survivors, seed, list(accepted)]), person=b"covey-accepted")


def open_draws(
    certificate: Sequence[tuple[str, bytes]], *, survivors: bytes, roster: CheckedRoster, opened: OpenRound, fleet: str
) -> list[tuple[str, bytes]]:
    """Check a certificate on U and return the r_i that its consents open.

    Returns:
        Names and r_i, in roster order.

    Raises:
        PeerError: As ``certificates.check_certificate``.
    """
    check_certificate(certificate, survivors, read_consent, roster=roster, opened=opened, fleet=fleet)
    return [(name, read(Consent, envelope.parse(data).payload).draw) for name, data in certificate]


def read_head(
    data: bytes, member: Member, *, seed: bytes, roster: CheckedRoster, opened: OpenRound, fleet: str
) -> bytes:
    """Return the digest of a member's report.

    Raises:
        SignatureError: The signature on its head does not hold.
        RefusedError: The report was made under another seed.
    """
    context = opened.context(fleet, REPORT, member.name, roster.digest)
    head = read(ReportHead, envelope.verify(opened.matches(data), context, member.key))
    if head.seed != seed:
        raise RefusedError(f"{member.name!r} has made its sketches under another seed", cause="seed")
    return head.report


def check_accepted(
    accepted: Sequence[str],
    heads: Sequence[tuple[str, bytes]],
    *,
    survivors: Sequence[str],
    attesting: bool,
    seed: bytes,
    roster: CheckedRoster,
    opened: OpenRound,
    fleet: str,
) -> None:
    """Check a set A.

    Args:
        accepted: The members to be summed.
        heads: The signed heads of their reports.
        survivors: U.
        attesting: Whether the group attests in this round; if not, A is U.
        seed: ρ.
        roster, opened, fleet: The round.

    Raises:
        RefusedError: A is too small, holds somebody outside U, or somebody who has not attested.
        SignatureError: A head's signature does not hold.
    """
    members = roster.in_order(accepted, "the set A")
    if len(members) < roster.a_min:
        raise RefusedError(f"a set of {len(members)} where a_min is {roster.a_min}", cause="a-min")
    strangers = set(accepted) - set(survivors)
    if strangers:
        raise RefusedError(f"the set A names {sorted(strangers)}, whose vectors are not in U", cause="accepted")
    if not attesting:
        if list(accepted) != list(survivors):
            raise RefusedError("nobody attested, and the set A is not U", cause="accepted")
        return
    if [name for name, _ in heads] != list(accepted):
        raise RefusedError("the set A names members without their reports' heads", cause="unattested")
    for member, (_, data) in zip(members, heads, strict=True):
        read_head(data, member, seed=seed, roster=roster, opened=opened, fleet=fleet)


def read_assent(data: bytes, member: Member, *, roster: CheckedRoster, opened: OpenRound, fleet: str) -> bytes:
    """Return the digest of the set A that a member signed.

    Raises:
        SignatureError: The signature does not hold.
    """
    context = opened.context(fleet, topics.ACCEPT, member.name, roster.digest)
    return read(Assent, envelope.verify(opened.matches(data), context, member.key)).accepted
