"""The operator's revocation list on its way in: first its signed head, then its entries as a blob.

A head counts as seen, durably, the moment it is here: from then on no round that names an older list is joined. One
that names a newer list waits until the entries have come.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from covey_agent.blobs import BlobStore
from covey_agent.courier import Courier
from covey_agent.fetch import Fetcher
from covey_protocol.errors import StaleError
from covey_protocol.ledger import DeviceLedger
from covey_protocol.roster import Trust


class RevocationIntake:
    """One device's way to the newest list.

    Args:
        ledger: Keeps what was seen.
        trust: Whose signature and which fleet.
        courier: Makes marks durable.
        blobs: Where entries are that came before their head.
        fetcher: Asks for entries that do not come by themselves.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        ledger: DeviceLedger,
        trust: Trust,
        *,
        courier: Courier,
        blobs: BlobStore,
        fetcher: Fetcher,
        clock: Callable[[], float],
    ) -> None:
        self._ledger, self._trust = ledger, trust
        self._courier, self._blobs, self._fetcher, self._clock = courier, blobs, fetcher, clock

    def begin(self, head: bytes) -> None:
        """Take the head that the provisioning bundle held, unless a newer one was seen since."""
        if head:
            with contextlib.suppress(StaleError):
                self._courier.carry(
                    self._ledger.take_revocations(head, operator_key=self._trust.operator_key, fleet=self._trust.fleet)
                )

    def on_head(self, data: bytes) -> None:
        """Take a REVOCATIONS message; errors as ``Revocations.take_head``."""
        before = self._ledger.revocations.wanted
        self._courier.carry(
            self._ledger.take_revocations(data, operator_key=self._trust.operator_key, fleet=self._trust.fleet)
        )
        if before is not None and before != self._ledger.revocations.wanted:
            self._fetcher.forget(before.digest)
        self.want()

    def want(self) -> None:
        """Wait for the entries of the newest head, unless they are here.

        Raises:
            RefusedError: They do not fit the budget of blobs on their way.
        """
        wanted = self._ledger.revocations.wanted
        if wanted is None:
            return
        entries = self._blobs.get(wanted.digest)
        if entries is not None:
            self._courier.carry(self._ledger.take_revoked(entries))
        else:
            self._fetcher.want(wanted.digest, wanted.bytes, self._clock())

    def on_blob(self, digest: bytes, blob: bytes) -> bool:
        """Take a blob if it is the entries that are waited for, and say whether it was."""
        if digest not in self.wanted():
            return False
        self._courier.carry(self._ledger.take_revoked(blob))
        return True

    def wanted(self) -> set[bytes]:
        """Return the digest of the entries that are waited for, if any are."""
        wanted = self._ledger.revocations.wanted
        return set() if wanted is None else {wanted.digest}
