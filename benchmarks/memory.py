"""Row: the memory of idle qubes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from benchmarks.bench import CALM_LIMIT_S, Bench
from benchmarks.figures import Figure, Samples, at_most_share
from benchmarks.processes import pss_mib, wait_calm


def measure_memory(bench: Bench) -> Iterator[Figure]:
    """Ours: everything that runs for the qubes (QEMU, jails, relays, fork server). Peer: the QEMUs."""
    system, count = bench.system, bench.options.idle
    bench.tell(f"{count} idle app qubes")
    names = [f"bench-idle{number}" for number in range(count)]
    with system.open_apps(*names):
        for name in names:
            system.call(name, command="true")
        calm = wait_calm([process for process in system.family() if process.is_qemu], CALM_LIMIT_S)
        ours = pss_mib(system.family())
        qemu_only = pss_mib(process for process in system.family() if process.is_qemu)
    bench.tell(f"{count} idle plain machines")
    with ExitStack() as stack:
        machines = [stack.enter_context(bench.peer.open_machine()) for _ in range(count)]
        for machine in machines:
            machine.wait_booted()
        for machine in machines:
            machine.run("true")
        calm = wait_calm([machine.process for machine in machines], CALM_LIMIT_S) and calm
        plain = pss_mib(machine.process for machine in machines)
    yield Figure(
        f"memory of {count} idle app qubes (proportional)", Samples.of([ours], "MiB"), Samples.of([plain], "MiB"),
        f"{count} plain boots", at_most_share(0.25),
        note=f"{qemu_only:.0f} MiB of it in QEMU{'' if calm else '; NOT all were idle'}",
    )  # fmt: skip
