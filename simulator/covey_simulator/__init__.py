"""Simulated fleets of real agents, with attacks, scenarios and the demo."""
