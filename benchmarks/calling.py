"""Rows: calls into a running qube, and the stream from one qube to another."""

from __future__ import annotations

import time
from collections.abc import Iterator

from benchmarks.bench import PAYLOAD, STREAMS, Bench
from benchmarks.calls import open_call
from benchmarks.figures import Figure, Samples, at_least_share, at_most_times
from benchmarks.system import System
from cloison.wire import LEG_SESSION, Call

BARE_PORT = "bare agent on a bare port"
ECHO_SERVICE = """
import os, socket
os.makedirs("/run/qubes/rpc-config", exist_ok=True)
os.makedirs("/run/qubes-rpc", exist_ok=True)
with open("/run/qubes/rpc-config/bench.Echo", "w") as config:
    config.write("skip-service-descriptor=true\\n")
listener = socket.socket(socket.AF_UNIX)
listener.bind("/run/qubes-rpc/bench.Echo")
listener.listen(64)
if os.fork() == 0:
    os.setsid()
    for fd in (0, 1, 2):
        os.close(fd)
    while True:
        client, _ = listener.accept()
        while data := client.recv(65536):
            client.sendall(data)
        client.close()
"""
SINK_SERVICE = """
mkdir -p /run/qubes-rpc
printf '#!/bin/sh\\nexec wc -c\\n' > /run/qubes-rpc/bench.Sink
chmod 755 /run/qubes-rpc/bench.Sink
"""


def measure_call(bench: Bench) -> Iterator[Figure]:
    system, count = bench.system, bench.options.calls
    plain = bench.plain
    bench.tell("calls into a running qube")
    qube = "bench-call"
    with system.open_apps(qube):
        system.call(qube, command=f"exec python3 -c '{ECHO_SERVICE}'", user="root")
        time.sleep(1)
        true = bench.times(lambda: system.call(qube, service="qubes.VMExec+true"), count)
        shell = bench.times(lambda: system.call(qube, command="true"), count)
        whole = bench.times(lambda: system.cloison("run", qube, "--", "true"), bench.options.repeat)
        echo_call = bench.times(lambda: _echo_once(system, qube), count)
        with open_call(system.layout, Call(LEG_SESSION, qube, service="bench.Echo")) as call:
            echo = bench.times(lambda: call.exchange(PAYLOAD), count)
    peer_true, peer_echo = _ms(plain.true_s), _ms(plain.echo_s)
    yield Figure("call `true` in a running qube", _ms(true), peer_true, BARE_PORT, at_most_times(1.2))
    yield Figure("the same as a line for the user's shell", _ms(shell), peer_true, BARE_PORT)
    yield Figure("the same by `cloison run`, whole process", _ms(whole))
    what = "socket service echo"
    yield Figure(f"{what}: a call, request to answer", _ms(echo_call), peer_echo, BARE_PORT, at_most_times(3, 5, "ms"))
    yield Figure(f"{what}: a round trip in a call that runs", _ms(echo), peer_echo, BARE_PORT)


def _echo_once(system: System, qube: str) -> None:
    with open_call(system.layout, Call(LEG_SESSION, qube, service="bench.Echo")) as call:
        call.exchange(PAYLOAD)


def _ms(seconds: list[float]) -> Samples:
    return Samples.of([value * 1e3 for value in seconds], "ms")


def measure_stream(bench: Bench) -> Iterator[Figure]:
    """Seconds of a long call less those of an empty one, so that starting programs does not count."""
    system, size = bench.system, bench.options.stream_mib << 20
    raw = bench.plain.stream_mib_s
    bench.tell("streams from qube to qube")
    source, sink = "bench-source", "bench-sink"

    def send(size_bytes: int) -> float:
        started = time.perf_counter()
        line = f"head -c {size_bytes} /dev/zero | qrexec-client-vm {sink} bench.Sink"
        counted = int(system.call(source, command=line))
        if counted != size_bytes:
            raise RuntimeError(f"{size_bytes} bytes were sent, {counted} arrived")
        return time.perf_counter() - started

    with system.open_apps(source, sink):
        system.call(sink, command=SINK_SERVICE, user="root")
        send(1 << 20)
        empty_s = min(send(0) for _ in range(STREAMS))
        ours = [size / (1 << 20) / (send(size) - empty_s) for _ in range(STREAMS)]
    yield Figure(
        "stream from qube to qube through the broker", Samples.of(ours, "MiB/s"), Samples.of(raw, "MiB/s"),
        "raw port, guest to host", at_least_share(0.7),
    )  # fmt: skip
