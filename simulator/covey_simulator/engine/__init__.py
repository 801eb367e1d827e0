"""Fleets in one process: the whole of a round's logic without a broker.

A fleet is rehearsed at one of three levels, which give the same learning result for the same draws:

- over a broker (``covey_simulator.fleet``): real agents, real aggregator, real MQTT;
- directly (``signed``): the real state machines of devices, groups and epochs, back to back, with all signatures and
  certificates; masks as they are, or left out where they cancel exactly;
- fast (``plain``): neither signatures nor masks. Who joins, deals, survives, attests and is accepted follows from the
  same thresholds, groups from the same function, updates go through the same ring and the same sketches.

``conductor`` plays the aggregator above any of the last two.
"""
