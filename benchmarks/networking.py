"""Row: a server on the far side of app → firewall → net → passt, against the same app directly at net."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.bench import Bench
from benchmarks.figures import Figure, Samples
from benchmarks.system import TEMPLATE, System
from cloison.client import calls

APP, WALL, DOOR = "bench-app", "bench-wall", "bench-door"
WORLD = "10.139.2.1"
ECHOES, STREAM_MIB, CHANGES = 100, 16, 5
CLIENT = f"""
import json, socket, sys, time
port, what = int(sys.argv[1]), sys.argv[2]
deadline = time.monotonic() + 30
while True:
    try:
        s = socket.create_connection(({WORLD!r}, port), 1)
        break
    except OSError:
        if time.monotonic() > deadline: raise
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
s.settimeout(60)
s.sendall(what[:1].encode())
if what == "echo":
    times = []
    for _ in range({ECHOES} + 10):
        b = time.perf_counter(); s.sendall(b"x" * 64); s.recv(64); times.append(time.perf_counter() - b)
    print(json.dumps(times[10:]))
elif what == "stream":
    left, b = {STREAM_MIB} << 20, time.perf_counter()
    while left:
        left -= len(s.recv(min(left, 1 << 20)))
    print(json.dumps([{STREAM_MIB} / (time.perf_counter() - b)]))
"""


def measure_network(bench: Bench) -> Iterator[Figure]:
    system = bench.system
    with _server() as port, _chain(system, port):
        results = {}
        for netvm in (DOOR, WALL):
            bench.tell(f"a server behind {netvm}")
            system.client.do(calls.property_set(APP, "netvm", netvm))
            _ask(system, port, "echo")
            results[netvm] = _ask(system, port, "echo"), [*_ask(system, port, "stream"), *_ask(system, port, "stream")]
        peer = "one netvm less"
        echo, direct = (Samples.of([1000 * t for t in results[netvm][0]], "ms") for netvm in (WALL, DOOR))
        yield Figure("network: 64 bytes there and back, by TCP", echo, direct, peer)
        stream, direct = (Samples.of(results[netvm][1], "MiB/s") for netvm in (WALL, DOOR))
        yield Figure("network: stream to the app", stream, direct, peer)
        bench.tell("changes of a running qube's netvm")
        netvms = [DOOR, WALL] * CHANGES

        def change() -> None:
            system.client.do(calls.property_set(APP, "netvm", netvms.pop()))
            _ask(system, port, "connect")

        yield Figure("network: netvm changed until the first answer", Samples.of(bench.times(change, CHANGES), "s"))


def _ask(system: System, port: int, what: str) -> list[float]:
    said = system.call(APP, command=f"python3 -c '{CLIENT.replace(chr(39), chr(34))}' {port} {what}")
    found: list[float] = json.loads(said or b"[]")
    return found


@contextmanager
def _chain(system: System, port: int) -> Iterator[None]:
    """app → wall → door, the door's way out with one port of the host's loopback."""
    provides = ("--prop", "provides_network=True")
    try:
        system.cloison("create", "--template", TEMPLATE, *provides, "--prop", "netvm=", DOOR)
        system.cloison("features", DOOR, "uplink-host-ports", str(port))
        system.cloison("create", "--template", TEMPLATE, *provides, "--prop", f"netvm={DOOR}", WALL)
        system.cloison("create", "--template", TEMPLATE, "--prop", f"netvm={WALL}", APP)
        system.cloison("start", APP)
        yield
    finally:
        states = {qube.name: qube.state for qube in system.client.do(calls.list_states())}
        for name in (APP, WALL, DOOR):
            if states.get(name, "Halted") != "Halted":
                system.kill(name)
        system.wait_halted()
        for name in (APP, WALL, DOOR):
            if name in states:
                system.client.do(calls.remove(name))


@contextmanager
def _server() -> Iterator[int]:
    """A port of the host's loopback: ``e`` is echoed after, ``s`` is a stream of zeros, anything else nothing."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(port: socket.socket) -> None:
        with port:
            port.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                wish = port.recv(1)
                while wish == b"e" and (data := port.recv(4096)):
                    port.sendall(data)
                while wish == b"s":
                    port.sendall(bytes(1 << 16))
            except OSError:
                pass  # it has had enough

    def accept() -> None:
        while True:
            try:
                port, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(port,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield listener.getsockname()[1]
