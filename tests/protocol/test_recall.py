"""covey_protocol.recall: a device believes about itself only what it has signed itself."""

from __future__ import annotations

from typing import Any

import pytest
from nacl.signing import SigningKey
from tests.protocol.rig import FLEET, SERVER, TASK, Rig, make_chain, signing_key

from covey_protocol import envelope, topics
from covey_protocol.effects import Send
from covey_protocol.envelope import Context
from covey_protocol.errors import MalformedError, PeerError, SignatureError, StaleError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.ledger import DeviceLedger
from covey_protocol.messages import Recall, State
from covey_protocol.payload import write
from covey_protocol.recall import Recalled, read_recall, write_recall

ME = "pi-0"


def state(counter: int, name: str = ME, key: SigningKey | None = None) -> bytes:
    said = State(status="online", counter=counter, chain=make_chain(name))
    return envelope.sign(write(said), Context(fleet=FLEET, kind=topics.STATE, sender=name), key or signing_key(name))


def joined(name: str = ME, sequence: int = 7) -> tuple[bytes, bytes]:
    """Return a JOIN and what it was signed over."""
    rig = Rig(ledgers={f"pi-{i}": DeviceLedger({"sequence": str(sequence - 1).encode()}) for i in range(6)}, round=3)
    [join] = [effect.data for effect in rig.devices[name].join() if isinstance(effect, Send)]
    return join, rig.grouping.digest()


def read_as(data: bytes, **changes: Any) -> Recalled:
    fields: dict[str, Any] = {
        "fleet": FLEET,
        "device": ME,
        "own_keys": [bytes(signing_key(ME).verify_key)],
        "aggregator_key": bytes(SERVER.verify_key),
    }
    return read_recall(data, **{**fields, **changes})


def written(recall: Recall, device: str = ME, key: SigningKey = SERVER) -> bytes:
    return write_recall(recall, fleet=FLEET, device=device, key=key)


def test_own_signatures_say_how_far_one_was() -> None:
    join, grouping = joined()
    recalled = read_as(written(Recall(state=state(9), join=join, grouping=grouping)))
    assert recalled == Recalled(counter=9, sequence=7, task=TASK, round=3, attempt=1)
    assert read_as(written(Recall(state=state(9)))) == Recalled(counter=9)
    assert read_as(written(Recall(join=join, grouping=grouping))).sequence == 7


def test_what_a_former_key_has_signed_counts_as_well() -> None:
    keys = [bytes(signing_key(name).verify_key) for name in (ME, "between", "new")]
    join, grouping = joined()
    recalled = read_as(written(Recall(state=state(9), join=join, grouping=grouping)), own_keys=keys)
    assert (recalled.counter, recalled.sequence) == (9, 7)
    assert read_as(written(Recall(state=state(9, key=signing_key("new")))), own_keys=keys).counter == 9
    with pytest.raises(SignatureError):
        read_as(written(Recall(state=state(9))), own_keys=keys[1:])


def test_a_recall_of_nothing_is_none() -> None:
    with pytest.raises(StaleError):
        read_as(written(Recall()))


@pytest.mark.parametrize(
    "recall",
    [
        Recall(state=state(9, key=SERVER)),
        Recall(state=state(9, "pi-1")),
        Recall(join=joined()[0], grouping=bytes(32)),
        Recall(join=joined()[0]),
        Recall(join=joined("pi-1")[0], grouping=joined("pi-1")[1]),
        Recall(state=joined()[0]),
        Recall(state=state(9), join=state(9), grouping=joined()[1]),
        Recall(state=state(9), join=joined("pi-1")[0], grouping=joined("pi-1")[1]),
    ],
)
def test_what_this_device_has_not_signed_proves_nothing(recall: Recall) -> None:
    with pytest.raises(PeerError):
        read_as(written(recall))


def test_only_the_aggregator_recalls_and_only_this_device() -> None:
    recall = Recall(state=state(9))
    for data in (written(recall, "pi-1"), written(recall, key=signing_key(ME)), state(9)):
        with pytest.raises(SignatureError):
            read_as(data)
    context = Context(fleet=FLEET, kind=topics.HAVE, sender=AGGREGATOR, recipient=ME)
    with pytest.raises(SignatureError):
        read_as(envelope.sign(write(recall), context, SERVER))
    for cut in (b"", written(recall)[:-1]):
        with pytest.raises(MalformedError):
            read_as(cut)


def test_a_ledger_jumps_forward_and_counts_what_it_forgot() -> None:
    ledger = DeviceLedger({"sequence": b"3", f"round/{TASK}": b"3.1", "exposure/1-s-0/aa": b"2"})
    marks = {mark.key: mark.value for mark in ledger.put_back(8, TASK, 9, 2)}
    assert marks == {"sequence": b"8", "forgotten": b"5", f"round/{TASK}": b"9.2"}
    assert (ledger.exposure(), ledger.forgotten) == (6, 5)
    assert ledger.next_sequence()[0] == 9
    with pytest.raises(StaleError):
        ledger.check_round(TASK, 9, 2)
    again = {mark.key: mark.value for mark in ledger.put_back(20, "other", 1, 1)}
    assert again == {"sequence": b"20", "forgotten": b"17", "round/other": b"1.1"}
    with pytest.raises(PeerError, match="exposure_max is 10"):
        ledger.check_exposure(10)


@pytest.mark.parametrize("sequence", [0, 2, 3])
def test_a_ledger_never_jumps_back(sequence: int) -> None:
    ledger = DeviceLedger({"sequence": b"3"})
    assert ledger.put_back(sequence, TASK, 9, 2) == []
    assert (ledger.next_sequence()[0], ledger.forgotten) == (4, 0)
    ledger.check_round(TASK, 1, 1)


def test_a_newer_round_is_not_unmarked() -> None:
    ledger = DeviceLedger({f"round/{TASK}": b"12.1"})
    ledger.put_back(5, TASK, 9, 2)
    with pytest.raises(StaleError):
        ledger.check_round(TASK, 12, 1)
