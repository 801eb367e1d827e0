"""The errors of the protocol, in two families that say who broke the rule.

``PeerError``: bytes or behaviour of somebody else (a device, the aggregator, whoever writes to the broker) break a
rule. The receiver drops the message, counts it under ``cause`` and goes on; its state has not changed.

``LocalError``: our own side is at fault: a call out of order, a configuration that cannot work, a damaged file.

Each carries ``cause``, a short fixed word to count and to search for, and a message that names what is wrong and where.
Messages never hold secrets: names, sizes, stages and digest prefixes only.
"""

from __future__ import annotations

from collections.abc import Iterable


class CoveyError(Exception):
    """Root of all errors that Covey raises on purpose."""

    cause = "error"

    def __init__(self, message: str, *, cause: str | None = None, culprits: Iterable[str] = ()) -> None:
        """Describe a fault.

        Args:
            message: What is wrong and where, for people.
            cause: Replaces the class's own cause.
            culprits: The members that are proven to have caused it, if any are.
        """
        super().__init__(message)
        self.culprits = tuple(culprits)
        if cause is not None:
            self.cause = cause


class PeerError(CoveyError):
    """Somebody else broke a rule; drop what they sent and keep the state."""

    cause = "peer"


class MalformedError(PeerError):
    """Bytes that are not what the format says: truncated, oversized, non-canonical, of the wrong type or range."""

    cause = "malformed"


class SignatureError(PeerError):
    """A signature, or a chain of signatures, that does not hold."""

    cause = "signature"


class StaleError(PeerError):
    """A message for a round, attempt or stage that is over, or that has been seen before; usually innocent."""

    cause = "stale"


class RefusedError(PeerError):
    """A well-formed, well-signed request that the rules forbid us to grant."""

    cause = "refused"


class LocalError(CoveyError):
    """Our own side broke a rule."""

    cause = "local"


class ConfigError(LocalError):
    """A configuration, home folder, bundle or data file that cannot be used; the message names the file and field."""

    cause = "config"


class StateError(LocalError):
    """A call that the state machine has no place for."""

    cause = "state"
