"""The two errors that may leave this room.

In: nothing. Out: exception classes. May import: cloison.errors.
"""

from __future__ import annotations

from cloison.errors import BadRequest, CloisonError


class PolicyError(CloisonError):
    """The policy as a whole cannot be used: a bad line, a bad file name, a file that cannot be read.

    ``str()`` is ``FILE:LINE: message`` (``FILE: message`` where no line is to blame).
    """

    wire_name = "PolicySyntaxException"

    def __init__(self, message: str, *, file: str, line: int | None = None, hint: str = "") -> None:
        place = file if line is None else f"{file}:{line}"
        super().__init__(f"{place}: {message}", hint=hint)
        self.plain_message = message
        self.file = file
        self.line = line


class SystemInfoError(BadRequest):
    """The description of the system (who exists, of what class, with which tags) is malformed."""
