"""Exit codes: one table, read by the program, the help and the docs.

In: exceptions. Out: numbers. May import: client, errors.
"""

from __future__ import annotations

from enum import IntEnum

from cloison.client.failures import DaemonUnreachable, NotFound, OutcomeUnknown, QubesVMError
from cloison.errors import CloisonError


class ExitCode(IntEnum):
    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    UNKNOWN = 5
    NOT_NOW = 6
    QREXEC_FAILED = 125
    REFUSED_BY_POLICY = 126
    SERVICE_NOT_FOUND = 127
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    CONNECTION_LOST = 255


MEANINGS: dict[ExitCode, str] = {
    ExitCode.DONE: "done (for `check` and the like: yes)",
    ExitCode.FAILED: "refused or failed, nothing was changed (for `check` and the like: no)",
    ExitCode.USAGE: "wrong use: an unknown command or option, a malformed argument",
    ExitCode.NOT_FOUND: "something that was named does not exist: a qube, property, feature, tag, label",
    ExitCode.UNREACHABLE: "the daemon cannot be reached and could not be started",
    ExitCode.UNKNOWN: "the connection to the daemon was lost: it may or may not have been done",
    ExitCode.NOT_NOW: "the present state forbids it: in use, not halted, not running, out of memory, timed out",
    ExitCode.QREXEC_FAILED: "`run`: the command could not be started (qube, user or program unusable)",
    ExitCode.REFUSED_BY_POLICY: "`run`: refused by policy",
    ExitCode.SERVICE_NOT_FOUND: "`run`: the command or service does not exist in the qube",
    ExitCode.INTERRUPTED: "interrupted with Ctrl-C",
    ExitCode.BROKEN_PIPE: "whoever read our output went away",
    ExitCode.CONNECTION_LOST: "`run`: the connection to the qube was lost while the command ran",
}
"""`run` otherwise ends with the command's own code, or 128 + N if signal N killed it."""


def exit_code_for(error: CloisonError) -> ExitCode:
    """The code with which a program ends after this error."""
    match error:
        case DaemonUnreachable():
            return ExitCode.UNREACHABLE
        case OutcomeUnknown():
            return ExitCode.UNKNOWN
        case NotFound():
            return ExitCode.NOT_FOUND
        case QubesVMError() if type(error) is not QubesVMError:  # the bare name also tells of things that broke
            return ExitCode.NOT_NOW
        case _:
            return ExitCode.FAILED
