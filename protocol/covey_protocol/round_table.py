"""The round as transition tables, one for a device and one for the aggregator's side of a group.

Stages and messages are those of ``docs/protocol.md``. Rounds without sketches leave out ATTEST and ACCEPT; in rounds
with them no device goes from ``signed`` to ``unmasked``.
"""

from __future__ import annotations

from enum import StrEnum

from covey_protocol import topics

TRAINED = "trained"
LATE = "late"


class DeviceStage(StrEnum):
    """What a device has done last in a round."""

    INVITED = "invited"
    JOINED = "joined"
    SHARED = "shared"
    DEALT = "dealt"
    MASKED = "masked"
    SIGNED = "signed"
    ATTESTED = "attested"
    ACCEPTED = "accepted"
    UNMASKED = "unmasked"
    CLOSED = "closed"
    ABORTED = "aborted"
    DECLINED = "declined"


_END = {
    topics.CLOSE: DeviceStage.CLOSED,
    topics.ABORT: DeviceStage.ABORTED,
    topics.DECLINE: DeviceStage.DECLINED,
}

DEVICE_TABLE = {
    DeviceStage.INVITED: {topics.JOIN: DeviceStage.JOINED},
    DeviceStage.JOINED: {topics.ROSTER: DeviceStage.SHARED, **_END},
    DeviceStage.SHARED: {topics.COMPLAINT: DeviceStage.SHARED, topics.DEALT: DeviceStage.DEALT, **_END},
    DeviceStage.DEALT: {
        topics.COMPLAINT: DeviceStage.DEALT,
        TRAINED: DeviceStage.MASKED,
        topics.SURVIVORS: DeviceStage.SIGNED,
        **_END,
    },
    DeviceStage.MASKED: {topics.COMPLAINT: DeviceStage.MASKED, topics.SURVIVORS: DeviceStage.SIGNED, **_END},
    DeviceStage.SIGNED: {
        topics.COMPLAINT: DeviceStage.SIGNED,
        topics.ATTEST: DeviceStage.ATTESTED,
        topics.UNMASK: DeviceStage.UNMASKED,
        **_END,
    },
    DeviceStage.ATTESTED: {
        topics.COMPLAINT: DeviceStage.ATTESTED,
        topics.ACCEPT: DeviceStage.ACCEPTED,
        **_END,
    },
    DeviceStage.ACCEPTED: {
        topics.COMPLAINT: DeviceStage.ACCEPTED,
        topics.UNMASK: DeviceStage.UNMASKED,
        **_END,
    },
    DeviceStage.UNMASKED: {topics.CLOSE: DeviceStage.CLOSED, topics.ABORT: DeviceStage.ABORTED},
    DeviceStage.CLOSED: {},
    DeviceStage.ABORTED: {},
    DeviceStage.DECLINED: {},
}


class GroupStage(StrEnum):
    """What the aggregator waits for in a group."""

    JOINING = "joining"
    SHARING = "sharing"
    MASKING = "masking"
    SIGNING = "signing"
    ATTESTING = "attesting"
    ACCEPTING = "accepting"
    UNMASKING = "unmasking"
    SUMMING = "summing"
    CLOSED = "closed"
    ABORTED = "aborted"


_ABORT = {topics.ABORT: GroupStage.ABORTED}

GROUP_TABLE = {
    GroupStage.JOINING: {topics.ROSTER: GroupStage.SHARING, **_ABORT},
    GroupStage.SHARING: {topics.DEALT: GroupStage.MASKING, **_ABORT},
    GroupStage.MASKING: {topics.SURVIVORS: GroupStage.SIGNING, **_ABORT},
    GroupStage.SIGNING: {topics.ATTEST: GroupStage.ATTESTING, topics.UNMASK: GroupStage.UNMASKING, **_ABORT},
    GroupStage.ATTESTING: {topics.ACCEPT: GroupStage.ACCEPTING, **_ABORT},
    GroupStage.ACCEPTING: {topics.UNMASK: GroupStage.UNMASKING, **_ABORT},
    GroupStage.UNMASKING: {"sum": GroupStage.SUMMING, **_ABORT},
    GroupStage.SUMMING: {topics.CLOSE: GroupStage.CLOSED, **_ABORT},
    GroupStage.CLOSED: {},
    GroupStage.ABORTED: {},
}
