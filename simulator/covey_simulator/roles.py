"""Who is who in a simulated fleet; the scenario's seed decides."""

from __future__ import annotations

from covey_simulator.scenario import Scenario


def malicious_devices(scenario: Scenario) -> frozenset[int]:
    """Return which devices are malicious, by index."""
    chosen = scenario.generator("malicious").choice(scenario.devices, scenario.malicious_count, replace=False)
    return frozenset(chosen.tolist())


def odd_devices(scenario: Scenario) -> frozenset[int]:
    """Return which honest devices train differently, by index; as many as the scenario says, if there are so many."""
    malicious = malicious_devices(scenario)
    honest = [index for index in range(scenario.devices) if index not in malicious]
    count = min(len(honest), scenario.odd_count)
    return frozenset(scenario.generator("odd").choice(honest, count, replace=False).tolist() if count else ())
