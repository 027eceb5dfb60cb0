"""``cloison compat``."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from cloison.cli.command import group, json_option, subcommand
from cloison.cli.session import Session
from cloison.cli.table import Cell
from cloison.client import calls
from cloison.client.compat.fixedpaths import Owner
from cloison.client.compat.installing import Host, missing_programs
from cloison.errors import BackendFailed, BadRequest


@group("compat", examples=(
    ("cloison compat run -- qubes-qube-manager", "a program written for Qubes OS, unchanged"),
    ("cloison compat run -- qvm-ls --tree", "a tool of Qubes OS from your PATH"),
))  # fmt: skip
def COMMAND() -> None:
    """Programs written for Qubes OS, unchanged.

    Their library knows only fixed paths: a socket, the host's RPC client, two import services, a group. `run` shows
    them to one program in a private view of the host.
    """


@subcommand(COMMAND, "run", context_settings={"allow_interspersed_args": False}, examples=(
    ("cloison compat run -- python3 my-script.py", "a script that uses the library qubesadmin"),
    ("cloison compat run -- bash", "a shell in which all of them work"),
))  # fmt: skip
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND [ARG...]")
def run(session: Session, command: tuple[str, ...]) -> None:
    """Run a program in a private view of the host where the paths of Qubes OS lead to this system.

    Nothing is written on the host and no root is needed. The daemon is started if need be.
    """
    from cloison.client.compat.namespace import enter, plan_view

    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise BackendFailed("this needs the program bwrap", hint="apt install bubblewrap")
    session.do(calls.list_classes())  # it must listen before its socket can be shown; and not start in the view
    owner = Owner.ourselves(session.layout)
    (owner.layout.data / "backup").mkdir(mode=0o700, parents=True, exist_ok=True)
    view = plan_view(owner)
    enter(view, bubblewrap, command)


_prefix_option = click.option(
    "--prefix", type=click.Path(path_type=Path), default=Path("/"), metavar="DIR", help="A directory that is the host."
)
_user_option = click.option("--user", metavar="USER", help="Whose system; default: who called sudo, else root.")


def _owner(session: Session, user: str | None) -> Owner:
    name = user or os.environ.get("SUDO_USER") or ""
    if not name:
        return Owner.ourselves(session.layout)
    return Owner.named(name, os.environ.get("CLOISON_ROOT", ""))


def _require_root(prefix: Path) -> None:
    if prefix == Path("/") and os.geteuid() != 0:
        raise BadRequest("only root may change the whole host", hint="`cloison compat run` needs no root")


@subcommand(COMMAND, "install", examples=(
    ("sudo cloison compat install --user alice", "programs find the system of alice"),
    ("cloison compat install --prefix build/root", "into a directory, for a package"),
))  # fmt: skip
@_user_option
@_prefix_option
def install(session: Session, user: str | None, prefix: Path) -> None:
    """Put the fixed paths of Qubes OS on the whole host (as root).

    What somebody else put there is never replaced. The daemon of that user answers that user and root.
    """
    _require_root(prefix)
    owner = _owner(session, user)
    for path in Host(prefix).install(owner):
        session.say(path)


@subcommand(COMMAND, "uninstall", examples=(("sudo cloison compat uninstall", "what was changed since is left"),))
@_prefix_option
def uninstall(session: Session, prefix: Path) -> None:
    """Take away what `install` put on the host."""
    _require_root(prefix)
    removed, left = Host(prefix).uninstall()
    for path in removed:
        session.say(f"removed {path}")
    for path in left:
        session.complain(BackendFailed(f"left as it is, because it is not as we wrote it: {path}"))
    raise click.exceptions.Exit(1 if left else 0)


@subcommand(COMMAND, "status", examples=(("cloison compat status", "exit code 0: all is there"),))
@_user_option
@_prefix_option
@json_option
def status(session: Session, user: str | None, prefix: Path, as_json: bool) -> None:
    """Show whether the host has the fixed paths, and the programs that the tools of Qubes OS run."""
    standings = Host(prefix).look(_owner(session, user))
    missing = missing_programs()
    if as_json:
        paths = {standing.path: standing.state for standing in standings}
        session.show_json({"paths": paths, "missing_programs": dict(missing)})
    else:
        session.show_table(("PATH", "IS"), [(Cell(s.path), Cell(s.state)) for s in standings])
        for program, package in missing:
            click.echo(f"program {program} is missing (package {package})")
    raise click.exceptions.Exit(0 if all(s.state == "ours" for s in standings) else 1)
