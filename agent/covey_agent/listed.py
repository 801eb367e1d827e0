"""Lists that the operator has signed by their digests, on their way in as blobs."""

from __future__ import annotations

from collections.abc import Callable

from covey_agent.blobs import BlobStore
from covey_agent.courier import Courier
from covey_agent.fetch import Fetcher
from covey_protocol.effects import Remember
from covey_protocol.messages import Blob


class ListIntake:
    """One device's way to a list whose signed head is here.

    Args:
        newest: Returns the name of the list that is waited for, if one is.
        take: Takes its bytes, and returns what has to be stored.
        courier: Makes marks durable.
        blobs: Where a list is that came before its head.
        fetcher: Asks for one that does not come by itself.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        newest: Callable[[], Blob | None],
        take: Callable[[bytes], list[Remember]],
        *,
        courier: Courier,
        blobs: BlobStore,
        fetcher: Fetcher,
        clock: Callable[[], float],
    ) -> None:
        self._newest, self._take = newest, take
        self._courier, self._blobs, self._fetcher, self._clock = courier, blobs, fetcher, clock

    def want(self) -> None:
        """Wait for the newest list, unless it is here.

        Raises:
            RefusedError: It does not fit the budget of blobs on their way.
        """
        wanted = self._newest()
        if wanted is None:
            return
        data = self._blobs.get(wanted.digest)
        if data is not None:
            self._courier.carry(self._take(data))
        else:
            self._fetcher.want(wanted.digest, wanted.bytes, self._clock())

    def on_blob(self, digest: bytes, blob: bytes) -> bool:
        """Take a blob if it is the list that is waited for, and say whether it was."""
        if digest not in self.wanted():
            return False
        self._courier.carry(self._take(blob))
        return True

    def wanted(self) -> set[bytes]:
        """Return the digest of the list that is waited for, if one is."""
        wanted = self._newest()
        return set() if wanted is None else {wanted.digest}
