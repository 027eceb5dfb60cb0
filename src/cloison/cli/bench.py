"""``cloison bench``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click

import cloison
from cloison.cli.command import command
from cloison.cli.session import Session
from cloison.errors import CloisonError

PROGRAM = Path("benchmarks/run")


@command("bench", examples=(
    ("cloison bench", "all figures, measured on this machine: a quarter of an hour"),
    ("cloison bench -- --quick disposable call", "some rows, with fewer repetitions"),
    ("cloison bench -- --help", "the rows and options"),
),
         context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})  # fmt: skip
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def COMMAND(session: Session, arguments: tuple[str, ...]) -> None:
    """Measure this machine: disposables, calls, memory. Plain QEMU is measured beside them.

    Arguments go to the programs in the directory `benchmarks`, which comes with the source tree.
    """
    tree = Path(cloison.__file__).resolve().parents[2]
    if not (tree / PROGRAM).exists():
        raise CloisonError("the benchmarks are not installed here", hint="they come with the source tree: benchmarks/")
    done = subprocess.run([str(tree / PROGRAM), *arguments], check=False)
    if done.returncode:
        raise click.exceptions.Exit(done.returncode if done.returncode > 0 else 128 - done.returncode)
