"""Services of dom0 for qubes that may administer the policy: list, get, replace, remove, and "what if" questions.

In: admitted calls. Out: answers in the form that policy clients of Qubes expect (reference: C1, B7). May import:
policy, ports, errors. Who may call them is the policy's to say; by default nobody.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import Callable, Mapping

from cloison.errors import CloisonError
from cloison.policy import Deny, PolicyError, PolicySet, PolicySource, Request, SystemInfo
from cloison.policy.grammar import is_argument, is_service_name
from cloison.policy.store import INCLUDE, PolicyStore, StoreError
from cloison.qrexec.ports import Handler, ServiceCall, ServiceFailed

log = logging.getLogger(__name__)

FAILED, BROKEN = 1, 2
REGISTERED = "60-registered-arguments"
MAX_REGISTERED = 64
"""Arguments of one qube. Each is a line that every later load of the policy reads, and nobody takes it back."""
TRANSIENT = "DispVM"
_REGISTERED = re.compile(r"\+[A-Za-z0-9._-]{1,64}", re.ASCII)
MAX_SOURCE, MAX_TARGET = 31, 63
"""Bytes of the two names that EvalSimple reads."""


class ProtocolBroken(StoreError):
    wire_name = "PolicyAdminProtocolException"


Work = Callable[[PolicyStore, str, bytes], bytes]
"""Blocking work on files: store, name (with its folder), payload; the answer."""


def policy_handlers(
    store: PolicyStore, policy: PolicySource, system: Callable[[], SystemInfo]
) -> Mapping[str, Handler]:
    """All of them, by service name."""
    handlers: dict[str, Handler] = {}
    for verb, work in _WORKS.items():
        handlers[f"policy.{verb}"] = functools.partial(_serve, store, work, "")
        if verb != "GetFiles":
            handlers[f"policy.{INCLUDE}.{verb}"] = functools.partial(_serve, store, work, f"{INCLUDE}/")
    handlers["policy.RegisterArgument"] = functools.partial(_register_argument, store, system)
    handlers["policy.EvalSimple"] = functools.partial(_eval_simple, policy, system)
    return handlers


async def _serve(store: PolicyStore, work: Work, folder: str, call: ServiceCall, stdin: bytes) -> bytes:
    try:
        # Locks are waited for and disks written: not in the daemon's own thread.
        answer = await asyncio.to_thread(work, store, folder + call.argument, stdin)
    except PolicyError as error:
        raise ServiceFailed(FAILED, f"PolicyAdminSyntaxException {error}") from None
    except StoreError as error:
        raise ServiceFailed(FAILED, f"{error.wire_name} {error}") from None
    except (CloisonError, OSError) as error:
        log.error("%s for %s failed: %s", call.full_name, call.source, error)
        raise ServiceFailed(BROKEN, "internal error") from None
    if call.service.rpartition(".")[2] in ("Replace", "Remove"):
        log.info("%s by %s", call.full_name, call.source)
    return answer


def _list(store: PolicyStore, name: str, payload: bytes) -> bytes:
    _need_none(payload, "payload")
    _need_none(name.removeprefix(f"{INCLUDE}/"), "argument")
    include = name.startswith(INCLUDE)
    names = store.list_files(include=include)
    return "".join(f"{name.removeprefix(f'{INCLUDE}/')}\n" for name in names).encode()


def _get(store: PolicyStore, name: str, payload: bytes) -> bytes:
    _need_none(payload, "payload")
    token, content = store.get(name)
    return token.encode() + b"\n" + content


def _replace(store: PolicyStore, name: str, payload: bytes) -> bytes:
    token, newline, content = payload.partition(b"\n")
    if not newline:
        raise ProtocolBroken("the payload is a token, a newline and the content")
    store.replace(name, content, _token(token))
    return b""


def _remove(store: PolicyStore, name: str, payload: bytes) -> bytes:
    store.remove(name, _token(payload))
    return b""


def _get_files(store: PolicyStore, service: str, payload: bytes) -> bytes:
    _need_none(payload, "payload")
    if not is_service_name(service):
        raise ProtocolBroken("the argument is the name of a service")
    return "".join(f"{name}\n" for name in store.find_files_for(service)).encode()


_WORKS: Mapping[str, Work] = {
    "List": _list,
    "Get": _get,
    "Replace": _replace,
    "Remove": _remove,
    "GetFiles": _get_files,
}


def _need_none(given: bytes | str, what: str) -> None:
    if given:
        raise ProtocolBroken(f"there is no {what}")


def _token(untrusted_token: bytes) -> str:
    try:
        token = untrusted_token.decode("ascii")
    except UnicodeDecodeError:
        token = ""
    if token not in ("any", "new") and not token.startswith("sha256:"):
        raise ProtocolBroken('a token is "any", "new" or "sha256:" and a digest')
    return token


async def _register_argument(
    store: PolicyStore, system: Callable[[], SystemInfo], call: ServiceCall, stdin: bytes
) -> bytes:
    """policy.RegisterArgument+SERVICE: the target that was asked for may call SERVICE with this argument on the caller.

    An argument of a service is registered once, by whoever comes first: no other qube can take it over.
    """
    argument = "+" + stdin.decode("ascii", "replace")
    if not is_service_name(call.argument) or not _REGISTERED.fullmatch(argument):
        raise ServiceFailed(FAILED, "the argument is a service; the input 1 to 64 letters, digits, '-', '.', '_'")
    if not call.requested_target or call.requested_target.startswith("@"):
        raise ServiceFailed(FAILED, "the target is the qube that is going to call")
    qubes = system().shape.qubes
    if any(name in qubes and qubes[name].klass == TRANSIENT for name in (call.source, call.requested_target)):
        raise ServiceFailed(FAILED, "a disposable registers nothing: its name may be another's tomorrow")
    line = f"{call.argument} {argument} {call.requested_target} {call.source} allow"
    await _serve(store, functools.partial(_register, line, call.argument, argument, call.source), "", call, b"")
    log.info("%s registered: %s", call.source, line)
    return b""


def _register(
    line: str, service: str, argument: str, source: str, store: PolicyStore, _name: str, _payload: bytes
) -> bytes:
    file = str(store.path_of(REGISTERED))

    def place(policy: PolicySet) -> None:
        taken = [rule for rule in policy.rules if rule.place.file == file]
        if any((rule.service, rule.argument) == (service, argument) for rule in taken):
            raise StoreError(f"{service}{argument} is registered already")
        if sum(1 for rule in taken if rule.target.text == source) >= MAX_REGISTERED:
            raise StoreError(f"{source} has registered {MAX_REGISTERED} arguments already")

    store.insert_line(REGISTERED, line, place=place, check=lambda policy: None)
    return b""


async def _eval_simple(
    policy: PolicySource, system: Callable[[], SystemInfo], call: ServiceCall, stdin: bytes
) -> bytes:
    """policy.EvalSimple+SERVICE[+ARG]: would SOURCE NUL TARGET be let in? A question to the user counts as yes."""
    service, plus, argument = call.argument.partition("+")
    source, nul, target = stdin.partition(b"\0")
    if not is_service_name(service) or not is_argument(plus + argument or "+"):
        raise ServiceFailed(FAILED, "the argument is SERVICE or SERVICE+ARGUMENT")
    if not nul or not 0 < len(source) <= MAX_SOURCE or len(target) > MAX_TARGET:
        raise ServiceFailed(FAILED, "the input is SOURCE, a NUL and TARGET")
    try:
        request = Request(source.decode("ascii"), target.decode("ascii"), service, plus + argument)
    except UnicodeDecodeError:
        raise ServiceFailed(FAILED, "names are ASCII") from None
    denied = isinstance(policy.evaluate(system(), request), Deny)
    return b"result=deny\n" if denied else b"result=allow\n"
