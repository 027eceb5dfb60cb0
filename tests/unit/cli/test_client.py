"""The client: three ends for every call, and what it does when nobody answers."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from cloison.client import Client, DaemonUnreachable, OutcomeUnknown, Refused, calls
from cloison.client.aio import AsyncClient
from cloison.client.framing import Event
from cloison.client.spawn import is_listening, start_daemon
from cloison.layout import Layout


def test_a_call_that_is_done_returns(daemon: Any) -> None:
    states = Client().do(calls.list_states())
    assert [(s.name, s.klass) for s in states][:2] == [("dom0", "AdminVM"), ("debian-13", "TemplateVM")]


def test_a_call_that_is_refused_raises_what_the_daemon_said(daemon: Any) -> None:
    daemon.answers("admin.vm.Remove", daemon.refused("QubesVMInUseError", "work is the netvm of vault"))
    with pytest.raises(Refused, match="work is the netvm of vault") as caught:
        Client().do(calls.remove("work"))
    assert caught.value.name == "QubesVMInUseError"


def test_every_name_under_which_the_daemon_refuses_has_a_class() -> None:
    from cloison.admin.contracts import ALWAYS, CHANGING, CONTRACTS, GUARDED
    from cloison.client.failures import WIRE_NAMES

    sent = {name for found in CONTRACTS.values() for name in found.errors} | ALWAYS | CHANGING | GUARDED
    assert sent - WIRE_NAMES.keys() == {"QubesException"}, "that one is Refused itself"


def test_a_connection_that_ends_without_an_answer_leaves_it_unknown(daemon: Any) -> None:
    daemon.answers("admin.vm.Start", b"")
    with pytest.raises(OutcomeUnknown, match=r"admin.vm.Start work"):
        Client().do(calls.power("Start", "work"))


def test_an_answer_that_makes_no_sense_leaves_it_unknown(daemon: Any) -> None:
    daemon.answers("cloison.daemon.Status", daemon.ok("[1"))
    with pytest.raises(OutcomeUnknown, match="another version"):
        Client().do(calls.daemon_status())
    daemon.answers("admin.vm.List", daemon.ok(""))
    with pytest.raises(OutcomeUnknown, match="cannot be read"):
        Client().do(calls.state_of("work"))


def test_progress_arrives_before_the_answer(daemon: Any) -> None:
    daemon.answers(
        "cloison.template.Commit", daemon.event("t", "progress", step="freezing") + daemon.ok({"revision": "r2"})
    )
    seen: list[Event] = []
    assert Client().do(calls.template_commit("t"), on_event=seen.append) == {"revision": "r2"}
    assert seen == [Event("t", "progress", {"step": "freezing"})]


def test_a_silent_daemon_is_not_waited_for_longer_than_asked(system: Layout) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(system.admin_socket))
        listener.listen()
        with pytest.raises(OutcomeUnknown, match="no answer within"):
            Client().do(calls.list_states(), timeout_s=0.1)


def test_without_a_daemon_nothing_was_sent(system: Layout) -> None:
    with pytest.raises(DaemonUnreachable, match=r"cloison daemon start"):
        Client(start_daemon=False).do(calls.list_states())


async def test_another_users_socket_is_not_talked_to(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uid = os.getuid()
    monkeypatch.setattr("cloison.client.peer.os.getuid", lambda: uid + 1)
    with pytest.raises(DaemonUnreachable, match="trap"):
        Client(Layout.from_environment(uid=uid)).do(calls.list_states())
    with pytest.raises(DaemonUnreachable, match="trap"):
        await AsyncClient(Layout.from_environment(uid=uid)).do(calls.list_states())
    assert daemon.asked == []


def test_a_daemon_that_cannot_start_is_told_with_its_last_words(
    system: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'the database is damaged' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    with pytest.raises(DaemonUnreachable, match="the database is damaged"):
        Client().do(calls.list_states())


def test_two_starts_at_once_both_find_the_one_daemon(
    system: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    program = tmp_path / "python"
    serve = ("import fcntl,socket,time,os\n"
             "lock=open('L','w')\n"
             "try: fcntl.flock(lock,fcntl.LOCK_EX|fcntl.LOCK_NB)\n"
             "except BlockingIOError: raise SystemExit(0)\n"
             "time.sleep(.3)\n"
             f"s=socket.socket(socket.AF_UNIX);s.bind('{system.admin_socket}');s.listen();time.sleep(3)\n")  # fmt: skip
    (tmp_path / "d.py").write_text(serve.replace("'L'", f"'{tmp_path}/lock'"))
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/d.py\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    threads = [threading.Thread(target=start_daemon, args=(system,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert is_listening(system.admin_socket)


def test_a_start_while_the_old_daemon_ends_succeeds(
    system: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The old one holds the lock but listens no more: the first new one gives way, the next one serves."""
    import sys

    monkeypatch.setattr("cloison.client.spawn.RETRY_S", 0.01)
    program = tmp_path / "python"
    serve = (
        f"import socket,time;s=socket.socket(socket.AF_UNIX);s.bind('{system.admin_socket}');s.listen();time.sleep(3)"
    )
    program.write_text(
        f"#!/bin/sh\n[ -e {tmp_path}/second ] || {{ touch {tmp_path}/second; exit 0; }}\n"
        f'exec {sys.executable} -c "{serve}"\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    start_daemon(system)
    assert is_listening(system.admin_socket)


def test_events_go_on_after_the_daemon_came_back(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloison.client.connection.RECONNECT_DELAY_S", 0.01)
    daemon.answers("admin.Events", daemon.event("", "connection-established"))
    stream = Client().events()
    assert next(stream).name == "connection-established"
    daemon.hold.pop().close() if daemon.hold else time.sleep(0.1)
    while daemon.hold:
        daemon.hold.pop().close()
    assert next(stream).name == "connection-established"


async def test_the_asyncio_client_has_the_same_three_ends(daemon: Any) -> None:
    client = AsyncClient()
    assert (await client.do(calls.list_states()))[0].name == "dom0"
    daemon.answers("admin.vm.Kill", daemon.refused("QubesVMNotStartedError", "work is off"))
    with pytest.raises(Refused, match="work is off"):
        await client.do(calls.power("Kill", "work"))
    daemon.answers("admin.vm.Kill", b"")
    with pytest.raises(OutcomeUnknown):
        await client.do(calls.power("Kill", "work"))
    daemon.answers("admin.Events", daemon.event("work", "domain-start", start_guid="1"))
    async for happened in client.events():
        assert happened == Event("work", "domain-start", {"start_guid": "1"})
        break


async def test_the_asyncio_client_says_when_nobody_is_there(system: Layout) -> None:
    with pytest.raises(DaemonUnreachable):
        await AsyncClient(start_daemon=False).do(calls.list_states())


def test_importing_the_client_is_cheap() -> None:
    import subprocess
    import sys

    code = "import sys, cloison.client; "
    code += "print([m for m in ('asyncio', 'cloison.wire', 'rich', 'click') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
