"""How payloads become typed values and back.

A payload is a deterministic CBOR map. Unknown fields are tolerated (a newer peer may send them; the signed bytes are
kept and passed on as they came), while a missing field or a wrong type, size or range is refused before any use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
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


def prepare(namespace: Mapping[str, object]) -> None:
    """Let msgspec work out every struct of a module while the module is being imported, on one thread.

    It does so when a struct is first met, and publishes its tables before they are filled: a second thread that meets
    the same struct in this instant reads through a null pointer, and the process dies (msgspec 0.22). A process with
    many agents gets there when the first message reaches all of them at once.

    Args:
        namespace: The module's ``globals()``, at its end.
    """
    for kind in list(namespace.values()):
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            with contextlib.suppress(msgspec.ValidationError):
                msgspec.convert({}, kind)


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
