"""What can go wrong, named by who is guilty.

In: nothing. Out: exception classes whose text is one line. May import: nothing of ours.

Names that the Admin API must put on the wire are carried by ``wire_name`` (reference: Admin API, exceptions).
"""

from __future__ import annotations


class CloisonError(Exception):
    """Root of all errors that a person may see; ``str()`` is one line, ``hint`` says how to mend it."""

    wire_name = "QubesException"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message


class BadRequest(CloisonError):
    """The caller asked for something malformed."""

    wire_name = "QubesValueError"


class Refused(CloisonError):
    """Well formed, understood, and not permitted."""

    wire_name = "PermissionDenied"


class NotNow(CloisonError):
    """Fine in itself, but the present state forbids it."""

    wire_name = "QubesVMError"


class BackendFailed(CloisonError):
    """Something outside failed: QEMU, the disk, the guest."""

    wire_name = "QubesVMError"


class QubeNotFound(BadRequest):
    wire_name = "QubesVMNotFoundError"

    def __init__(self, name: str) -> None:
        super().__init__(f"no qube is named {name!r}", hint="`cloison list` shows them all")


class QubeNotHalted(NotNow):
    wire_name = "QubesVMNotHaltedError"


class QubeNotRunning(NotNow):
    wire_name = "QubesVMNotRunningError"


class QubeNotStarted(NotNow):
    wire_name = "QubesVMNotStartedError"


class QubeNotPaused(NotNow):
    wire_name = "QubesVMNotPausedError"


class QubeInUse(NotNow):
    wire_name = "QubesVMInUseError"


class ShutdownTimedOut(NotNow):
    wire_name = "QubesVMShutdownTimeoutError"


class NotEnoughMemory(NotNow):
    wire_name = "QubesMemoryError"


class DiskFull(BackendFailed):
    wire_name = "QubesException"
