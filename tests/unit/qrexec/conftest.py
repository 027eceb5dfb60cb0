from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fakes import FakeAgent, Service

from cloison.errors import QubeNotFound, QubeNotRunning
from cloison.model.names import QubeName
from cloison.policy import Allow, Ask, Deny, Judged, PolicySource, Request, RulePlace, SystemInfo, Verdict
from cloison.policy.limits import LimitSource
from cloison.policy.verdicts import Cause
from cloison.qrexec.broker import Broker
from cloison.qrexec.calls import CallEvent
from cloison.qrexec.dom0 import Dom0Services
from cloison.qrexec.hostclients import HostClients
from cloison.qrexec.link import RelayConnector, RelayLink
from cloison.qrexec.ports import Answer, Handler, Limits
from cloison.qrexec.spawner import Spawner


@pytest.fixture(autouse=True)
def deadline() -> Iterator[None]:
    """A test that hangs fails, and says where."""

    def give_up(number: int, frame: object) -> None:
        raise TimeoutError("the test hangs")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)


class Qubes:
    """Targets for the broker: each running qube is a fake agent behind a real relay."""

    def __init__(self, directory: Path, connector: RelayConnector) -> None:
        self.directory = directory
        self.connector = connector
        self.agents: dict[str, FakeAgent] = {}
        self.links: dict[str, RelayLink] = {}
        self.halted: set[str] = set()
        self.services: dict[str, Service] = {}
        self.released: list[str] = []
        self.klasses: dict[str, str] = {}
        self._count = 0

    def system_info(self) -> SystemInfo:
        running = {name: {"type": self.klasses.get(name, "AppVM"), "power_state": "Running"} for name in self.agents}
        halted = {name: {"type": "AppVM", "power_state": "Halted"} for name in self.halted}
        dvm = {"default-dvm": {"type": "AppVM", "template_for_dispvms": True}}
        dom0 = {"dom0": {"type": "AdminVM", "default_dispvm": "default-dvm"}}
        return SystemInfo.parse({"domains": {**dvm, **halted, **running, **dom0}})

    async def start(self, name: str, **services: Service) -> FakeAgent:
        agent = FakeAgent(self.directory / f"{name}.sock", self.services | services)
        await agent.__aenter__()
        self.agents[name] = agent
        self.halted.discard(name)
        link = await self.connector.connect(QubeName(name), agent.path, ready_timeout_s=20)
        self.links[name] = link
        link.first = link._relay
        return agent

    async def stop(self, name: str) -> None:
        await self.links.pop(name).close()
        await self.agents.pop(name).__aexit__()

    async def ensure_running(self, name: QubeName) -> None:
        if name in self.halted:
            await self.start(name)
        elif name not in self.agents:
            raise QubeNotFound(name)

    async def create_disposable(self, template: QubeName, source: QubeName) -> QubeName:
        self._count += 1
        name = f"disp{self._count}"
        await self.start(name)
        return QubeName(name)

    def release_disposable(self, name: QubeName) -> None:
        self.released.append(name)
        self._stopping = asyncio.ensure_future(self.stop(name))

    def link(self, name: QubeName) -> RelayLink:
        try:
            return self.links[name]
        except KeyError:
            raise QubeNotRunning(f"{name} does not run") from None


class Policy:
    """Allows what ``verdicts`` does not say otherwise about: the target that was asked for."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Verdict | Exception] = {}
        self.requests: list[Request] = []
        self.files: PolicySource | None = None

    def judge(self, system: SystemInfo, request: Request) -> Judged:
        self.requests.append(request)
        if self.files is not None:
            return self.files.judge(system, request)
        return Judged(self._find_verdict(system, request), "sha256:a test")

    def _find_verdict(self, system: SystemInfo, request: Request) -> Verdict:
        verdict = self.verdicts.get(request.service)
        if isinstance(verdict, Exception):
            raise verdict
        if verdict is not None:
            return verdict
        target = system.shape.targets.get(request.target, "")
        return allow(target) if target else deny("no such target")


RULE = RulePlace("10-test.policy", 7)


def allow(target: str, *, user: str | None = None, autostart: bool = True) -> Allow:
    return Allow(target, user, autostart, False, "allowed by a test", RULE)


def deny(reason: str = "denied by a test") -> Deny:
    return Deny(reason, True, RULE, Cause.RULE)


class Audit:
    """Lines in memory; ``full`` makes the disk full."""

    def __init__(self) -> None:
        self.lines: list[dict[str, object]] = []
        self.full = False

    def write(self, record) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.lines.append(dict(record))

    def events(self) -> list[object]:
        return [line["event"] for line in self.lines]


class House:
    """Spawner, connector, broker and host socket, wired as the daemon wires them."""

    def __init__(self, directory: Path, *, limits: Limits | None = None) -> None:
        self.directory = directory
        self.services_directory = directory / "rpc"
        self.services_directory.mkdir()
        self.builtins: dict[str, Handler] = {}
        self.spawner = Spawner()
        self.connector = RelayConnector(self.spawner)
        self.qubes = Qubes(directory, self.connector)
        self.policy, self.audit = Policy(), Audit()
        self.events: list[CallEvent] = []
        dom0 = Dom0Services(self.services_directory, self.builtins, stdin_bytes=1 << 20)
        self.answers: list[str | None] = []
        self.limit_rules = LimitSource(directory / "limits.d")
        self.broker = Broker(self.qubes, self.policy, self.audit, dom0, ask=self._answer, limits=limits,
                             limit_rules=self.limit_rules, tell=self.events.append)  # fmt: skip
        self.connector.on_call, self.connector.on_gone = self.broker.on_call, self.broker.on_gone
        self.host_socket = directory / "qrexec.sock"
        self.clients = HostClients(self.host_socket, self.broker)

    async def __aenter__(self) -> House:
        await self.clients.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.clients.close()
        await self.broker.close()
        for name in list(self.qubes.links):
            await self.qubes.stop(name)
        await self.connector.close()

    async def _answer(self, ask: Ask, request: Request, owner: str) -> Answer:
        return Answer(self.answers.pop(), "a test")

    async def until(self, condition, timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():  # noqa: ASYNC110 - conditions of many kinds
                await asyncio.sleep(0.005)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with House(tmp_path) as house:
        yield house
