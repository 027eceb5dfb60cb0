"""Live tests: a whole Cloison system with real guests, made once for the run and gone after it.

``system`` is that system: its daemon, the default template with its fork point, and ``default-dvm``. ``new_qube`` makes
qubes which are removed after the test. A test that fails shows the end of the daemon's log and of every console. What
is built (images, fork points) stays in the cache, keyed by what it was made from, so that the next run is quick.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cloison.layout import Layout

# A runner that starts us in the background lets us inherit an ignored Ctrl-C, and so would every command tested here.
signal.signal(signal.SIGINT, signal.default_int_handler)

CLOISON = str(Path(sys.executable).with_name("cloison"))
TEMPLATE = "debian-13"
DISPOSABLE_TEMPLATE = "default-dvm"
BUILD_LIMIT_S = 1200
"""A first build and fork point take about 3 minutes on two emulated cores; a slow mirror adds."""
COMMAND_LIMIT_S = 120
LOG_TAIL_LINES = 60
IMAGES_KEPT = 4
QUBE_NUMBERS = itertools.count(1)


@dataclass
class LiveSystem:
    """One system under a directory of its own, used through the command line as a person would."""

    root: Path
    environment: dict[str, str]
    layout: Layout
    timings: dict[str, float] = field(default_factory=dict)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """The ``cloison`` command, started: for tests that do something meanwhile."""
        command = [CLOISON, *arguments]
        return subprocess.Popen(command, env=self.environment, **options)

    def cloison(
        self, *arguments: str, stdin: bytes = b"", timeout_s: float = COMMAND_LIMIT_S, expect: int | None = 0
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a ``cloison`` command to its end; ``expect`` is the exit code it must have (None: any)."""
        command = [CLOISON, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout_s, env=self.environment)
        if expect is not None and done.returncode != expect:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise AssertionError(f"cloison {' '.join(arguments)}: exit code {done.returncode}, not {expect}: {said}")
        return done

    def run(self, qube: str, *command: str, user: str = "", **options: Any) -> subprocess.CompletedProcess[bytes]:
        """A command in a qube (``qube`` may be ``--dispvm``)."""
        as_user = ("--user", user) if user else ()
        return self.cloison("run", *as_user, qube, "--", *command, **options)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.cloison(*arguments, "--json").stdout)

    def daemon_pid(self) -> int:
        return int(self.layout.lock.read_text())

    def kill_daemon(self) -> None:
        """kill -9; returns when it is gone. The next command starts another."""
        pid = self.daemon_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), 10, f"daemon {pid} to be gone")

    def logs(self) -> dict[str, str]:
        """The ends of the daemon's log and of every console log."""
        found = [self.layout.log, *sorted(self.layout.runtime.glob("q/*/*.log"))]
        return {str(path): tail(path) for path in found if path.exists()}


def tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    return "\n".join(path.read_bytes()[-65536:].decode(errors="replace").splitlines()[-lines:])


def wait_until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s} s in vain for {what}")
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """The process exists and is no zombie (nobody may be there to reap what outlived its parent)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def processes_of(root: Path) -> dict[int, str]:
    """The live processes of the system under ``root``: pid -> command line.

    Known by their environment, by a file of the system that they hold open, or by a parent that is one of them (jailed
    ones have an empty environment, and some show nobody their descriptors).
    """
    parents = {}
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
            is_told = f"CLOISON_ROOT={root}".encode() in (entry / "environ").read_bytes().split(b"\0")
            if is_told or any(is_link_below(link, root) for link in (entry / "fd").iterdir()):
                found.add(int(entry.name))
        except OSError:
            continue
    while below := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= below
    return {pid: command_line(pid) for pid in found & parents.keys() - {os.getpid()}}


def is_link_below(link: Path, root: Path) -> bool:
    try:
        return link.readlink().is_relative_to(root)
    except OSError:
        return False


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    except OSError:
        return "?"


def prune(images: Path) -> None:
    """Keep the newest built images: each change of the guest's side makes another one of 400 MB."""
    built = sorted(images.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in built[IMAGES_KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


@pytest.fixture(scope="session")
def bare_system() -> Iterator[LiveSystem]:
    """A system without any template. At the end everything it started must be gone."""
    # Sockets' paths end at 107 bytes; the home directory is on the file system of the cache (images are hard links).
    home = Path.home()
    with tempfile.TemporaryDirectory(prefix=".c-", dir=home if len(str(home)) < 40 else "/tmp") as name:
        environment = {**os.environ, "CLOISON_ROOT": name}
        live = LiveSystem(Path(name), environment, Layout.from_environment(environment))
        try:
            live.cloison("daemon", "start")
            yield live
        finally:
            live.cloison("daemon", "stop", "--kill", expect=None)
            deadline = time.monotonic() + 20
            while (left := processes_of(live.root)) and time.monotonic() < deadline:
                time.sleep(0.1)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    prune(live.layout.images)
    assert not left, "processes outlived their system:\n" + "\n".join(left.values())


@pytest.fixture(scope="session")
def system(bare_system: LiveSystem) -> LiveSystem:
    """The system with its template, fork point and disposable template: from the cache, or built now."""
    started = time.monotonic()
    bare_system.cloison("template", "build", TEMPLATE, timeout_s=BUILD_LIMIT_S)
    bare_system.timings["template"] = time.monotonic() - started
    bare_system.cloison(
        "create", "--template", TEMPLATE, "--label", "red", "--disposable-template", DISPOSABLE_TEMPLATE
    )
    bare_system.cloison("system-prefs", "default_dispvm", DISPOSABLE_TEMPLATE)
    started = time.monotonic()
    bare_system.cloison("forkpoint", "make", DISPOSABLE_TEMPLATE, timeout_s=BUILD_LIMIT_S)
    bare_system.timings["fork point"] = time.monotonic() - started
    return bare_system


@pytest.fixture
def new_qube(system: LiveSystem) -> Iterator[Callable[..., str]]:
    """Makes qubes: ``new_qube(label="blue")`` is the name of a new app qube; all are gone after the test."""
    made: list[str] = []

    def make(*options: str, label: str = "blue") -> str:
        # What tells them apart comes first: a process is known by 15 characters.
        name = f"q{next(QUBE_NUMBERS)}-{os.getpid() % 1000}-{time.monotonic_ns() // 1_000_000 % 10_000_000}"
        system.cloison("create", "--template", TEMPLATE, "--label", label, *options, name)
        made.append(name)
        return name

    yield make
    for name in reversed(made):
        system.cloison("kill", name, expect=None)
        system.cloison("remove", "--yes", name, expect=None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed live test shows what the guests' consoles and the daemon said."""
    report = yield
    funcargs = getattr(item, "funcargs", {})
    live = funcargs.get("system") or funcargs.get("bare_system") or item.session.config.stash.get(LAST_SYSTEM, None)
    if report.failed and live is not None:
        for path, text in live.logs().items():
            report.sections.append((f"end of {path}", text))
    return report


LAST_SYSTEM: pytest.StashKey[LiveSystem] = pytest.StashKey()


@pytest.fixture(scope="session", autouse=True)
def remember_system(bare_system: LiveSystem, pytestconfig: pytest.Config) -> None:
    """So that a fixture which fails while it sets the system up is shown with its logs, too."""
    pytestconfig.stash[LAST_SYSTEM] = bare_system


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Root runs the smoke test of the root path and no other live test; everybody else runs the others."""
    live = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    unfit = [item for item in live if (item.path.name == "test_root_path.py") != (os.getuid() == 0)]
    config.hook.pytest_deselected(items=unfit)
    items[:] = [item for item in items if item not in unfit]
