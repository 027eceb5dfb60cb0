"""The door of the system, for people: calls that run, questions, and what a changed policy ends.

In: requests. Out: JSON. May import: admin. What is behind it is the daemon's (``doorverbs``).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from cloison.admin.framing import encode_event
from cloison.admin.methods import Answer, Call, Desk, Dest, Method, Need, Scope
from cloison.admin.ownmethods import parse_json
from cloison.errors import BadRequest, ProtocolError


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


async def list_calls(desk: Desk, _call: Call) -> Answer:
    return _dump([dict(row) for row in await desk.door.calls()])


async def kill_call(desk: Desk, call: Call) -> Answer:
    number = parse_json(call, id=int).get("id")
    if number is None:
        raise ProtocolError("the id of a call is needed")
    if not desk.door.kill_call(number):
        raise BadRequest(f"no call has the id {number}", hint="`cloison calls` shows those that run")
    return "{}"


async def follow_calls(desk: Desk, _call: Call) -> AsyncIterator[bytes]:
    yield encode_event("", "connection-established", {})
    async for name, value in desk.door.follow_calls():
        yield encode_event("", name, {"json": _dump(dict(value))})


async def apply_policy(desk: Desk, call: Call) -> Answer:
    wish = parse_json(call, dry_run=bool)
    return _dump([dict(row) for row in desk.door.revoke(dry_run=bool(wish.get("dry_run")))])


async def listen(desk: Desk, _call: Call) -> AsyncIterator[bytes]:
    async for name, value in desk.door.listen():
        yield encode_event("", name, {"json": _dump(dict(value))})


async def answer(desk: Desk, call: Call) -> Answer:
    wish = parse_json(call, id=str, allow=str, by=str, remember=str)
    if not wish.get("id"):
        raise ProtocolError("the id of a question is needed")
    by = "".join(c if c.isprintable() else "_" for c in wish.get("by") or "an agent")[:80]
    await desk.door.answer(wish["id"], wish.get("allow"), by=by, line=wish.get("remember"))
    return "{}"


_NO, _YES, _MAY = Need.NONE, Need.REQUIRED, Need.OPTIONAL

METHODS = (
    Method("cloison.call.List", Dest.DOM0, _NO, _NO, Scope.GLOBAL_RO, "Calls that run now, with their bytes.",
           list_calls),
    Method("cloison.call.Follow", Dest.DOM0, _NO, _NO, Scope.GLOBAL_RO, "Stream of what happens to calls.",
           streamer=follow_calls),
    Method("cloison.call.Kill", Dest.DOM0, _NO, _YES, Scope.GLOBAL_RW, "End a call.", kill_call),
    Method("cloison.policy.Apply", Dest.DOM0, _NO, _MAY, Scope.INTERNAL,
           "End the calls that the policy of now would not let in; with dry_run only list them.", apply_policy),
    Method("cloison.ask.Listen", Dest.DOM0, _NO, _NO, Scope.INTERNAL,
           "Stream of questions and notices; whoever listens is asked.", streamer=listen),
    Method("cloison.ask.Answer", Dest.DOM0, _NO, _YES, Scope.INTERNAL, "Answer a question.", answer),
)  # fmt: skip
