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
from covey_agent.listed import ListIntake
from covey_protocol.errors import StaleError
from covey_protocol.ledger import DeviceLedger
from covey_protocol.roster import Trust


class RevocationIntake(ListIntake):
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
        super().__init__(
            *(lambda: ledger.revocations.wanted, ledger.take_revoked),
            courier=courier,
            blobs=blobs,
            fetcher=fetcher,
            clock=clock,
        )
        self._ledger, self._trust = ledger, trust

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
