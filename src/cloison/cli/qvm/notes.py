"""``qvm-notes``."""

from __future__ import annotations

from pathlib import Path

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.client import calls


@command("qvm-notes", examples=(
    ("qvm-notes --print work", "read them"),
    ("qvm-notes work", "change them in your editor"),
    ("qvm-notes --append 'paid in May' work", "one line more"),
))  # fmt: skip
@click.argument("name", type=QUBE, metavar="VMNAME")
@click.option("-e", "--edit", "editing", is_flag=True, help="Open them in your editor (what it does by default).")
@click.option("-p", "--print", "printing", is_flag=True, help="Print them.")
@click.option("-i", "--import", "file", metavar="FILENAME", type=click.Path(path_type=Path, exists=True,
              dir_okay=False), help="Replace them by a file's text.")  # fmt: skip
@click.option("-s", "--set", "text", metavar="NOTES", help="Replace them.")
@click.option("--append", "more", metavar="NOTES", help="Add a line.")
@click.option("-d", "--delete", is_flag=True, help="Remove them.")
@click.option("-f", "--force", is_flag=True, help="Do not ask before notes are lost.")
def notes(session: Session, name: str, editing: bool, printing: bool, file: Path | None, text: str | None,
          more: str | None, delete: bool, force: bool) -> None:  # fmt: skip
    """Read or change the notes about a qube."""
    if sum([editing, printing, file is not None, text is not None, more is not None, delete]) > 1:
        raise click.UsageError("give one of --edit, --print, --import, --set, --append, --delete")
    now = session.do(calls.notes_get(name))
    if printing:
        if now:
            click.echo(now.rstrip("\n"))
        return
    if more is not None:
        new = f"{now.rstrip(chr(10))}\n{more}\n" if now else f"{more}\n"
    elif delete or text is not None or file is not None:
        new = "" if delete else text if text is not None else file.read_text() if file else ""
        if now:
            session.confirm(f"This replaces the notes about {name}. Are you sure?", assume_yes=force, option="--force")
    else:
        edited = click.edit(now, extension=".txt")
        if edited is None:
            return
        new = edited
    session.do(calls.notes_set(name, new))


COMMANDS = {"qvm-notes": notes}
