"""Rows: a command in a fresh disposable, an app qube's start, many forks at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from benchmarks.bench import CALM_LIMIT_S, Bench
from benchmarks.calls import open_call
from benchmarks.figures import Figure, Goal, Samples, at_most, times_faster
from benchmarks.processes import pss_mib, rss_mib, wait_calm
from benchmarks.system import System
from cloison.wire import LEG_SESSION, Call

PLAIN_BOOT = "plain boot to the same answer"


def measure_disposable(bench: Bench) -> Iterator[Figure]:
    system, repeat = bench.system, bench.options.repeat
    bench.tell("commands in fresh disposables")
    whole = bench.times(lambda: system.cloison("run", "--dispvm", "--", "true"), repeat, between=system.wait_halted)
    call = bench.times(lambda: system.call("@dispvm", command="true"), repeat, between=system.wait_halted)
    limit_s = 0.15 if bench.peer.host.accelerator.value == "kvm" else 0.8
    boots = bench.plain
    ours, plain = Samples.of(whole, "s"), Samples.of(boots.to_answer_s, "s")
    what = "fresh disposable, `cloison run --dispvm -- true`"
    yield Figure(f"{what}, whole process", ours, goal=at_most(limit_s, "s"))
    note = f"until systemd is done: {Samples.of(boots.to_end_s, 's')}"
    yield Figure(what, ours, plain, PLAIN_BOOT, times_faster(40), note)
    yield Figure("the same by the client library", Samples.of(call, "s"), plain, PLAIN_BOOT)


def measure_preloaded(bench: Bench) -> Iterator[Figure]:
    """The same with one disposable kept ready; the next one is asked for when another waits, paused."""
    system, repeat = bench.system, bench.options.repeat
    bench.tell("commands in disposables that are kept ready")
    with system.open_stock(1):
        whole = bench.times(lambda: system.cloison("run", "--dispvm", "--", "true"), repeat, between=system.wait_ready)
        call = bench.times(lambda: system.call("@dispvm", command="true"), repeat, between=system.wait_ready)
    boots = bench.plain
    limit_s = 0.15 if bench.peer.host.accelerator.value == "kvm" else 0.8
    ours, plain = Samples.of(whole, "s"), Samples.of(boots.to_answer_s, "s")
    what = "preloaded disposable, `cloison run --dispvm -- true`"
    yield Figure(f"{what}, whole process", ours, goal=at_most(limit_s, "s"))
    yield Figure(what, ours, plain, PLAIN_BOOT, times_faster(40))
    yield Figure("the same by the client library", Samples.of(call, "s"), plain, PLAIN_BOOT)


def measure_app(bench: Bench) -> Iterator[Figure]:
    system, repeat = bench.system, bench.options.repeat
    bench.tell("starts of an app qube")
    app = "bench-app"

    def stop() -> None:
        system.kill(app)
        system.wait_halted()

    with system.open_apps(app):
        whole = bench.times(lambda: system.cloison("run", app, "--", "true"), repeat, between=stop)
    boots = bench.plain
    what = "app qube start, `cloison run QUBE -- true`"
    plain = Samples.of(boots.to_answer_s, "s")
    yield Figure(what, Samples.of(whole, "s"), plain, PLAIN_BOOT, times_faster(20))


def measure_forks(bench: Bench) -> Iterator[Figure]:
    """Many disposables at once; while they run, what the daemon and its helpers take."""
    system, count = bench.system, bench.options.forks
    daemon = system.daemon_pid
    bench.tell(f"{count} disposables at once")
    before_mib = rss_mib(daemon)
    crowd = _Crowd(system, count)
    try:
        took, last = crowd.start()
        wait_calm([process for process in system.family() if process.is_qemu], CALM_LIMIT_S)
        family = system.family()
        helpers = pss_mib(process for process in family if not process.is_qemu)
        after_mib = rss_mib(daemon)
        machines = sum(process.is_qemu for process in family)
    finally:
        crowd.end()
    system.wait_halted()
    grown = f"{before_mib:.0f} MiB without any"
    per_qube = (helpers + max(0.0, after_mib - before_mib)) / count
    all_came = len(set(crowd.names)) == machines == count
    yield Figure(
        f"{count} disposables at once: until all have answered", Samples.of([last], "s"),
        goal=Goal("all succeed", lambda _, __: all_came),
        note=f"{len(crowd.names)} answered, {len(set(crowd.names))} different names, {machines} machines",
    )  # fmt: skip
    yield Figure(f"the first to the last answer of these {count}", Samples.of(took, "s"))
    yield Figure(
        f"daemon with {count} running qubes, resident", Samples.of([after_mib], "MiB"), goal=at_most(60, "MiB"),
        note=grown,
    )  # fmt: skip
    yield Figure(
        "per running qube, QEMU aside (relay, jails, daemon's growth)", Samples.of([per_qube], "MiB"),
        goal=at_most(8, "MiB"), note="proportional set size",
    )  # fmt: skip


class _Crowd:
    """Disposables that are asked for at the same moment and held until ``end``."""

    def __init__(self, system: System, count: int) -> None:
        self.names: list[str] = []
        self._times: list[float] = []
        self._system = system
        self._count = count
        self._over = threading.Event()
        self._answered = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._hold, daemon=True) for _ in range(count)]

    def start(self) -> tuple[list[float], float]:
        """Seconds until each has answered, and until all have; those that failed are missing."""
        self._started = time.perf_counter()
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self._answered.acquire()
        return self._times, time.perf_counter() - self._started

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _hold(self) -> None:
        try:
            request = Call(LEG_SESSION, "@dispvm", command="hostname; exec sleep 100000")
            with open_call(self._system.layout, request) as call:
                name = call.read_line()
                self._times.append(time.perf_counter() - self._started)
                self.names.append(name)
                self._answered.release()
                self._over.wait()
        except (OSError, RuntimeError):
            self._answered.release()
