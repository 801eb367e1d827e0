"""docs/protocol.md and the catalogue behind it, against the code."""

from __future__ import annotations

import inspect
import re

import pytest
from docs.tools import catalogue, figures, generate
from tests.protocol import rig

from covey_protocol import accounting, effects, envelope, messages, topics
from covey_protocol.identity import AGGREGATOR, Delegation
from covey_protocol.ledger import DeviceLedger
from covey_protocol.machine import mermaid
from covey_protocol.payload import Payload, read
from covey_protocol.policy import Policy
from covey_protocol.succession import Succession

PAGE = (generate.DOCS / "protocol.md").read_text(encoding="utf-8")
SOURCES = (generate.DOCS.parent / "protocol" / "covey_protocol").glob("*.py")
PAYLOADS = {
    name: kind
    for name, kind in vars(messages).items()
    if inspect.isclass(kind) and issubclass(kind, Payload) and kind.__module__ == messages.__name__
} | {"Delegation": Delegation, "Policy": Policy, "Succession": Succession}


@pytest.mark.parametrize("name", figures.DIAGRAMS)
def test_diagrams_are_those_of_the_tables(name: str) -> None:
    assert f"```mermaid\n{mermaid(figures.DIAGRAMS[name])}\n```" in PAGE


def test_the_page_is_not_stale() -> None:
    assert generate.fill(PAGE, figures.blocks()) == PAGE


def test_every_kind_is_in_the_catalogue_once_a_way() -> None:
    for way, kinds in (("up", topics.UP_KINDS), ("down", topics.DOWN_KINDS), ("pub", topics.PUB_KINDS)):
        signed = [entry.kind for entry in catalogue.CATALOGUE if entry.way == way and entry.payload is not None]
        assert {entry.kind for entry in catalogue.CATALOGUE if entry.way == way} == kinds
        assert len(signed) == len(set(signed))


def test_every_address_is_one_of_the_protocols() -> None:
    values = {"fleet": "meadow", "device": "pi-1", "transfer": "0f", "shard": "s01", "task": "digits"}
    for entry in catalogue.CATALOGUE:
        topic = topics.parse(entry.address.format(**values, group="7-s01-0", digest="0f"))
        assert (topic.way, topic.kind, bool(topic.id)) == (entry.way, entry.kind, bool(entry.id))


def test_every_payload_class_is_described() -> None:
    named = {kind for entry in catalogue.CATALOGUE for kind in (entry.payload, entry.inside) if kind is not None}
    assert {kind.__name__ for kind in named} | set(catalogue.PARTS) == set(PAYLOADS)
    for name in PAYLOADS:
        assert f"`{name}`" in PAGE, name


@pytest.mark.parametrize("kind", sorted(topics.UP_KINDS | topics.DOWN_KINDS | topics.PUB_KINDS))
def test_every_kind_is_described_in_words(kind: str) -> None:
    words = re.sub(r"(?s)<!-- begin generated.*?<!-- end generated[^>]*-->", "", PAGE)
    assert re.search(rf"\b{kind.upper()}\b|down/{kind}\b", words)


def test_every_digests_person_is_in_the_table() -> None:
    used = {person for path in SOURCES for person in re.findall(r'person=b"([^"]+)"', path.read_text())}
    assert used == set(re.findall(r"^\| `(covey-[a-z-]+)` \|", PAGE, re.MULTILINE))


def test_every_effect_is_described() -> None:
    for kind in effects.Effect.__args__:
        assert f"| `{kind.__name__}` |" in PAGE


def test_every_mark_of_the_ledger_is_described() -> None:
    ledger = DeviceLedger()
    ledger.next_sequence()
    ledger.joined("digits", 1, 1)
    ledger.put_back(5, "digits", 1, 1)
    ledger.saw_peer("pi-1", 1)
    ledger.rostered("digits", b"r")
    ledger.pin(b"token", b"key")
    ledger.masked(b"model", b"m")
    ledger.unmasked("digits", b"u")
    ledger.privacy.pay(accounting.nothing(), Policy())
    ledger.sign_set(b"model", b"set", "1-s-0", b"members", 0)
    head, entries = rig.revoke("pi-1")
    ledger.take_revocations(head, operator_key=bytes(rig.OPERATOR.verify_key), fleet=rig.FLEET)
    ledger.take_revoked(entries)
    ledger.take_seed(b"model", b"seed", 8, 0)
    ledger.accept_set(b"model", b"set", "1-s-0", b"members", 0)
    heads = {key.partition("/")[0] for key in ledger._rows} | {"delegation", "policy", "time", "succession"}
    described = {key.partition("/")[0] for key in re.findall(r"^\| [a-zA-Z ]+ \| `([a-z/{}]+)` \|", PAGE, re.MULTILINE)}
    assert described == heads | {"epoch", "opening", "grouping"}


def test_a_rounds_messages_are_what_the_catalogue_says() -> None:
    """Every message of a real round has the catalogue's payload and is signed in the catalogue's context."""
    group = rig.Rig(n=6)
    group.run()
    assert group.group.roster is not None
    bindings = {
        catalogue.NOTHING: b"",
        catalogue.GROUPING: group.grouping.digest(),
        catalogue.ROSTER: group.group.roster.digest,
    }
    keys = dict(group.grouping.members) | {AGGREGATOR: bytes(rig.SERVER.verify_key)}
    seen = set()
    for way, name, kind, data in group.wire:
        if way == "vector":
            continue
        ways = ("up",) if way == "up" else ("down", "pub")
        (entry,) = [e for e in catalogue.CATALOGUE if e.way in ways and e.kind == kind and e.payload is not None]
        assert entry.payload is not None
        sender, recipient = (name, "") if way == "up" else (AGGREGATOR, name if entry.way == "down" else "")
        assert entry.place == "round"
        context = group.opened.context(rig.FLEET, kind, sender, bindings[entry.bound], recipient)
        read(entry.payload, envelope.open_signed(data, context, keys[sender]))
        seen.add(entry.name)
    assert seen == {
        *("upJoin", "upShares", "upMasked", "upSurvivors", "upUnmask"),
        *("pubRoster", "downDealt", "pubSurvivors", "pubUnmask"),
    }


def test_leaving_and_ending_are_signed_as_the_catalogue_says() -> None:
    """DECLINE and ABORT, which a round that goes well does not have."""
    entries = {entry.kind: entry for entry in catalogue.CATALOGUE}
    group = rig.Rig(n=6)
    device = group.devices["pi-1"]
    group.from_device("pi-1", device.join())
    (declined,) = [effect for effect in device.decline("training", "no data") if isinstance(effect, effects.Send)]
    (aborted,) = [e for e in group.group.abort("by-hand", "a test") if isinstance(e, effects.Publish)]
    assert entries["decline"].bound == catalogue.EITHER
    assert entries["abort"].bound == catalogue.GROUPING
    for data, kind, sender, key in (
        (declined.data, "decline", "pi-1", dict(group.grouping.members)["pi-1"]),
        (aborted.data, "abort", AGGREGATOR, bytes(rig.SERVER.verify_key)),
    ):
        payload = entries[kind].payload
        assert payload is not None
        context = group.opened.context(rig.FLEET, kind, sender, group.grouping.digest())
        read(payload, envelope.open_signed(data, context, key))


def test_the_figures_in_the_text_are_those_of_the_tables() -> None:
    sizes = figures.message_sizes(32)
    assert f"about {sizes['up', 'shares'][0] / 1000:.1f} kB at n = 32" in PAGE
    record = (generate.DOCS / "adr" / "0004-leaves.md").read_text(encoding="utf-8")
    assert f"{sizes['down', 'dealt'][0] / 1000:.1f} kB at 32" in record
    assert f"{sizes['up', 'shares'][0] / 1000:.1f} kB at n = 32" in record
