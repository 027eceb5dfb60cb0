"""The broker: every call between qubes is admitted here, in one order, and recorded.

In: calls of agents (through their relays) and of host clients. Out: joined calls or refusals; audit lines; events.
May import: policy, model, wire, errors, this room's ports.

The order: decode, stamp the source, limits, one frozen picture of the system, verdict, ask, audit line, make the target
exist, join, count, result, audit line. Whatever fails on the way is a refusal; guests learn nothing but "no".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, NoReturn, assert_never

from cloison.errors import BadRequest, CloisonError, NotNow, QubeNotFound, QubeNotRunning, Refused
from cloison.model.names import DOM0, QubeName
from cloison.policy import (
    Allow,
    Ask,
    Deny,
    Judged,
    Request,
    RulePlace,
    SystemInfo,
    refuse_ask,
    requested_target,
    resolve_ask,
)
from cloison.policy.limits import Held, Kind, LimitedCall
from cloison.policy.verdicts import Cause
from cloison.qrexec.calls import CallAllowed, CallEnded, CallEvent, CallRefused, CallState, CallView
from cloison.qrexec.dom0 import Dom0Services
from cloison.qrexec.limits import BuiltInLimits, LimitBook, LimitDoor, Watchdog
from cloison.qrexec.owners import Owners
from cloison.qrexec.pace import Repeats
from cloison.qrexec.packets import Closing
from cloison.qrexec.ports import (
    Answer,
    Asker,
    AuditSink,
    AuditValue,
    CallLink,
    Limits,
    PolicyDoor,
    ServiceCall,
    TargetLink,
    Targets,
    refuse_all,
)
from cloison.qrexec.revocation import why_ended
from cloison.wire.messages import Call, Open

log = logging.getLogger(__name__)

DISPOSABLE = "@dispvm"
DISPOSABLE_PREFIX = "@dispvm:"


class _Told(Enum):
    """What the record says of a call that was let in: nothing yet, that it was, or also how it ended."""

    NOTHING = 0
    ALLOWED = 1
    ENDED = 2


@dataclass
class _Running:
    """A call on its way: its picture, its task, and where it can be ended."""

    view: CallView
    task: asyncio.Task[None] | None = None
    ends: list[tuple[CallLink, int]] = field(default_factory=list)
    disposable: bool = False
    joined: bool = False
    since: float = field(default_factory=time.monotonic)
    """For durations: the clock for people may jump."""
    request: Request | None = None
    policy: str = ""
    """Hash of the set that its verdict came from; "" where none had a say."""
    granted: Allow | None = None
    was_asked: bool = False
    told: _Told = _Told.NOTHING
    held: Mapping[Kind, Held] = field(default_factory=dict)
    end_reason: str = ""
    """Why it was ended from here, for the record: guests are told less."""


class _Recorded(Refused):
    """A refusal whose audit line is written already."""


_EXPECTED = (CloisonError, OSError)
"""What ends a call and is nobody's mistake here: refusals, time-outs, no descriptor left."""
_DOM0_RULE = RulePlace("dom0", 0)
"""Where a rule would stand, for calls that no rule is asked about."""


class Broker:
    """See the module. ``clock``: seconds since the epoch, for people; durations use the loop's clock."""

    def __init__(
        self,
        targets: Targets,
        policy: PolicyDoor,
        audit: AuditSink,
        dom0: Dom0Services,
        *,
        ask: Asker = refuse_all,
        limits: Limits | None = None,
        limit_rules: LimitDoor | None = None,
        tell: Callable[[CallEvent], None] = lambda event: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._targets = targets
        self._policy = policy
        self._audit = audit
        self._dom0 = dom0
        self._ask = ask
        self._limits = limits or Limits()
        self._tell = tell
        self._clock = clock
        self._calls: dict[int, _Running] = {}
        self._asked: dict[tuple[CallLink, int], _Running] = {}
        self._next_id = 1
        self._owners = Owners()
        self._repeats = Repeats(self._record_repeats)
        self._book = LimitBook(limit_rules or BuiltInLimits(), time.monotonic)
        self._watchdog = Watchdog(self.calls, self._outgrown)

    # What relays report

    def on_call(self, link: CallLink, handle: int, untrusted_call: Call) -> None:
        """The agent behind ``link`` wants to call; it is answered by accepting or refusing ``handle``."""
        running = self._begin(link.qube, untrusted_call)
        self._asked[link, handle] = running
        self._own(running, self._serve_guest(running, link, handle, untrusted_call))

    def on_gone(self, link: CallLink, handle: int) -> None:
        """The agent (or all of its qube) gave up before it was answered."""
        running = self._asked.pop((link, handle), None)
        if running is not None and not running.joined and running.task is not None:
            running.task.cancel()

    # People

    async def calls(self) -> list[CallView]:
        """All calls now, with the bytes that passed so far, oldest first."""
        links = {link for running in self._calls.values() for link, _ in running.ends}
        traffic: dict[CallLink, Any] = {}

        async def count(link: CallLink) -> None:
            with contextlib.suppress(CloisonError, TimeoutError):
                async with asyncio.timeout(1.0):
                    traffic[link] = await link.traffic()

        await asyncio.gather(*(count(link) for link in links))
        views = []
        for running in self._calls.values():
            for link, handle in running.ends:
                if counts := traffic.get(link, {}).get(handle):
                    running.view = replace(
                        running.view, stdin_bytes=counts[0], stdout_bytes=counts[1], stderr_bytes=counts[2]
                    )
            views.append(running.view)
        return views

    def kill(self, call_id: int, reason: str = "ended by the user", *, told: str = "") -> bool:
        """End a call now, at both ends; False if there is none of that number. ``told``: what guests hear."""
        running = self._calls.get(call_id)
        if running is None:
            return False
        running.end_reason = running.end_reason or reason
        if running.ends:
            for link, handle in running.ends:
                link.end_call(handle, told or reason)
        elif running.task is not None:
            running.task.cancel()
        return True

    def _outgrown(self, call_id: int, reason: str) -> None:
        self.kill(call_id, reason, told="it reached a limit")

    def revoke(self, *, dry_run: bool = False) -> list[tuple[CallView, str]]:
        """End the calls of qubes that the policy of now would not let in as they were; which, and why.

        Raises Refused while the policy is broken: that is no reason to end anything.
        """
        system = self._targets.system_info()
        ended = []
        for running in list(self._calls.values()):
            if running.request is None:
                continue
            now = self._judge(system, running.request).verdict
            if isinstance(now, Deny) and now.cause is Cause.BROKEN_POLICY:
                raise Refused(f"{now.reason}; no call was ended")
            if reason := why_ended(now, running.granted, was_asked=running.was_asked):
                ended.append((running.view, reason))
        for view, reason in [] if dry_run else ended:
            self.kill(view.id, f"revoked: {reason}", told="it is no longer allowed")
        return ended

    async def close(self) -> None:
        """End all calls and wait until their disposables are released and their last lines written."""
        tasks = [running.task for running in self._calls.values() if running.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._watchdog.close()
        self._repeats.close()

    # Calls of qubes

    async def _serve_guest(self, running: _Running, link: CallLink, handle: int, call: Call) -> None:
        try:
            async with asyncio.timeout(self._limits.admission_timeout_s) as deadline:
                verdict = await self._admit(running, call)
                async with self._prepared(running, verdict, link.qube) as (target, info):
                    deadline.reschedule(None)
                    self._asked.pop((link, handle), None)
                    ours, theirs = socket.socketpair()
                    running.ends.append((link, handle))
                    link.accept(handle, ours)
                    running.joined = True
                    with theirs:
                        await self._carry(running, target, theirs, _open_for_guest(call, verdict, link.qube), info)
        except BaseException as error:
            # Whatever it is: what was recorded as allowed must not stay without an end.
            self._fail(running, error)
            if not isinstance(error, _EXPECTED):
                raise
        finally:
            self._asked.pop((link, handle), None)
            if not running.joined:
                link.refuse(handle)

    async def _admit(self, running: _Running, call: Call) -> Allow:
        """Limits, verdict, question, audit line. Raises Refused."""
        self._check_limits(running)
        system = self._targets.system_info()
        limited = LimitedCall.of(system, running.view.source, call.target, call.service)
        running.held = self._book.admit(running.view.id, system, limited)
        service, _, argument = call.service.partition("+")
        request = running.request = Request(
            running.view.source, call.target, service, "+" + argument, call.source or None
        )
        verdict, running.policy = self._judge(system, request)
        answer = None
        if isinstance(verdict, Ask):
            running.view = replace(running.view, state=CallState.ASKING, rule=str(verdict.rule))
            verdict, answer = await self._resolve(running, verdict, request)
            if answer is not None:
                said = "deny" if isinstance(verdict, Deny) else "allow"
                chosen = verdict.target if isinstance(verdict, Allow) else ""
                running.view = replace(running.view, target=chosen)
                self._record(running, "answered", kind="prompt", verdict=said, reason=verdict.reason, who=answer.by)
        running.view = replace(running.view, rule=str(verdict.rule or ""))
        if isinstance(verdict, Deny):
            self._deny(running, verdict)
        if not isinstance(verdict, Allow):
            assert_never(verdict)
        running.granted, running.was_asked = verdict, answer is not None
        running.view = replace(
            running.view,
            target=verdict.target,
            user=verdict.user or "",
            requested_target=requested_target(system, call.target),
        )
        self._check_disposables(running, verdict.target)
        self._record_allowed(running, verdict.reason)
        self._tell(CallAllowed(running.view, verdict.notify))
        return verdict

    def _deny(self, running: _Running, verdict: Deny) -> NoReturn:
        broken = verdict.cause is Cause.BROKEN_POLICY
        if self._repeats.may_write(running.view.owner):
            self._record(running, "denied", reason=verdict.reason, cause=verdict.cause.value)
            if broken:
                log.error("%s of %s is refused: %s", running.view.service, running.view.source, verdict.reason)
        self._tell(CallRefused(running.view, verdict.reason, verdict.notify or broken, cause=verdict.cause))
        raise _Recorded(verdict.reason)

    def _judge(self, system: SystemInfo, request: Request) -> Judged:
        try:
            return self._policy.judge(system, request)
        except Exception as error:
            # The named border: no decision, no action.
            log.exception("the policy failed on %s", request)
            raise Refused(f"the policy failed: {type(error).__name__}") from error

    async def _resolve(self, running: _Running, ask: Ask, request: Request) -> tuple[Allow | Deny, Answer | None]:
        """The verdict after the question, and the answer if there was one."""
        try:
            async with asyncio.timeout(self._limits.ask_timeout_s):
                answer = await self._ask(ask, request, running.view.owner)
        except TimeoutError:
            return _unasked(ask, "nobody answered in time"), None
        except Refused as error:
            return _unasked(ask, error.message), None
        except Exception:
            # The named border: whatever asks people may fail, and then nobody said yes.
            log.exception("nobody could be asked about %s", request)
            return _unasked(ask, "nobody could be asked"), None
        if answer.chosen is None:
            return refuse_ask(ask, "denied by the user"), answer
        granted = resolve_ask(ask, answer.chosen)
        if isinstance(granted, Allow):
            # People take their time: meanwhile the policy may have become another.
            now, policy = self._judge(self._targets.system_info(), request)
            if reason := why_ended(now, granted, was_asked=True):
                running.policy = policy
                refused = refuse_ask(ask, f"the policy changed while the user was asked: {reason}")
                return replace(refused, rule=now.rule), answer
        return granted, answer

    # Calls of dom0

    async def run_host_call(self, call: Call, client: socket.socket, accepted: Callable[[], Coroutine[Any, Any, None]],
                            refused: Callable[[str], Coroutine[Any, Any, None]]) -> None:  # fmt: skip
        """A call by the person at this machine: no policy. ``client`` becomes the leg and is closed in the end.

        ``accepted`` or ``refused`` is awaited once, before the client's bytes are anybody else's. Cancel this to
        give the call up while it is being prepared.
        """
        running = self._begin(DOM0, call)
        running.task = asyncio.current_task()
        told = False
        try:
            verdict = self._plan_host_call(running, call)
            async with self._prepared(running, verdict, DOM0) as (target, info):
                told = True
                await accepted()
                await self._carry(running, target, client, _open_for_host(call), info)
        except BaseException as error:
            self._fail(running, error)
            if not told:
                await refused(running.end_reason or _in_words(error))
            if not isinstance(error, _EXPECTED):
                raise
        finally:
            client.close()
            self._calls.pop(running.view.id, None)

    def _plan_host_call(self, running: _Running, call: Call) -> Allow:
        system = self._targets.system_info()
        spelled = system.shape.targets.get(call.target)
        if call.target == DISPOSABLE:
            spelled = system.shape.default_disposable(DOM0)
            if spelled is None:
                raise NotNow("dom0 has no default_dispvm", hint="name the disposable template: --dispvm=NAME")
        if spelled is None or spelled == "@default":
            name = call.target.removeprefix(DISPOSABLE_PREFIX)
            if name != call.target and name in system.shape.targets:
                raise BadRequest(
                    f"no disposables are made from {name}", hint=f"cloison prefs {name} template_for_dispvms True"
                )
            raise QubeNotFound(name)
        if spelled == DOM0 and call.command:
            raise BadRequest("dom0 runs services only; a command for dom0 is run by your own shell")
        running.view = replace(running.view, target=spelled, user=call.user)
        self._record_allowed(running, "called by dom0")
        verdict = Allow(spelled, call.user, call.autostart, False, "called by dom0", _DOM0_RULE)
        self._tell(CallAllowed(running.view, False))
        return verdict

    # Both

    @contextlib.asynccontextmanager
    async def _prepared(
        self, running: _Running, verdict: Allow, source: QubeName
    ) -> AsyncIterator[tuple[TargetLink | None, ServiceCall | None]]:
        """Make the target exist: its link, or for dom0 what dom0's service is told. Releases disposables after."""
        running.view = replace(running.view, state=CallState.PREPARING)
        disposable: QubeName | None = None
        try:
            if verdict.target == DOM0:
                service, _, argument = running.view.service.partition("+")
                yield None, ServiceCall(source, service, argument, running.view.requested_target)
                return
            name = QubeName(verdict.relay.qube if verdict.relay else verdict.target)
            if name.startswith(DISPOSABLE_PREFIX):
                template = QubeName(name.removeprefix(DISPOSABLE_PREFIX))
                name = disposable = await self._targets.create_disposable(template, source)
                self._owners.add(name, source, self._targets.system_info().shape.qubes)
                running.view = replace(running.view, target=name)
            elif verdict.autostart:
                await self._targets.ensure_running(name)
            elif not self._targets.system_info().is_running(name):
                raise QubeNotRunning(f"{name} is not running, and the call may not start it")
            yield self._targets.link(name), None
        finally:
            if disposable is not None:
                self._targets.release_disposable(disposable)

    async def _carry(self, running: _Running, target: TargetLink | None, leg: socket.socket, request: Open,
                     info: ServiceCall | None) -> None:  # fmt: skip
        """Join the target to the leg and stay until the call is over."""
        running.view = replace(running.view, state=CallState.RUNNING)
        try:
            with self._watchdog.watching(running.view.id, running.held):
                if target is None:
                    assert info is not None
                    closing = await self._dom0.serve(info, leg)
                else:
                    opened = target.open_call(request, leg, may_signal=running.view.source == DOM0)
                    running.ends.append((opened.link, opened.handle))
                    closing = await opened.closed
        except BaseException:
            for link, number in running.ends:
                link.end_call(number, "the call was ended")
            raise
        self._finish(running, closing)

    def _begin(self, source: QubeName, call: Call) -> _Running:
        service = call.service if call.service else f"command:{call.command[:200]}"
        view = CallView(self._next_id, source, call.target, service, "", call.user, "", CallState.DECIDING,
                        self._clock(), owner=self._owners.find(source))  # fmt: skip
        running = self._calls[self._next_id] = _Running(view)
        self._next_id += 1
        return running

    def _own(self, running: _Running, work: Coroutine[Any, Any, None]) -> None:
        running.task = asyncio.create_task(work, name=f"call {running.view.id}")
        running.task.add_done_callback(lambda task: self._done(running, task))

    def _done(self, running: _Running, task: asyncio.Task[None]) -> None:
        self._calls.pop(running.view.id, None)
        self._book.leave(running.view.id)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("call %d of %s failed", running.view.id, running.view.source, exc_info=error)

    def _check_limits(self, running: _Running) -> None:
        if len(self._calls_of_owner(running)) > self._limits.calls_per_source:
            raise Refused(f"{running.view.source} has {self._limits.calls_per_source} calls already")
        if len(self._calls) > self._limits.calls:
            raise Refused(f"there are {self._limits.calls} calls already")

    def _check_disposables(self, running: _Running, target: str) -> None:
        running.disposable = target.startswith(DISPOSABLE_PREFIX)
        held = sum(1 for other in self._calls_of_owner(running) if other.disposable)
        if running.disposable and held > self._limits.disposables_per_source:
            running.disposable = False
            source = running.view.source
            raise Refused(f"{source} holds {self._limits.disposables_per_source} disposables already")

    def _calls_of_owner(self, running: _Running) -> list[_Running]:
        """The calls that count together with this one, itself included."""
        return [other for other in self._calls.values() if other.view.owner == running.view.owner]

    def _fail(self, running: _Running, error: BaseException) -> None:
        """The last line of a call that never got a closing."""
        if isinstance(error, _Recorded) or running.told is _Told.ENDED:
            return
        reason = running.end_reason or _in_words(error)
        failed = running.told is _Told.ALLOWED
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            log.error("call %d of %s cannot be made: %s", running.view.id, running.view.source, error)
        if failed:
            self._record_end(running, "failed", reason=reason)
        elif self._repeats.may_write(running.view.owner):
            with contextlib.suppress(Refused):
                self._record(running, "denied", reason=reason)
        notify = not isinstance(error, asyncio.CancelledError)
        self._tell(CallRefused(running.view, reason, notify, failed))

    def _finish(self, running: _Running, closing: Closing) -> None:
        view = running.view = replace(
            running.view,
            stdin_bytes=closing.stdin_bytes,
            stdout_bytes=closing.stdout_bytes,
            stderr_bytes=closing.stderr_bytes,
        )
        self._record_end(running, "ended", reason=running.end_reason or closing.reason, exit_code=closing.exit_code,
                         seconds=round(time.monotonic() - running.since, 3), stdin_bytes=view.stdin_bytes,
                         stdout_bytes=view.stdout_bytes, stderr_bytes=view.stderr_bytes)  # fmt: skip
        self._tell(CallEnded(view, closing.exit_code, running.end_reason or closing.reason))

    def _record_repeats(self, source: str, count: int) -> None:
        with contextlib.suppress(OSError):
            self._audit.write({"event": "denied-more", "source": source, "count": count})

    def _record_allowed(self, running: _Running, reason: str) -> None:
        self._record(running, "allowed", reason=reason)
        running.told = _Told.ALLOWED

    def _record_end(self, running: _Running, event: str, **more: AuditValue) -> None:
        """The one end of a call that was recorded as allowed."""
        if running.told is _Told.ALLOWED:
            running.told = _Told.ENDED
            with contextlib.suppress(Refused):  # it is over already; the log says why its line is missing
                self._record(running, event, **more)

    def _record(self, running: _Running, event: str, **more: AuditValue) -> None:
        """An audit line; raises Refused if it cannot be kept, because then nothing may be done."""
        view = running.view
        record: dict[str, AuditValue] = {"event": event, "call": view.id, "policy": running.policy,
                                         "source": view.source, "requested_target": view.requested_target,
                                         "service": view.service, "target": view.target, "user": view.user,
                                         "rule": view.rule}  # fmt: skip
        try:
            self._audit.write(record | more)
        except OSError as error:
            log.critical("the audit log cannot be written: %s", error)
            raise Refused(f"the audit log cannot be written: {error}") from error


def _in_words(error: BaseException) -> str:
    if isinstance(error, TimeoutError | asyncio.CancelledError):
        return str(error) or ("took too long" if isinstance(error, TimeoutError) else "given up")
    return str(error) if isinstance(error, _EXPECTED) else f"a mistake of the broker: {type(error).__name__}"


def _unasked(ask: Ask, why: str) -> Deny:
    """A no that nobody said: the user is told of it, whatever the rule's ``notify`` says about his own answers."""
    return replace(refuse_ask(ask, why), notify=True)


def _open_for_guest(call: Call, verdict: Allow, caller: QubeName) -> Open:
    service, _, argument = call.service.partition("+")
    full_name = verdict.relay.service_for(service, "+" + argument) if verdict.relay else f"{service}+{argument}"
    return Open(0, service=full_name, user=verdict.user or "", source=call.source or caller)


def _open_for_host(call: Call) -> Open:
    return Open(0, service=call.service, command=call.command, user=call.user, source=DOM0, tty=call.tty,
                nogui=call.nogui)  # fmt: skip
