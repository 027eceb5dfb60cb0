"""What dom0 answers by itself: the Admin API for qubes, reached through the broker after the policy.

In: calls to dom0 that the broker admitted. Out: answers. May import: admin, qrexec, policy.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

from cloison.admin.dispatch import METHODS, Admin
from cloison.admin.framing import Request as FramedRequest
from cloison.admin.framing import encode_failure
from cloison.admin.methods import Permits, Scope
from cloison.admin.uploads import UPLOADS
from cloison.daemon.targets import EngineTargets
from cloison.errors import BadRequest, QubeNotFound
from cloison.model.names import DOM0, QubeName
from cloison.policy import Allow, PolicySource, Request
from cloison.qrexec.ports import Fed, Handler, ServiceCall

NOBODY = ("", "@default")
"""What a target that does not exist has become by now. It must never come to mean dom0: a rule that lets a qube change
any other one would let it change dom0 by a name that nobody has."""


async def _nobody() -> AsyncIterator[bytes]:
    yield encode_failure(QubeNotFound("@default"))


def admin_handlers(admin: Admin) -> Mapping[str, Handler | Fed]:
    """Every method that qubes may be allowed to call, as a service of dom0."""

    async def serve(call: ServiceCall, stdin: bytes) -> AsyncIterator[bytes]:
        if call.requested_target in NOBODY:
            return _nobody()
        dest = DOM0 if call.requested_target == "@adminvm" else call.requested_target
        return admin.stream(call.source, dest, call.service, call.argument, stdin)

    async def take(call: ServiceCall, more: Callable[[], Awaitable[bytes]]) -> bytes:
        if call.requested_target in (*NOBODY, "@adminvm"):
            return encode_failure(QubeNotFound(call.requested_target))
        return await admin.take(
            FramedRequest(call.service, call.argument, call.source, call.requested_target, b""), more
        )

    names = [name for name, row in METHODS.items() if row.scope is not Scope.INTERNAL]
    return {name: Fed(take) if name in UPLOADS else serve for name in names}


async def consent(call: ServiceCall, _stdin: bytes) -> bytes:
    """cloison.Consent+WHAT: a qube asks whether it may. Its rule is "ask": who comes here was told yes."""
    if not call.argument:
        raise BadRequest(f"{call.service} needs an argument that says what for")
    return b""


def may_know(policy: PolicySource, targets: EngineTargets) -> Permits:
    """Filters lists and events for callers other than dom0 by the policy, an "ask" being a no."""

    def permits(source: QubeName, method: str, arg: str, dest: QubeName) -> bool:
        if source == DOM0:
            return True
        verdict = policy.evaluate(targets.system_info(), Request(source, dest, method, f"+{arg}"))
        return isinstance(verdict, Allow)

    return permits
