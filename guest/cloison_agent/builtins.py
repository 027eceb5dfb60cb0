"""Services that need no program of their own: they run in a fork of the agent, which has Python and us loaded already.

A service is built in only if the file that the lookup found is a link to our own archive: whoever puts another program
or link under that name in an earlier directory gets it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence

from cloison.wire import RemoteProtocolError
from cloison.wire.vmexec import parse_command
from cloison_agent import clock, opening, receiving
from cloison_agent.launch import Job
from cloison_agent.lookup import LookupProblem

ARCHIVE = "/usr/lib/cloison/agent.pyz"


def _shell_words(_: str) -> Sequence[bytes]:
    """qubes.VMShell: what comes on stdin is shell text."""
    return [b"/bin/bash" if os.path.exists("/bin/bash") else b"/bin/sh"]


def _command_words(argument: str) -> Sequence[bytes]:
    """qubes.VMExec: the argument is the command line."""
    try:
        return parse_command(argument)
    except RemoteProtocolError as error:
        raise LookupProblem(str(error)) from None


COMMANDS: dict[str, Callable[[str], Sequence[bytes]]] = {
    "qubes.VMShell": _shell_words,
    "qubes.VMRootShell": _shell_words,
    "qubes.VMExec": _command_words,
    "qubes.VMExecGUI": _command_words,
    "qubes.VMRootExec": _command_words,
}
"""Services that only start the program that the call names."""
JOBS: dict[str, Callable[[str], int]] = {
    "qubes.GetDate": clock.print_date,
    "qubes.SetDateTime": clock.set_date,
    "qubes.Filecopy": receiving.receive_files,
    "qubes.OpenInVM": opening.serve_open,
    "qubes.OpenURL": opening.serve_url,
}


def find_job(program: str, service: str) -> Job | Sequence[bytes] | None:
    """The built-in that stands behind the program file (or the command line it stands for); None: just a program."""
    name, _, argument = service.partition("+")
    if (name not in COMMANDS and name not in JOBS) or not _is_our_archive(program):
        return None
    if name in COMMANDS:
        return COMMANDS[name](argument)
    return functools.partial(JOBS[name], argument)


def run_service(name: str, argument: str) -> int:
    """The service as a program of its own (called by hand, or by a service that wraps it)."""
    if name in JOBS:
        return JOBS[name](argument)
    words = COMMANDS[name](argument)
    os.execvp(words[0], list(words))


def _is_our_archive(program: str) -> bool:
    try:
        return os.readlink(program) == ARCHIVE
    except OSError:
        return False
