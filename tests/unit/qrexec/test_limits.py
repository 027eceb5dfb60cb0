"""Limits and revocation through the real broker and relays."""

from __future__ import annotations

import asyncio

import pytest
from fakes import Ended, FakeSession

from cloison.policy import PolicySource, RulePlace
from cloison.policy.verdicts import Allow, Cause, Deny
from cloison.qrexec import limits as limits_of_calls
from cloison.qrexec.calls import CallRefused, CallState
from cloison.qrexec.ports import Answer
from cloison.qrexec.revocation import why_ended
from cloison.wire import Stream


async def wait(session: FakeSession) -> None:
    await session.read_all(Stream.STDIN)
    await session.exit(0)


async def flood(session: FakeSession) -> None:
    while True:
        await session.write(Stream.STDOUT, bytes(65536))


def set_limits(house, text: str) -> None:
    (house.directory / "limits.d").mkdir(exist_ok=True)
    (house.directory / "limits.d" / "30-user.limits").write_text(text)


def set_policy(house, text: str) -> None:
    (house.directory / "policy.d").mkdir(exist_ok=True)
    (house.directory / "policy.d" / "30-user.policy").write_text(text)
    house.policy.files = house.policy.files or PolicySource(house.directory / "policy.d")


async def test_calls_at_once_are_counted_by_source_and_rule_and_others_do_not_notice(house):
    set_limits(house, "test.Wait * @anyvm vault calls=2\n")
    caller, other = await house.qubes.start("work"), await house.qubes.start("other")
    await house.qubes.start("vault", **{"test.Wait+": wait})
    calls = [await caller.call("vault", "test.Wait") for _ in range(2)]
    with pytest.raises(PermissionError):
        await caller.call("vault", "test.Wait")
    assert "work has 2 calls already (calls=2" in house.audit.lines[-1]["reason"]
    assert "30-user.limits:1" in house.audit.lines[-1]["reason"]
    assert isinstance(house.events[-1], CallRefused) and house.events[-1].notify
    await other.call("vault", "test.Wait")
    echo = await caller.call("vault", "test.Echo")
    await echo.write(Stream.STDIN, b"another service", end=True)
    assert (await echo.result())[1] == b"another service"
    await calls[0].write(Stream.STDIN, b"", end=True)
    await calls[0].result()
    await house.until(lambda: 1 not in house.broker._book._open)
    await caller.call("vault", "test.Wait")


async def test_a_limit_counts_from_the_next_call_on_and_counts_what_runs(house):
    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **{"test.Wait+": wait})
    for _ in range(3):
        await caller.call("vault", "test.Wait")
    set_limits(house, "test.Wait * work * calls=3\n")
    with pytest.raises(PermissionError):
        await caller.call("vault", "test.Wait")
    set_limits(house, "test.Wait * work * calls=4\n")
    await caller.call("vault", "test.Wait")


async def test_calls_too_often(house):
    set_limits(house, "test.Echo * work * rate=2/h\n")
    caller, other = await house.qubes.start("work"), await house.qubes.start("other")
    await house.qubes.start("vault")
    for _ in range(2):
        await caller.call("vault", "test.Echo")
    with pytest.raises(PermissionError):
        await caller.call("vault", "test.Echo")
    assert "calls too often (rate=2/h" in house.audit.lines[-1]["reason"]
    await other.call("vault", "test.Echo")


async def test_a_call_that_takes_too_long_is_ended(house):
    set_limits(house, "test.Wait * work * time=1s\n")
    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **{"test.Wait+": wait})
    call = await caller.call("vault", "test.Wait")
    with pytest.raises(Ended, match="it reached a limit"):
        await call.result()
    await house.until(lambda: "ended" in house.audit.events())
    assert "took too long (time=1s" in house.audit.lines[-1]["reason"]


async def test_a_call_that_passes_too_much_is_ended_and_its_neighbour_not(house, monkeypatch):
    monkeypatch.setattr(limits_of_calls, "LOOK_S", 0.05)
    set_limits(house, "test.Flood * work * bytes=1M\n")
    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **{"test.Flood+": flood, "test.Wait+": wait})
    neighbour = await caller.call("vault", "test.Wait")
    call = await caller.call("vault", "test.Flood")
    with pytest.raises(Ended, match="it reached a limit"):
        while await call.read(Stream.STDOUT):
            pass
    await neighbour.write(Stream.STDIN, b"", end=True)
    assert (await neighbour.result())[0] == 0
    await house.until(lambda: house.audit.events().count("ended") == 2)
    (ended,) = [line for line in house.audit.lines if "too many bytes" in str(line.get("reason"))]
    assert ended["service"] == "test.Flood" and ended["stdout_bytes"] > 1 << 20


async def test_broken_limits_refuse_every_call_until_they_are_mended(house, caplog):
    set_limits(house, "nonsense\n")
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    with pytest.raises(PermissionError):
        await caller.call("vault", "test.Echo")
    assert "30-user.limits:1: a limit needs" in house.audit.lines[-1]["reason"]
    assert "the limits are broken" in caplog.text
    set_limits(house, "")
    await caller.call("vault", "test.Echo")


async def test_a_broken_policy_refuses_every_call_says_so_to_the_user_and_is_taken_up_again(house, caplog):
    set_policy(house, "test.Echo * work vault allow\n")
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    await caller.call("vault", "test.Echo")
    set_policy(house, "test.Echo * work vault allow\nnonsense\n")
    with pytest.raises(PermissionError):
        await caller.call("vault", "test.Echo")
    told = house.events[-1]
    assert isinstance(told, CallRefused) and told.notify and told.cause is Cause.BROKEN_POLICY
    assert "30-user.policy:2:" in told.reason and "30-user.policy:2:" in caplog.text
    set_policy(house, "test.Echo * work vault allow\n")
    await caller.call("vault", "test.Echo")


# Revocation


def granted(target: str = "vault", user: str | None = None) -> Allow:
    return Allow(target, user, True, False, "allowed", RulePlace("f", 1))


def ask(house_dir, *targets: str):
    from cloison.policy import Request, SystemInfo, evaluate, load_policy

    (house_dir / "f.policy").write_text("".join(f"s * a {target} ask\n" for target in targets))
    system = SystemInfo.parse({"domains": {name: {"type": "AppVM"} for name in ("a", "vault", "personal")}})
    return evaluate(load_policy(house_dir), system, Request("a", targets[0], "s", "+"))


@pytest.mark.parametrize(
    ("now", "then", "was_asked", "goes_on"),
    [
        ("allow", granted(), False, True),
        ("allow", granted(), True, True),
        ("allow", granted("personal"), True, False),
        ("allow", granted(user="root"), False, False),
        ("allow", None, False, True),
        ("deny", granted(), False, False),
        ("deny", granted(), True, False),
        ("deny", None, False, False),
        ("ask vault", granted(), False, False),
        ("ask vault", granted(), True, True),
        ("ask personal", granted(), True, False),
        ("ask personal", None, False, True),
    ],
)
def test_a_call_goes_on_if_it_would_be_let_in_again(tmp_path, now, then, was_asked, goes_on):
    verdicts = {"allow": granted(), "deny": Deny("denied", True, None, Cause.RULE)}
    verdict = verdicts.get(now) or ask(tmp_path, now.split()[1])
    assert (why_ended(verdict, then, was_asked=was_asked) == "") is goes_on


async def test_a_deny_rule_ends_what_runs_and_nothing_else(house):
    set_policy(house, "* * work vault allow\n* * other vault allow\n")
    caller, other = await house.qubes.start("work"), await house.qubes.start("other")
    await house.qubes.start("vault", **{"test.Wait+": wait})
    doomed, safe = await caller.call("vault", "test.Wait"), await other.call("vault", "test.Wait")
    assert house.broker.revoke() == []
    set_policy(house, "* * work vault deny\n* * other vault allow\n")
    ((view, reason),) = house.broker.revoke(dry_run=True)
    assert (view.source, reason.endswith("30-user.policy:1")) == ("work", True)
    await asyncio.sleep(0.05)
    assert len(await house.broker.calls()) == 2
    house.broker.revoke()
    with pytest.raises(Ended, match="no longer allowed"):
        await doomed.result()
    await safe.write(Stream.STDIN, b"", end=True)
    assert (await safe.result())[0] == 0
    (ended,) = [line for line in house.audit.lines if "revoked: denied by" in str(line.get("reason"))]
    assert ended["source"] == "work"


async def test_a_broken_policy_revokes_nothing(house):
    set_policy(house, "* * work vault allow\n")
    caller = await house.qubes.start("work")
    await house.qubes.start("vault", **{"test.Wait+": wait})
    call = await caller.call("vault", "test.Wait")
    set_policy(house, "nonsense\n")
    with pytest.raises(Exception, match=r"30-user.policy:1.*no call was ended"):
        house.broker.revoke()
    await call.write(Stream.STDIN, b"", end=True)
    assert (await call.result())[0] == 0


@pytest.mark.parametrize("change", ["* * work vault deny\n", "* * work personal ask\n"])
async def test_an_answer_counts_under_the_policy_of_its_moment(house, change):
    set_policy(house, "* * work vault ask\n")
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    await house.qubes.start("personal")
    gate: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def slow(question, request, owner):
        return Answer(await gate, "a test")

    house.broker._ask = slow
    calling = asyncio.create_task(caller.call("vault", "test.Echo"))
    await house.until(lambda: any(c.view.state is CallState.ASKING for c in house.broker._calls.values()))
    set_policy(house, change)
    gate.set_result("vault")
    with pytest.raises(PermissionError):
        await calling
    assert "the policy changed while the user was asked" in house.audit.lines[-1]["reason"]
    assert [line["who"] for line in house.audit.lines if line["event"] == "answered"] == ["a test"]


async def test_revocation_takes_a_question_away(house):
    set_policy(house, "* * work vault ask\n")
    caller = await house.qubes.start("work")
    await house.qubes.start("vault")
    taken_away = asyncio.Event()

    async def ask_for_ever(question, request, owner):
        try:
            await asyncio.sleep(3600)
        finally:
            taken_away.set()

    house.broker._ask = ask_for_ever
    calling = asyncio.create_task(caller.call("vault", "test.Echo"))
    await house.until(lambda: any(c.view.state is CallState.ASKING for c in house.broker._calls.values()))
    set_policy(house, "* * work vault deny\n")
    assert len(house.broker.revoke()) == 1
    with pytest.raises(PermissionError):
        await calling
    assert taken_away.is_set() and "revoked" in house.audit.lines[-1]["reason"]
