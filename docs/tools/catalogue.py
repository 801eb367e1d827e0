"""Every message of the protocol: where it travels, what it carries, what its signature is bound to.

The reference in ``docs/protocol.md`` and ``docs/asyncapi.yaml`` are made from this list; tests hold the list to the
code's own kinds, payload classes and bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from covey_protocol import topics
from covey_protocol.identity import Delegation
from covey_protocol.messages import (
    Abort,
    Accept,
    Alert,
    Answer,
    Assent,
    Attest,
    Attestation,
    Close,
    Commitment,
    Commitments,
    Complaint,
    Complaints,
    Consent,
    Dealt,
    Decline,
    EphemeralKeys,
    EpochList,
    Groups,
    Have,
    IssuedCertificate,
    Join,
    Manifest,
    Masked,
    Opening,
    Recall,
    Refused,
    Renew,
    Report,
    Reveal,
    RevealedShares,
    RevocationHead,
    Roster,
    Shares,
    State,
    Survivors,
    TimeSignal,
    Unmask,
    Want,
)
from covey_protocol.payload import Payload
from covey_protocol.policy import Policy
from covey_protocol.succession import Succession

Way = Literal["up", "down", "pub"]

NOTHING = "nothing"
LIST = "the epoch's list"
COMMITMENTS = "list and commitments"
GROUPING = "the grouping"
ROSTER = "the roster"
EITHER = "the roster, or of the grouping before there is one"


@dataclass(frozen=True)
class Entry:
    """One kind of message on one kind of topic.

    Attributes:
        way: Which side speaks, and to whom.
        kind: The kind in the topic.
        payload: What the envelope holds; None for pieces of blobs, which carry no signature.
        bound: What the ``roster`` field of the signed context is the digest of.
        about: What it says, in one sentence.
        id: The last level of the topic, if it has one.
        place: What the context's task, round and attempt are.
        inside: A payload that is sealed inside this one.
        retained: Whether the broker keeps the newest for later subscribers.
    """

    way: Way
    kind: str
    payload: type[Payload] | None
    about: str
    bound: str = NOTHING
    id: str = ""
    place: Literal["round", "epoch", "none"] = "none"
    inside: type[Payload] | None = None
    retained: bool = False

    @property
    def address(self) -> str:
        """The topic with its parameters in braces."""
        end = f"/{{{self.id}}}" if self.id else ""
        if self.way == "pub":
            return f"{topics.ROOT}/{{fleet}}/pub/{self.kind}{end}"
        return f"{topics.ROOT}/{{fleet}}/dev/{{device}}/{self.way}/{self.kind}{end}"

    @property
    def name(self) -> str:
        """A name that is unique in the catalogue."""
        words = [self.way, self.kind] + (["piece"] if self.payload is None and self.kind != topics.BLOB else [])
        return words[0] + "".join(word.capitalize() for word in words[1:])


CATALOGUE = (
    Entry(
        *("up", topics.STATE, State, "A device is there, has lost its connection (the Last Will), or has left."),
        retained=True,
    ),
    Entry(
        *("up", topics.COMMITMENT, Commitment, "A device commits to its random value e_i for an epoch."),
        bound=LIST,
        place="epoch",
    ),
    Entry(
        *("up", topics.OPENING, Opening, "A device opens its e_i."),
        bound=COMMITMENTS,
        place="epoch",
    ),
    Entry(
        *("up", topics.JOIN, Join, "A device takes part in a round, with keys made for this round only."),
        bound=GROUPING,
        place="round",
    ),
    Entry(
        *("up", topics.SHARES, Shares, "A device deals encrypted shares of its two secrets to every other member."),
        bound=ROSTER,
        place="round",
    ),
    Entry(
        *("up", topics.MASKED, Masked, "A device commits to its masked vector by digest and size."),
        bound=ROSTER,
        place="round",
    ),
    Entry(
        *("up", topics.COMPLAINT, Complaint, "A device cannot use what some dealers have sent it."),
        bound=ROSTER,
        place="round",
    ),
    Entry(
        *("up", topics.ANSWER, Answer, "A dealer opens the entries that were complained of, sealed to the aggregator."),
        bound=ROSTER,
        place="round",
        inside=EphemeralKeys,
    ),
    Entry("up", topics.MASKED, None, "The masked vector itself, in pieces.", id="transfer"),
    Entry(
        *("up", topics.SURVIVORS, Consent, "A device's one signature on the set U for this model."),
        bound=ROSTER,
        place="round",
    ),
    Entry(
        *("up", topics.ATTEST, Attestation, "Sketches of a device's masks, sealed to the aggregator."),
        bound=ROSTER,
        place="round",
        inside=Report,
    ),
    Entry(
        *("up", topics.ACCEPT, Assent, "A device's one signature on the set A for this model."),
        bound=ROSTER,
        place="round",
    ),
    Entry(
        *("up", topics.UNMASK, Reveal, "Shares that take the masks off the sum over U, sealed to the aggregator."),
        bound=ROSTER,
        place="round",
        inside=RevealedShares,
    ),
    Entry(
        *("up", topics.DECLINE, Decline, "A device leaves a round that it has joined, and says why."),
        bound=EITHER,
        place="round",
    ),
    Entry("up", topics.RENEW, Renew, "A device asks for a TLS certificate for a new key."),
    Entry("up", topics.WANT, Want, "A device asks for the pieces of a blob that it lacks."),
    Entry(
        *("down", topics.DEALT, Dealt, "The list D with everybody's signed leaves, and this device's own entries."),
        bound=ROSTER,
        place="round",
    ),
    Entry(
        *("down", topics.COMPLAINT, Complaints, "Complaints about this device's shares, as they were signed."),
        bound=ROSTER,
        place="round",
    ),
    Entry("down", topics.HAVE, Have, "Which pieces of this device's masked vector have arrived."),
    Entry(
        "down",
        topics.RECALL,
        Recall,
        "What this device itself has said last, because its disk seems to have gone back.",
    ),
    Entry(
        "down",
        topics.REFUSED,
        Refused,
        "Why this device is not let in.",
    ),
    Entry(
        "down",
        topics.CERTIFICATE,
        IssuedCertificate,
        "A TLS certificate that this device has asked for.",
    ),
    Entry("down", topics.BLOB, None, "Pieces of a blob that this device asked for."),
    Entry(
        *("pub", topics.EPOCH, EpochList, "Who is in this shard's next grouping."),
        id="shard",
        place="epoch",
    ),
    Entry(
        *("pub", topics.COMMITMENTS, Commitments, "All commitments, before any is opened."),
        bound=LIST,
        id="shard",
        place="epoch",
    ),
    Entry(
        *("pub", topics.GROUPS, Groups, "All openings, and the groups that follow from them."),
        bound=COMMITMENTS,
        id="shard",
        place="epoch",
    ),
    Entry(
        *("pub", topics.OPEN, Manifest, "The manifest of a round; an empty payload ends the task."),
        id="task",
        place="round",
        retained=True,
    ),
    Entry(
        *("pub", topics.ROSTER, Roster, "The group's joins as they were signed, with n, t and a_min."),
        id="group",
        place="round",
    ),
    Entry(
        *("pub", topics.SURVIVORS, Survivors, "The set U with each member's signed MASKED message."),
        bound=ROSTER,
        id="group",
        place="round",
    ),
    Entry(
        *("pub", topics.ATTEST, Attest, "The certificate on U, and what fixes the seed of the shard's sketches."),
        bound=ROSTER,
        id="group",
        place="round",
    ),
    Entry(
        *("pub", topics.ACCEPT, Accept, "The set A, with the signed heads of its members' reports."),
        bound=ROSTER,
        id="group",
        place="round",
    ),
    Entry(
        *("pub", topics.UNMASK, Unmask, "The certificate on U: t consents."),
        bound=ROSTER,
        id="group",
        place="round",
    ),
    Entry(
        *("pub", topics.ABORT, Abort, "The group's round ends without a sum."),
        bound=GROUPING,
        id="group",
        place="round",
    ),
    Entry("pub", topics.CLOSE, Close, "The round's end: the new model and how to reach it.", id="task", place="round"),
    Entry(
        *(
            "pub",
            topics.REVOCATIONS,
            RevocationHead,
            "Signed by the operator: version and digest of the newest revocation list.",
        ),
        retained=True,
    ),
    Entry(
        *(
            "pub",
            topics.SUCCESSION,
            Succession,
            "Signed by the operator's newest key: how it came to follow those before, and its own first words.",
        ),
        retained=True,
    ),
    Entry(
        *("pub", topics.DELEGATION, Delegation, "Signed by the operator: the key that the aggregator signs with."),
        retained=True,
    ),
    Entry(
        *("pub", topics.POLICY, Policy, "Signed by the operator: floors that no aggregator can lower."),
        retained=True,
    ),
    Entry(
        *("pub", topics.TIME, TimeSignal, "The time, for devices that have no clock."),
        retained=True,
    ),
    Entry("pub", topics.ALERT, Alert, "Something that the operator should hear of; not for devices."),
    Entry("pub", topics.BLOB, None, "A bundle or model step for everybody, in pieces.", id="digest"),
)

# Payload classes that stand in no envelope of their own: parts of others, and the base.
PARTS = ("ListedMember", "Blob", "Delta", "Windows", "Leaves", "ReportHead")


def context_of(entry: Entry) -> str:
    """Say in words what an entry's signature is bound to besides fleet, kind, sender and recipient."""
    if entry.payload is None:
        return "not signed; the digest was"
    place = {"round": "task, round, attempt", "epoch": "epoch, attempt", "none": ""}[entry.place]
    bound = "" if entry.bound == NOTHING else f"digest of {entry.bound}"
    return "; ".join(part for part in (place, bound) if part) or "nothing more"
