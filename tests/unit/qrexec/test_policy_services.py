"""The policy's services in dom0, through the real broker."""

from __future__ import annotations

import asyncio

import pytest

from cloison.policy import PolicySource
from cloison.policy.store import PolicyStore, content_token
from cloison.qrexec.policyservices import MAX_REGISTERED, policy_handlers
from cloison.wire import Stream

ADMIN = """
policy.EvalSimple * admin @adminvm allow
policy.List * admin @adminvm allow
policy.include.List * admin @adminvm allow
policy.Get * admin @adminvm allow
policy.include.Get * admin @adminvm allow
policy.Replace * admin @adminvm allow
policy.include.Replace * admin @adminvm allow
policy.Remove * admin @adminvm allow
policy.GetFiles * admin @adminvm allow
"""
FIRST = b"s * work vault ask\ns * vault work deny\n"


@pytest.fixture
async def admin(house):
    directory = house.directory / "policy.d"
    (directory / "include").mkdir(parents=True)
    (directory / "20-admin.policy").write_text(ADMIN)
    (directory / "30-user.policy").write_bytes(FIRST)
    (directory / "include" / "part").write_bytes(b"# nothing\n")
    house.policy.files = PolicySource(directory)
    house.builtins.update(policy_handlers(PolicyStore(directory), house.policy.files, house.qubes.system_info))
    for name in ("work", "vault"):
        await house.qubes.start(name)
    agent = await house.qubes.start("admin")

    async def call(service: str, payload: bytes = b"", caller=agent) -> tuple[int, bytes, bytes]:
        session = await caller.call("@adminvm", service)
        await session.write(Stream.STDIN, payload, end=True)
        return await session.result()

    return call


async def test_the_files_are_listed_read_changed_and_removed(admin):
    assert await admin("policy.List") == (0, b"20-admin\n30-user\n", b"")
    assert await admin("policy.include.List") == (0, b"part\n", b"")
    assert await admin("policy.GetFiles+s") == (0, b"30-user\n", b"")
    token = content_token(FIRST).encode()
    assert await admin("policy.Get+30-user") == (0, token + b"\n" + FIRST, b"")
    assert await admin("policy.Replace+40-new", b"new\ns * * * deny\n") == (0, b"", b"")
    assert await admin("policy.include.Replace+part", b"any\ns * * * deny\n") == (0, b"", b"")
    assert (await admin("policy.include.Get+part"))[1].endswith(b"\ns * * * deny\n")
    assert await admin("policy.Remove+40-new", b"any") == (0, b"", b"")
    assert await admin("policy.List") == (0, b"20-admin\n30-user\n", b"")


@pytest.mark.parametrize(
    ("service", "payload", "error"),
    [
        ("policy.Get+none", b"", b"PolicyAdminFileNotFoundException there is no"),
        ("policy.Get+Upper", b"", b"PolicyAdminInvalidFileNameException"),
        ("policy.Get+..", b"", b"PolicyAdminInvalidFileNameException"),
        ("policy.Get+30-user", b"x", b"PolicyAdminProtocolException there is no payload"),
        ("policy.List+30-user", b"", b"PolicyAdminProtocolException there is no argument"),
        ("policy.Replace+30-user", b"new\n", b"PolicyAdminTokenException"),
        ("policy.Replace+30-user", b"sha256:00\n", b"PolicyAdminTokenException"),
        ("policy.Replace+30-user", b"any", b"PolicyAdminProtocolException"),
        ("policy.Replace+30-user", b"perhaps\n", b"PolicyAdminProtocolException"),
        ("policy.Replace+30-user", b"any\nnonsense\n", b"PolicyAdminSyntaxException refused, the policy would be"),
        ("policy.Remove+30-user", b"any\n", b"PolicyAdminProtocolException"),
        ("policy.GetFiles", b"", b"PolicyAdminProtocolException"),
    ],
)
async def test_what_is_wrong_is_named_and_changes_nothing(admin, service, payload, error):
    code, output, said = await admin(service, payload)
    assert (code, output) == (1, b"") and said.startswith(error), said
    assert (await admin("policy.Get+30-user"))[1].endswith(FIRST)


async def test_two_editors_at_once_cannot_lose_an_update(admin):
    token = content_token(FIRST).encode()
    results = await asyncio.gather(
        *(admin("policy.Replace+30-user", token + b"\n" + FIRST + b"# editor %d\n" % n) for n in range(8))
    )
    assert sorted(code for code, _, _ in results) == [0] + [1] * 7
    content = (await admin("policy.Get+30-user"))[1]
    assert content.count(b"# editor") == 1


async def test_an_argument_is_registered_once(admin, house):
    (house.directory / "policy.d" / "21-register.policy").write_text(
        "policy.RegisterArgument +my.Service admin @anyvm allow target=dom0\n"
        "policy.RegisterArgument +my.Service vault @anyvm allow target=dom0\n"
    )

    async def register(source: str, target: str, argument: bytes) -> int:
        session = await house.qubes.agents[source].call(target, "policy.RegisterArgument+my.Service")
        await session.write(Stream.STDIN, argument, end=True)
        return (await session.result())[0]

    assert await register("admin", "work", b"id-1") == 0
    assert await register("vault", "work", b"id-1") == 1
    assert await register("vault", "work", b"id-2") == 0
    for target, wrong in (("work", b""), ("work", b"a b"), ("work", b"x" * 65), ("work", b"\xff"), ("none", b"id-3")):
        assert await register("vault", target, wrong) == 1
    lines = (house.directory / "policy.d" / "60-registered-arguments.policy").read_text().splitlines()
    assert lines == ["my.Service +id-1 work admin allow", "my.Service +id-2 work vault allow"]


async def test_a_qube_registers_so_many_arguments_and_the_others_theirs(admin, house):
    policy = house.directory / "policy.d"
    (policy / "21-register.policy").write_text(
        "policy.RegisterArgument * admin @anyvm allow target=dom0\n"
        "policy.RegisterArgument * vault @anyvm allow target=dom0\n"
    )
    mine = "".join(f"my.Service +id-{number} work admin allow\n" for number in range(MAX_REGISTERED - 1))
    (policy / "60-registered-arguments.policy").write_text(mine)

    async def register(source: str, argument: bytes) -> tuple[int, bytes]:
        session = await house.qubes.agents[source].call("work", "policy.RegisterArgument+other.Service")
        await session.write(Stream.STDIN, argument, end=True)
        code, _, said = await session.result()
        return code, said

    assert (await register("admin", b"last"))[0] == 0
    code, said = await register("admin", b"one-more")
    assert code == 1 and b"admin has registered 64 arguments already" in said
    assert (await register("vault", b"first"))[0] == 0


async def test_a_disposable_registers_nothing_that_would_outlive_it(admin, house):
    (house.directory / "policy.d" / "21-register.policy").write_text(
        "policy.RegisterArgument * @anyvm @anyvm allow target=dom0\n"
    )
    house.qubes.klasses["disp7"] = "DispVM"
    disposable = await house.qubes.start("disp7")
    for caller, target in ((disposable, "work"), (house.qubes.agents["work"], "disp7")):
        session = await caller.call(target, "policy.RegisterArgument+my.Service")
        await session.write(Stream.STDIN, b"id-1", end=True)
        code, _, said = await session.result()
        assert code == 1 and b"a disposable registers nothing" in said
    assert not (house.directory / "policy.d" / "60-registered-arguments.policy").exists()


async def test_others_may_not(admin, house):
    with pytest.raises(PermissionError):
        await house.qubes.agents["work"].call("@adminvm", "policy.List")


@pytest.mark.parametrize(
    ("service", "payload", "expected"),
    [
        ("policy.EvalSimple+s", b"work\0vault", (0, b"result=allow\n")),
        ("policy.EvalSimple+s+x", b"work\0vault", (0, b"result=allow\n")),
        ("policy.EvalSimple+s", b"vault\0work", (0, b"result=deny\n")),
        ("policy.EvalSimple+none", b"work\0vault", (0, b"result=deny\n")),
        ("policy.EvalSimple", b"work\0vault", (1, b"")),
        ("policy.EvalSimple+s", b"work", (1, b"")),
        ("policy.EvalSimple+s", b"\0vault", (1, b"")),
        ("policy.EvalSimple+s", b"w" * 32 + b"\0vault", (1, b"")),
        ("policy.EvalSimple+s", b"work\0" + b"v" * 64, (1, b"")),
        ("policy.EvalSimple+s", b"w\xffrk\0vault", (1, b"")),
    ],
)
async def test_a_what_if_question(admin, service, payload, expected):
    assert (await admin(service, payload))[:2] == expected
