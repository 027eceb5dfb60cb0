"""``cloison compat``."""

from __future__ import annotations

import shutil

import click

from cloison.cli.command import group, subcommand
from cloison.cli.session import Session
from cloison.client import calls
from cloison.errors import BackendFailed


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
    from cloison.client.compat.fixedpaths import Owner
    from cloison.client.compat.namespace import enter, plan_view

    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise BackendFailed("this needs the program bwrap", hint="apt install bubblewrap")
    session.do(calls.list_classes())  # it must listen before its socket can be shown; and not start in the view
    owner = Owner.ourselves(session.layout)
    (owner.layout.data / "backup").mkdir(mode=0o700, parents=True, exist_ok=True)
    view = plan_view(owner)
    enter(view, bubblewrap, command)
