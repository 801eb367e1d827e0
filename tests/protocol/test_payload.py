"""covey_protocol.payload and the ranges of covey_protocol.messages."""

from __future__ import annotations

import inspect
import sys
from typing import Annotated, Any

import msgspec
import pytest
from tests.protocol.rig import make_chain, make_manifest

import covey_agent.home  # noqa: F401 - holds a payload of its own
from covey_protocol import bundle_manifest, cbor
from covey_protocol.errors import MalformedError
from covey_protocol.messages import (
    SHARD_MAX,
    Blob,
    Close,
    Delta,
    EpochList,
    Join,
    Reveal,
    RevealedShares,
    Roster,
    Shares,
    Survivors,
    Want,
)
from covey_protocol.payload import MAX_PAYLOAD_BYTES, Count, Digest, Name, Payload, read, write


class Inner(Payload, frozen=True, kw_only=True):
    digest: Digest


class Sample(Payload, frozen=True, kw_only=True):
    name: Name
    count: Count = 7
    inner: Inner | None = None
    items: Annotated[list[tuple[Name, bytes]], msgspec.Meta(max_length=2)] = msgspec.field(default_factory=list)


FULL = Sample(name="pi", count=0, inner=Inner(digest=bytes(32)), items=[("a", b"1"), ("b", b"")])


def refused(kind: type[Payload], fields: dict[str, object], words: str) -> None:
    with pytest.raises(MalformedError, match=words):
        read(kind, cbor.encode(fields))


def test_every_module_with_payloads_prepares_them_at_its_end() -> None:
    # Without this a process of many agents dies now and then: see ``payload.prepare``.
    found, kinds = set(), [Payload]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind is not Payload and kind.__module__.startswith("covey_"):
            found.add(kind.__module__)
    assert {"covey_protocol.messages", "covey_protocol.identity", "covey_agent.home"} <= found
    for module in {*found, bundle_manifest.__name__}:
        source = inspect.getsource(sys.modules[module])
        assert source.endswith("\n\n\nprepare(globals())\n"), module


@pytest.mark.parametrize("value", [FULL, Sample(name="pi")])
def test_round_trip(value: Sample) -> None:
    assert read(Sample, write(value)) == value
    assert write(value) == write(read(Sample, write(value)))


def test_unknown_fields_are_tolerated() -> None:
    assert read(Sample, cbor.encode({"name": "pi", "later": [1, {"x": b"y"}]})) == Sample(name="pi")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "name"),
        ({"name": b"pi"}, r"\$\.name"),
        ({"name": 1}, r"\$\.name"),
        ({"name": None}, r"\$\.name"),
        ({"name": "pi", "count": -1}, r"\$\.count"),
        ({"name": "pi", "count": 2**53 + 1}, r"\$\.count"),
        ({"name": "pi", "count": "1"}, r"\$\.count"),
        ({"name": "pi", "count": True}, r"\$\.count"),
        ({"name": "pi", "count": 1.5}, r"\$\.count"),
        ({"name": "pi", "inner": {"digest": bytes(31)}}, r"\$\.inner\.digest"),
        ({"name": "pi", "inner": {"digest": bytes(33)}}, r"\$\.inner\.digest"),
        ({"name": "pi", "inner": {"digest": "0" * 32}}, r"\$\.inner\.digest"),
        ({"name": "pi", "inner": []}, r"\$\.inner"),
        ({"name": "pi", "items": [["a", b""]] * 3}, r"\$\.items"),
        ({"name": "pi", "items": [["a"]]}, r"\$\.items"),
        ({"name": "pi", "items": [["A", b""]]}, r"\$\.items"),
    ],
)
def test_wrong_fields_are_refused_by_name(fields: dict[str, object], words: str) -> None:
    refused(Sample, fields, words)


@pytest.mark.parametrize("name", ["", "-pi", "PI", "p/i", "pi\n", "p" * 64, "pi+"])
def test_bad_names_are_refused(name: str) -> None:
    refused(Sample, {"name": name}, "name")


@pytest.mark.parametrize("value", [[], 1, "text", None, [["name", "pi"]], {1: 2}])
def test_other_values_are_no_payload(value: object) -> None:
    with pytest.raises(MalformedError):
        read(Sample, cbor.encode(value))


def test_size_is_bounded() -> None:
    data = write(FULL)
    assert read(Sample, data, max_bytes=len(data)) == FULL
    with pytest.raises(MalformedError):
        read(Sample, data, max_bytes=len(data) - 1)
    with pytest.raises(MalformedError):
        read(Sample, cbor.encode({"name": "pi", "x": bytes(MAX_PAYLOAD_BYTES)}))


def test_payloads_are_immutable_and_by_keyword() -> None:
    with pytest.raises(AttributeError):
        FULL.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Sample("pi")  # type: ignore[call-arg]


MANIFEST = make_manifest(10)
BLOB = Blob(digest=bytes(32), bytes=4)
JOIN = Join(
    draw=bytes(32),
    manifest=bytes(32),
    mask_key=bytes(32),
    share_key=bytes(32),
    self_mask=bytes(32),
    sequence=1,
    chain=make_chain("pi-0"),
)


@pytest.mark.parametrize(
    ("value", "field", "bad"),
    [
        (MANIFEST, "clip", 0.0),
        (MANIFEST, "clip", -1.0),
        (MANIFEST, "clip", 1.1e6),
        (MANIFEST, "n_min", 3),
        (MANIFEST, "n_max", 33),
        (MANIFEST, "sealing_key", bytes(31)),
        (MANIFEST, "epoch", -1),
        (MANIFEST, "masking", 1),
        (MANIFEST, "model", {"digest": bytes(32), "bytes": -1}),
        (MANIFEST, "model", {"digest": bytes(32), "bytes": (1 << 30) + 1}),
        (MANIFEST, "plan", {"epochs": 0}),
        (MANIFEST, "plan", {"learning_rate": 1e9}),
        (MANIFEST, "windows", {"join": 0.0, "shares": 1, "masked": 1, "survivors": 1, "unmask": 1}),
        (MANIFEST, "windows", {"join": 7 * 86400 + 1, "shares": 1, "masked": 1, "survivors": 1, "unmask": 1}),
        (JOIN, "mask_key", bytes(31)),
        (JOIN, "share_key", bytes(33)),
        (JOIN, "self_mask", b""),
        (JOIN, "sequence", -1),
        (JOIN, "manifest", bytes(16)),
        (Roster(manifest=bytes(32), joins=[], t=3, a_min=4), "t", 0),
        (Roster(manifest=bytes(32), joins=[], t=3, a_min=4), "t", 33),
        (Roster(manifest=bytes(32), joins=[], t=3, a_min=4), "a_min", 3),
        (Roster(manifest=bytes(32), joins=[], t=3, a_min=4), "joins", [["a", b""]] * 33),
        (Roster(manifest=bytes(32), joins=[], t=3, a_min=4), "joins", [["a", bytes(64 * 1024 + 1)]]),
        (Shares(leaves=b"", entries=[]), "entries", [["a", [b"", b""]]]),
        (Shares(leaves=b"", entries=[]), "entries", [["a", [b"", b"", bytes(513)]]]),
        (Survivors(survivors=[]), "survivors", [["A", b""]]),
        (Reveal(sealed=b""), "sealed", bytes(16 * 1024 + 1)),
        (RevealedShares(self_mask=[], masking=[]), "masking", [["a", bytes(31)]]),
        (RevealedShares(self_mask=[], masking=[]), "self_mask", [["a", bytes(32)]] * 33),
        (EpochList(shard=0, shard_bits=0, group_size=8, members=[]), "shard_bits", 17),
        (EpochList(shard=0, shard_bits=0, group_size=8, members=[]), "group_size", 3),
        (
            EpochList(shard=0, shard_bits=0, group_size=8, members=[]),
            "members",
            [{"device": "a", "key": bytes(32)}] * (SHARD_MAX + 1),
        ),
        (
            Close(
                model=BLOB,
                delta=Delta(base=bytes(32), blob=BLOB),
                groups_closed=1,
                groups_aborted=0,
                participants=4,
            ),
            "participants",
            -1,
        ),
        (Want(digest=bytes(32)), "have", bytes(64 * 1024 + 1)),
    ],
)
def test_ranges_of_messages(value: Payload, field: str, bad: object) -> None:
    fields: Any = cbor.decode(write(value), max_bytes=MAX_PAYLOAD_BYTES)
    assert read(type(value), cbor.encode(fields)) == value
    with pytest.raises(MalformedError, match=field):
        read(type(value), cbor.encode({**fields, field: bad}))
