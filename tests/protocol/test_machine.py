"""covey_protocol.machine, and every table in the package."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pytest

from covey_protocol import epoch_member, epoch_opening, topics
from covey_protocol.errors import StaleError
from covey_protocol.machine import Machine, mermaid
from covey_protocol.round_table import DEVICE_TABLE, GROUP_TABLE, TRAINED, DeviceStage, GroupStage

Table = Mapping[Any, Mapping[str, Any]]
TABLES: dict[str, tuple[Table, StrEnum, set[StrEnum]]] = {
    "device": (DEVICE_TABLE, DeviceStage.INVITED, {DeviceStage.CLOSED, DeviceStage.ABORTED, DeviceStage.DECLINED}),
    "group": (GROUP_TABLE, GroupStage.JOINING, {GroupStage.CLOSED, GroupStage.ABORTED}),
    "opening": (
        epoch_opening.TABLE,
        epoch_opening.Stage.LISTING,
        {epoch_opening.Stage.GROUPED, epoch_opening.Stage.FAILED},
    ),
    "member": (epoch_member.TABLE, epoch_member.Stage.WAITING, set()),
}
every_table = pytest.mark.parametrize(("table", "start", "ends"), TABLES.values(), ids=TABLES)


def reachable(table: Table, start: StrEnum) -> set[StrEnum]:
    found, todo = {start}, [start]
    while todo:
        for target in table[todo.pop()].values():
            if target not in found:
                found.add(target)
                todo.append(target)
    return found


@every_table
def test_every_state_has_a_row_and_can_be_reached(table: Table, start: StrEnum, ends: set[StrEnum]) -> None:
    assert set(table) == set(type(start))
    assert reachable(table, start) == set(type(start))


@every_table
def test_terminal_states_are_terminal_and_the_others_lead_to_one(
    table: Table, start: StrEnum, ends: set[StrEnum]
) -> None:
    assert {state for state, row in table.items() if not row} == ends
    for state in set(table) - ends:
        assert not ends or reachable(table, state) & ends


@every_table
def test_every_pair_of_state_and_event(table: Table, start: StrEnum, ends: set[StrEnum]) -> None:
    events = {event for row in table.values() for event in row}
    for state, row in table.items():
        for event in events:
            machine = Machine(table, state, "this machine")
            assert machine.allows(event) is (event in row)
            if event in row:
                machine.advance(event)
                assert machine.state is row[event]
            else:
                for act in (machine.require, machine.advance):
                    with pytest.raises(StaleError, match=rf"this machine: {event} .* {state}") as caught:
                        act(event)
                    assert caught.value.cause == "stage"
                assert machine.state is state


@every_table
def test_mermaid_draws_every_transition_once(table: Table, start: StrEnum, ends: set[StrEnum]) -> None:
    head, *lines = mermaid(table).splitlines()
    assert head == "stateDiagram-v2"
    expected = [f"{state} --> {target}: {event}" for state, row in table.items() for event, target in row.items()]
    assert [line.strip() for line in lines] == expected


def test_unknown_events_are_refused() -> None:
    machine = Machine(DEVICE_TABLE, DeviceStage.JOINED, "device")
    assert not machine.allows("nonsense")
    with pytest.raises(StaleError):
        machine.advance("nonsense")


def test_a_device_unmasks_only_behind_a_signature_and_masks_only_behind_a_list() -> None:
    def sources(event: str) -> set[DeviceStage]:
        return {state for state, row in DEVICE_TABLE.items() if event in row}

    assert sources(topics.UNMASK) == {DeviceStage.SIGNED, DeviceStage.ACCEPTED}
    assert sources(topics.SURVIVORS) == {DeviceStage.DEALT, DeviceStage.MASKED}
    assert sources(TRAINED) == {DeviceStage.DEALT}
    assert sources(topics.ATTEST) == {DeviceStage.SIGNED}
    # No way back: nothing that happens once in a round can happen twice.
    order = list(DeviceStage)
    for state, row in DEVICE_TABLE.items():
        moves = {event: target for event, target in row.items() if event != topics.COMPLAINT}
        assert all(order.index(target) > order.index(state) for target in moves.values())
        assert row.get(topics.COMPLAINT, state) is state
    # Shares can be complained of from when they were dealt to when they are used.
    assert sources(topics.COMPLAINT) == {
        DeviceStage.SHARED,
        DeviceStage.DEALT,
        DeviceStage.MASKED,
        DeviceStage.SIGNED,
        DeviceStage.ATTESTED,
        DeviceStage.ACCEPTED,
    }
