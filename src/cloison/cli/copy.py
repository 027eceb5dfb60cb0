"""``cloison copy``.

In: files of this host, a qube. Out: copies in the qube's QubesIncoming/dom0. May import: client, cli.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from cloison.cli.choices import QUBE
from cloison.cli.command import command
from cloison.cli.exitcodes import ExitCode
from cloison.cli.session import Session
from cloison.errors import CloisonError

FILES = click.Path(exists=True, path_type=Path, readable=True)


@command("copy", examples=(
    ("cloison copy letter.pdf work", "work gets it as QubesIncoming/dom0/letter.pdf"),
    ("cloison copy --move notes photos work", "and they are gone here once they are there"),
))  # fmt: skip
@click.argument("files", nargs=-1, required=True, type=FILES, metavar="FILE...")
@click.argument("qube", type=QUBE)
@click.option("--move", is_flag=True, help="Remove the files here once all of them have arrived.")
def COMMAND(session: Session, files: tuple[Path, ...], qube: str, move: bool) -> None:
    """Copy files and directories of this host into a qube.

    They arrive below QubesIncoming/dom0 in the home of the qube's user. Nothing there is overwritten, and no file
    appears before it is whole. The qube is started if need be.
    """
    raise click.exceptions.Exit(send(session, files, qube, move=move))


def send(session: Session, files: Sequence[Path], qube: str, *, move: bool) -> int:
    """Copy (or move); the exit code. What went wrong has been told."""
    from cloison.client import filecopy

    try:
        found = filecopy.survey(files)
        if found.odd and move:
            raise filecopy.CopyFailed(f"{str(found.odd[0])!a} is neither a file nor a directory: it cannot be moved")
        with _shown(session, f"to {qube}", found.total_bytes) as on_sent:
            filecopy.copy_files(session.layout, qube, files, all_safe=found.all_safe, on_sent=on_sent)
    except filecopy.CopyFailed as error:
        session.complain(error)
        is_refused = error.exit_code == ExitCode.QREXEC_FAILED and "policy" in error.message
        return ExitCode.REFUSED_BY_POLICY if is_refused else error.exit_code
    for path in found.odd:
        session.complain(CloisonError(f"{str(path)!a} was skipped: it is neither a file nor a directory"))
    return _remove(session, files) if move else ExitCode.DONE


def _remove(session: Session, files: Sequence[Path]) -> int:
    for path in files:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path.resolve())
            else:
                path.unlink()
        except OSError as error:
            session.complain(CloisonError(f"{path} was copied, but could not be removed here: {error.strerror}"))
            return ExitCode.FAILED
    return ExitCode.DONE


@contextmanager
def _shown(session: Session, doing: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar while somebody watches."""
    if not session.is_talking:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(doing, total=total_bytes)
        yield lambda sent_bytes: progress.update(task, completed=sent_bytes)
