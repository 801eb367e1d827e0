"""A real group, its devices and aggregator wired back to back, that works on the benchmarks' updates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tests.protocol.rig import Rig, make_manifest

from benchmarks._inputs import updates
from covey_protocol.errors import StaleError
from covey_protocol.messages import Blob, Delta
from covey_protocol.round_table import GroupStage


class Group(Rig):
    """``n`` members and a model of ``dimension`` parameters, in a round that is not the task's first.

    With ``sketch`` numbers its members attest.
    """

    def __init__(self, n: int, dimension: int, sketch: int = 0) -> None:
        delta = Delta(base=bytes(32), blob=Blob(digest=bytes(32), bytes=2 * dimension + 4))
        super().__init__(n=n, dimension=dimension, manifest=make_manifest(dimension, delta=delta, sketch=sketch))
        self.updates = updates(n, dimension)

    def update(self, name: str) -> NDArray[np.float32]:
        return self.updates[self.names.index(name)]

    def sum_up(self, dropped: int = 0) -> None:
        """Carry the round to the masked sum; ``dropped`` members fall silent once they have dealt their shares."""
        self.joined()
        self.silent = set(self.names[1 : 1 + dropped])
        for _ in range(3):
            self.train()
            if not self.group.finished:
                self.late()
        assert self.group.stage is GroupStage.SUMMING
        # A quorum is enough for the certificate and for the reveals; the answers after it come late.
        assert all(isinstance(error, StaleError) for error in self.errors)
