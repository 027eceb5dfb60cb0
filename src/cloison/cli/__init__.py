"""The command line: one file per command.

In: arguments, a terminal. Out: calls of the Admin API, text, exit codes. May import: client, model.names, wire, layout,
errors (and ``doctor``, which only looks). Importing this package does nothing; a command's file is imported when the
command is used, so that ``cloison list`` of a hundred qubes is over in a third of a second.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """The ``cloison`` program; returns its exit code (``cloison help exit-codes``)."""
    from cloison.cli.entry import run_program

    return run_program(arguments)
