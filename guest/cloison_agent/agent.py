"""The agent: joins the port, the services and the local callers."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cloison.wire import (
    Accepted,
    Control,
    Credit,
    Data,
    Event,
    Exit,
    Hello,
    Notice,
    Open,
    Refused,
    Reply,
    Reset,
    Restarted,
    SessionEvent,
)
from cloison_agent import users
from cloison_agent.builtins import find_job
from cloison_agent.callers import MAX_WAITING_CALLS, Caller
from cloison_agent.launch import Task, start_task
from cloison_agent.logins import Login, Logins
from cloison_agent.lookup import (
    NOT_FOUND,
    TROUBLE,
    LookupProblem,
    Program,
    ServiceConfig,
    TcpAddress,
    UnixSocket,
    find_config,
    find_service,
)
from cloison_agent.loop import READ, WRITE, Loop
from cloison_agent.plainline import find_words
from cloison_agent.port import Port
from cloison_agent.sessions import ProgramSession, SocketSession
from cloison_agent.users import User

CANNOT_EXECUTE = 126
SOFTWARE = "cloison-agent 1"
AGENT_SOCKET = "/run/qubes/qrexec-agent"
SYSLOG = "/dev/log"
BOOTED = ("/usr/bin/systemctl", "is-system-running", "--wait")
SESSION_MARK = "/run/user/{uid}/systemd/private"
"""Exists where the user has a session (a systemd of its own) to wait for."""
WAIT_FOR_SESSION = ("/bin/sh", "-c", "exec systemctl --user --wait is-system-running >/dev/null 2>&1")

Answer = Callable[..., None]
"""Answers a control request: ``answer(field=value...)`` is ok, ``answer(error=text)`` is not."""
ControlVerb = Callable[["Agent", Mapping[str, Any], Answer], None]


class Agent:
    def __init__(
        self,
        port_fd: int,
        listener: socket.socket,
        verbs: Mapping[str, ControlVerb],
        *,
        default_user: str = users.DEFAULT_USER,
    ) -> None:
        self.loop = Loop()
        self.default_user = default_user
        self.ready: Mapping[str, Any] | None = None
        self.name = ""
        self._verbs = verbs
        self._services: dict[int, ProgramSession | SocketSession] = {}
        self._callers: dict[int, Caller] = {}
        self._syslog: socket.socket | None = None
        self.logins = Logins(self.loop)
        self._port = Port(self.loop, port_fd, self._receive, SOFTWARE)
        listener.setblocking(False)
        self._listener = listener
        self.loop.add(listener.fileno(), READ, self._accept)

    # The port

    def send(self, event: Event) -> None:
        self._port.send(event)

    def window(self, session: int, stream: int) -> int:
        return self._port.connection.window(session, stream)

    def pump(self, session: int, stream: int, fd: int) -> int | None:
        return self._port.pump(session, stream, fd)

    def _receive(self, event: Event) -> None:
        if isinstance(event, (Data, Credit)):
            if service := self._services.get(event.session):
                service.receive(event)
            elif caller := self._callers.get(event.session):
                caller.receive(event)
        elif isinstance(event, Open):
            self._open(event)
        elif isinstance(event, (Accepted, Refused, Exit)):
            if caller := self._callers.get(event.session):
                caller.receive(event)
        elif isinstance(event, Reset):
            self._reset(event)
        elif isinstance(event, Control):
            self._control(event)
        elif isinstance(event, Restarted):
            self._end_all()
        elif isinstance(event, Hello):
            if self.ready is not None:
                self.send(Notice("ready", self.ready))
        elif isinstance(event, SessionEvent) and (service := self._services.get(event.session)):
            service.receive(event)

    def _reset(self, event: Reset) -> None:
        if service := self._services.pop(event.session, None):
            service.abandon()
        elif caller := self._callers.get(event.session):
            caller.receive(event)

    def _end_all(self) -> None:
        """The host is gone or began anew: no call survives it."""
        services, self._services = self._services, {}
        for service in services.values():
            service.abandon()
        for number, caller in list(self._callers.items()):
            caller.receive(Reset(number, "the connection to the host was lost"))
        self._callers.clear()

    def announce_ready(self, **fields: Any) -> None:
        self.ready = fields
        if self._port.connection.connected:
            self.send(Notice("ready", fields))

    def announce_when_booted(self) -> None:
        """Send the notice ``ready`` once systemd has finished starting (it says so itself: no polling)."""
        root = users.find_user("root")
        assert root is not None
        with open(os.devnull, "r+b") as nothing:
            fd = nothing.fileno()
            pid = start_task(Task(root, users.bare_environment(root), argv=BOOTED), fd, fd, fd)
        self.loop.watch_exit(pid, lambda code: self.announce_ready(state="running" if code == 0 else "degraded"))

    def _control(self, request: Control) -> None:
        def answer(**fields: Any) -> None:
            self.send(Reply(request.id, "error" not in fields, fields))

        verb = self._verbs.get(request.verb)
        if verb is None:
            answer(error=f"unknown verb {request.verb}")
            return
        try:
            verb(self, request.fields, answer)
        except Exception as error:  # the border of control requests: the host is told, the agent lives on
            text = f"{request.verb}: {type(error).__name__}: {error}"
            answer(error="".join(c if " " <= c <= "~" else "?" for c in text)[:1000])

    # Calls into this qube

    def _open(self, request: Open) -> None:
        try:
            if request.command:
                self._run(request, self._find_user(request.user), command=request.command)
            else:
                self._serve(request)
        except LookupProblem as problem:
            self._fail(request.session, problem.exit_code, str(problem))
        except OSError as error:
            self._fail(request.session, TROUBLE, str(error))

    def _fail(self, session: int, exit_code: int, why: str) -> None:
        message = f"{why}\n".encode("ascii", "backslashreplace")
        print(f"call {session}: {why}", file=sys.stderr, flush=True)
        self.send(Data(session, 2, message[:1024]))
        self.send(Exit(session, exit_code))

    def _fail_start(self, session: int, error: OSError) -> None:
        """As a shell would put it: 127 not found, 126 cannot be executed."""
        code = NOT_FOUND if isinstance(error, FileNotFoundError) else CANNOT_EXECUTE
        self.send(Data(session, 2, f"{error.filename or ''}: {error.strerror}\n".encode()[:1024]))
        self.send(Exit(session, code))

    def _find_user(self, name: str) -> User:
        user = users.find_user(name or self.default_user)
        if user is None:
            raise LookupProblem(f"no user {name or self.default_user}")
        return user

    def _serve(self, request: Open) -> None:
        service = request.service if "+" in request.service else request.service + "+"
        target, config = find_service(service), find_config(service)
        if isinstance(target, Program):
            user = self._find_user(config.force_user or request.user)
            self._run(request, user, program=target.path, config=config)
        else:
            self._connect(request, target, config)

    def _run(
        self, request: Open, user: User, *, command: str = "", program: str = "", config: ServiceConfig | None = None
    ) -> None:
        session = ProgramSession(self.loop, self, request.session, lambda: self._forget(request.session))
        self._services[request.session] = session

        def start(task: Task) -> None:
            if self._services.get(request.session) is session:
                try:
                    session.start(task, request.tty, self._stderr_logger(request) if request.service else None)
                except OSError as error:
                    self._forget(request.session)
                    self._fail_start(request.session, error)

        def prepare(login: Login | None) -> None:
            if self._services.get(request.session) is not session:
                return
            try:
                task = _plan_task(request, user, command, program, login)
            except LookupProblem as problem:
                self._forget(request.session)
                self._fail(request.session, problem.exit_code, str(problem))
                return
            if config is not None and config.wait_for_session and not request.nogui:
                self._after_session_began(user, task.environment, lambda: start(task))
            else:
                start(task)

        self.logins.when_known(user, prepare)

    def _forget(self, number: int) -> None:
        self._services.pop(number, None)

    def _after_session_began(self, user: User, environment: Mapping[str, str], start: Callable[[], None]) -> None:
        """qubes.WaitForSession: its failure does not stop the call."""
        if not os.path.exists(SESSION_MARK.format(uid=user.uid)):
            start()
            return
        with open(os.devnull, "r+b") as nothing:
            fd = nothing.fileno()
            pid = start_task(Task(user, environment, argv=WAIT_FOR_SESSION), fd, fd, fd)
        self.loop.watch_exit(pid, lambda code: start())

    def _connect(self, request: Open, target: UnixSocket | TcpAddress, config: ServiceConfig) -> None:
        session = SocketSession(self.loop, self, request.session, lambda: self._forget(request.session))
        descriptor = b"" if config.skip_service_descriptor else f"{request.service} {request.source}\0".encode()

        connected = _connecting_socket(target)
        self._services[request.session] = session

        def begin(_: int) -> None:
            self.loop.remove(connected.fileno())
            error = connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error or self._services.get(request.session) is not session:
                connected.close()
                self._forget(request.session)
                self._fail(request.session, TROUBLE, f"cannot reach the service: {os.strerror(error)}")
            else:
                session.start(
                    connected,
                    descriptor,
                    on_client_eof=config.exit_on_client_eof,
                    on_service_eof=config.exit_on_service_eof,
                )

        if isinstance(target, UnixSocket):
            begin(0)  # connected already: unix sockets connect at once or not at all
        else:
            self.loop.add(connected.fileno(), WRITE, begin)

    def _stderr_logger(self, request: Open) -> Callable[[bytes], None]:
        tag = f"{request.service}-{request.source}"[:200]

        def log(data: bytes) -> None:
            for line in data.splitlines()[:50]:
                self._log(tag, line[:1000])

        return log

    def _log(self, tag: str, line: bytes) -> None:
        """One line to the system log, dropped rather than waited for."""
        try:
            if self._syslog is None:
                self._syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                self._syslog.connect(SYSLOG)
            self._syslog.send(b"<13>%s: %s" % (tag.encode(), line))
        except OSError:
            self._syslog = None

    # Calls from this qube

    def _accept(self, _: int) -> None:
        try:
            client, _address = self._listener.accept()
        except OSError:
            return
        Caller(self.loop, client, self, self._new_call, self._forget_caller)

    def _forget_caller(self, number: int) -> None:
        self._callers.pop(number, None)

    def _new_call(self, caller: Caller) -> int:
        """A session number for a local caller; 0 = refused."""
        if not self._port.connection.connected or len(self._callers) >= MAX_WAITING_CALLS:
            return 0
        number = self._port.connection.new_session()
        self._callers[number] = caller
        return number

    def serve(self) -> None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # qrexec's way to say "stdin is also my output"; not offered
        self.loop.run()


def _plan_task(request: Open, user: User, command: str, program: str, login: Login | None) -> Task:
    """What to start for the call; LookupProblem if that cannot be."""
    if login is None:
        raise LookupProblem(f"{user.name} may not log in")
    environment = dict(login.environment)
    if request.tty is not None:
        environment["TERM"] = request.tty.term
    environment["QREXEC_AGENT_PID"] = str(os.getpid())
    if request.service:
        environment |= _call_environment(request)
    argument = request.service.partition("+")[2]
    found = find_job(program, request.service) if program else None
    if callable(found):
        return Task(user, environment, job=found, manners=login.manners)
    argv: Sequence[str | bytes]
    if found is not None:
        argv = found
    elif command:
        argv = find_words(command, user.shell) or [user.shell, "-c", command]
    else:
        argv = [program, argument] if argument else [program]
    return Task(user, environment, argv=login.command(argv), manners=login.manners)


def _call_environment(request: Open) -> dict[str, str]:
    environment = {
        "QREXEC_REMOTE_DOMAIN": request.source,
        "QREXEC_SERVICE_FULL_NAME": request.service,
        "QREXEC_REQUESTED_TARGET_TYPE": request.target_type,
    }
    _, plus, argument = request.service.partition("+")
    if plus:
        environment["QREXEC_SERVICE_ARGUMENT"] = argument
    if request.target_type == "name":
        environment["QREXEC_REQUESTED_TARGET"] = request.target
    elif request.target_type == "keyword":
        environment["QREXEC_REQUESTED_TARGET_KEYWORD"] = request.target
    return environment


def _connecting_socket(target: UnixSocket | TcpAddress) -> socket.socket:
    """A socket on its way to the service: it can be written to once it is connected, or has failed."""
    directory = -1
    if isinstance(target, UnixSocket):
        connected = socket.socket(socket.AF_UNIX)
        address: Any = target.path
        if len(os.fsencode(target.path)) > 107:
            directory = os.open(os.path.dirname(target.path), os.O_PATH | os.O_DIRECTORY)
            address = f"/proc/self/fd/{directory}/{os.path.basename(target.path)}"
    else:
        connected = socket.socket(socket.AF_INET6 if ":" in target.host else socket.AF_INET)
        address = (target.host, target.port)
    connected.setblocking(False)
    try:
        connected.connect(address)
    except BlockingIOError as error:
        if isinstance(target, UnixSocket):  # its queue is full; a TCP connection is merely on its way
            connected.close()
            raise LookupProblem("cannot reach the service: it is too busy") from error
    except OSError as error:
        connected.close()
        raise LookupProblem(f"cannot reach the service: {error.strerror or error}") from None
    finally:
        if directory >= 0:
            os.close(directory)
    return connected


def listen(path: str = AGENT_SOCKET) -> socket.socket:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen(128)
    return listener
