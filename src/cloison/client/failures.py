"""The two bad ends of a call, and the names under which the daemon refuses.

In: an exception record from the wire. Out: an exception object. May import: errors.

Every call has three ends: **done** (it returns), **refused** (``Refused``: the daemon said no, or never got the
request; nothing was changed) and **unknown** (``OutcomeUnknown``: the connection was lost after the request was sent).
Names and ancestry are those that programs written for Qubes know (reference: Admin API notes, section 15).
"""

from __future__ import annotations

from cloison.errors import CloisonError


class CallFailed(CloisonError):
    """A call of the Admin API that did not end well."""


class OutcomeUnknown(CallFailed):
    """The connection was lost after the request was sent: it may or may not have been carried out."""


class Refused(CallFailed):
    """The daemon refused; nothing was changed. ``name`` is the exception's name on the wire."""

    def __init__(self, message: str, *, name: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.name = name or type(self).__name__


class DaemonUnreachable(Refused):
    """No daemon answers on the socket and none could be started; the request was never sent."""


class NotFound(Refused):
    """Something that was named does not exist."""


class QubesVMNotFoundError(NotFound): ...


class QubesVMInvalidUUIDError(NotFound): ...


class QubesFeatureNotFoundError(NotFound): ...


class QubesTagNotFoundError(NotFound): ...


class QubesLabelNotFoundError(NotFound): ...


class QubesNoSuchPropertyError(NotFound): ...


class DeviceNotAssigned(Refused): ...


class UnrecognizedDevice(Refused): ...


class QubesVMError(Refused):
    """The state of a qube forbids it."""


class QubesVMInUseError(QubesVMError): ...


class QubesVMNotStartedError(QubesVMError): ...


class QubesVMNotRunningError(QubesVMNotStartedError): ...


class QubesVMNotPausedError(QubesVMNotStartedError): ...


class QubesVMNotSuspendedError(QubesVMError): ...


class QubesVMNotHaltedError(QubesVMError): ...


class QubesVMShutdownTimeoutError(QubesVMError): ...


class QubesNoTemplateError(QubesVMError): ...


class QubesVMAlreadyStartedError(QubesVMError): ...


class QubesMemoryError(QubesVMError): ...


class QubesVMAlreadyExistsError(Refused): ...


class QubesPoolInUseError(Refused): ...


class QubesLabelInUseError(Refused): ...


class DeviceAlreadyAssigned(Refused): ...


class DeviceAlreadyAttached(Refused): ...


class QubesValueError(Refused):
    """A value that the daemon does not accept."""


class QubesPropertyValueError(QubesValueError): ...


class QubesInvalidTagError(QubesValueError): ...


class QubesInvalidLabelError(QubesValueError): ...


class QubesUnrecognizedDeviceAssignmentMode(QubesValueError): ...


class QubesNotImplementedError(Refused): ...


class StoragePoolException(Refused): ...


class ProtocolError(Refused):
    """The request was malformed, or the method does not exist."""


class PermissionDenied(Refused): ...


def _family(root: type[Refused]) -> dict[str, type[Refused]]:
    found: dict[str, type[Refused]] = {}
    for kind in root.__subclasses__():
        found[kind.__name__] = kind
        found.update(_family(kind))
    return found


WIRE_NAMES = _family(Refused)
"""Exception classes by their names on the wire; others arrive as plain Refused."""


def refusal(name: str, text: str) -> Refused:
    """The exception for one exception record; ``text`` is already formatted and free of control characters."""
    message, hint = text, ""
    if text.endswith(")") and " (hint: " in text:
        message, _, hint = text[:-1].rpartition(" (hint: ")
    return WIRE_NAMES.get(name, Refused)(message or name, name=name, hint=hint)
