"""Services that need no program of their own: they run in a fork of the agent, which has Python and us loaded already.

A service is built in only if the file that the lookup found is a link to our own archive: whoever puts another program
or link under that name in an earlier directory gets it.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Sequence

from cloison.wire import RemoteProtocolError
from cloison.wire.vmexec import parse_command
from cloison_agent import opening, receiving
from cloison_agent.launch import Job
from cloison_agent.lookup import NOT_FOUND, TROUBLE

ARCHIVE = "/usr/lib/cloison/agent.pyz"


def run_shell(_: str) -> int:
    """qubes.VMShell: what comes on stdin is shell text."""
    for shell in ("/bin/bash", "/bin/sh"):
        if os.path.exists(shell):
            return _execute([shell.encode()])
    return NOT_FOUND


def run_command(argument: str) -> int:
    """qubes.VMExec: the argument is the command line."""
    try:
        return _execute(parse_command(argument))
    except RemoteProtocolError as error:
        print(error, file=sys.stderr, flush=True)
        return TROUBLE


def _execute(words: Sequence[bytes]) -> int:
    try:
        os.execvp(words[0], list(words))
    except FileNotFoundError:
        print(f"{os.fsdecode(words[0])}: command not found", file=sys.stderr, flush=True)
        return NOT_FOUND
    except OSError as error:
        print(f"{os.fsdecode(words[0])}: {error.strerror}", file=sys.stderr, flush=True)
        return 126


def print_date(argument: str) -> int:
    """qubes.GetDate[+nanoseconds]."""
    now_ns = time.time_ns()
    fraction = f",{now_ns % 10**9:09d}" if argument == "nanoseconds" else ""
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_ns // 10**9))
    os.write(1, f"{text}{fraction}+00:00\n".encode())
    return 0


SERVICES: dict[str, Callable[[str], int]] = {
    "qubes.VMShell": run_shell,
    "qubes.VMRootShell": run_shell,
    "qubes.VMExec": run_command,
    "qubes.VMExecGUI": run_command,
    "qubes.VMRootExec": run_command,
    "qubes.GetDate": print_date,
    "qubes.Filecopy": receiving.receive_files,
    "qubes.OpenInVM": opening.serve_open,
    "qubes.OpenURL": opening.serve_url,
}


def find_job(program: str, service: str) -> Job | None:
    """The built-in that stands behind the program file, or None for an ordinary program."""
    name, _, argument = service.partition("+")
    serve = SERVICES.get(name)
    if serve is None or not _is_our_archive(program):
        return None
    return functools.partial(serve, argument)


def _is_our_archive(program: str) -> bool:
    try:
        return os.readlink(program) == ARCHIVE
    except OSError:
        return False
