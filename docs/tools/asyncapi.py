"""Makes ``docs/asyncapi.yaml``: every topic and message, from the catalogue and the payload structs."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

import msgspec
import yaml
from docs.tools.catalogue import CATALOGUE, Entry, context_of
from msgspec import inspect

from covey_protocol.chunks import PIECE_BYTES
from covey_protocol.digest import DIGEST_BYTES
from covey_protocol.envelope import PROTOCOL
from covey_protocol.messages import Leaves, ReportHead
from covey_protocol.payload import Payload

VERSION = "3.0.0"
NAME_PATTERN = "^[a-z0-9][a-z0-9-]{0,62}$"
_HEADER = """\
# Made by `python -m docs.tools.generate` from the code; edit that, not this.
"""
_ABOUT = """\
Covey's messages over MQTT. docs/protocol.md says what they mean; this file says where they travel and what they look
like.

Every payload but a piece of a blob is a COSE_Sign1 (RFC 9052, tag 18) with EdDSA over deterministic CBOR (RFC 8949,
section 4.2.1). The schemas below describe the CBOR map that is signed, in JSON Schema's words: "contentEncoding:
cbor-byte-string" marks a CBOR byte string (major type 2), whose minLength and maxLength count bytes; a "number" is a
float64 or an integer. Unknown fields are tolerated. `x-covey-context` says what the signature covers besides protocol
version, fleet, kind, sender and recipient.

Channels are seen from the wire: the aggregator receives what is on `up`, and sends what is on `down` and `pub`.
"""
_PARAMETERS = {
    "fleet": "The fleet's name.",
    "device": "The device's name.",
    "transfer": "The first 16 hexadecimal digits of the blob's digest.",
    "shard": "The shard's label: `s` and its bits, such as `s` or `s01`.",
    "task": "The task's name.",
    "group": "The group's identifier: epoch, shard label and index, such as `7-s01-0`.",
    "digest": "The blob's digest in hexadecimal digits.",
}


def document() -> dict[str, Any]:
    """Return the whole document."""
    schemas = _schemas()
    return {
        "asyncapi": VERSION,
        "info": {"title": "Covey", "version": PROTOCOL.removeprefix("covey/"), "description": _ABOUT},
        "defaultContentType": "application/cose; cose-type=cose-sign1",
        "channels": {entry.name: _channel(entry) for entry in CATALOGUE},
        "operations": {entry.name: _operation(entry) for entry in CATALOGUE},
        "components": {
            "parameters": {name: {"description": text} for name, text in _PARAMETERS.items()},
            "messages": {entry.name: _message(entry) for entry in CATALOGUE},
            "schemas": schemas,
        },
    }


def render() -> str:
    """Return the document as YAML."""
    return _HEADER + yaml.dump(document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _channel(entry: Entry) -> dict[str, Any]:
    names = [name for name in _PARAMETERS if f"{{{name}}}" in entry.address]
    return {
        "address": entry.address,
        "description": entry.about,
        "parameters": {name: {"$ref": f"#/components/parameters/{name}"} for name in names},
        "messages": {entry.name: {"$ref": f"#/components/messages/{entry.name}"}},
        "bindings": {"mqtt": {}},
    }


def _operation(entry: Entry) -> dict[str, Any]:
    return {
        "action": "receive" if entry.way == "up" else "send",
        "channel": {"$ref": f"#/channels/{entry.name}"},
        "messages": [{"$ref": f"#/channels/{entry.name}/messages/{entry.name}"}],
        "bindings": {"mqtt": {"qos": 1, "retain": entry.retained}},
    }


def _message(entry: Entry) -> dict[str, Any]:
    kind = entry.kind.upper()
    if entry.payload is None:
        return {
            "name": entry.name,
            "title": f"{kind} (piece)",
            "summary": entry.about,
            "contentType": "application/cbor",
            "payload": {"$ref": "#/components/schemas/Piece"},
        }
    return {
        "name": entry.name,
        "title": kind,
        "summary": entry.about,
        "payload": {"$ref": f"#/components/schemas/{entry.payload.__name__}"},
        "x-covey-context": context_of(entry),
    }


def payload_classes() -> list[type[Payload]]:
    """Return every payload class that the catalogue names, and what is sealed or signed inside of others."""
    classes: list[type[Payload]] = []
    for entry in CATALOGUE:
        classes += [kind for kind in (entry.payload, entry.inside) if kind is not None and kind not in classes]
    return [*classes, Leaves, ReportHead]


def _schemas() -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    todo = [info for info in map(inspect.type_info, payload_classes()) if isinstance(info, inspect.StructType)]
    while todo:
        struct = todo.pop()
        if struct.cls.__name__ not in schemas:
            schemas[struct.cls.__name__] = _struct(struct, todo)
    schemas = dict(sorted(schemas.items()))
    schemas["Piece"] = {
        "title": "Piece",
        "description": (
            "One piece of a blob, unsigned: the CBOR array [digest, total bytes, piece size, index, data]. What the "
            f"aggregator sends and is larger than a piece ({PIECE_BYTES} bytes at most) travels so on its own topic."
        ),
        "type": "array",
        "items": [
            _byte_string(DIGEST_BYTES, DIGEST_BYTES),
            {"type": "integer", "minimum": 0},
            {"type": "integer", "minimum": 256, "maximum": 1 << 20},
            {"type": "integer", "minimum": 0},
            _byte_string(None, 1 << 20),
        ],
        "additionalItems": False,
        "minItems": 5,
    }
    return schemas


def _struct(struct: inspect.StructType, todo: list[inspect.StructType]) -> dict[str, Any]:
    properties = {}
    for field in struct.fields:
        properties[field.encode_name] = _schema(field.type, todo)
        if field.default is not msgspec.NODEFAULT and not isinstance(field.default, msgspec.Struct):
            # An empty byte string has no form of its own in YAML.
            properties[field.encode_name]["default"] = field.default or ("" if field.default == b"" else field.default)
    about = cleandoc(struct.cls.__doc__ or "").partition("\n\n")[0]
    return {
        "title": struct.cls.__name__,
        "description": " ".join(about.replace("``", "`").split()),
        "type": "object",
        "properties": properties,
        "required": [field.encode_name for field in struct.fields if field.required],
    }


def _schema(kind: inspect.Type, todo: list[inspect.StructType]) -> dict[str, Any]:  # noqa: PLR0911 - one a type
    """Return the schema of one type; structs that it refers to are added to ``todo``."""
    match kind:
        case inspect.StructType():
            todo.append(kind)
            return {"$ref": f"#/components/schemas/{kind.cls.__name__}"}
        case inspect.BytesType(min_length=smallest, max_length=largest):
            return _byte_string(smallest, largest)
        case inspect.StrType(min_length=smallest, max_length=largest, pattern=pattern):
            pattern = pattern.replace(r"\Z", "$") if pattern else None
            return _given(type="string", minLength=smallest, maxLength=largest, pattern=pattern)
        case inspect.IntType() | inspect.FloatType():
            name = "integer" if isinstance(kind, inspect.IntType) else "number"
            return _given(
                type=name, minimum=kind.ge, exclusiveMinimum=kind.gt, maximum=kind.le, exclusiveMaximum=kind.lt
            )
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.NoneType():
            return {"type": "null"}
        case inspect.LiteralType(values=values):
            return {"type": "string", "enum": list(values)}
        case inspect.ListType(item_type=item, min_length=smallest, max_length=largest):
            return _given(type="array", items=_schema(item, todo), minItems=smallest, maxItems=largest)
        case inspect.TupleType(item_types=items):
            parts = [_schema(item, todo) for item in items]
            return {"type": "array", "items": parts, "additionalItems": False, "minItems": len(parts)}
        case inspect.UnionType(types=types):
            return {"anyOf": [_schema(each, todo) for each in types]}
        case _:
            raise TypeError(f"no schema for {kind}")


def _given(**fields: Any) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def _byte_string(smallest: int | None, largest: int | None) -> dict[str, Any]:
    return _given(type="string", contentEncoding="cbor-byte-string", minLength=smallest, maxLength=largest)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and every value out in full."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)
