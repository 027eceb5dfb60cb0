"""From a request to its answer: the table of all methods, the checks, and the one border that catches everything.

In: requests (parsed, or as the broker hands them over). Out: answer bytes; nothing raises but cancellation.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping

from cloison.admin import backups, devices, door, ownmethods, settings, storage, system, vms
from cloison.admin.framing import Request, encode_error, encode_ok
from cloison.admin.methods import Answer, Call, Desk, Dest, Method, Need, Scope, TellEnd, Witness, nothing_to_tell
from cloison.admin.uploads import Upload
from cloison.errors import BadRequest, CloisonError, ProtocolError, QubeNotFound, Refused
from cloison.model.inventory import Inventory
from cloison.model.names import DOM0, QubeName, parse_qube_name

log = logging.getLogger(__name__)
_UUID = re.compile(r"uuid:([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")


class InvalidUuid(BadRequest):
    wire_name = "QubesVMInvalidUUIDError"


async def list_methods(_desk: Desk, _call: Call) -> Answer:
    return json.dumps(
        [
            {
                "name": row.name,
                "dest": row.dest.value,
                "arg": row.arg.value,
                "payload": row.payload.value,
                "scope": row.scope.value,
                "doc": row.doc,
            }
            for row in METHODS.values()
        ]
    )


def _table(rows: Iterable[Method]) -> Mapping[str, Method]:
    table: dict[str, Method] = {}
    for row in rows:
        if row.name in table or (row.handler is None) == (row.streamer is None):
            raise ValueError(f"the row of {row.name} is wrong")
        table[row.name] = row
    return table


METHODS: Mapping[str, Method] = _table(
    (
        *vms.METHODS,
        *settings.METHODS,
        *storage.METHODS,
        *system.METHODS,
        *devices.METHODS,
        *backups.METHODS,
        *ownmethods.METHODS,
        *door.METHODS,
        Method("cloison.method.List", Dest.DOM0, Need.NONE, Need.NONE, Scope.GLOBAL_RO, "This table.", list_methods),
    )
)
"""Every method by name."""


def find_qube(inventory: Inventory, untrusted_name: str) -> QubeName:
    """An existing qube from its name or ``uuid:...``."""
    if untrusted_name.startswith("uuid:"):
        match = _UUID.fullmatch(untrusted_name)
        if match is None:
            raise InvalidUuid(f"{untrusted_name[:60]!a} is no uuid")
        found = inventory.find_by_uuid(match[1])
        if found is None:
            raise QubeNotFound(untrusted_name)
        return found.name
    return inventory.qube(parse_qube_name(untrusted_name)).name


def answer_for(error: Exception, what: str, may_know: Callable[[str], bool] = lambda _: True) -> bytes:
    """What the caller is told of a failure: declared errors as they are (less the names of qubes that it may not know),
    of others one line (the log has the rest)."""
    if isinstance(error, CloisonError):
        log.info("%s: %s: %s", what, error.wire_name, error)
        return encode_error(error.wire_name, error.text_for(may_know))
    log.error("%s failed", what, exc_info=error)
    method = what.partition("+")[0]
    return encode_error("QubesException", f"{method} failed inside the daemon (hint: its log says why)")


GIVEN_UP = "given up: the caller went away"


class Admin:
    """Answers calls. Who may call was decided before: by the socket's permissions, or by the policy."""

    def __init__(self, desk: Desk, witness: Witness = lambda _call: nothing_to_tell) -> None:
        self.desk = desk
        self._witness = witness

    async def dispatch(self, source: str, dest: str, method: str, arg: str, payload: bytes) -> bytes:
        """The whole answer of a call that is no stream."""
        return b"".join([part async for part in self.stream(source, dest, method, arg, payload)])

    async def stream(
        self, source: str, dest: str, method: str, arg: str, payload: bytes
    ) -> AsyncGenerator[bytes, None]:
        """The answer in parts: one, or for streams as many as there are."""
        tell_end: TellEnd = nothing_to_tell
        try:
            row, call = self.check(source, dest, method, arg, payload)
            if row.may_change:
                tell_end = self._witness(call)
            if row.streamer is not None:
                async for part in row.streamer(self.desk, call):
                    yield part
                tell_end("")
            elif row.handler is not None:
                answer = encode_ok(await row.handler(self.desk, call))
                tell_end("")
                tell_end = nothing_to_tell  # what is done is done, whether or not the answer is taken
                yield answer
        except Exception as error:  # the border
            tell_end(str(error))
            yield answer_for(error, f"{method}+{arg} {dest} for {source}", self._knowledge_of(source))
        except BaseException:
            tell_end(GIVEN_UP)
            raise

    async def take(self, request: Request, more: Callable[[], Awaitable[bytes]]) -> bytes:
        """The answer of an upload whose first data came with the request; ``more`` gives the next, empty at the end.

        A client that dies half-way has sent too little: the volume stays as it was.
        """
        tell_end: TellEnd = nothing_to_tell
        try:
            _, call = self.check(request.source, request.dest, request.method, request.arg, b"-")
            tell_end = self._witness(call)
            upload = Upload(self.desk, call)
            try:
                await upload.receive(request.payload)
                while data := await more():
                    await upload.receive(data)
                answer = encode_ok(await upload.finish())
                tell_end("")
                return answer
            finally:
                await upload.abandon()
        except Exception as error:  # the border
            tell_end(str(error))
            what = f"{request.method}+{request.arg} {request.dest} for {request.source}"
            return answer_for(error, what, self._knowledge_of(request.source))
        except BaseException:
            tell_end(GIVEN_UP)
            raise

    def _knowledge_of(self, source: str) -> Callable[[str], bool]:
        def may_know(name: str) -> bool:
            if source in (DOM0, name):
                return True
            return self.desk.permits(QubeName(source), "admin.vm.List", "", QubeName(name))

        return may_know

    def check(self, source: str, dest: str, method: str, arg: str, payload: bytes) -> tuple[Method, Call]:
        """The row and the checked call; a CloisonError if it does not fit."""
        row = METHODS.get(method)
        if row is None:
            raise ProtocolError(f"there is no method {method[:80]!a}")
        inventory = self.desk.inventory
        caller = find_qube(inventory, source)
        target = find_qube(inventory, dest)
        row.check(arg, payload, target)
        if row.scope is Scope.INTERNAL and caller != DOM0:
            raise Refused(f"{method} is for dom0 alone")
        return row, Call(caller, target, method, arg, payload)
