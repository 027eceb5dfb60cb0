"""The second half of ./quickstart: a template, its fork point, the first qubes, the daemon, the e-mail scenario.

In: a host with all packages, our virtual environment, and the times of the first half. Out: a system in use; a table of
timings. Doing it again does only what is missing. May import: layout, client.spawn; it acts by `cloison` commands.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cloison.client import unit
from cloison.layout import Layout

TOP = Path(__file__).parents[1]
CLOISON = str(Path(sys.executable).with_name("cloison"))
TEMPLATE = "debian-13"
DISPOSABLE_TEMPLATE = "default-dvm"
QUBES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("personal", "yellow", ()),
    ("work", "blue", ()),
    ("untrusted", "red", ()),
    ("vault", "black", ("--prop", "netvm=")),
)
"""Name, label, further options. The vault never has a network."""


SERVICE_QUBES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("sys-net", "red", ("--prop", "netvm=")),
    ("sys-firewall", "orange", ("--prop", "netvm=sys-net")),
)
"""Name, label, further options. Disposables with names: whatever happens in them is gone with their next start."""


class Quickstart:
    def __init__(self, started: float, packages_done: float, libraries_done: float) -> None:
        self.console = Console(highlight=False)
        self.started = started
        self.timings: list[tuple[str, float]] = [
            ("host packages", packages_done - started),
            ("Python libraries", libraries_done - packages_done),
        ]

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """One line of progress with its time, kept for the table."""
        began = time.monotonic()
        self.console.print(f"[bold]{text}[/bold]")
        yield
        took = time.monotonic() - began
        self.timings.append((text, took))

    def cloison(self, *arguments: str, shown: bool = False, allowed: tuple[int, ...] = (0,)) -> str:
        """A ``cloison`` command; one that fails ends the quickstart, saying which and why."""
        command = [CLOISON, *arguments]
        done = subprocess.run(command, text=True, stdout=None if shown else subprocess.PIPE, check=False)
        if done.returncode not in allowed:
            self.console.print(f"\n[red]quickstart stops: `cloison {' '.join(arguments)}` failed[/red] (see above)")
            sys.exit(1)
        return done.stdout or ""

    def json(self, *arguments: str) -> Any:
        return json.loads(self.cloison(*arguments, "--json"))


def make_system(quickstart: Quickstart, mirror: str) -> None:
    with quickstart.step("start the daemon"):
        if unit.has_manager():
            quickstart.cloison("daemon", "install", shown=True)
        quickstart.cloison("daemon", "start")
    qubes = {qube["name"]: qube for qube in quickstart.json("list")}
    if TEMPLATE not in qubes:
        with quickstart.step(f"build the template {TEMPLATE}"):
            quickstart.cloison("template", "build", *(["--mirror", mirror] if mirror else []), TEMPLATE, shown=True)
    with quickstart.step("make the first qubes"):
        if DISPOSABLE_TEMPLATE not in qubes:
            as_disposable = ("--label", "red", "--disposable-template")
            quickstart.cloison("create", "--template", TEMPLATE, *as_disposable, DISPOSABLE_TEMPLATE)
            quickstart.cloison("system-prefs", "default_dispvm", DISPOSABLE_TEMPLATE)
            quickstart.cloison("features", DISPOSABLE_TEMPLATE, "preload-dispvm-max", "1")
        for name, label, options in QUBES:
            if name not in qubes:
                quickstart.cloison("create", "--template", TEMPLATE, "--label", label, *options, name)
    if next(qube for qube in quickstart.json("list") if qube["name"] == DISPOSABLE_TEMPLATE)["forkpoint"] != "ready":
        with quickstart.step("make the fork point"):
            quickstart.cloison("forkpoint", "make", DISPOSABLE_TEMPLATE, shown=True)


def make_network(quickstart: Quickstart) -> None:
    """work -> sys-firewall -> sys-net -> world. A default netvm that somebody chose is left alone."""
    qubes = {qube["name"] for qube in quickstart.json("list")}
    missing = [row for row in SERVICE_QUBES if row[0] not in qubes]
    if not missing:
        return
    with quickstart.step("make sys-net and sys-firewall, and start them"):
        for name, label, options in missing:
            quickstart.cloison(
                "create", "--disp", "--template", DISPOSABLE_TEMPLATE, "--label", label,
                "--prop", "provides_network=True", *options, name,
            )  # fmt: skip
        if len(missing) == len(SERVICE_QUBES):
            quickstart.cloison("system-prefs", "default_netvm", "sys-firewall")
        quickstart.cloison("start", "sys-firewall")


def measure(quickstart: Quickstart) -> None:
    """The figure that matters most, as a person meets it."""
    quickstart.cloison("run", "--dispvm", "--", "true")
    with quickstart.step("a command in a fresh disposable"):
        quickstart.cloison("run", "--dispvm", "--", "true")


def play_scenario(quickstart: Quickstart, played: Path) -> None:
    """``played`` marks that it ended well once; afterwards it is played only when asked for."""
    with quickstart.step("the e-mail scenario"):
        done = subprocess.run([sys.executable, str(TOP / "examples/email/run.py")], check=False)
    if done.returncode != 0:
        quickstart.console.print("[red]the e-mail scenario did not end well[/red] (see above)")
        sys.exit(1)
    played.touch()


def show_end(quickstart: Quickstart) -> None:
    table = Table(title="How long it took", title_justify="left", box=None, pad_edge=False)
    table.add_column("step")
    table.add_column("seconds", justify="right")
    for text, took in quickstart.timings:
        table.add_row(text, f"{took:.1f}" if took >= 10 else f"{took:.2f}")
    table.add_row("altogether", f"{time.time() - quickstart.started:.1f}")
    quickstart.console.print("\n", table)
    cloison = "cloison" if shutil.which("cloison") else ".venv/bin/cloison"
    quickstart.console.print(
        f"""
What to try next:
  {cloison} list                                all qubes and what they do
  {cloison} run --tty untrusted -- bash         a shell in a qube
  {cloison} run --dispvm -- cat /etc/hostname   a command in a disposable, gone afterwards
  {cloison} create --label green bank           one more qube
  {cloison} --help                              everything else; docs/user-guide.md explains it
""",
        soft_wrap=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="./quickstart")
    parser.add_argument("--times", nargs=3, type=lambda text: float(text.replace(",", ".")), required=True)
    parser.add_argument("--scenario", action=argparse.BooleanOptionalAction)
    parser.add_argument("--mirror", default="")
    options = parser.parse_args([argument for argument in sys.argv[1:] if argument != "--"])
    quickstart = Quickstart(*options.times)
    with quickstart.step("look at this machine"):
        quickstart.cloison("doctor", shown=True)
    make_system(quickstart, options.mirror)
    measure(quickstart)
    make_network(quickstart)
    played = Layout.from_environment().data / "scenario-played"
    if options.scenario or (options.scenario is None and not played.exists()):
        play_scenario(quickstart, played)
    elif options.scenario is None:
        quickstart.console.print("The e-mail scenario was played before; `./quickstart --scenario` plays it again.")
    show_end(quickstart)
    quickstart.console.print(f"Data: {Layout.from_environment().data}", soft_wrap=True)


if __name__ == "__main__":
    main()
