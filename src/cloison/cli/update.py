"""``cloison update``: new packages for templates and standalone qubes, and word of what dom0 waits for."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from cloison.cli.choices import QubeType
from cloison.cli.command import command, json_option
from cloison.cli.power import shut_down, shut_down_all
from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.client import calls
from cloison.client.streams import MemorySink
from cloison.errors import BackendFailed, CloisonError

PROGRAM = "/usr/lib/cloison/update"
MAX_AT_ONCE = 3
"""Templates that are updated at the same time: each is a whole machine that works hard."""
MAX_LOG_BYTES = 16 << 20
MAX_LINE = 400
HOST_TIMEOUT_S = 300.0
_CHANGED = re.compile(r"([a-z0-9][a-z0-9+.:-]{0,100}) (\S{1,100}) (\S{1,100})", re.ASCII)


@dataclass
class Result:
    """What became of one qube."""

    name: str
    state: str = "updated"
    """``updated``, ``nothing new``, ``waiting`` (a check found packages) or ``failed``."""
    packages: list[tuple[str, str, str]] = field(default_factory=list)
    waiting: int = 0
    why: str = ""
    log: str = ""


class LineSink(MemorySink):
    """Hands each whole line over, made printable; nothing is kept but an unfinished one."""

    def __init__(self, take: Callable[[str], None]) -> None:
        super().__init__()
        self._take = take

    def put(self, data: bytes | memoryview) -> None:
        super().put(data)
        *lines, rest = bytes(self.data).split(b"\n")
        self.data = bytearray(rest[:MAX_LINE])
        for untrusted in lines:
            text = untrusted[:MAX_LINE].decode("utf-8", "replace")
            self._take("".join(c if c.isprintable() else "?" for c in text))


class LogSink(MemorySink):
    """Writes to a file, up to a limit; what a qube says is data."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("wb")
        self._left = MAX_LOG_BYTES

    def put(self, data: bytes | memoryview) -> None:
        self._fresh += len(data)
        self._file.write(bytes(data[: self._left]))
        self._left = max(0, self._left - len(data))

    def close(self) -> None:
        self._file.close()


@command("update", examples=(
    ("cloison update", "all templates and standalone qubes, and what dom0 waits for"),
    ("cloison update debian-13", "one of them"),
    ("cloison update --check", "only say what is waiting"),
    ("cloison update --restart", "and restart what runs on an older template"),
))  # fmt: skip
@click.argument("qubes", nargs=-1, type=QubeType("TemplateVM", "StandaloneVM", "AdminVM"), metavar="[QUBE...]")
@click.option("--check", is_flag=True, help="Install nothing.")
@click.option("--restart", is_flag=True, help="Restart running qubes whose template has changed.")
@json_option
def COMMAND(session: Session, qubes: tuple[str, ...], check: bool, restart: bool, as_json: bool) -> None:
    """Bring templates and standalone qubes up to date.

    Templates need no network: their packages come through the updates proxy of another qube. Several are updated at
    once; what was not running is shut down afterwards, and then qubes start from the new revision. If an update fails
    or is interrupted the template stays what it was. Nothing is ever changed in dom0: its packages are its owner's
    business. The feature `skip-update` leaves a qube out when none is named.
    """
    rows = {row["name"]: row for row in session.do(calls.list_qubes())}
    names = list(dict.fromkeys(qubes)) or [
        name for name, row in rows.items()
        if row["class"] in ("TemplateVM", "StandaloneVM", "AdminVM") and not row["features"].get("skip-update")
    ]  # fmt: skip
    for name in names:
        if name not in rows or rows[name]["class"] not in ("TemplateVM", "StandaloneVM", "AdminVM"):
            raise click.UsageError(f"{name} is no template or standalone qube")
    results = _all(session, [name for name in names if rows[name]["class"] != "AdminVM"], rows, check=check)
    host = look_at_host() if any(rows[name]["class"] == "AdminVM" for name in names) else None
    outdated = [] if check else [row["name"] for row in session.do(calls.list_qubes()) if row["outdated"]]
    if as_json:
        session.show_json({"qubes": [asdict(result) for result in results], "dom0": host, "outdated": outdated})
    else:
        _show(session, results, host)
    if outdated:
        _restart(session, outdated, restart=restart)
    if any(result.state == "failed" for result in results):
        raise click.exceptions.Exit(1)


def _all(session: Session, names: Sequence[str], rows: dict[str, dict[str, object]], *, check: bool) -> list[Result]:
    results = {name: Result(name) for name in names}
    turns = threading.BoundedSemaphore(MAX_AT_ONCE)

    def one(result: Result) -> None:
        with turns:
            try:
                _one(session, result, was_halted=rows[result.name]["state"] == "Halted", check=check)
            except CloisonError as error:
                result.state, result.why = "failed", error.message
                session.complain(error)

    threads = [threading.Thread(target=one, args=(result,), daemon=True) for result in results.values()]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        session.say("interrupted: what was begun is gone")
        raise
    return list(results.values())


def _one(session: Session, result: Result, *, was_halted: bool, check: bool) -> None:
    """Update one qube; what was halted is halted again, as new if all went well and as it was if not."""
    name = result.name
    forked = {row["qube"] for row in session.do(calls.forkpoint_list()) if row["template"] == name}
    is_new = False
    with _on_trial(session, name) if was_halted else nullcontext() as settle:
        _run(session, result, check=check)
        if settle is not None and result.packages and not check:  # a look must make no revision, nor fork points old
            settle()
            is_new = True
    if is_new:
        session.say(f"{name}: shutting down, so that its qubes start from what is new")
        shut_down(session, name, force=True, timeout_s=None, kill=False)
        for qube in sorted(forked):
            session.say(f"{name}: making the fork point of {qube} anew")
            session.do(calls.forkpoint_make(qube))
    session.do(calls.feature_set(name, "updates-available", "1" if result.waiting else ""))
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    session.do(calls.feature_set(name, "last-updates-check", now))
    if not check:
        session.do(calls.feature_set(name, "last-update", now))


def _run(session: Session, result: Result, *, check: bool) -> None:
    from cloison.client.qrexec import HostCall, connect
    from cloison.wire import LEG_SESSION, Call

    log = session.layout.log.parent / f"update-{result.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    result.log = str(log)
    told = [-10]

    def take(line: str) -> None:
        word, _, rest = line.partition(" ")
        if word == "changed" and (found := _CHANGED.fullmatch(rest)):
            result.packages.append((found[1], found[2], found[3]))
        elif word == "waiting" and rest.isdecimal():
            result.waiting = int(rest)
        elif word == "step":
            percent, _, text = rest.partition(" ")
            if percent.isdecimal() and (int(percent) >= told[0] + 10 or int(percent) < told[0]):
                told[0] = int(percent)
                session.say(f"{result.name}: {percent:>3} % {text}")

    sink = LogSink(log)
    command_line = f"{PROGRAM} --check" if check else PROGRAM
    try:
        call = Call(LEG_SESSION, result.name, command=command_line, user="root")
        ending = HostCall(connect(session.layout), call, None, (LineSink(take), sink)).run()
    finally:
        sink.close()
    if ending.code:
        why = ending.note or f"its package manager ended with {ending.code}"
        raise BackendFailed(f"{result.name} was not updated: {why}", hint=f"see {log}")
    if check:
        result.state = "waiting" if result.waiting else "nothing new"
    elif not result.packages:
        result.state = "nothing new"


@contextmanager
def _on_trial(session: Session, name: str) -> Iterator[Callable[[], None]]:
    """The qube runs; what is done in it is gone afterwards unless it was settled (what is yielded does that).

    The daemon sees to it, however this program ends: a connection of its own is what holds the trial.
    """
    begun, settled = threading.Event(), threading.Event()
    failures: list[CloisonError] = []

    def hold() -> None:
        try:
            session.client.do(calls.trial_hold(name), on_event=lambda _event: begun.set())
        except CloisonError as error:
            failures.append(error)
        finally:
            begun.set()

    holding = threading.Thread(target=hold, daemon=True)
    holding.start()
    begun.wait()
    if failures:
        raise failures[0]

    def settle() -> None:
        session.do(calls.trial_settle(name))
        settled.set()

    try:
        yield settle
    finally:
        if not settled.is_set():
            with suppress(CloisonError):  # it stopped just now
                session.do(calls.power("Kill", name))
        holding.join()


def look_at_host(program: str = "apt-get") -> dict[str, object]:
    """What the host's package manager would do; it does nothing."""
    if shutil.which(program) is None:
        return {"manager": "", "waiting": None, "packages": [], "why": "no package manager that is known here"}
    try:
        done = subprocess.run([program, "-s", "-q", "dist-upgrade"], stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, timeout=HOST_TIMEOUT_S)  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"manager": program, "waiting": None, "packages": [], "why": str(error)}
    packages = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("Inst ")]
    why = "" if done.returncode == 0 else done.stderr.strip().partition("\n")[0]
    return {"manager": program, "waiting": None if why else len(packages), "packages": packages, "why": why}


def _show(session: Session, results: Sequence[Result], host: dict[str, object] | None) -> None:
    rows = [[Cell(r.name), Cell(r.state, "31" if r.state == "failed" else ""), Cell(_said(r))] for r in results]
    if host is not None:
        waiting = host["waiting"]
        said = str(host["why"]) or f"{waiting} packages wait; `{host['manager']} upgrade` is yours to run"
        rows.append([Cell("dom0"), Cell("nothing new" if waiting == 0 else "looked at"), Cell(said if waiting else "")])
    if rows:
        session.show_table(("QUBE", "RESULT", "PACKAGES"), rows)
    for result in results:
        for package, old, new in result.packages:
            click.echo(f"  {result.name}: {package} {old} -> {new}")


def _said(result: Result) -> str:
    if result.state == "failed":
        return result.why
    return str(len(result.packages) or result.waiting or "")


def _restart(session: Session, outdated: Sequence[str], *, restart: bool) -> None:
    session.say(f"running on an older template: {', '.join(outdated)}")
    if not restart and (not session.is_talking or not click.confirm("Restart them now?", default=False, err=True)):
        return
    shut_down_all(session, outdated, force=False, timeout_s=None, kill=False)
    for name in outdated:
        session.wait(calls.power("Start", name), f"starting {name}")
