"""Row: the Admin API, against a daemon of its own that runs no qube: commands, requests, events, memory."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.figures import Figure, Samples, at_most
from benchmarks.processes import rss_mib
from benchmarks.system import CLOISON, System, open_quiet_system
from cloison.client import calls

QUBES = 500
CLIENTS = (1, 10, 100)
REQUESTS_S = 2.0
LISTENERS = 100
CROWD = 1000
CHANGES = 200
QUBE = "bench1"
FIELDS = "name,class,state,label,template,netvm,memory,maxmem,vcpus,autostart"
GET = f"admin.vm.property.Get+memory dom0 name {QUBE}\0".encode()
EVENTS = b"admin.Events+ dom0 name dom0\0"
ESTABLISHED = b"1\0\0connection-established\0\0"
EVENTS_OF_A_CHANGE = 2
"""Of a feature: it is about to be set, it is set."""


def measure_admin(bench: Bench) -> Iterator[Figure]:
    _allow_many_files()
    with open_quiet_system() as system:
        before_mib = rss_mib(system.daemon_pid)
        bench.tell(f"{bench.options.qubes} qubes, then {QUBES}")
        _add_qubes(system, bench.options.qubes)
        yield from _commands(bench, system)
        for clients in CLIENTS:
            bench.tell(f"requests of {clients} clients at once")
            yield Figure(f"Admin API: requests a second, {clients} clients at once",
                         Samples.of([_requests_per_s(system, clients) for _ in range(3)], "/s"))  # fmt: skip
        bench.tell("events")
        rate = Samples.of([_events_per_s(system, LISTENERS) for _ in range(3)], "/s")
        yield Figure(f"Admin API: events delivered a second, {LISTENERS} listeners", rate)
        alone, crowded = (Samples.of(_change_times(system, listeners), "ms") for listeners in (0, CROWD))
        yield Figure(f"Admin API: a change (one feature) with {CROWD} listeners", crowded, alone, "no listener")
        _add_qubes(system, QUBES)
        after_mib = rss_mib(system.daemon_pid)
        yield Figure(f"the daemon's memory with {QUBES} qubes", Samples.of([after_mib], "MiB"),
                     Samples.of([before_mib], "MiB"), "with none")  # fmt: skip


def _commands(bench: Bench, system: System) -> Iterator[Figure]:
    """Whole processes, as a person or a script starts them."""
    qvm_ls, qvm_prefs = (str(Path(CLOISON).with_name(name)) for name in ("qvm-ls", "qvm-prefs"))
    rows: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        (f"`cloison list`, {bench.options.qubes} qubes, ten columns", CLOISON, ("list", "--fields", FIELDS)),
        (f"`qvm-ls`, {bench.options.qubes} qubes, ten columns", qvm_ls, ("--raw-data", "--fields", FIELDS.upper())),
        ("`qvm-prefs`: read one property", qvm_prefs, (QUBE, "memory")),
        ("`qvm-prefs`: set one property", qvm_prefs, (QUBE, "memory", "512")),
        ("`cloison prefs`: read one property", CLOISON, ("prefs", QUBE, "memory")),
        ("`cloison prefs`: set one property", CLOISON, ("prefs", QUBE, "memory", "512")),
    )
    for what, program, words in rows:
        bench.tell(what)

        def act(program: str = program, words: tuple[str, ...] = words) -> str:
            return system.cloison(*words, program=program)

        yield Figure(f"{what}, whole process", Samples.of(bench.times(act, bench.options.repeat), "s"),
                     goal=at_most(0.3, "s"))  # fmt: skip


def _add_qubes(system: System, wanted: int) -> None:
    known = {qube.name for qube in system.client.do(calls.list_states())}
    for number in range(1, wanted + 1):
        if f"bench{number}" not in known:
            system.client.do(calls.create("AppVM", f"bench{number}", "green"))


def _requests_per_s(system: System, clients: int) -> float:
    """Each client opens a connection for every request, as the protocol wants it."""
    path = str(system.layout.admin_socket)
    end = time.monotonic() + REQUESTS_S
    done = [0] * clients

    def ask(index: int) -> None:
        while time.monotonic() < end:
            if not _exchange(path, GET).startswith(b"0\0"):
                raise RuntimeError("a property could not be read")
            done[index] += 1

    started = time.monotonic()
    threads = [threading.Thread(target=ask, args=(index,)) for index in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.monotonic() - started)


def _exchange(path: str, request: bytes) -> bytes:
    with _send(path, request) as connection:
        answer = b""
        while data := connection.recv(1 << 16):
            answer += data
        return answer


def _send(path: str, request: bytes) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _open_listeners(system: System, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(_send(str(system.layout.admin_socket), EVENTS)) for _ in range(count)]
        for listener in listeners:
            if listener.recv(len(ESTABLISHED), socket.MSG_WAITALL) != ESTABLISHED:
                raise RuntimeError("a listener was not let in")
        yield listeners


def _set_feature(system: System, number: int) -> None:
    answer = _exchange(
        str(system.layout.admin_socket), f"admin.vm.feature.Set+bench dom0 name {QUBE}\0{number}".encode()
    )
    if answer != b"0\0":
        raise RuntimeError("a feature could not be set")


def _events_per_s(system: System, count: int) -> float:
    """Until each listener has read the last of them."""
    last = f"newest{time.monotonic_ns()}".encode()
    with _open_listeners(system, count) as listeners, selectors.DefaultSelector() as waiting:
        tails = dict.fromkeys(listeners, b"")
        for listener in listeners:
            listener.setblocking(False)
            waiting.register(listener, selectors.EVENT_READ)

        def change() -> None:
            for number in range(CHANGES):
                _set_feature(system, number)
            request = f"admin.vm.tag.Set+{last.decode()} dom0 name {QUBE}\0".encode()
            _exchange(str(system.layout.admin_socket), request)

        changer = threading.Thread(target=change)
        started = time.monotonic()
        changer.start()
        while tails:
            for key, _ in waiting.select(10) or _silent():
                heard = key.fileobj
                assert isinstance(heard, socket.socket)
                data = tails[heard] + heard.recv(1 << 18)
                tails[heard] = data[-2 * len(last) - 64 :]
                if last in data:
                    waiting.unregister(heard)
                    del tails[heard]
        took = time.monotonic() - started
        changer.join()
    return count * (CHANGES * EVENTS_OF_A_CHANGE + 1) / took


def _silent() -> list[tuple[selectors.SelectorKey, int]]:
    raise RuntimeError("listeners were not told")


def _change_times(system: System, count: int) -> list[float]:
    """Milliseconds that a change takes for who makes it. Listeners read between two changes."""
    samples = []
    with _open_listeners(system, count) as listeners:
        for number in range(50):
            started = time.perf_counter()
            _set_feature(system, number)
            samples.append((time.perf_counter() - started) * 1000)
            for listener in listeners:
                listener.recv(1 << 16)
            time.sleep(statistics.median(samples) / 1000)
    return samples


def _allow_many_files() -> None:
    """A thousand listeners are a thousand descriptors, here and in the daemon, which inherits the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
