"""Some of a benchmark's devices in one process: real agents with real links, whose training takes no time.

Reads a line of JSON with the homes to open, then one command a line: ``traffic`` or ``stop``; answers in JSON.
"""

from __future__ import annotations

import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from covey_agent.connect import RunningAgent
from covey_agent.data import Dataset
from covey_agent.home import open_home
from covey_agent.trainer import Cancel, Progress, Trainer, TrainResult
from covey_protocol.bundle import Bundle, Float32
from covey_protocol.plan import Plan


class InstantTrainer(Trainer):
    """Returns a random update of the right size at once, and needs no sessions for it."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def train(
        self,
        weights: Float32,
        data: Dataset,
        plan: Plan,
        *,
        seed: bytes,
        cancel: Cancel | None = None,
        progress: Progress | None = None,
    ) -> TrainResult:
        update = np.random.default_rng(int.from_bytes(seed, "big")).standard_normal(len(weights), dtype=np.float32)
        return TrainResult(update, loss=1.0, accuracy=0.5, samples=len(data), steps=1)


def main() -> None:
    """Serve until told to stop."""
    logging.basicConfig(level="ERROR")
    task: dict[str, Any] = json.loads(sys.stdin.readline())
    executor = ThreadPoolExecutor(1, "covey-training")
    agents = [
        RunningAgent(
            open_home(Path(home)),
            executor=executor,
            make_trainer=InstantTrainer,
            database=":memory:" if task["memory"] else None,
        )
        for home in task["homes"]
    ]
    for agent in agents:
        agent.start()
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        states = [agent.link.status for agent in agents]
        refusals: dict[str, int] = {}
        for agent in agents:
            for cause, count in agent.agent.refusals.counts.items():
                refusals[cause] = refusals.get(cause, 0) + count
        answer = {
            "up": sum(state.bytes_up for state in states),
            "down": sum(state.bytes_down for state in states),
            "refusals": refusals,
        }
        print(json.dumps(answer), flush=True)
    for agent in agents:
        agent.agent.stop()
    for agent in agents:
        agent.stop()
    executor.shutdown(wait=False, cancel_futures=True)


if __name__ == "__main__":
    main()
