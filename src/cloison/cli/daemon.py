"""``cloison daemon``."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

import click

from cloison.cli.command import group, json_option, subcommand
from cloison.cli.power import shut_down_all
from cloison.cli.session import Session
from cloison.cli.table import human_bytes, human_seconds
from cloison.client import calls, unit
from cloison.client.connection import Client
from cloison.client.failures import DaemonUnreachable, OutcomeUnknown
from cloison.client.spawn import is_listening, is_locked, start_daemon
from cloison.errors import BadRequest

COMMAND = group("daemon", examples=(("cloison daemon status", "is it there, and where"),))(lambda: None)
COMMAND.help = """Start, stop and watch the daemon (cloisond).

Every command starts it when it is needed. Stopping it leaves qubes running unless told otherwise; the next one finds
them again.
"""
STOP_TIMEOUT_S = 90.0
"""Ending twenty qubes on a loaded machine takes some seconds; a daemon that needs longer hangs."""
POLL_S = 0.05
HEADINGS = {"why_accelerator": "because"}


@subcommand(COMMAND, "start", examples=(("cloison daemon start", "no matter if it runs already"),))
def start(session: Session) -> None:
    """Start the daemon."""
    if is_listening(session.layout.admin_socket):
        session.say("the daemon is running already")
        return
    start_daemon(session.layout)
    session.say("the daemon is running")


@subcommand(COMMAND, "stop", examples=(
    ("cloison daemon stop", "qubes go on running"),
    ("cloison daemon stop --shutdown", "shut all qubes down first"),
    ("cloison daemon stop --kill", "kill all qubes too"),
))  # fmt: skip
@click.option("--shutdown", is_flag=True, help="Shut all qubes down first.")
@click.option("--kill", is_flag=True, help="Kill all qubes (with --shutdown: those that do not stop in time).")
def stop(session: Session, shutdown: bool, kill: bool) -> None:
    """Stop the daemon."""
    session.say(
        "the daemon is off" if stop_daemon(session, shutdown=shutdown, kill=kill) else "the daemon was not running"
    )


def stop_daemon(session: Session, *, shutdown: bool, kill: bool) -> bool:
    """Stop the daemon and wait until it is gone; False if there was none."""
    session.client = Client(session.layout, start_daemon=False)
    if not is_listening(session.layout.admin_socket):
        if not is_locked(session.layout.lock):
            return False
        start_daemon(session.layout)  # it runs without its socket, or is just coming: until it can be told
    if shutdown:
        states = {"Running", "Paused", "Transient", "Halting"}
        running = [r.name for r in session.do(calls.list_states()) if r.klass != "AdminVM" and r.state in states]
        shut_down_all(session, running, force=True, timeout_s=None, kill=kill)
    try:
        session.do(calls.daemon_stop(kill_qubes=kill))
    except OutcomeUnknown:
        pass  # it may end before its answer is out; whether it did is seen below
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while is_listening(session.layout.admin_socket) or is_locked(session.layout.lock):
        if time.monotonic() > deadline:
            raise DaemonUnreachable(f"the daemon did not stop within {STOP_TIMEOUT_S:.0f} s", hint="cloison daemon log")
        time.sleep(POLL_S)
    return True


@subcommand(COMMAND, "restart", examples=(("cloison daemon restart", "qubes go on running"),))
def restart(session: Session) -> None:
    """Stop the daemon and start it again."""
    stop_daemon(session, shutdown=False, kill=False)
    start_daemon(session.layout)
    session.say("the daemon is running")


@subcommand(COMMAND, "install", examples=(
    ("cloison daemon install", "your session starts it, and it is started again should it fail"),
))  # fmt: skip
def install(session: Session) -> None:
    """Make the daemon your own systemd service.

    Without it every command starts the daemon when it is needed; that is enough in containers and where there is no
    systemd. `loginctl enable-linger` keeps it, and your qubes, after you log out.
    """
    if not unit.has_manager():
        raise BadRequest(
            "no systemd user manager serves this system",
            hint="the daemon starts by itself with the first command"
            if not os.environ.get("CLOISON_ROOT")
            else "a system that CLOISON_ROOT moved is never a service",
        )
    installed = unit.install()
    session.say(f"the daemon is your own systemd service{'' if installed else ' already'}: {unit.unit_path()}")


@subcommand(COMMAND, "uninstall", examples=(("cloison daemon uninstall", "a running one goes on"),))
def uninstall(session: Session) -> None:
    """Undo `cloison daemon install`."""
    session.say("the daemon is no service any more" if unit.uninstall() else "the daemon was no service")


@subcommand(COMMAND, "status", examples=(("cloison daemon status --json", "for scripts; exit code 1: not running"),))
@json_option
def status(session: Session, as_json: bool) -> None:
    """Show whether the daemon runs, and what it says about itself."""
    try:
        found = Client(session.layout, start_daemon=False).do(calls.daemon_status(), timeout_s=10.0)
    except DaemonUnreachable:
        if as_json:
            session.show_json({"running": False, "socket": str(session.layout.admin_socket)})
        else:
            click.echo(f"the daemon is not running (socket: {session.layout.admin_socket})")
        raise click.exceptions.Exit(1) from None
    if as_json:
        session.show_json(found)
        return
    for key, value in found.items():
        if key != "uptime_s":  # "started at" says it
            click.echo(
                f"{session.palette.bold(HEADINGS.get(key, key.replace('_', ' ')))}: {_shown(key, value)}", color=True
            )


def _shown(key: str, value: Any) -> str:
    if key.endswith("_at") and isinstance(value, int | float):
        return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(value))} ({human_seconds(time.time() - value)} ago)"
    if key.endswith(("_kib", "_bytes")) and isinstance(value, int):
        return human_bytes(value * (1024 if key.endswith("_kib") else 1))
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "-"
    return str(value) if value not in (None, "") else "-"


@subcommand(COMMAND, "log", examples=(
    ("cloison daemon log", "the last lines"),
    ("cloison daemon log -f", "and what follows, until Ctrl-C"),
))  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Go on as it grows.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="How many lines.")
def show_log(session: Session, follow: bool, lines: int) -> None:
    """Show the daemon's log."""
    path = session.layout.log
    if not path.exists():
        click.echo(f"there is no log yet ({path})", err=True)
        raise click.exceptions.Exit(1)
    command = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)]
    raise click.exceptions.Exit(subprocess.run(command, check=False).returncode)
