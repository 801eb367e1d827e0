"""Finding the devices that sign two things where they may sign one."""

from __future__ import annotations

from covey_protocol import envelope, topics
from covey_protocol.errors import PeerError
from covey_protocol.identity import NO_FORMER, Former
from covey_protocol.messages import Attestation
from covey_protocol.payload import read
from covey_protocol.proof_forms import SignedOnce
from covey_protocol.proofs import verify
from covey_protocol.proving import Prover

_ONCE: dict[str, SignedOnce] = {
    topics.MASKED: "masked",
    topics.SURVIVORS: "survivors",
    topics.ATTEST: "report",
    topics.ACCEPT: "accept",
}


def proof_of_two(
    kind: str, name: str, first: bytes, data: bytes, *, prover: Prover, operator_key: bytes, former: Former = NO_FORMER
) -> bytes:
    """Return the proof that a member has signed two different things, or nothing if it has not.

    Args:
        kind: The topic's kind.
        name: Who sent both.
        first: What it has signed before: its message, or of an ATTEST the signed head.
        data: The message that came now; nothing in it has been checked.
        prover: Writes proofs about the member's group.
        operator_key, former: The fleet's anchors: the proof is checked as anybody else would check it.
    """
    try:
        signed = read(Attestation, envelope.parse(data).payload).head if kind == topics.ATTEST else data
        if signed == first:
            return b""
        proof = prover.of_signatures(name, _ONCE[kind], first, signed)
        verify(proof, operator_key=operator_key, fleet=prover.fleet, former=former)
    except PeerError:
        return b""
    return proof
