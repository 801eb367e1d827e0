"""What the service passes on of a change of the operator's key, for as long as there may be devices that were away."""

from __future__ import annotations

from covey_aggregator.store import Store
from covey_aggregator.succession_file import SignedSuccession
from covey_protocol import topics
from covey_protocol.effects import Publish

_PUBLISHED = "succession-published"


class SuccessionDesk:
    """The service's side.

    Args:
        succession: What is in the home, if the key was ever changed.
        store: Remembers which list was published.
    """

    def __init__(self, succession: SignedSuccession | None, store: Store) -> None:
        self._succession, self._store = succession, store
        self._said = succession is None

    def poll(self) -> list[Publish]:
        """Return what devices have to hear: the message at first and after ``again``, the list of tokens once.

        Whoever lacks the list later asks for it.
        """
        if self._said or self._succession is None:
            return []
        self._said = True
        effects = [Publish(topics.SUCCESSION, "", self._succession.message, retain=True)]
        if self._store.number(_PUBLISHED) < self._succession.checked.version:
            self._store.set_number(_PUBLISHED, self._succession.checked.version)
            name = self._succession.checked.links[-1].tokens.digest.hex()
            effects.append(Publish(topics.BLOB, name, self._succession.tokens))
        return effects

    def again(self) -> None:
        """Say the message again: a broker that was started anew may have lost it."""
        self._said = self._succession is None

    def serve(self, digest: bytes) -> bytes | None:
        """Return the list of tokens, if it is that which a device asks for."""
        found = self._succession
        return found.tokens if found is not None and found.checked.links[-1].tokens.digest == digest else None
