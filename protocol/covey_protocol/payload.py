"""How payloads become typed values and back.

A payload is a deterministic CBOR map. Unknown fields are tolerated (a newer peer may send them; the signed bytes are
kept and passed on as they came), while a missing field or a wrong type, size or range is refused before any use.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from covey_protocol import cbor
from covey_protocol.errors import MalformedError

Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}\Z")]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
MAX_PAYLOAD_BYTES = 1 << 20

T = TypeVar("T", bound="Payload")


class Payload(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything that is signed: immutable and by keyword only."""


def write(value: Payload) -> bytes:
    """Encode a payload deterministically."""
    return cbor.encode(msgspec.to_builtins(value, builtin_types=(bytes,)))


def read(kind: type[T], data: bytes, *, max_bytes: int = MAX_PAYLOAD_BYTES) -> T:
    """Decode and check a payload.

    Raises:
        MalformedError: The bytes are no such payload; the message names the field.
    """
    value = cbor.decode(data, max_bytes=max_bytes)
    try:
        return msgspec.convert(value, kind, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        raise MalformedError(f"{kind.__name__.lower()}: {error}", cause="malformed") from error
