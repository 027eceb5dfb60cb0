"""The daily ``qvm-*`` commands, as scripts written for Qubes use them.

In: the name under which the program was called, arguments. Out: calls, text, exit codes. May import: client, cli.

Options, columns and exit codes are those of the public manual pages: 0 done, 1 failed, 2 wrong use or no such qube or
property. Each lives in a file of its own; what it does is mostly what its ``cloison`` twin does.
"""

from __future__ import annotations

import os
import sys
from pathlib import PurePath

from cloison.errors import CloisonError

PROGRAMS = {
    "qvm-backup": "backup",
    "qvm-backup-restore": "backup",
    "qvm-block": "device",
    "qvm-check": "check",
    "qvm-clone": "clone",
    "qvm-console-dispvm": "console",
    "qvm-copy-to-vm": "copying",
    "qvm-create": "create",
    "qvm-device": "device",
    "qvm-features": "features",
    "qvm-firewall": "firewall",
    "qvm-kill": "power",
    "qvm-ls": "ls",
    "qvm-move-to-vm": "copying",
    "qvm-notes": "notes",
    "qvm-pause": "power",
    "qvm-pool": "pool",
    "qvm-prefs": "prefs",
    "qvm-remove": "remove",
    "qvm-run": "run",
    "qvm-service": "service",
    "qvm-shutdown": "power",
    "qvm-start": "power",
    "qvm-tags": "tags",
    "qvm-unpause": "power",
    "qvm-volume": "volume",
    "qubes-prefs": "prefs",
}
"""Program names and the files (of this package) that hold their command."""


COMPLETE = "_CLOISON_COMPLETE"
"""In the environment: the shell asks for completions."""


def main() -> int:
    """Be the program whose name we were called by; returns its exit code."""
    return run(PurePath(sys.argv[0]).name, sys.argv[1:])


def run(name: str, words: list[str]) -> int:
    """Run one of ``PROGRAMS``."""
    import importlib

    from cloison.cli.entry import run_command
    from cloison.cli.session import Session

    module = importlib.import_module(f"cloison.cli.qvm.{PROGRAMS[name]}")
    command = module.COMMANDS[name]
    if COMPLETE in os.environ:
        importlib.import_module("cloison.cli.completion")  # it knows how bash splits words
        command.main(prog_name=name, complete_var=COMPLETE)
    return run_command(command, name, words, Session(name, exit_code), code_of=exit_code)


def exit_code(error: CloisonError) -> int:
    """1, but 2 for what does not exist: as the tools of Qubes."""
    from cloison.client.failures import QubesNoSuchPropertyError, QubesVMNotFoundError

    return 2 if isinstance(error, QubesVMNotFoundError | QubesNoSuchPropertyError) else 1
