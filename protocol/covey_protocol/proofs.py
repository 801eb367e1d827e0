"""Proofs that a device lied, for whoever has the operator's public key and the fleet's name, and nothing else.

A proof is one CBOR document: the round as the accused has signed for it (``proof_round``), and what it said there next
to what shows that it is false. Nothing in it has to be believed: neither the aggregator that made it, nor peers that
may be in league with it. What shows a lie follows from keys, commitments and entries that the accused has signed for
before it spoke, and an honest device says nothing that contradicts them; so there is no proof against one.

=================  =====================================================================================================
lie                what shows it
=================  =====================================================================================================
self-mask          its JOIN commits to the seed b_i, and the sketch of PRG(b_i) under the seed ρ that it signed is
                   another one than it reported
pair-mask          the JOIN of one end of the pair holds the public key of the masking secret that is shown; the mask's
                   sketch under ρ is another one than the accused reported
bad-share          the entry that it signed a leaf for, opened with the key that it signed in answer to a complaint, is
                   of no use to its receiver
wrong-secret       t shares that it committed to restore another secret than its JOIN holds
false-complaint    it complained of an entry, fixed by the list D that it signed with the complaint, that opens to good
                   shares
second-signature   it signed two different things of one kind in one round: sets U, sets A, reports or vectors
=================  =====================================================================================================

Two joins with one sequence number are none: a disk that was put back, or copied, signs them too.

A proof discloses what it shows: at most the masking secret of one member, or the seed of one self-mask, of one round,
and one report. ``docs/threat-model.md`` says why this unmasks no update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from covey_protocol import proof_checks as checks
from covey_protocol.errors import RefusedError
from covey_protocol.identity import NO_FORMER, Former
from covey_protocol.proof_forms import (
    BadShare,
    FalseComplaint,
    FalsePairMask,
    FalseSelfMask,
    Lie,
    SecondSignature,
    WrongSecret,
    read_proof,
)
from covey_protocol.proof_round import CheckedRound, check_round


@dataclass(frozen=True)
class Verdict:
    """What a proof shows.

    Attributes:
        device, key, token: Who lied; the key signed it, the token is its slot in the fleet.
        lie: Which kind of lie.
        words: About what, in words.
        fleet, task, round, attempt: Where.
    """

    device: str
    key: bytes
    token: bytes
    lie: str
    words: str
    fleet: str
    task: str
    round: int
    attempt: int


_CHECKS: dict[type[Lie], Callable[[str, Any, CheckedRound], str]] = {
    FalseSelfMask: checks.self_mask,
    FalsePairMask: checks.pair_mask,
    BadShare: checks.bad_share,
    WrongSecret: checks.wrong_secret,
    FalseComplaint: checks.false_complaint,
    SecondSignature: checks.second_signature,
}


def verify(data: bytes, *, operator_key: bytes, fleet: str, former: Former = NO_FORMER) -> Verdict:
    """Check a proof. Takes about as long as masking one vector of the round's model.

    Args:
        data: The document.
        operator_key: The fleet's anchor, from a source that the reader trusts.
        fleet: The fleet's name.
        former: Keys that were the anchor before; who was invited under one of them is still there.

    Raises:
        PeerError: It does not show what it claims; the message names what does not hold.
    """
    proof = read_proof(data)
    if proof.fleet != fleet:
        raise RefusedError(f"the proof is about fleet {proof.fleet!r}, not {fleet!r}", cause="proof-fleet")
    place = check_round(proof.round, proof.names(), operator_key=operator_key, fleet=fleet, former=former)
    words = _CHECKS[type(proof.lie)](proof.device, proof.lie, place)
    accused = place.member(proof.device)
    return Verdict(
        device=accused.name,
        key=accused.key,
        token=accused.token,
        lie=str(type(proof.lie).__struct_config__.tag),
        words=words,
        fleet=fleet,
        task=proof.round.task,
        round=proof.round.round,
        attempt=proof.round.attempt,
    )
