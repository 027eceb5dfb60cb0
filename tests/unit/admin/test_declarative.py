"""Whole systems as files: what is exported can be applied, and a plan does what it says, against the real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cloison.cli import main
from cloison.policy import install_defaults

Cloison = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def cloison(
    socket_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Cloison:
    root = socket_path.parent.parent
    monkeypatch.setenv("CLOISON_ROOT", str(root))
    monkeypatch.chdir(tmp_path)
    install_defaults(root / "config/policy.d")
    (root / "run/policy.d").mkdir(parents=True, exist_ok=True)

    async def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = await asyncio.to_thread(main, list(words))
        out, err = capfd.readouterr()
        return int(code), out, err

    return run


async def export(cloison: Cloison) -> str:
    code, out, err = await cloison("export")
    assert (code, err) == (0, "")
    return out


async def steps(cloison: Cloison, text: str, *options: str) -> list[str]:
    Path("system.toml").write_text(text)
    code, out, _ = await cloison("plan", "--json", *options, "system.toml")
    assert code == 0
    return [f"{step['about']}: {step['text']}" for step in json.loads(out)["steps"]]


async def test_what_was_exported_changes_nothing(house: Any, cloison: Cloison) -> None:
    await house.ok("admin.vm.feature.Set", "work", "x", 'a "quoted" ${value} $${x} \\ ')
    await house.ok("admin.vm.tag.Set", "work", "office")
    await house.ok("admin.vm.firewall.Set", "work", payload="action=accept dst4=192.0.2.0/24\naction=drop\n")
    await house.ok("admin.vm.notes.Set", "work", payload='line one\nline "two"\n')
    await house.ok("admin.label.Create", "dom0", "pink", "0xff00aa")
    text = await export(cloison)
    assert await steps(cloison, text, "--prune") == []
    assert 'firewall = [\n  "action=accept dst4=192.0.2.0/24",\n  "action=drop",\n]' in text


async def test_a_new_qube_is_made_and_a_second_time_nothing_is_done(house: Any, cloison: Cloison) -> None:
    text = """
        [qubes.bank]
        class = "AppVM"
        label = "green"
        template = "deb"
        memory = 600
        provides_network = true
        tags = ["money"]
        firewall = ["action=drop"]
        [qubes.bank.features]
        internal = 1
        [qubes.client]
        class = "AppVM"
        label = "red"
        template = "deb"
        netvm = "bank"
    """
    assert await steps(cloison, text) == [
        "qube bank: create (AppVM, green on deb)",
        "qube client: create (AppVM, red on deb)",
        "qube bank: provides_network: (default) -> True",
        "qube bank: memory: (default) -> 600",
        "qube bank: feature internal: (default) -> 1",
        "qube bank: tag money",
        "qube bank: firewall: 1 -> 1 rules",
        "qube client: netvm: (default) -> bank",
    ]
    code, _, err = await cloison("apply", "--yes", "system.toml")
    assert code == 0 and "[8/8]" in err
    assert (await house.ok("admin.vm.property.Get", "client", "netvm")).endswith(" bank")
    assert await house.ok("admin.vm.firewall.Get", "bank") == "action=drop\n"
    assert await steps(cloison, text) == []
    assert (await cloison("plan", "--check", "system.toml"))[0] == 0
    await house.ok("admin.vm.property.Set", "bank", "memory", "700")
    assert await steps(cloison, text) == ["qube bank: memory: 700 -> 600"]
    assert (await cloison("plan", "--check", "system.toml"))[0] == 2


async def test_assigned_devices_are_part_of_a_system(house: Any, cloison: Cloison) -> None:
    assign = "admin.vm.device.block.Assign"
    await house.ok(assign, "work", "dom0+disk.img+_", "mode='required' _read-only='yes'")
    await house.ok(assign, "work", "dom0+sda++None", "mode='auto-attach'")
    text = await export(cloison)
    lines = ("block dom0:disk.img required read-only=yes", "block dom0:sda::None auto-attach")
    assert "devices = [\n" + "".join(f'  "{line}",\n' for line in lines) + "]" in text
    assert await steps(cloison, text) == []
    changed = text.replace("required read-only=yes", "required").replace("None auto-attach", "None ask-to-attach")
    assert await steps(cloison, changed) == [
        "qube work: block device dom0:disk.img: assigned anew",
        "qube work: block device dom0:disk.img: required",
        "qube work: block device dom0:sda: ask-to-attach",
    ]
    assert (await cloison("apply", "--yes", "system.toml"))[0] == 0
    assert await steps(cloison, changed) == []
    assert await steps(cloison, changed.replace('  "block dom0:disk.img required",\n', "")) == [
        "qube work: block device dom0:disk.img: no longer assigned"
    ]
    assert (await cloison("apply", "--yes", "system.toml"))[0] == 0
    assert await house.ok("admin.vm.device.block.Assigned", "work") == (
        "dom0+sda::None device_id=':None' port_id='sda' devclass='block' backend_domain='dom0' mode='ask-to-attach' "
        "frontend_domain='work'\n"
    )


@pytest.mark.parametrize("line", ["", "block", "block sda required", "block dom0:sda sometimes", "block dom0:sda "
                                  "required read-only", "block dom0:sda required a=b a"])  # fmt: skip
async def test_a_device_line_that_is_none_is_told(cloison: Cloison, line: str) -> None:
    table = f'[qubes.work]\nclass = "AppVM"\nlabel = "blue"\ndevices = ["{line}"]\n'
    Path("system.toml").write_text(table)
    code, _, err = await cloison("plan", "system.toml")
    assert code != 0
    assert "qubes.work: devices:" in err and "is not CLASS BACKEND:DEVICE" in err


async def test_pools_are_part_of_it(house: Any, cloison: Cloison) -> None:
    text = """
        [pools.big]
        driver = "qcow2"
        dir_path = "/srv/big"
        revisions_to_keep = 3

        [qubes.bank]
        class = "AppVM"
        label = "green"
        template = "deb"
        pool = "big"
    """
    assert await steps(cloison, text) == [
        "pool big: add (qcow2)",
        "pool big: revisions_to_keep: 1 -> 3",
        "qube bank: create (AppVM, green on deb)",
    ]
    assert (await cloison("apply", "--yes", "system.toml"))[0] == 0
    assert house.ledger.inventory.qube("bank").volumes["private"].pool == "big"
    assert await steps(cloison, text) == []
    exported = await export(cloison)
    assert '[pools.big]\ndir_path = "/srv/big"\ndriver = "qcow2"\nephemeral_volatile = false\n' in exported
    assert 'pool = "big"' in exported and await steps(cloison, exported, "--prune") == []
    for was, now, problem in (
        ("/srv/big", "/srv/small", "pool big has another dir_path"),
        ('pool = "big"', 'pool = "default"', "qube bank lives in pool big"),
    ):
        Path("system.toml").write_text(text.replace(was, now))
        _, out, err = await cloison("plan", "system.toml")
        assert problem in out + err
    pruned = text.replace("pool = ", "# pool = ").replace("[pools.big]", "[pools.other]")
    assert (await steps(cloison, pruned, "--prune"))[-1] == "pool big: remove"


async def test_unnamed_qubes_stay_unless_asked(house: Any, cloison: Cloison) -> None:
    text = await export(cloison)
    await house.ok("admin.vm.Create.AppVM", "dom0", "deb", "name=extra label=red")
    assert await steps(cloison, text) == []
    assert await steps(cloison, text, "--prune") == ["qube extra: remove (AppVM, red) with all its data"]
    assert (await cloison("apply", "--yes", "--prune", "system.toml"))[0] == 0
    assert "extra" not in await house.ok("admin.vm.List", "dom0")


async def test_a_protected_qube_stays_and_the_rest_is_told(house: Any, cloison: Cloison) -> None:
    text = await export(cloison)
    await house.ok("admin.vm.Create.AppVM", "dom0", "deb", "name=extra label=red")
    await house.ok("admin.vm.property.Set", "extra", "prevent_remove", "True")
    Path("system.toml").write_text(text)
    code, _, err = await cloison("apply", "--yes", "--prune", "system.toml")
    assert code != 0 and "step 1 of 1 failed" in err and "extra is protected" in err
    assert "extra" in await house.ok("admin.vm.List", "dom0")


async def test_the_first_failure_ends_it_and_applying_again_goes_on(house: Any, cloison: Cloison) -> None:
    text = '[qubes.work]\nclass="AppVM"\nlabel="green"\ntemplate="deb"\nmemory="much"\ndebug=true\n'
    Path("system.toml").write_text(text)
    code, _, err = await cloison("apply", "--yes", "system.toml")
    last = err.strip().splitlines()[-1]
    assert code != 0 and "memory: (default) -> much" in last and "apply again" in last
    assert "Traceback" not in err
    Path("system.toml").write_text(text.replace('"much"', "500"))
    assert (await cloison("apply", "--yes", "system.toml"))[0] == 0
    assert (await house.ok("admin.vm.property.Get", "work", "debug")).endswith(" True")


async def test_policy_is_part_of_it(house: Any, cloison: Cloison) -> None:
    text = await export(cloison)
    changed = text + '"40-mine" = """\nqubes.Gpg * work vault allow\n"""\n'
    assert await steps(cloison, changed) == ["policy 40-mine: 1 lines added, 0 lines gone"]
    assert (await cloison("apply", "--yes", "system.toml"))[0] == 0
    assert "vault allow" in (await cloison("policy", "get", "40-mine"))[1]
    assert await steps(cloison, text) == ["policy 40-mine: remove the file"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[qubes.x]\nlabel='red'\n", "qubes.x: class is missing"),
        ("[qubes]\nx = 1\n", "qubes.x is not a table"),
        ("nonsense", "system.toml: "),
        ("[machines]\n", "'machines' is not known here"),
        ("[system]\nx = 1.5\n", "system.x is neither a text"),
        ("[system]\nx = '${nothing}'\n", "there is no variable ${nothing}"),
        ("include = ['system.toml']", "includes itself"),
        ("include = ['gone.toml']", "cannot read gone.toml: No such file"),
        ("[qubes.x]\nclass='AppVM'\nlabel='red'\nvolumes={private='big'}\n", "is not a size"),
    ],
)
async def test_bad_files_are_told_in_one_line(house: Any, cloison: Cloison, text: str, said: str) -> None:
    Path("system.toml").write_text(text)
    code, out, err = await cloison("plan", "system.toml")
    assert code == 1 and not out
    assert said in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[qubes.deb]\nclass="AppVM"\nlabel="red"\n', "qube deb is a TemplateVM, not a AppVM"),
        ('[qubes.n]\nclass="AppVM"\nlabel="red"\ntemplate="none"\n', "there is no template none"),
        ('[qubes.t]\nclass="TemplateVM"\nlabel="red"\n', "a template needs a build table"),
        ('[labels]\npink="0x000001"\n', "a label's colour is for ever"),
    ],
)
async def test_what_no_step_can_do_is_a_problem(house: Any, cloison: Cloison, text: str, problem: str) -> None:
    await house.ok("admin.label.Create", "dom0", "pink", "0xff00aa")
    Path("system.toml").write_text(text)
    code, out, _ = await cloison("plan", "system.toml")
    assert code == 1 and problem in out
    code, _, err = await cloison("apply", "--yes", "system.toml")
    assert code == 1 and problem in err


async def test_files_include_others_and_have_variables(house: Any, cloison: Cloison) -> None:
    Path("base.toml").write_text('[vars]\ncolour="green"\n[qubes.work]\nclass="AppVM"\nlabel="red"\nmemory=500\n')
    text = 'include=["base.toml"]\n[qubes.work]\nlabel="${colour}"\n'
    assert await steps(cloison, text) == ["qube work: label: blue -> green", "qube work: memory: (default) -> 500"]
