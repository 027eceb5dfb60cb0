"""What can go wrong, named by who is guilty.

In: nothing. Out: exception classes whose text is one line. May import: nothing of ours.

Names that the Admin API must put on the wire are carried by ``wire_name`` (reference: Admin API, exceptions).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable


class CloisonError(Exception):
    """Root of all errors that a person may see; ``str()`` is one line, ``hint`` says how to mend it.

    ``others``: qubes that the text names and whoever asked did not: ``text_for`` a qube leaves out those that it may
    not know.
    """

    wire_name = "QubesException"

    def __init__(self, message: str, *, hint: str = "", others: Iterable[str | None] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.others = frozenset(name for name in others if name)

    def __str__(self) -> str:
        return f"{self.message} (hint: {self.hint})" if self.hint else self.message

    def text_for(self, may_know: Callable[[str], bool]) -> str:
        text = str(self)
        for name in sorted(self.others, key=len, reverse=True):
            if not may_know(name):
                text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", "another qube", text)
        return text


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


class ProtocolError(BadRequest):
    """A request that no right client makes: an argument too many, a payload missing, an unknown method."""

    wire_name = "ProtocolError"


class BadPropertyValue(BadRequest):
    wire_name = "QubesPropertyValueError"


class NoSuchProperty(BadRequest):
    wire_name = "QubesNoSuchPropertyError"


class FeatureNotFound(BadRequest):
    wire_name = "QubesFeatureNotFoundError"


class TagNotFound(BadRequest):
    wire_name = "QubesTagNotFoundError"


class InvalidTag(BadRequest):
    wire_name = "QubesInvalidTagError"


class LabelNotFound(BadRequest):
    wire_name = "QubesLabelNotFoundError"


class InvalidLabel(BadRequest):
    wire_name = "QubesInvalidLabelError"


class LabelInUse(NotNow):
    wire_name = "QubesLabelInUseError"


class QubeExists(BadRequest):
    wire_name = "QubesVMAlreadyExistsError"


class StorageNotFound(BadRequest):
    """No such pool, driver, volume or revision."""

    wire_name = "StoragePoolException"


class PoolInUse(NotNow):
    wire_name = "QubesPoolInUseError"


class DeviceNotFound(BadRequest):
    wire_name = "UnrecognizedDevice"


class DeviceNotAssigned(BadRequest):
    wire_name = "DeviceNotAssigned"


class DeviceAlreadyAssigned(NotNow):
    wire_name = "DeviceAlreadyAssigned"


class DeviceAlreadyAttached(NotNow):
    wire_name = "DeviceAlreadyAttached"


class DeviceInUse(NotNow):
    """Somebody else has it locked."""

    wire_name = "DeviceAlreadyAttached"


class UnknownAssignmentMode(BadRequest):
    wire_name = "QubesUnrecognizedDeviceAssignmentMode"


class NotMadeYet(BadRequest):
    """A method that clients know and that is not there yet."""

    wire_name = "QubesNotImplementedError"


class StateDamaged(BackendFailed):
    """The database cannot be trusted; nothing was changed in it."""

    wire_name = "QubesException"
