"""Row: many qubes behind one firewall: started at once, their rules loaded, one of them changed.

That rules are in force is known from an answer about their counters: the netvm's agent does one thing after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from benchmarks.bench import Bench
from benchmarks.figures import Figure, Goal, Samples
from benchmarks.system import TEMPLATE, System
from cloison.client import calls

WALL = "bench-crowd-wall"
RULES = ["action=accept specialtarget=dns", "action=accept proto=icmp"] + [
    f"action=accept proto=tcp dst4=192.0.2.{number}/32 dstports=443-443" for number in range(7)
]
LOADS, CHANGES = 2, 5


def measure_clients(bench: Bench) -> Iterator[Figure]:
    system, count = bench.system, bench.options.clients
    bench.tell(f"making {count} qubes behind one firewall")
    with _qubes(system, count) as names:
        system.client.do(calls.power("Start", WALL))
        bench.tell(f"starting all {count} at once")
        started = _at_once(names, lambda name: system.client.do(calls.power("Start", name)))
        troubled = [row["network_trouble"] for row in system.client.do(calls.list_qubes([])) if row["network_trouble"]]
        yield Figure(
            f"{count} clients of one firewall started at once: until the last one's cable was open",
            Samples.of([max(started)], "s"), goal=Goal("all are open", lambda _, __: not troubled),
            note=f"the first after {min(started):.1f} s; without a network: {'; '.join(troubled[:1]) or 'none'}",
        )  # fmt: skip
        bench.tell("rules")

        def load_all() -> None:
            _at_once(names, lambda name: system.client.do(calls.firewall_set(name, [*RULES, "action=drop"])))
            system.client.do(calls.firewall_counters(names[0]))

        loaded = bench.times(load_all, LOADS)
        yield Figure(f"ten rules for each of these {count}, set at once, until all are in force",
                     Samples.of(loaded, "s"))  # fmt: skip
        ports = iter(range(1000, 2000))

        def change() -> None:
            changed = f"action=accept proto=udp dstports={next(ports)}"
            system.client.do(calls.firewall_set(names[0], [*RULES, changed, "action=drop"]))
            system.client.do(calls.firewall_counters(names[0]))

        asked = bench.times(lambda: system.client.do(calls.firewall_counters(names[0])), CHANGES)
        changed = bench.times(change, CHANGES)
        note = f"of which {sorted(asked)[len(asked) // 2] * 1000:.0f} ms are the question whether it is"
        yield Figure(f"a rule of one of these {count} changed, until it is in force",
                     Samples.of([1000 * each for each in changed], "ms"), note=note)  # fmt: skip


def _at_once(names: list[str], act: Callable[[str], object]) -> list[float]:
    """Seconds from the common beginning to the end of each."""
    began = time.perf_counter()

    def one(name: str) -> float:
        act(name)
        return time.perf_counter() - began

    with ThreadPoolExecutor(len(names)) as pool:
        return list(pool.map(one, names))


@contextmanager
def _qubes(system: System, count: int) -> Iterator[list[str]]:
    names = [f"bench-crowd-{number}" for number in range(count)]
    try:
        system.cloison(
            "create", "--template", TEMPLATE, "--prop", "provides_network=True", "--prop", "netvm=", WALL
        )  # fmt: skip
        system.cloison("features", WALL, "uplink", "none")
        system.cloison("create", "--template", TEMPLATE, "--prop", f"netvm={WALL}", names[0])
        for name in names[1:]:
            system.client.do(calls.clone(names[0], name))
        yield names
    finally:
        system.remove(*names, WALL)
