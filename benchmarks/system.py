"""A Cloison system of its own for the run: made, used as a person would, and gone afterwards.

It lives under a new CLOISON_ROOT; built images and fork points stay in the cache, which it shares.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Process, end_processes, find_family, find_process
from cloison.client import Client, calls
from cloison.client.qrexec import run_captured
from cloison.layout import Layout
from cloison.wire import LEG_SESSION, Call

CLOISON = str(Path(sys.executable).with_name("cloison"))
TEMPLATE, DISPOSABLES = "debian-13", "bench-dvm"
COMMAND_LIMIT_S = 1800
"""Building a template and its fork point on a slow machine; everything else is much shorter."""
REMOVAL_LIMIT_S = 60
PRELOAD = "preload-dispvm-max"
POLICY = "bench.Sink * @anyvm @anyvm allow\nqubes.Filecopy * @anyvm @anyvm allow\n"
HOME_PATH_BYTES = 40
"""Sockets' paths end at 107 bytes."""


@dataclass(frozen=True)
class System:
    root: Path
    environment: dict[str, str]
    layout: Layout
    client: Client

    def command(self, *words: str) -> list[str]:
        return [CLOISON, *words]

    def cloison(self, *words: str, program: str = CLOISON) -> str:
        """A command as a person would give it; RuntimeError with what it said if it fails."""
        done = subprocess.run(
            [program, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{Path(program).name} {' '.join(words)}: exit code {done.returncode}: {done.stderr}")
        return done.stdout

    def call(self, target: str, *, service: str = "", command: str = "", user: str = "", stdin: bytes = b"") -> bytes:
        """A whole call by the client library; its output. RuntimeError unless it ended with 0."""
        request = Call(LEG_SESSION, target, service=service, command=command, user=user)
        ending, out, err = run_captured(self.layout, request, stdin=stdin)
        if ending.code:
            raise RuntimeError(f"{service or command} in {target}: exit code {ending.code} {ending.note} {err!r}")
        return out

    @contextmanager
    def open_apps(self, *names: str) -> Iterator[None]:
        """Halted app qubes that have been used before, so that their homes are made; removed in the end."""
        first, *others = names
        self.client.do(calls.create("AppVM", first, "blue", template=TEMPLATE))
        try:
            self.call(first, command="true")
            self.client.do(calls.shutdown(first, wait=True))
            for name in others:
                self.client.do(calls.clone(first, name))
            yield
        finally:
            self.remove(*names)

    def kill(self, name: str) -> None:
        self.client.do(calls.power("Kill", name))

    def remove(self, *names: str) -> None:
        """Whichever of these there are: killed, and gone afterwards."""
        states = {qube.name: qube.state for qube in self.client.do(calls.list_states())}
        there = [name for name in names if name in states]
        for name in there:
            if states[name] != "Halted":
                self.kill(name)
        self.wait_halted()
        for name in there:
            self.client.do(calls.remove(name))

    def number(self, qube: str, name: str) -> int:
        return int(self.client.do(calls.property_get(qube, name)).value or 0)

    def text(self, qube: str, name: str) -> str:
        return self.client.do(calls.property_get(qube, name)).value or ""

    @property
    def daemon_pid(self) -> int:
        return int(self.layout.lock.read_text())

    def family(self) -> list[Process]:
        """Everything that the daemon started and that still runs: fork server, relays, jails, QEMUs."""
        return find_family(self.daemon_pid) if _find_daemon(self) else []

    @contextmanager
    def open_stock(self, count: int) -> Iterator[None]:
        """That many disposables are kept ready; none afterwards."""
        self.cloison("features", DISPOSABLES, PRELOAD, str(count))
        try:
            self.wait_ready(count)
            yield
        finally:
            self.cloison("features", DISPOSABLES, "--unset", PRELOAD)
            self.wait_halted()

    def wait_ready(self, count: int = 1) -> None:
        """Return once that many disposables wait, paused, and no other is left."""
        deadline = time.monotonic() + REMOVAL_LIMIT_S
        while True:
            there = [row for row in self.client.do(calls.list_qubes([])) if row["class"] == "DispVM"]
            if len(there) == count and all(row["preloaded"] and row["state"] == "Paused" for row in there):
                return
            if time.monotonic() > deadline:
                raise RuntimeError("no disposable was made ready in time")
            time.sleep(0.1)

    def wait_halted(self) -> None:
        """Return once no machine runs and no disposable is left."""
        deadline = time.monotonic() + REMOVAL_LIMIT_S
        while any(process.is_qemu for process in self.family()) or any(
            qube.klass == "DispVM" for qube in self.client.do(calls.list_states())
        ):
            if time.monotonic() > deadline:
                raise RuntimeError("the machines of an earlier row do not go away")
            time.sleep(0.05)


@contextmanager
def open_system() -> Iterator[System]:
    """A running system with the template, its fork point and a disposable template; all processes end with it."""
    with _open_empty_system() as system:
        _furnish(system)
        yield system


@contextmanager
def open_quiet_system() -> Iterator[System]:
    """A running system with an empty template: qubes can be made, and none can start."""
    with _open_empty_system() as system:
        system.client.do(calls.create("TemplateVM", TEMPLATE, "black"))
        system.client.do(calls.property_set(None, "default_template", TEMPLATE))
        yield system


@contextmanager
def _open_empty_system() -> Iterator[System]:
    home = Path.home()
    place = home if len(os.fsencode(home)) < HOME_PATH_BYTES and os.access(home, os.W_OK) else Path("/tmp")
    with tempfile.TemporaryDirectory(prefix=".cb-", dir=place) as name:
        environment = {**os.environ, "CLOISON_ROOT": name}
        layout = Layout.from_environment(environment)
        system = System(Path(name), environment, layout, Client(layout, start_daemon=False))
        layout.policy.mkdir(parents=True)
        (layout.policy / "20-bench.policy").write_text(POLICY)
        system.cloison("daemon", "start")
        try:
            yield system
        finally:
            _close(system)


def _furnish(system: System) -> None:
    system.cloison("template", "build", TEMPLATE)
    system.cloison("create", "--template", TEMPLATE, "--label", "red", "--disposable-template", DISPOSABLES)
    system.cloison("system-prefs", "default_dispvm", DISPOSABLES)
    system.cloison("forkpoint", "make", DISPOSABLES)


def _close(system: System) -> None:
    ours = [*_find_daemon(system), *system.family()]
    try:
        system.cloison("daemon", "stop", "--kill")
    finally:
        end_processes(ours)


def _find_daemon(system: System) -> list[Process]:
    """The daemon of this very system, if it still runs: its number may be another process's by now."""
    found = find_process(system.daemon_pid)
    try:
        variables = Path(f"/proc/{system.daemon_pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
    return [found] if found and f"CLOISON_ROOT={system.root}".encode() in variables else []
