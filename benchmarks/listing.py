"""Row: what a person waits for most often."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import Figure, Samples, at_most
from benchmarks.system import CLOISON, TEMPLATE
from cloison.client import calls


def measure_list(bench: Bench) -> Iterator[Figure]:
    system = bench.system
    known = len(system.client.do(calls.list_states()))
    names = [f"bench-list{number}" for number in range(bench.options.qubes - known)]
    bench.tell(f"a list of {bench.options.qubes} qubes")
    for name in names:
        system.client.do(calls.create("AppVM", name, "green", template=TEMPLATE))
    qvm_ls = str(Path(CLOISON).with_name("qvm-ls"))
    ours = bench.times(lambda: system.cloison("list"), bench.options.repeat)
    theirs = bench.times(lambda: system.cloison(program=qvm_ls), bench.options.repeat)
    for name in names:
        system.client.do(calls.remove(name))
    for what, samples in (("cloison list", ours), ("qvm-ls", theirs)):
        yield Figure(
            f"`{what}` with {bench.options.qubes} qubes, whole process", Samples.of(samples, "s"),
            goal=at_most(0.3, "s"),
        )  # fmt: skip
