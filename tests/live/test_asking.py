"""Questions, limits, and calls that are ended, with real guests: from the caller's program to the agent and back."""

from __future__ import annotations

import json
import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from tests.live.conftest import CLOISON, wait_until

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

HERE, THERE = "ask-here", "ask-there"
POLICY = f"""
test.Ask   *  {HERE}  {THERE}    ask  default_target={THERE}
test.Slow  *  {HERE}  {THERE}    allow
test.No    *  {HERE}  {THERE}    deny
"""
SERVICES = r"""
mkdir -p /usr/local/etc/qubes-rpc; cd /usr/local/etc/qubes-rpc
printf '#!/bin/sh\necho "asked by $QREXEC_REMOTE_DOMAIN"\n' > test.Ask
printf '#!/bin/sh\necho begun; exec cat\n' > test.Slow
chmod 755 test.*; sync  # the plug is going to be pulled
"""
REFUSED, LOST = 126, 255


@pytest.fixture(scope="module", autouse=True)
def pair(system: LiveSystem) -> Iterator[None]:
    """Two running qubes, and rules for calls from the first to the second."""
    rules = system.layout.policy / "30-user.policy"
    include = system.layout.policy / "include" / "admin-policy-rwx"
    before = {path: path.read_text() for path in (rules, include)}
    rules.write_text(before[rules] + POLICY)
    include.write_text(f"{HERE} @adminvm allow\n")
    for name in (HERE, THERE):
        system.cloison("create", "--template", "debian-13", "--label", "orange", name)
    system.cloison("start", HERE, THERE)
    system.run(THERE, "sh", "-s", user="root", stdin=SERVICES.encode())
    yield
    for path, text in before.items():
        path.write_text(text)
    for name in (HERE, THERE):
        system.cloison("kill", name, expect=None)
        system.cloison("remove", "--yes", name, expect=None)


class Agent:
    """``cloison ask-agent --json``."""

    def __init__(self, system: LiveSystem) -> None:
        self.process = subprocess.Popen(
            [CLOISON, "ask-agent", "--json"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=system.environment
        )
        self._told: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self.hear("ready")

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._told.put(json.loads(line))

    def hear(self, event: str) -> dict[str, Any]:
        """The next thing of that name; others before it are dropped."""
        deadline = time.monotonic() + 30
        while True:
            told = self._told.get(timeout=max(0.1, deadline - time.monotonic()))
            if told["event"] == event:
                return told

    def say(self, **answer: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(answer).encode() + b"\n")
        self.process.stdin.flush()

    def allow(self, prompt: dict[str, Any], **more: Any) -> None:
        time.sleep(1.1)
        self.say(id=prompt["id"], allow=THERE, **more)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def agent(system: LiveSystem) -> Iterator[Agent]:
    agent = Agent(system)
    yield agent
    agent.close()


class Calling:
    """A call from the first qube to the second, on its way."""

    def __init__(self, system: LiveSystem, service: str, target: str = THERE) -> None:
        command = ("run", HERE, "--", "qrexec-client-vm", target, service)
        pipe = subprocess.PIPE
        self._process = system.start(*command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)

    def first_line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode().strip()

    def wait(self) -> int:
        """Its end, its input left open."""
        return self._process.wait(timeout=30)

    def result(self) -> tuple[int, str]:
        output, _ = self._process.communicate(timeout=60)
        return self._process.returncode, output.decode().strip()


def running(system: LiveSystem) -> list[dict[str, Any]]:
    """Calls of the first qube."""
    return [row for row in system.json("calls") if row["source"] == HERE]


def test_nobody_is_there_to_be_asked(system: LiveSystem) -> None:
    assert Calling(system, "test.Ask").result() == (REFUSED, "")


def test_questions(system: LiveSystem, agent: Agent) -> None:
    call = Calling(system, "test.Ask")
    prompt = agent.hear("prompt")
    assert prompt["source"]["name"] == HERE and prompt["source"]["label"] == "orange"
    assert (prompt["default_target"], [face["name"] for face in prompt["targets"]]) == (THERE, [THERE])
    assert [row["state"] for row in running(system)] == ["asking"]
    agent.allow(prompt)
    assert call.result() == (0, f"asked by {HERE}")

    call = Calling(system, "test.Ask")
    agent.say(id=agent.hear("prompt")["id"], deny=True)
    assert call.result() == (REFUSED, "")

    call = Calling(system, "test.Ask")
    prompt = agent.hear("prompt")
    system.cloison("kill", THERE)
    agent.allow(prompt)
    assert call.result() == (0, f"asked by {HERE}"), "the target is started again"

    call = Calling(system, "test.Ask")
    agent.hear("prompt")
    agent.close()
    assert call.result() == (REFUSED, ""), "who could have answered is gone"


def test_a_file_goes_where_the_user_says(system: LiveSystem, agent: Agent) -> None:
    """With the default rules: the caller names no target, and any qube may be chosen."""
    copying = system.start("run", HERE, "--", "sh", "-c", "echo for you > /tmp/note; qvm-copy /tmp/note")
    prompt = agent.hear("prompt")
    assert (prompt["words"], prompt["requested_target"], prompt["default_target"]) == (
        "copy files to {}",
        "@default",
        None,
    )
    offered = {face["name"] for face in prompt["targets"]}
    assert {THERE, "@dispvm:default-dvm"} <= offered and not {HERE, "dom0"} & offered
    agent.allow(prompt)
    assert copying.wait(timeout=60) == 0
    assert system.run(THERE, "cat", f"QubesIncoming/{HERE}/note").stdout == b"for you\n"


def test_the_daemon_dies_with_an_open_question(system: LiveSystem, agent: Agent) -> None:
    call = Calling(system, "test.Ask")
    prompt = agent.hear("prompt")
    system.kill_daemon()
    assert call.result()[0] != 0
    agent.hear("lost")
    system.cloison("list")
    agent.hear("ready")
    agent.allow(prompt)
    assert "not open any more" in agent.hear("error")["message"], "an old answer fits no new question"


def test_an_answer_is_remembered(system: LiveSystem, agent: Agent) -> None:
    call = Calling(system, "test.Ask")
    prompt = agent.hear("prompt")
    line = prompt["remember"]["allow"][THERE]
    assert line == f"test.Ask + {HERE} {THERE} allow"
    agent.allow(prompt, remember=line)
    assert call.result()[0] == 0
    assert line in (system.layout.policy / "30-user.policy").read_text().splitlines()
    assert Calling(system, "test.Ask").result() == (0, f"asked by {HERE}")
    explained = system.json("policy", "explain", HERE, THERE, "test.Ask")
    assert explained["verdict"] == "allow" and explained["rule"]["file"].endswith("30-user.policy")


def test_running_calls_are_seen_and_ended(system: LiveSystem) -> None:
    call = Calling(system, "test.Slow")
    assert call.first_line() == "begun"
    (row,) = running(system)
    assert (row["target"], row["service"], row["state"], row["stdout_bytes"]) == (THERE, "test.Slow", "running", 6)
    system.cloison("calls", "kill", str(row["id"]))
    assert call.result()[0] == LOST
    wait_until(lambda: not running(system), 10, "the call to be gone")

    call = Calling(system, "test.Slow")
    assert call.first_line() == "begun"
    store = ("policy", "get", "30-user")
    before = system.cloison(*store).stdout
    system.cloison("policy", "replace", "30-user", stdin=f"test.Slow * {HERE} @anyvm deny\n".encode() + before)
    (row,) = system.json("policy", "apply", "--revoke", "--dry-run")
    assert row["reason"].startswith("denied by") and len(running(system)) == 1
    system.cloison("policy", "apply", "--revoke")
    assert call.result()[0] == LOST
    system.cloison("policy", "replace", "30-user", stdin=before)


def test_limits(system: LiveSystem, agent: Agent) -> None:
    limits = system.layout.limits / "30-user.limits"
    limits.parent.mkdir(exist_ok=True)
    limits.write_text(f"test.Slow * {HERE} * calls=1 time=4s\n")
    call = Calling(system, "test.Slow")
    assert call.first_line() == "begun"
    assert Calling(system, "test.Slow").result() == (REFUSED, "")
    notice = agent.hear("notice")
    assert notice["source"] == HERE and "calls=1" in notice["reason"]
    assert call.wait() == LOST, "it took longer than 4 s"
    limits.write_text("nonsense\n")
    assert Calling(system, "test.Ask").result() == (REFUSED, "")
    assert b"30-user.limits:1" in system.cloison("limits", "check", expect=1).stderr
    limits.unlink()


def test_a_broken_policy_is_said_and_mended(system: LiveSystem, agent: Agent) -> None:
    rules = system.layout.policy / "30-user.policy"
    before = rules.read_text()
    rules.write_text(before + "nonsense\n")
    where = f"30-user.policy:{len(before.splitlines()) + 1}"
    assert Calling(system, "test.Ask").result() == (REFUSED, "")
    assert where in agent.hear("notice")["reason"]
    assert where in system.cloison("doctor", expect=None).stdout.decode()
    assert where in system.layout.log.read_text()
    rules.write_text(before)
    call = Calling(system, "test.Ask")
    if f"test.Ask + {HERE}" not in before:
        agent.allow(agent.hear("prompt"))
    assert call.result()[0] == 0


def test_a_qube_administers_the_policy_and_loses_no_update(system: LiveSystem, agent: Agent) -> None:
    script = f"""
        set -e; admin() {{ qrexec-client-vm @adminvm "$@"; }}
        admin policy.Get+30-user > /tmp/got; head -n 1 /tmp/got > /tmp/token; tail -n +2 /tmp/got > /tmp/content
        for n in 1 2 3; do
            (cat /tmp/token /tmp/content; echo "# editor $n") | admin policy.Replace+30-user 2> /tmp/said$n &
        done
        wait; cat /tmp/said*
        for service in test.Slow test.No; do printf '{HERE}\\0{THERE}' | admin policy.EvalSimple+$service; done
    """
    said = system.run(HERE, "sh", "-c", script).stdout.decode()
    assert said.count("PolicyAdminTokenException") == 2 and said.endswith("result=allow\nresult=deny\n"), said
    assert (system.layout.policy / "30-user.policy").read_text().count("# editor") == 1

    # At the end, because it takes the first qube away: the question goes with who asked it.
    (system.layout.policy / "30-user.policy").write_text(POLICY)
    call = Calling(system, "test.Ask")
    prompt = agent.hear("prompt")
    system.cloison("kill", HERE)
    assert agent.hear("gone")["id"] == prompt["id"]
    call.result()
