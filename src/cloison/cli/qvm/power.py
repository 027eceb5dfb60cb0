"""``qvm-start``, ``qvm-shutdown``, ``qvm-kill``, ``qvm-pause``, ``qvm-unpause``."""

from __future__ import annotations

import click

from cloison.cli.command import command
from cloison.cli.power import all_option, chosen, qubes_argument, shut_down_all
from cloison.cli.session import Session
from cloison.cli.starting import ForOnce, drive_options, start_qube
from cloison.client import calls
from cloison.client.failures import QubesVMAlreadyStartedError, QubesVMNotStartedError

ON = frozenset({"Running", "Paused", "Transient", "Halting"})
OFF = frozenset({"Halted", "Crashed"})


@command("qvm-start", examples=(("qvm-start work", "start a qube"), ("qvm-start --all", "every qube")))
@qubes_argument
@all_option
@click.option("--skip-if-running", is_flag=True, help="A qube that runs already is no error.")
@drive_options
def start(session: Session, qubes: tuple[str, ...], everything: bool, exclude: tuple[str, ...],
          skip_if_running: bool, for_once: ForOnce | None) -> None:  # fmt: skip
    """Start qubes."""

    def one(name: str) -> None:
        if not skip_if_running and session.do(calls.state_of(name)).state in ON:
            raise QubesVMAlreadyStartedError(f"domain {name} is already running")
        begin = lambda: session.wait(calls.power("Start", name), f"starting {name}")  # noqa: E731
        start_qube(session, name, for_once, begin)

    session.each(chosen(session, qubes, everything, exclude, OFF), one)


@command("qvm-shutdown", examples=(
    ("qvm-shutdown work", "ask it to shut down"),
    ("qvm-shutdown --wait --timeout 30 work", "wait; kill it after 30 seconds"),
))  # fmt: skip
@qubes_argument
@all_option
@click.option("--wait", is_flag=True, help="Wait until it is off; kill it after the timeout.")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="With --wait: how long to wait.")
@click.option("--force", is_flag=True, help="Even if other qubes use it.")
@click.option("--dry-run", is_flag=True, help="Do nothing.")
def shutdown(session: Session, qubes: tuple[str, ...], everything: bool, exclude: tuple[str, ...], wait: bool,
             timeout_s: float | None, force: bool, dry_run: bool) -> None:  # fmt: skip
    """Shut qubes down."""
    names = chosen(session, qubes, everything, exclude, ON)
    if dry_run:
        return
    if wait:
        running = {row.name for row in session.do(calls.list_states()) if row.state in ON}
        shut_down_all(session, [n for n in names if n in running], force=force, timeout_s=timeout_s, kill=True)
        session.each([n for n in names if n not in running], lambda name: session.do(calls.state_of(name)))
        return

    def one(name: str) -> None:
        try:
            session.do(calls.shutdown(name, force=force))
        except QubesVMNotStartedError:
            pass  # it is off

    session.each(names, one)


@command("qvm-kill", examples=(("qvm-kill work", "end it at once"),))
@qubes_argument
@all_option
def kill(session: Session, qubes: tuple[str, ...], everything: bool, exclude: tuple[str, ...]) -> None:
    """End qubes at once."""

    def one(name: str) -> None:
        try:
            session.do(calls.power("Kill", name))
        except QubesVMNotStartedError:
            pass  # it is off

    session.each(chosen(session, qubes, everything, exclude, ON), one)


@command("qvm-pause", examples=(("qvm-pause work", "it stands still"),))
@qubes_argument
@all_option
@click.option("-S", "--suspend", is_flag=True, help="Suspend instead.")
def pause(session: Session, qubes: tuple[str, ...], everything: bool, exclude: tuple[str, ...], suspend: bool) -> None:
    """Pause qubes."""
    verb = "Suspend" if suspend else "Pause"
    names = chosen(session, qubes, everything, exclude, frozenset({"Running"}))
    session.each(names, lambda name: session.do(calls.power(verb, name)))


@command("qvm-unpause", examples=(("qvm-unpause work", "it goes on"),))
@qubes_argument
@all_option
def unpause(session: Session, qubes: tuple[str, ...], everything: bool, exclude: tuple[str, ...]) -> None:
    """Let paused or suspended qubes go on."""

    def one(name: str) -> None:
        suspended = session.do(calls.state_of(name)).state == "Suspended"
        session.do(calls.power("Resume" if suspended else "Unpause", name))

    session.each(chosen(session, qubes, everything, exclude, frozenset({"Paused", "Suspended"})), one)


COMMANDS = {
    "qvm-start": start,
    "qvm-shutdown": shutdown,
    "qvm-kill": kill,
    "qvm-pause": pause,
    "qvm-unpause": unpause,
}
