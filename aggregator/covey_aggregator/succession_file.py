"""The file of a succession, in the operator's home and in a server's: the message, and both lists that it names.

It is replaced in one step, and this step is the change of the operator's key: what else is in the home is brought after
it, by whoever opens the home next.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from covey_protocol import cbor, revocation, succession
from covey_protocol.errors import ConfigError, CoveyError, MalformedError
from covey_protocol.succession import CheckedSuccession, Successions

FILE = "succession.cbor"
BYTES_MAX = succession.LIST_BYTES_MAX + revocation.LIST_BYTES_MAX + 32 * 1024


@dataclass(frozen=True)
class SignedSuccession:
    """A whole succession: what was checked, the message, the list of tokens, and the entries of the revocation list."""

    checked: CheckedSuccession
    message: bytes = field(repr=False)
    tokens: bytes = field(repr=False)
    revoked: bytes = field(repr=False, default=b"")

    @property
    def key(self) -> bytes:
        """The operator's newest key."""
        return self.checked.key

    def encoded(self) -> bytes:
        """Return all parts in one string."""
        return cbor.encode([self.message, self.tokens, self.revoked])


def decode(data: bytes, *, operator_key: bytes, fleet: str) -> tuple[SignedSuccession, Successions]:
    """Check all parts of a succession that leads on from a key.

    Returns:
        It, and what somebody knows who has taken it.

    Raises:
        PeerError: A part does not hold, or it leads on from another key.
    """
    match cbor.decode(data, max_bytes=BYTES_MAX):
        case [bytes(message), bytes(tokens), bytes(revoked)]:
            pass
        case _:
            raise MalformedError("not the parts of a succession")
    known = Successions()
    checked = known.take(message, operator_key=operator_key, fleet=fleet)
    assert checked is not None
    known.take_list(tokens)
    if checked.revocations is not None:
        revocation.read_list(revoked, checked.revocations)
    return SignedSuccession(checked, message, tokens, revoked), known


def read(path: Path, *, operator_key: bytes, fleet: str) -> tuple[SignedSuccession | None, Successions]:
    """Read the succession that is in a home, if there is one; arguments and result as ``decode``.

    Raises:
        ConfigError: It is damaged, or leads on from another key.
    """
    file = path / FILE
    try:
        return decode(file.read_bytes(), operator_key=operator_key, fleet=fleet)
    except FileNotFoundError:
        return None, Successions()
    except (OSError, CoveyError) as error:
        raise ConfigError(f"{file}: {error}") from error
