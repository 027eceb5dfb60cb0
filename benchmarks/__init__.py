"""Figures of this machine: what Cloison costs, each against a peer in the same run. Run: ``python -m benchmarks``.

In: a host with QEMU. Out: a table (or JSON). May import: layout, client, wire; ``plain`` also the plan of machines and
the probe, so that the peer gets the same accelerator and processor. Nothing here is a test: a figure is a figure.
"""
