"""docs/asyncapi.yaml: made from the code, whole in itself, and true of real messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from docs.tools import asyncapi, generate
from docs.tools.catalogue import CATALOGUE
from tests.protocol import rig

from covey_protocol import cbor, envelope

TEXT = (generate.DOCS / "asyncapi.yaml").read_text(encoding="utf-8")
DOCUMENT: dict[str, Any] = yaml.safe_load(TEXT)


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from nodes(each)
    elif isinstance(value, list):
        for each in value:
            yield from nodes(each)


def resolve(reference: str) -> Any:
    found = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def matches(value: object, schema: dict[str, Any]) -> bool:
    """Hold a decoded CBOR value against a schema of the document: the part of JSON Schema that it uses."""
    if "$ref" in schema:
        return matches(value, resolve(schema["$ref"]))
    if "anyOf" in schema:
        return any(matches(value, each) for each in schema["anyOf"])
    size = len(value) if isinstance(value, bytes | str | list) else 0
    in_size = schema.get("minLength", 0) <= size <= schema.get("maxLength", 1 << 30)
    match schema["type"]:
        case "object":
            return (
                isinstance(value, dict)
                and set(schema["required"]) <= set(value) <= set(schema["properties"])
                and all(matches(each, schema["properties"][key]) for key, each in value.items())
            )
        case "array":
            items = schema["items"]
            each = items if isinstance(items, list) else [items] * size
            return (
                isinstance(value, list)
                and schema.get("minItems", 0) <= size <= schema.get("maxItems", len(each))
                and all(matches(*pair) for pair in zip(value, each, strict=True))
            )
        case "string" if "contentEncoding" in schema:
            return isinstance(value, bytes) and in_size
        case "string":
            pattern = schema.get("pattern", "")
            return isinstance(value, str) and in_size and re.search(pattern, value) is not None
        case "integer":
            return type(value) is int and schema.get("minimum", value) <= value <= schema.get("maximum", value)
        case "number":
            return type(value) in (int, float)
        case kind:
            return (value is None) if kind == "null" else isinstance(value, bool)


def test_it_is_what_the_code_gives() -> None:
    assert asyncapi.render() == TEXT


def test_every_reference_resolves() -> None:
    references = [node["$ref"] for node in nodes(DOCUMENT) if "$ref" in node]
    assert references
    for reference in references:
        resolve(reference)


def test_every_channel_declares_its_parameters_and_has_one_operation() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert len(DOCUMENT["channels"]) == len(DOCUMENT["operations"]) == len(CATALOGUE)
    for name, channel in DOCUMENT["channels"].items():
        assert sorted(channel["parameters"]) == sorted(re.findall(r"\{(\w+)\}", channel["address"]))
        operation = DOCUMENT["operations"][name]
        assert operation["channel"]["$ref"] == f"#/channels/{name}"
        assert operation["action"] == ("receive" if "/up/" in channel["address"] else "send")


def test_no_schema_is_left_over() -> None:
    references = {node["$ref"] for node in nodes(DOCUMENT) if "$ref" in node}
    # Sealed; or signed apart, and then a byte string in another payload.
    inside = {"RevealedShares", "EphemeralKeys", "Report", "Leaves", "ReportHead"}
    for name in set(DOCUMENT["components"]["schemas"]) - inside:
        assert f"#/components/schemas/{name}" in references


def test_messages_of_a_round_match_their_schemas() -> None:
    group = rig.Rig(n=5)
    group.run()
    checked = set()
    for way, name, kind, data in [*group.wire, ("down", "", "open", group.open_data)]:
        if way == "vector":
            continue
        ways = ("up",) if way == "up" else ("down", "pub")
        (entry,) = [e for e in CATALOGUE if e.way in ways and e.kind == kind and e.payload is not None]
        value = cbor.decode(envelope.parse(data).payload, max_bytes=1 << 20)
        schema = DOCUMENT["components"]["messages"][entry.name]["payload"]
        assert matches(value, schema), (name, kind)
        assert not matches({**value, "manifest": 7, "vector": 7}, schema)  # type: ignore[dict-item]
        checked.add(entry.name)
    assert len(checked) == 10
