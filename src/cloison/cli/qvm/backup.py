"""``qvm-backup`` and ``qvm-backup-restore``: names that scripts call, until there are backups."""

from __future__ import annotations

import click

from cloison.cli.command import ExampleCommand, command
from cloison.cli.session import Session
from cloison.errors import NotMadeYet

ANYTHING = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def _declare(name: str, verb: str, example: str) -> ExampleCommand:
    @command(name, help=f"{verb} qubes. This version cannot: it says so and fails, whatever the options.",
             context_settings=ANYTHING, examples=((example, "exit code 1: nothing was done"),))  # fmt: skip
    @click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[OPTION|WORD...]")
    def run(session: Session, words: tuple[str, ...]) -> None:
        raise NotMadeYet(
            "nothing was done: this version makes and restores no backups",
            hint="until then copy the data directory while no qube runs; docs/architecture.md says where it is",
        )

    return run


COMMANDS = {
    "qvm-backup": _declare("qvm-backup", "Back up", "qvm-backup /mnt/disk work"),
    "qvm-backup-restore": _declare("qvm-backup-restore", "Restore", "qvm-backup-restore /mnt/disk/qubes-1"),
}
