"""Measurements that stand beside an anchor: one file a benchmark, run with `./run bench NAME`."""
