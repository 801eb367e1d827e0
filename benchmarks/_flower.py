"""Flower's side of the comparisons, run by ``_worker`` in Flower's own environment.

Everything on the clock is Flower's: the client's functions are called as ``secaggplus_mod`` calls them, the server's
as ``SecAggPlusWorkflow.unmask_stage`` does, with the workflow's default ranges. Only the transport is left out.
"""

from __future__ import annotations

import importlib
import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._inputs import fingerprint, group_means, updates
from benchmarks._worker import serve

COMMON = "flwr.common.secure_aggregation"
# By name and not by `from … import`: the module is hidden behind a function of its own name, and nothing of Flower is
# there when this file is type-checked.
client: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
shamir: Any = importlib.import_module(f"{COMMON}.crypto.shamir")
symmetric: Any = importlib.import_module(f"{COMMON}.crypto.symmetric_encryption")
arithmetic: Any = importlib.import_module(f"{COMMON}.ndarrays_arithmetic")
quantization: Any = importlib.import_module(f"{COMMON}.quantization")
utils: Any = importlib.import_module(f"{COMMON}.secaggplus_utils")
keys: Any = importlib.import_module("flwr.supercore.primitives.asymmetric")
common: Any = importlib.import_module("flwr.common")
strategies: Any = importlib.import_module("flwr.server.strategy.aggregate")
Key: Any = importlib.import_module(f"{COMMON}.secaggplus_constants").Key

CLIPPING_RANGE, TARGET_RANGE, MOD_RANGE, MAX_WEIGHT = 8.0, 1 << 22, 1 << 32, 1000.0  # SecAggPlusWorkflow's defaults
EXAMPLES = 1000  # every client's weight: the largest, so that all count the same

Update = NDArray[np.float32]


def threshold(n: int) -> int:
    """Return the threshold that Covey uses, so that both sides share alike."""
    return 2 * n // 3 + 1


class Fleet:
    """Clients that have set up and dealt their shares; node ids count from 1."""

    def __init__(self, n: int) -> None:
        self.n, self.threshold = n, threshold(n)
        self.states = {nid: client.SecAggPlusState() for nid in range(1, n + 1)}
        for nid, state in self.states.items():
            state.nid = nid
            client._setup(state, self._terms())
        self.public = {nid: (state.pk1, state.pk2) for nid, state in self.states.items()}
        self.dealt = {nid: self.deal(nid) for nid in self.states}

    def deal(self, nid: int) -> dict[str, Any]:
        """Make and encrypt one client's shares."""
        answer: dict[str, Any] = client._share_keys(self.states[nid], {str(n): list(k) for n, k in self.public.items()})
        return answer

    def forwarded(self, nid: int) -> dict[str, Any]:
        """Return what the server forwards to one client."""
        arrived = [
            (source, ciphertext)
            for source, sent in self.dealt.items()
            for to, ciphertext in zip(sent[Key.DESTINATION_LIST], sent[Key.CIPHERTEXT_LIST], strict=True)
            if to == nid
        ]
        return {Key.SOURCE_LIST: [source for source, _ in arrived], Key.CIPHERTEXT_LIST: [c for _, c in arrived]}

    def step(self, nid: int, parameters: Any) -> list[bytes]:
        """Run the client's whole stage: open the shares, quantise, mask, serialise."""
        answer = client._collect_masked_vectors(self.states[nid], self.forwarded(nid), EXAMPLES, parameters)
        result: list[bytes] = answer[Key.MASKED_PARAMETERS]
        return result

    def mask(self, nid: int, update: Update) -> list[bytes]:
        """Run that stage from the update on: weight, quantise, mask, serialise."""
        state = self.states[nid]
        q_ratio = round(EXAMPLES / state.max_weight * state.target_range)
        parameters = arithmetic.parameters_multiply([update], q_ratio / state.target_range)
        quantised = quantization.quantize(parameters, state.clipping_range, state.target_range)
        quantised = arithmetic.factor_combine(q_ratio, quantised)
        shapes = [array.shape for array in quantised]
        private = utils.pseudo_rand_gen(state.rd_seed, state.mod_range, shapes)
        quantised = arithmetic.parameters_addition(quantised, private)
        for other in self.states:
            if other == nid:
                continue
            shared = symmetric.generate_shared_key(
                keys.bytes_to_private_key(state.sk1), keys.bytes_to_public_key(self.public[other][0])
            )
            pairwise = utils.pseudo_rand_gen(shared, state.mod_range, shapes)
            change = arithmetic.parameters_addition if nid > other else arithmetic.parameters_subtraction
            quantised = change(quantised, pairwise)
        quantised = arithmetic.parameters_mod(quantised, state.mod_range)
        return [common.ndarray_to_bytes(array) for array in quantised]

    def revealed(self, active: list[int]) -> dict[int, list[bytes]]:
        """Return the shares that the active clients reveal, by owner."""
        dead = [nid for nid in self.states if nid not in active]
        collected: dict[int, list[bytes]] = {nid: [] for nid in self.states}
        for nid in active:
            terms = {Key.ACTIVE_NODE_ID_LIST: active, Key.DEAD_NODE_ID_LIST: dead}
            answer = client._unmask(self.states[nid], terms)
            for owner, share in zip(answer[Key.NODE_ID_LIST], answer[Key.SHARE_LIST], strict=True):
                collected[owner].append(share)
        return collected

    def unmask(self, total: list[Any], active: list[int], collected: dict[int, list[bytes]]) -> Any:
        """Take the masks off a sum and return the mean."""
        shapes = arithmetic.get_parameters_shape(total)
        for nid, shares in collected.items():
            assert len(shares) >= self.threshold
            secret = shamir.combine_shares(shares)
            if nid in active:
                private = utils.pseudo_rand_gen(secret, MOD_RANGE, shapes)
                total = arithmetic.parameters_subtraction(total, private)
                continue
            for other in self.states:
                if other == nid:
                    continue
                shared = symmetric.generate_shared_key(
                    keys.bytes_to_private_key(secret), keys.bytes_to_public_key(self.public[other][0])
                )
                pairwise = utils.pseudo_rand_gen(shared, MOD_RANGE, shapes)
                change = arithmetic.parameters_addition if nid > other else arithmetic.parameters_subtraction
                total = change(total, pairwise)
        total = arithmetic.parameters_mod(total, MOD_RANGE)
        return decode(total, len(active))

    def _terms(self) -> dict[str, Any]:
        return {
            Key.SAMPLE_NUMBER: self.n,
            Key.SHARE_NUMBER: self.n,
            Key.THRESHOLD: self.threshold,
            Key.CLIPPING_RANGE: CLIPPING_RANGE,
            Key.TARGET_RANGE: TARGET_RANGE,
            Key.MOD_RANGE: MOD_RANGE,
            Key.MAX_WEIGHT: MAX_WEIGHT,
        }


def decode(total: list[Any], count: int) -> Any:
    """Turn an unmasked sum into the weighted mean."""
    q_total, rest = arithmetic.factor_extract(total)
    [vector] = quantization.dequantize(rest, CLIPPING_RANGE, TARGET_RANGE)
    vector += -(count - 1) * CLIPPING_RANGE
    vector *= TARGET_RANGE / q_total
    return vector


def arrays(data: list[bytes]) -> list[Any]:
    """Read serialised arrays."""
    return [common.bytes_to_ndarray(part) for part in data]


def add_up(vectors: list[list[Any]]) -> list[Any]:
    """Add masked vectors as the server does."""
    total = vectors[0]
    for vector in vectors[1:]:
        total = arithmetic.parameters_addition(total, vector)
    return list(arithmetic.parameters_mod(total, MOD_RANGE))


def check_mean(mean: Any, vectors: list[Update]) -> None:
    """Hold a decoded mean against the exact one, within a quantisation step."""
    error = np.abs(mean - np.mean(vectors, axis=0)).max()
    assert error <= 4 * CLIPPING_RANGE / TARGET_RANGE, f"the mean is off by {error}"


class Mask:
    """Quantise and mask one update among ``peers`` others; with ``whole`` the client's whole stage."""

    def __init__(self, dimension: int, peers: int, whole: bool = False) -> None:
        self._updates, self._fleet, self._whole = updates(peers + 1, dimension), Fleet(peers + 1), whole
        self._me = peers // 2 + 1
        rest = add_up(
            [arrays(self._fleet.mask(nid, self._updates[nid - 1])) for nid in self._fleet.states if nid != self._me]
        )
        shapes = arithmetic.get_parameters_shape(rest)
        for state in self._fleet.states.values():
            rest = arithmetic.parameters_subtraction(rest, utils.pseudo_rand_gen(state.rd_seed, MOD_RANGE, shapes))
        self._rest = arithmetic.parameters_mod(rest, MOD_RANGE)

    def inputs(self) -> Any:
        update = self._updates[self._me - 1]
        return common.ndarrays_to_parameters([update]) if self._whole else update

    def run(self, inputs: Any) -> list[bytes]:
        return self._fleet.step(self._me, inputs) if self._whole else self._fleet.mask(self._me, inputs)

    def check(self, result: list[bytes]) -> dict[str, Any]:
        vector = arrays(result)
        check_mean(decode(add_up([self._rest, vector]), self._fleet.n), self._updates)
        return {
            "inputs": fingerprint(self._updates),
            "size": sum(len(part) for part in result),
            "dtype": str(vector[1].dtype),
        }


class Share:
    """Make and encrypt the shares of both secrets for ``peers`` others."""

    def __init__(self, peers: int) -> None:
        self._fleet = Fleet(peers + 1)

    def inputs(self) -> None:
        return None

    def run(self, _: None) -> dict[str, Any]:
        return self._fleet.deal(1)

    def check(self, result: dict[str, Any]) -> dict[str, Any]:
        me, opened = self._fleet.states[1], []
        for to, ciphertext in zip(result[Key.DESTINATION_LIST], result[Key.CIPHERTEXT_LIST], strict=True):
            key = symmetric.generate_shared_key(
                keys.bytes_to_private_key(self._fleet.states[to].sk2), keys.bytes_to_public_key(me.pk2)
            )
            opened.append(utils.share_keys_plaintext_separate(symmetric.decrypt(key, ciphertext))[2:])
        last = opened[-self._fleet.threshold :]
        assert shamir.combine_shares([seed for seed, _ in last]) == me.rd_seed
        assert shamir.combine_shares([key for _, key in last]) == me.sk1
        return {"threshold": self._fleet.threshold, "size": sum(len(c) for c in result[Key.CIPHERTEXT_LIST])}


class Unmask:
    """Take the masks off one group's sum; ``dropped`` members dealt and then fell silent."""

    def __init__(self, dimension: int, members: int, dropped: int) -> None:
        self._updates, self._fleet = updates(members, dimension), Fleet(members)
        self._active = [nid for nid in self._fleet.states if not 2 <= nid <= 1 + dropped]
        sent = [
            arrays(self._fleet.step(nid, common.ndarrays_to_parameters([self._updates[nid - 1]])))
            for nid in self._active
        ]
        self._total = add_up(sent)
        self._collected = self._fleet.revealed(self._active)

    def inputs(self) -> list[Any]:
        return [array.copy() for array in self._total]

    def run(self, total: list[Any]) -> Any:
        return self._fleet.unmask(total, self._active, self._collected)

    def check(self, result: Any) -> dict[str, Any]:
        check_mean(result, [self._updates[nid - 1] for nid in self._active])
        return {"inputs": fingerprint(self._updates), "survivors": len(self._active)}


class TrimmedMean:
    """Flower's trimmed average over ``groups`` results of one layer, or scipy's over the stacked rows."""

    def __init__(self, groups: int, dimension: int, beta: float, by: str = "flower") -> None:
        self._rows, self._beta, self._by = group_means(groups, dimension), beta, by

    def inputs(self) -> Any:
        return np.stack(self._rows) if self._by == "scipy" else [([row], 1) for row in self._rows]

    def run(self, inputs: Any) -> Any:
        if self._by == "scipy":
            return importlib.import_module("scipy.stats").trim_mean(inputs, self._beta, axis=0)
        [layer] = strategies.aggregate_trimmed_avg(inputs, self._beta)
        return layer

    def check(self, result: Any) -> dict[str, Any]:
        groups = len(self._rows)
        cut = int(self._beta * groups)
        for at in range(0, len(self._rows[0]), max(1, len(self._rows[0]) // 50)):
            kept = np.sort([row[at] for row in self._rows])[cut : groups - cut]
            assert np.isclose(result[at], kept.mean(dtype=np.float64), rtol=1e-4, atol=1e-8)
        return {"inputs": fingerprint(self._rows), "cut": cut}


WORKS = {"mask": Mask, "share": Share, "unmask": Unmask, "trimmed-mean": TrimmedMean}

if __name__ == "__main__":
    logging.getLogger("flwr").setLevel(logging.ERROR)
    serve(WORKS, {"flwr": version("flwr"), "scipy": version("scipy"), "numpy (flwr)": np.__version__})
