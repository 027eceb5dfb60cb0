"""What the power commands share: acting on several qubes, choosing all of them.

In: names and options. Out: calls. May import: client, cli.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import click

from cloison.cli.choices import QUBE
from cloison.cli.session import Session
from cloison.client import calls
from cloison.client.failures import (
    OutcomeUnknown,
    QubesVMInUseError,
    QubesVMShutdownTimeoutError,
)

MAX_AT_ONCE = 32
"""Calls of one command line at the same time: each is a thread that waits."""

qubes_argument = click.argument("qubes", nargs=-1, type=QUBE, metavar="QUBE...")


def all_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--all`` and ``--exclude``."""
    everything = click.option("--all", "everything", is_flag=True, help="Every qube it applies to (never dom0).")
    exclude = click.option("--exclude", multiple=True, type=QUBE, metavar="QUBE", help="With --all: not this one.")
    return everything(exclude(function))


def chosen(session: Session, qubes: Sequence[str], everything: bool, exclude: Sequence[str],
           states: frozenset[str]) -> list[str]:  # fmt: skip
    """The named qubes, or with ``everything`` all that are in one of ``states``."""
    if everything == bool(qubes):
        raise click.UsageError("name some qubes, or give --all" if not qubes else "name qubes or give --all, not both")
    if not everything:
        return list(dict.fromkeys(qubes))
    rows = session.do(calls.list_states())
    return [row.name for row in rows if row.klass != "AdminVM" and row.state in states and row.name not in exclude]


def shut_down(session: Session, qube: str, *, force: bool, timeout_s: float | None, kill: bool) -> None:
    """Shut one qube down and wait until it is off.

    ``timeout_s``: how long to wait (None: the qube's shutdown_timeout); then kill it, or QubesVMShutdownTimeoutError.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        left = None if deadline is None else max(0.05, deadline - time.monotonic())
        try:
            session.do(calls.shutdown(qube, force=force, wait=True), timeout_s=left)
            return
        except QubesVMShutdownTimeoutError:
            if deadline is not None and time.monotonic() < deadline:
                continue
        except OutcomeUnknown:
            if deadline is None or time.monotonic() < deadline:
                raise
        break
    if kill:
        session.do(calls.power("Kill", qube))
        return
    after = "" if timeout_s is None else f" within {timeout_s:g} s"
    raise QubesVMShutdownTimeoutError(f"{qube} did not stop{after}", hint=f"`cloison kill {qube}` ends it at once")


def shut_down_all(session: Session, qubes: Sequence[str], **how: Any) -> None:
    """Shut several down at once; those that others still use are tried again when those are off."""
    left = list(qubes)
    while left:
        in_use: list[str] = []

        def one(qube: str, in_use: list[str] = in_use) -> None:
            try:
                shut_down(session, qube, **how)
            except QubesVMInUseError:
                in_use.append(qube)

        at_once(session, left, one)
        if len(in_use) == len(left):
            shut_down(session, in_use[0], **how)
        left = in_use


def at_once(session: Session, names: Sequence[str], act: Callable[[str], object]) -> None:
    """``act`` on all names at the same time; otherwise as ``Session.each``."""
    if len(names) <= 1:
        session.each(names, act)
        return
    from threading import BoundedSemaphore, Thread

    turns = BoundedSemaphore(MAX_AT_ONCE)
    failures: dict[str, BaseException] = {}

    def one(name: str) -> None:
        with turns:
            try:
                act(name)
            except BaseException as error:  # border: carried over to the main thread
                failures[name] = error

    threads = {name: Thread(target=one, args=(name,), daemon=True) for name in names}
    for thread in threads.values():
        thread.start()

    def result(name: str) -> None:
        threads[name].join()
        if name in failures:
            raise failures[name]

    session.each(names, result)
