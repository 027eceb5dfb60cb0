"""Rows: calls into a running qube, the stream from one qube to another, and files copied."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from benchmarks.bench import PAYLOAD, STREAMS, Bench, make_files
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
        burst = bench.times(lambda: _at_once(system, qube, bench.options.burst), STREAMS)
    peer_true, peer_echo = _ms(plain.bare.true_s), _ms(plain.bare.echo_s)
    yield Figure("call `true` in a running qube", _ms(true), peer_true, BARE_PORT, at_most_times(1.2))
    late, peer_late = _ms(true).percentile(0.99), peer_true.percentile(0.99)
    yield Figure("the same, 99th percentile", late, peer_late, BARE_PORT)
    one_by_one = Samples.of([bench.options.burst * peer_true.median / 1e3], "s")
    what = f"{bench.options.burst} calls of `true` at once, all answered"
    yield Figure(what, Samples.of(burst, "s"), one_by_one, f"{BARE_PORT}, one after the other")
    yield Figure("the same as a line for the user's shell", _ms(shell), peer_true, BARE_PORT)
    yield Figure("the same by `cloison run`, whole process", _ms(whole))
    what = "socket service echo"
    yield Figure(f"{what}: a call, request to answer", _ms(echo_call), peer_echo, BARE_PORT, at_most_times(3, 5, "ms"))
    yield Figure(f"{what}: a round trip in a call that runs", _ms(echo), peer_echo, BARE_PORT, at_most_times(3))
    yield Figure("- the same against a bare agent that asks a process behind a socket", _ms(echo),
                 _ms(bench.plain.bare.socket_echo_s), BARE_PORT)  # fmt: skip


def _at_once(system: System, qube: str, count: int) -> None:
    with ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(system.call, qube, service="qubes.VMExec+true") for _ in range(count)]:
            done.result()


def _echo_once(system: System, qube: str) -> None:
    with open_call(system.layout, Call(LEG_SESSION, qube, service="bench.Echo")) as call:
        call.exchange(PAYLOAD)


def _ms(seconds: list[float]) -> Samples:
    return Samples.of([value * 1e3 for value in seconds], "ms")


def measure_stream(bench: Bench) -> Iterator[Figure]:
    """Seconds of a long call less those of an empty one, so that starting programs does not count."""
    system, size = bench.system, bench.options.stream_mib << 20
    bare = bench.plain.bare
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
        "stream from qube to qube through the broker", Samples.of(ours, "MiB/s"),
        Samples.of(bare.stream_mib_s, "MiB/s"), "raw port, guest to host", at_least_share(0.7),
    )  # fmt: skip
    yield Figure("- what only the sending half costs", Samples.of(bare.program_mib_s, "MiB/s"),
                 note="a program's pipe, read and written to a raw port by the bare agent")  # fmt: skip
    yield Figure("- what only the receiving half costs", Samples.of(bare.sink_mib_s, "MiB/s"),
                 note="raw port, host to guest, thrown away there by the bare agent")  # fmt: skip


def measure_copy(bench: Bench) -> Iterator[Figure]:
    """``qvm-copy`` of a large file and of many small ones: seconds as the person in the qube sees them."""
    system, options, bare = bench.system, bench.options, bench.plain.bare
    bench.tell("files copied from qube to qube")
    source, sink = "bench-source", "bench-sink"
    with system.open_apps(source, sink):
        system.call(sink, command="true")
        system.call(source, command=make_files("/home/user/bench", options.file_mib, options.files))

        def copy(what: str) -> None:
            system.call(source, command=f"cd bench && qvm-copy-to-vm {sink} {what}")

        def clean() -> None:
            arrived = system.call(sink, command="find QubesIncoming -type f | wc -l; rm -rf QubesIncoming")
            if int(arrived) not in (1, options.files):
                raise RuntimeError(f"{int(arrived)} files arrived")

        large = bench.times(lambda: copy("large"), 2, between=clean)
        small = bench.times(lambda: copy("small"), 2, between=clean)
    against = "tar over a raw port, guest to host"
    what = f"qvm-copy of a file of {options.file_mib} MiB"
    yield Figure(what, Samples.of(large, "s"), Samples.of(bare.large_s, "s"), against)
    what = f"qvm-copy of {options.files} small files"
    yield Figure(what, Samples.of(small, "s"), Samples.of(bare.small_s, "s"), against)
