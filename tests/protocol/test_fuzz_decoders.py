"""Whatever comes in, only a PeerError comes out, and nothing has changed.

Noise, damaged genuine messages, and messages that are well signed and well formed up to one random place, fed to every
decoder and to every state machine in every stage. The suite runs a fixed number of repeatable trials;
``COVEY_FUZZ_SECONDS=60 ./run test tests/protocol/test_fuzz_decoders.py`` goes on for a minute with new ones. A failure
names its trial, and ``COVEY_FUZZ_TRIAL`` plays that one again.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec import inspect
from nacl.signing import SigningKey
from tests.protocol.rig import FLEET, SERVER, TASK, Rig, make_trust, signing_key, snapshot
from tests.protocol.test_device_round import ME, at
from tests.protocol.test_epoch_opening import Committing, Liar
from tests.protocol.test_group_round import CHEAT, KINDS, VECTOR, stopped_before

from covey_protocol import (
    cbor,
    chunks,
    envelope,
    epoch_member,
    epoch_opening,
    identity,
    messages,
    model,
    policy,
    provisioning,
    roster,
    topics,
)
from covey_protocol.chunks import Piece, Reassembler
from covey_protocol.digest import content_digest
from covey_protocol.envelope import Context
from covey_protocol.errors import MalformedError, PeerError
from covey_protocol.identity import AGGREGATOR
from covey_protocol.payload import Payload, read, write
from covey_protocol.round_table import DeviceStage

SECONDS = float(os.environ.get("COVEY_FUZZ_SECONDS", "0"))
TRIAL = os.environ.get("COVEY_FUZZ_TRIAL", "")
TARGETS = 23  # tests in this file that share the seconds
INTERESTING = [0, 1, -1, 23, 24, 255, 256, 2**16, 2**31, 2**32, 2**53 + 1, 2**63, 2**64 - 1, -(2**64), 2**70]


_started: deque[str] = deque(maxlen=1)


@pytest.fixture(autouse=True)
def last_trial() -> Iterator[None]:
    """Name the last trial beside a failure."""
    yield
    print(f"last trial: COVEY_FUZZ_TRIAL={_started[0]!r}")


def trials(count: int) -> Iterator[random.Random]:
    """Yield dice for ``count`` repeatable trials, or for this test's part of the seconds asked for."""
    name = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].removesuffix(" (call)")
    if TRIAL:
        keys: Iterator[str] = iter([TRIAL])
    elif SECONDS:
        keys = _for_seconds(name, SECONDS / TARGETS)
    else:
        keys = (f"{name} {index}" for index in range(count))
    for key in keys:
        _started.append(key)
        yield random.Random(key)


def _for_seconds(name: str, seconds: float) -> Iterator[str]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield f"{name} {secrets.token_hex(8)}"


# --- making bad input ---------------------------------------------------------------------------------------------


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Flip, cut, insert, repeat or overwrite some bytes."""
    result = bytearray(data)
    for _ in range(dice.choice([1, 1, 1, 2, 5])):
        if not result:
            return dice.randbytes(dice.randrange(1, 20))
        at = dice.randrange(len(result))
        to = min(len(result), at + dice.choice([1, 1, 2, 4, 9, 40]))
        match dice.randrange(6):
            case 0:
                result[at] ^= 1 << dice.randrange(8)
            case 1:
                del result[at:to]
            case 2:
                result[at:at] = dice.randbytes(to - at)
            case 3:
                result[at:at] = result[at:to]
            case 4:
                result[at:to] = bytes([dice.choice([0, 0x7F, 0x80, 0xFF])]) * (to - at)
            case 5:
                del result[at:]
    return bytes(result)


def noise(dice: random.Random) -> bytes:
    return dice.choice([b"", b"\xd2", b"\xd2\x84", b"\xa1", b"\x85"]) + dice.randbytes(dice.choice([0, 1, 5, 60, 500]))


def any_value(dice: random.Random, depth: int = 3) -> Any:
    kind = dice.randrange(9 if depth else 7)
    match kind:
        case 0:
            return dice.choice([None, True, False])
        case 1:
            return dice.choice(INTERESTING)
        case 2:
            return dice.choice([0.0, -0.0, 1.5, 1e300, 5e-324])
        case 3:
            return dice.randbytes(dice.choice([0, 1, 31, 32, 33, 64, 600]))
        case 4:
            return dice.choice(["", "pi-0", "PI", "pi\n", "ä", "x" * 64, "\0"])
        case 5 | 6:
            return dice.choice([[], {}])
        case 7:
            return [any_value(dice, depth - 1) for _ in range(dice.randrange(4))]
        case _:
            return {
                dice.choice(["a", "at", "digest", "", 1]): any_value(dice, depth - 1) for _ in range(dice.randrange(3))
            }


def mutated(value: Any, dice: random.Random) -> Any:
    """Change one place somewhere in a value."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        match dice.randrange(8):
            case 0:
                return {other: inner for other, inner in value.items() if other != key}
            case 1:
                return {**value, dice.choice(["", "unknown", "device"]): any_value(dice)}
            case _:
                return {**value, key: mutated(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.9:
        at = dice.randrange(len(value))
        match dice.randrange(8):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return [*value[:at], value[at], *value[at:]]
            case 2:
                return dice.sample(value, len(value))
            case _:
                return [*value[:at], mutated(value[at], dice), *value[at + 1 :]]
    if isinstance(value, bytes) and value and dice.random() < 0.7:
        return damaged(value, dice)
    return any_value(dice)


def badly(data: bytes, dice: random.Random, context: Context, key: SigningKey) -> bytes:
    """Return noise, a damaged message, or a changed payload under a good signature."""
    payload = envelope.parse(data).payload
    match dice.randrange(8):
        case 0:
            return noise(dice)
        case 1 | 2:
            return damaged(data, dice)
        case 3:
            payload = damaged(payload, dice)
        case 4:
            payload = cbor.encode(any_value(dice))
        case _:
            payload = cbor.encode(mutated(cbor.decode(payload, max_bytes=1 << 20), dice))
    return envelope.sign(payload, context, key)


def refused(machine: object, act: Callable[..., object], *arguments: object) -> bool:
    """Call a method of a machine; say whether it refused, in which case nothing has changed."""
    before = snapshot(machine)
    try:
        act(*arguments)
    except PeerError:
        assert snapshot(machine) == before
        return True
    return False


# --- decoders -----------------------------------------------------------------------------------------------------


@cache
def corpus() -> list[bytes]:
    """Genuine messages of every kind."""
    rig = Rig(n=4, dimension=8)
    rig.run()
    epochs = Liar(epoch_member.Stage.WAITING).true.values()
    return [rig.open_data, *{data for *_, data in rig.wire}, *epochs]


def test_cbor() -> None:
    for dice in trials(1500):
        genuine = dice.choice(corpus())[1:]
        data = dice.choice([noise(dice), damaged(genuine, dice), cbor.encode(any_value(dice))])
        try:
            value = cbor.decode(data, max_bytes=1 << 20)
        except MalformedError:
            continue
        assert cbor.encode(value) == data


def test_envelopes() -> None:
    context = Context(fleet=FLEET, kind="join", sender="pi-0")
    for dice in trials(1500):
        data = damaged(dice.choice(corpus()), dice)
        if dice.random() < 0.5:
            parts = cbor.decode(dice.choice([one for one in corpus() if one[0] == 0xD2])[1:], max_bytes=1 << 20)
            data = b"\xd2" + cbor.encode(mutated(parts, dice))
        key = dice.choice([bytes(SERVER.verify_key), dice.randbytes(32), bytes(32), b"short"])
        with pytest.raises(PeerError):
            envelope.open_signed(data, context, key)


def test_pieces() -> None:
    blob = random.Random(0).randbytes(2000)
    pieces = [piece.encode() for piece in chunks.split(blob, 256)]
    reassembler = Reassembler(budget=5000, unannounced=3000)
    for dice in trials(1500):
        if not dice.randrange(50):
            reassembler = Reassembler(budget=5000, unannounced=dice.choice([0, 3000]))
            reassembler.expect(next(chunks.split(blob, 256)).digest, len(blob))
        data = dice.choice([noise(dice), dice.choice(pieces), damaged(dice.choice(pieces), dice)])
        if not dice.randrange(3):
            data = cbor.encode(mutated(cbor.decode(dice.choice(pieces), max_bytes=1000), dice))
        try:
            piece = Piece.decode(data)
            result = reassembler.add(piece)
        except PeerError:
            continue
        assert piece.encode() == data
        assert result is None or content_digest(result) == piece.digest
        assert sum(transfer.total for transfer in reassembler._transfers.values()) <= 8000


PAYLOADS = [
    kind
    for module in (messages, identity, policy, provisioning)
    for kind in vars(module).values()
    if isinstance(kind, type)
    and issubclass(kind, Payload)
    and kind is not Payload
    and kind.__module__ == module.__name__
]


def plausible(kind: inspect.Type, dice: random.Random) -> Any:
    """Return a value that is of this type more often than not."""
    if not dice.randrange(25):
        return any_value(dice)
    match kind:
        case inspect.StructType():
            value = {}
            for field in kind.fields:
                if field.required or dice.random() < 0.7:
                    value[field.encode_name] = plausible(field.type, dice)
            return value
        case inspect.ListType():
            low, high = kind.min_length or 0, kind.max_length or 3
            count = dice.choice([low, low + 1, min(high, low + 3), high + 1 if high < 40 else low])
            return [plausible(kind.item_type, dice) for _ in range(count)]
        case inspect.TupleType():
            return [plausible(item, dice) for item in kind.item_types]
        case inspect.BytesType():
            low, high = kind.min_length or 0, kind.max_length or 100
            return dice.randbytes(dice.choice([low, low, high if high < 1000 else low, low + 1]))
        case inspect.StrType():
            return dice.choice(["pi-0", "pi-1", "a", "digits"])
        case inspect.IntType():
            low, high = kind.ge or 0, kind.le or 1 << 16
            return dice.choice([low, low, high, (low + high) // 2, low - 1, high + 1])
        case inspect.FloatType():
            return dice.choice([0.5, 1.0, 1, 0.0, -1.0, 1e9])
        case inspect.BoolType():
            return dice.choice([True, False])
        case inspect.UnionType():
            return plausible(dice.choice(list(kind.types)), dice)
        case inspect.NoneType():
            return None
        case inspect.LiteralType():
            return dice.choice(list(kind.values))
        case _:
            raise AssertionError(kind)


def test_payloads() -> None:
    assert len(PAYLOADS) > 30
    types = {kind: inspect.type_info(kind) for kind in PAYLOADS}
    accepted = set()
    for dice in trials(6000):
        kind = dice.choice(PAYLOADS)
        data = cbor.encode(plausible(types[kind], dice)) if dice.randrange(5) else cbor.encode(any_value(dice))
        try:
            value = read(kind, data)
        except MalformedError:
            continue
        accepted.add(kind)
        assert read(kind, write(value)) == value
    if not TRIAL:
        assert len(accepted) > 25  # the trials are not all hopeless


def test_texts() -> None:
    topic, line = topics.up(FLEET, "pi-0", "join"), provisioning.PREFIX + "o2Vi" * 20
    for dice in trials(1500):
        for text, decode in ((topic, topics.parse), (line, provisioning.decode)):
            with_damage = damaged(text.encode(), dice).decode("utf-8", "replace")
            try:
                decode(with_damage)
            except MalformedError:
                continue


def test_models() -> None:
    base = model.from_bytes(bytes(40))
    for dice in trials(500):
        data = dice.randbytes(dice.choice([0, 3, 4, 24, 24, 24, 40, 41]))
        for decode in (model.from_bytes, lambda data: model.apply_delta(base, data)):
            try:
                weights = decode(data)
            except MalformedError:
                continue
            assert np.isfinite(weights).all()


def test_manifests() -> None:
    trust, data = make_trust(), Rig(n=4).open_data
    context = Context(fleet=FLEET, kind=topics.OPEN, sender=AGGREGATOR, task=TASK, round=1, attempt=1)
    for dice in trials(600):
        try:
            roster.read_open(badly(data, dice, context, SERVER), TASK, trust)
        except PeerError:
            continue


# --- state machines -----------------------------------------------------------------------------------------------

STAGES = {
    DeviceStage.JOINED: topics.ROSTER,
    DeviceStage.SHARED: topics.DEALT,
    DeviceStage.MASKED: topics.SURVIVORS,
    DeviceStage.SIGNED: topics.UNMASK,
}


@pytest.mark.parametrize(("stage", "kind"), STAGES.items(), ids=STAGES)
def test_a_device_in_a_round(stage: DeviceStage, kind: str) -> None:
    rig = at(stage)
    true = next(data for _, _, kind_, data in rig.held if kind_ == kind)
    for dice in trials(120):
        way = kind if dice.randrange(8) else dice.choice(sorted(topics.PUB_KINDS | topics.DOWN_KINDS))
        bound = b"" if way in (topics.ROSTER, topics.CLOSE, topics.ABORT) else rig.bound(kind, AGGREGATOR)
        context = rig.opened.context(FLEET, way, AGGREGATOR, bound, ME if way == topics.DEALT else "")
        device = rig.devices[ME]
        if not refused(device, device.receive, way, badly(true, dice, context, SERVER)):
            rig = at(stage)
    rig.devices[ME].receive(kind, true)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != VECTOR])
def test_a_group_in_a_round(kind: str) -> None:
    rig, true = stopped_before(kind)
    for dice in trials(120):
        way = kind if dice.randrange(8) else dice.choice(sorted(topics.UP_KINDS | topics.PUB_KINDS))
        context = rig.opened.context(FLEET, way, CHEAT, rig.bound(kind, CHEAT))
        data = badly(true, dice, context, signing_key(CHEAT))
        if not refused(rig.group, rig.group.receive, way, CHEAT, data, rig.now):
            rig, true = stopped_before(kind)
    rig.group.receive(kind, CHEAT, true, rig.now)


def test_vectors_of_a_group() -> None:
    rig, true = stopped_before(VECTOR)
    for dice in trials(150):
        blob = dice.choice([damaged(true, dice), noise(dice), true + true])
        if blob != true:
            assert refused(rig.group, rig.group.vector, dice.choice([CHEAT, "pi-1", "pi-9"]), blob, rig.now)
    rig.group.vector(CHEAT, true, rig.now)


MEMBER_STAGES = {
    epoch_member.Stage.WAITING: topics.EPOCH,
    epoch_member.Stage.COMMITTED: topics.COMMITMENTS,
    epoch_member.Stage.OPENED: topics.GROUPS,
}


@pytest.mark.parametrize(("stage", "kind"), MEMBER_STAGES.items(), ids=MEMBER_STAGES)
def test_a_device_in_an_opening(stage: epoch_member.Stage, kind: str) -> None:
    liar = Liar(stage)
    for dice in trials(100):
        way = kind if dice.randrange(8) else dice.choice(sorted(topics.PUB_KINDS))
        bound = {topics.COMMITMENTS: liar.list_digest, topics.GROUPS: liar.commitments_digest}.get(way, b"")
        attempt = dice.choice([1, 1, 2])
        context = Context(fleet=FLEET, kind=way, sender=AGGREGATOR, round=5, attempt=attempt, roster=bound)
        if not refused(liar.device, liar.device.receive, way, badly(liar.true[kind], dice, context, SERVER)):
            liar = Liar(stage)
    liar.still_accepts_the_truth()


@pytest.mark.parametrize("stage", [epoch_opening.Stage.COMMITTING, epoch_opening.Stage.OPENING])
def test_an_opening(stage: epoch_opening.Stage) -> None:
    committing = Committing(stage)
    for dice in trials(100):
        opening = committing.hamlet.opening
        sends = committing.commitments if stage is epoch_opening.Stage.COMMITTING else committing.openings
        name = dice.choice(sorted(sends))
        way = sends[name].kind if dice.randrange(8) else dice.choice(sorted(topics.UP_KINDS))
        committed = stage is epoch_opening.Stage.COMMITTING
        bound = opening._list_digest if committed else opening._commitments_digest()
        context = Context(fleet=FLEET, kind=way, sender=name, round=5, attempt=1, roster=bound)
        data = badly(sends[name].data, dice, context, signing_key(name))
        if not refused(opening, opening.receive, way, name, data, 0.0):
            committing = Committing(stage)


def test_damage_below_the_signature_of_others() -> None:
    """Payloads hold signed messages of others: damage these under the server's good signature."""
    rig = at(DeviceStage.JOINED)
    true = next(data for _, _, kind, data in rig.held if kind == topics.ROSTER)
    body = read(messages.Roster, envelope.parse(true).payload)
    device = rig.devices[ME]
    for dice in trials(150):
        place = dice.randrange(len(body.joins))
        name, join = body.joins[place]
        worse = damaged(join, dice)
        if worse != join:
            joins = [*body.joins[:place], (name, worse), *body.joins[place + 1 :]]
            data = rig.serve(topics.ROSTER, msgspec.structs.replace(body, joins=joins))
            assert refused(device, device.receive, topics.ROSTER, data)
    device.receive(topics.ROSTER, true)
