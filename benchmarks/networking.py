"""Row: app → firewall → net → a server on the far side, against shorter ways to the same server.

The far side is once another guest, behind net, which the app is also joined to directly; and once a server of the host
behind net's passt, which a guest of plain QEMU reaches through its user networking.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.bench import Bench
from benchmarks.figures import Figure, Samples
from benchmarks.plain import PlainMachine
from benchmarks.system import TEMPLATE, System
from cloison.client import calls

APP, WALL, DOOR, FAR = "bench-app", "bench-wall", "bench-door", "bench-far"
HOST_AS_SEEN, HOST_OF_PLAIN = "10.139.2.1", "10.0.2.2"
PORT = 7000
ECHOES, STREAM_MIB, ROUNDS, CHANGES = 100, 16, 2, 5
CLIENT = f"""
import json, socket, sys, time
deadline = time.monotonic() + 30
while True:
    try:
        s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)
        break
    except OSError:
        if time.monotonic() > deadline: raise
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
s.settimeout(60)
s.sendall(b"e")
times = []
for _ in range({ECHOES} + 10):
    b = time.perf_counter(); s.sendall(b"x" * 64); s.recv(64); times.append(time.perf_counter() - b)
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
s.sendall(b"s")
left, b = {STREAM_MIB} << 20, time.perf_counter()
while left:
    left -= len(s.recv(min(left, 1 << 20)))
print(json.dumps([times[10:], {STREAM_MIB} / (time.perf_counter() - b)]))
"""
SERVER = """
import socket, sys, threading
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print(listener.getsockname()[1], flush=True)
def serve(port):
    with port:
        port.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            wish = port.recv(1)
            while wish == b"e" and (data := port.recv(4096)): port.sendall(data)
            while wish == b"s": port.sendall(bytes(1 << 16))
        except OSError: pass
while True: threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
"""``e`` is echoed after, ``s`` is a stream of zeros, anything else nothing."""
PLAIN_CARD = """
for card in /sys/class/net/e*; do
    ip address add 10.0.2.15/24 dev ${card##*/}; ip link set ${card##*/} up
done
"""


def measure_network(bench: Bench) -> Iterator[Figure]:
    system = bench.system
    with _host_server() as port, _qubes(system, port):
        yield from _against_direct(bench)
        yield _changed(bench)
        system.client.do(calls.property_set(DOOR, "netvm", ""))
        yield from _against_plain(bench, port)


def _against_direct(bench: Bench) -> Iterator[Figure]:
    """app → wall → door → far, and app → far."""
    system = bench.system
    system.call(FAR, command=f"setsid python3 -c {shlex.quote(SERVER)} 0.0.0.0 {PORT} >/run/port 2>&1 &", user="root")
    for family in ("ip", "ip6"):
        accept = f"nft add rule {family} qubes custom-input tcp dport {PORT} accept"
        system.call(FAR, command=accept, user="root")
    address = system.text(FAR, "gateway")
    measured: dict[str, _Measured] = {WALL: _Measured(), FAR: _Measured()}
    for netvm in (FAR, WALL) * ROUNDS:
        bench.tell(f"a server in {FAR}, app behind {netvm}")
        system.client.do(calls.property_set(APP, "netvm", netvm))
        measured[netvm].add(lambda command: system.call(APP, command=command), address, PORT)
    yield from _figures("a guest on the far side", measured[WALL], measured[FAR], "the two joined directly")


def _changed(bench: Bench) -> Figure:
    system, netvms = bench.system, [DOOR, WALL] * CHANGES
    bench.tell("changes of a running qube's netvm")
    until_answered = f"timeout 60 sh -c 'until ping -c 1 -W 1 {system.text(FAR, 'gateway')}; do sleep 0.02; done'"

    def change() -> None:
        system.client.do(calls.property_set(APP, "netvm", netvms.pop()))
        system.call(APP, command=until_answered, user="root")

    took = bench.times(change, CHANGES)
    return Figure("network: netvm changed until the first answered ping", Samples.of(took, "s"))


def _against_plain(bench: Bench, port: int) -> Iterator[Figure]:
    """app → wall → door → passt → a server of the host, and a guest of plain QEMU → that server."""
    system = bench.system
    ours, plain = _Measured(), _Measured()
    bench.tell("booting the image under plain QEMU with user networking")
    with bench.peer.open_machine(network=True) as machine:
        machine.wait_booted()
        machine.run(PLAIN_CARD, user="root")
        for _ in range(ROUNDS):
            bench.tell("a server of the host")
            ours.add(lambda command: system.call(APP, command=command), HOST_AS_SEEN, port)
            plain.add(lambda command: _run(machine, command), HOST_OF_PLAIN, port)
    yield from _figures("a server of the host", ours, plain, "plain QEMU's user network")


class _Measured:
    """Round trips and streams of one way."""

    def __init__(self) -> None:
        self.echo_ms: list[float] = []
        self.stream_mib_s: list[float] = []

    def add(self, run: Callable[[str], bytes], address: str, port: int) -> None:
        times, stream = json.loads(run(f"python3 -c {shlex.quote(CLIENT)} {address} {port}"))
        self.echo_ms += [1000 * each for each in times]
        self.stream_mib_s.append(stream)


def _figures(what: str, ours: _Measured, peer: _Measured, against: str) -> Iterator[Figure]:
    echo, peer_echo = (Samples.of(each.echo_ms, "ms") for each in (ours, peer))
    yield Figure(f"network, {what}: 64 bytes there and back by TCP", echo, peer_echo, against)
    stream, peer_stream = (Samples.of(each.stream_mib_s, "MiB/s") for each in (ours, peer))
    yield Figure(f"network, {what}: stream to the app", stream, peer_stream, against)


def _run(machine: PlainMachine, command: str) -> bytes:
    said = machine.run(command)
    if not said:
        raise RuntimeError("the plain machine does not reach the host")
    return said


@contextmanager
def _qubes(system: System, port: int) -> Iterator[None]:
    """app → wall → door → far; the door may reach one port of the host's loopback once it is the end of the chain."""
    names = (APP, WALL, DOOR, FAR)
    try:
        for name, netvm in zip(reversed(names), ("", FAR, DOOR, WALL), strict=True):
            provides = () if name == APP else ("--prop", "provides_network=True")
            system.cloison("create", "--template", TEMPLATE, *provides, "--prop", f"netvm={netvm}", name)
        system.cloison("features", FAR, "uplink", "none")
        system.cloison("features", DOOR, "uplink-host-ports", str(port))
        system.cloison("start", APP)
        yield
    finally:
        system.remove(*names)


@contextmanager
def _host_server() -> Iterator[int]:
    """A port of the host's loopback."""
    server = subprocess.Popen([sys.executable, "-c", SERVER, "127.0.0.1", "0"], stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        yield int(server.stdout.readline())
    finally:
        server.kill()
        server.wait()
