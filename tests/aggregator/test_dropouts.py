"""Processes that die at an exact stage of a round: twenty real agents in two groups of ten, over a real broker.

The aggregator hands every message to the test first. So a process is dead before the aggregator has taken its last
message, and hence before it can send anything that builds on the aggregator's answer. The aggregator's clock stands
still; once nobody but the dead is waited for, the test lets it leap. Nothing depends on how fast the machine is.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from tests.aggregator.live import ONE_STEP, Clock, Live, bundle, enrol_agent, live_homes, live_task, samples, until

from covey_agent.home import AgentHome
from covey_agent.trainer import Trainer
from covey_aggregator.records import GroupRecord, RoundRecord
from covey_protocol import ring, topics
from covey_protocol.chunks import is_piece
from covey_protocol.round_table import GroupStage
from covey_protocol.thresholds import threshold
from covey_simulator.broker import RunningBroker

GROUP = 10


class Executioner:
    """Kills processes when the message that their sentence names arrives.

    In each group: the first dies behind JOIN, the second behind SHARES, the third behind its masked vector; in the
    second group two more die behind their signature on the survivors.
    """

    def __init__(self, live: Live, processes: dict[str, subprocess.Popen[bytes]]) -> None:
        self._live, self._processes = live, processes
        self._take = live.service.link._on_message
        self.sentences: dict[str, str] = {}
        self.groups: list[list[str]] = []
        self.order: list[tuple[str, str]] = []
        live.service.link._on_message = self.on_message

    def on_message(self, topic: str, payload: bytes, acknowledge: Callable[[], object]) -> None:
        """Kill first, pass on then; runs on the aggregator's loop."""
        place = topics.parse(topic)
        run = self._live.service.coordinator.run
        if run is not None and not self.groups:
            self.groups = [[name for name, _ in group.grouping.members] for group in run.groups.values()]
            last_words = [topics.JOIN, topics.SHARES, topics.MASKED]
            for members, words in zip(self.groups, (last_words, [*last_words, *[topics.SURVIVORS] * 2]), strict=True):
                self.sentences.update(zip(members, words, strict=False))
        # A masked vector is announced by a signed message and follows in pieces: the pieces are the last words.
        said = place.kind if place.kind != topics.MASKED or is_piece(payload) else ""
        if self.sentences.get(place.device) == said:
            del self.sentences[place.device]
            process = self._processes[place.device]
            process.kill()
            process.wait()
            self.order.append((place.device, said))
        self._take(topic, payload, acknowledge)


class Scene:
    """Everything that is left when the round is over."""

    def __init__(self, folder: Path, broker: RunningBroker) -> None:
        operator, home = live_homes(folder, broker)
        clock = Clock()
        names = [f"pi-{number}" for number in range(2 * GROUP)]
        self.homes = {name: enrol_agent(folder, operator, home, name) for name in names}
        processes = {name: _start(agent) for name, agent in self.homes.items()}
        try:
            with Live(home, clock=clock) as live:
                executioner = Executioner(live, processes)
                live.service.store.add_task(
                    # The broker reports the dead lost at once; a task whose devices sleep waits for them all the same.
                    live_task(folder, rounds=1, group_size=GROUP, devices_min=len(names), settle=0.0, sleep=True)
                )
                for stage in (GroupStage.SHARING, GroupStage.MASKING, GroupStage.UNMASKING):
                    until(_only_the_dead_are_missing(live, processes, stage), f"silence of the dead while {stage}")
                    clock.leap(601)
                live.until_ended()
                self.status = live.status()
                (self.record,) = live.service.store.rounds("digits")
                self.events = [(cause, text) for _, _, cause, text in live.service.store.events()]
                self.after = live.service.coordinator.models.load(bytes.fromhex(self.record.model))
                self.scale = ring.RingScale(0.2, GROUP)
            self.alive = {name for name, process in processes.items() if process.poll() is None}
        finally:
            _end(processes.values())
        self.groups, self.order = executioner.groups, executioner.order

    def detail(self, group: int) -> GroupRecord:
        """Return the record of the first or the second group."""
        record: RoundRecord = self.record
        return record.details[group]


def _start(home: AgentHome) -> subprocess.Popen[bytes]:
    log = (home.path / "log").open("wb")
    command = [sys.executable, "-m", "covey_agent.cli", "run", "--home", str(home.path)]
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def _end(processes: Collection[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def _only_the_dead_are_missing(
    live: Live, processes: dict[str, subprocess.Popen[bytes]], stage: GroupStage
) -> Callable[[], bool]:
    """Whether every group that is not over is in a stage where it waits for dead members and for nobody else."""

    def check() -> bool:
        run = live.service.coordinator.run
        waiting = [group for group in run.groups.values() if not group.finished] if run else []
        dead = {name for name, process in processes.items() if process.poll() is not None}
        return bool(waiting) and all(group.stage is stage and group.awaited() <= dead for group in waiting)

    return lambda: live.call(check)


def test_groups_close_or_abort_as_their_members_die(mosquitto: RunningBroker, tmp_path: Path) -> None:
    scene = Scene(tmp_path, mosquitto)
    check_that_everybody_died_behind_the_words_that_were_meant(scene)
    check_that_the_first_group_closed_with_the_sum_of_its_eight(scene)
    check_that_the_second_group_aborted_and_said_why(scene)


def check_that_everybody_died_behind_the_words_that_were_meant(scene: Scene) -> None:
    assert [kind for name, kind in scene.order if name in scene.groups[0]] == [
        topics.JOIN,
        topics.SHARES,
        topics.MASKED,
    ]
    assert sorted(kind for name, kind in scene.order if name in scene.groups[1]) == sorted(
        [topics.JOIN, topics.SHARES, topics.MASKED, topics.SURVIVORS, topics.SURVIVORS]
    )
    assert scene.alive == set(scene.homes) - {name for name, _ in scene.order}


def check_that_the_first_group_closed_with_the_sum_of_its_eight(scene: Scene) -> None:
    detail, members = scene.detail(0), scene.groups[0]
    assert (detail.cause, detail.members, detail.survivors) == ("", members, [members[2], *members[3:]])
    trainer = Trainer(bundle())
    before = bundle().weights
    clear = [
        ring.clip_norm(trainer.train(before, samples(scene.homes[name]), ONE_STEP, seed=bytes(32)).update, 0.2)[0]
        for name in detail.survivors
    ]
    step = np.mean(clear, axis=0)
    np.testing.assert_allclose(scene.after - before, step, atol=scene.scale.step + 1e-5)
    assert np.abs(step).max() > 10 * scene.scale.step


def check_that_the_second_group_aborted_and_said_why(scene: Scene) -> None:
    detail, t = scene.detail(1), threshold(GROUP)
    assert (detail.cause, detail.survivors) == ("too-few-revealed", [])
    assert detail.reason == f"5 members revealed shares, t is {t}"
    assert (scene.status, scene.record.groups_aborted, scene.record.accepted) == ("done", 1, 8)
    assert ("too-few-revealed", f"group {detail.group} aborted: {detail.reason}") in scene.events
    dead = {kind: name for name, kind in scene.order if name in scene.groups[1]}
    missing = [text for cause, text in scene.events if cause == "missing" and detail.group in text]
    for stage, kind in ((GroupStage.SHARING, topics.JOIN), (GroupStage.MASKING, topics.SHARES)):
        assert any(f"{stage}: no answer from {dead[kind]}" in text for text in missing)
    assert any(GroupStage.UNMASKING in text for text in missing)
