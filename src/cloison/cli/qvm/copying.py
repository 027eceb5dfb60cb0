"""``qvm-copy-to-vm`` and ``qvm-move-to-vm``."""

from __future__ import annotations

from pathlib import Path

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import ExampleCommand, command
from cloison.cli.copy import FILES, send
from cloison.cli.session import Session


def _declare(name: str, *, move: bool) -> ExampleCommand:
    verb = "Move" if move else "Copy"

    @command(name, help=f"{verb} files of this host into a qube, below QubesIncoming/dom0.",
             examples=((f"{name} work letter.pdf", "into QubesIncoming/dom0 of work"),))  # fmt: skip
    @click.argument("qube", type=QUBE, metavar="VMNAME")
    @click.argument("files", nargs=-1, required=True, type=FILES, metavar="FILE...")
    @click.option("--without-progress", is_flag=True, help="Show no progress.")
    def run(session: Session, qube: str, files: tuple[Path, ...], without_progress: bool) -> None:
        session.quiet = session.quiet or without_progress
        raise click.exceptions.Exit(send(session, files, qube, move=move))

    return run


COMMANDS = {"qvm-copy-to-vm": _declare("qvm-copy-to-vm", move=False),
            "qvm-move-to-vm": _declare("qvm-move-to-vm", move=True)}  # fmt: skip
