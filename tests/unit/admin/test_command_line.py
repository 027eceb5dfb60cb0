"""The command line against the real Admin API server: what one says, the other understands."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from cloison.cli import main
from cloison.cli.qvm import run as run_qvm

Cloison = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def cloison(socket_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cloison:
    monkeypatch.setenv("CLOISON_ROOT", str(socket_path.parent.parent))

    async def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        if words[0].startswith(("qvm-", "qubes-")):
            code = await asyncio.to_thread(run_qvm, words[0], list(words[1:]))
        else:
            code = await asyncio.to_thread(main, list(words))
        out, err = capfd.readouterr()
        return int(code), out, err

    return run


async def ok(cloison: Cloison, line: str) -> str:
    code, out, err = await cloison(*line.split())
    assert (code, err) == (0, ""), line
    return out


async def test_a_qube_lives_and_goes(cloison: Cloison) -> None:
    await ok(cloison, "create --label green --prop memory=500 --tag office --feature internal=1 bank")
    assert await ok(cloison, "list --raw-data -o name,state,class,label,template,memory bank") == (
        "bank|Halted|AppVM|green|deb|500\n"
    )
    await ok(cloison, "start bank")
    assert await ok(cloison, "list --raw-list --running") == "dom0\nbank\n"
    await ok(cloison, "pause bank")
    await ok(cloison, "unpause bank")
    await ok(cloison, "restart bank")
    await ok(cloison, "shutdown bank")
    await ok(cloison, "-q clone bank safe")
    assert await ok(cloison, "prefs safe memory") == "500\n"
    await ok(cloison, "rename safe vault")
    await ok(cloison, "remove --yes bank vault")
    assert "bank" not in await ok(cloison, "list --raw-list")


async def test_settings_are_shown_changed_and_explained(cloison: Cloison) -> None:
    found = json.loads(await ok(cloison, "prefs --json work"))
    assert found["label"] == {"value": "blue", "type": "label", "default": False}
    assert await ok(cloison, "prefs --help-properties work memory") != ""
    await ok(cloison, "prefs work vcpus 3")
    await ok(cloison, "prefs -D work vcpus")
    assert json.loads(await ok(cloison, "prefs --json work vcpus"))["default"] is True
    assert "default_template" in await ok(cloison, "system-prefs")
    assert await ok(cloison, "system-prefs default_dispvm") == "dvm\n"
    code, _, err = await cloison("prefs", "work", "memroy", "5")
    assert (code, err) == (3, "cloison: work has no property 'memroy' (hint: did you mean memory?)\n")
    code, _, err = await cloison("prefs", "work", "memory", "much")
    assert code == 1
    assert err.startswith("cloison: ")
    assert err.count("\n") == 1


async def test_tags_features_services_notes_and_labels(cloison: Cloison) -> None:
    await ok(cloison, "tags add work a b")
    assert set((await ok(cloison, "tags list work")).split()) >= {"a", "b"}
    await ok(cloison, "tags has work a")
    await ok(cloison, "tags del work a")
    assert (await cloison("tags", "has", "work", "a"))[0] == 1
    assert (await cloison("tags", "del", "work", "a"))[0] == 3
    await ok(cloison, "features work os Linux")
    assert await ok(cloison, "features --inherit work os") == "Linux\n"
    await ok(cloison, "features -D work os")
    assert (await cloison("features", "work", "os"))[0] == 3
    await ok(cloison, "services work cups on")
    assert json.loads(await ok(cloison, "services --json work")) == {"cups": True}
    await ok(cloison, "notes --set hello work")
    assert await ok(cloison, "notes work") == "hello\n"
    await ok(cloison, "label create pink ff88aa")
    assert "pink" in await ok(cloison, "label list")
    await ok(cloison, "label remove pink")
    await ok(cloison, "autostart work")
    assert await ok(cloison, "autostart") == "work\n"


async def test_volumes_and_pools(cloison: Cloison) -> None:
    listed = json.loads(await ok(cloison, "volume list --json work"))
    assert {row["volume"] for row in listed} >= {"root", "private", "volatile"}
    await ok(cloison, "volume resize work:private 8G")
    assert json.loads(await ok(cloison, "volume info --json work:private"))["size"] == 8 << 30
    assert (await cloison("volume", "resize", "work:private", "1G"))[0] == 1
    assert await ok(cloison, "volume revisions work:private") == ""
    assert "default" in await ok(cloison, "pool list")
    assert "driver" in await ok(cloison, "pool info default")
    assert "8.0 GiB" in await ok(cloison, "list -o name,priv-max,disk work")
    (row,) = json.loads(await ok(cloison, "list --json -o name,vcpus,priv-max,mem,tags work"))
    assert (row["vcpus"], row["priv-max"], row["mem"]) == (2, 8 << 30, 0)
    assert "created-by-dom0" in row["tags"]


async def test_our_own_methods(cloison: Cloison, house: Any) -> None:
    assert "test" in await ok(cloison, "daemon status")
    code, _, err = await cloison("template", "build", "new")
    assert code == 0
    assert "download" in err
    code, _, err = await cloison("template", "build", "-q", "--suite", "broken", "new")
    assert (code, err) == (1, "cloison: the mirror is 100% away\n")
    await ok(cloison, "-q template commit deb")
    await ok(cloison, "-q forkpoint make deb")
    await ok(cloison, "forkpoint drop --all")
    await ok(cloison, "forkpoint list --json")
    (house.tmp / "work.log").write_text("Linux version 6\n")
    assert await ok(cloison, "console --log work") == "Linux version 6\n"


async def test_what_is_in_use_stays_and_says_by_whom(cloison: Cloison) -> None:
    code, _, err = await cloison("remove", "--yes", "deb")
    assert code == 6
    assert "work" in err or "dvm" in err


async def test_events_are_followed(cloison: Cloison) -> None:
    watching = asyncio.create_task(cloison("events", "--json", "--until", "domain-shutdown", "work"))
    await asyncio.sleep(0.3)
    main_again = await asyncio.to_thread(main, ["start", "work"])
    assert main_again == 0
    assert await asyncio.to_thread(main, ["kill", "work"]) == 0
    code, out, _ = await asyncio.wait_for(watching, 20)
    names = [json.loads(line)["event"] for line in out.splitlines()]
    assert code == 0
    assert names[0] == "connection-established"
    assert "domain-start" in names
    assert names[-1] == "domain-shutdown"


async def test_the_names_of_qubes_os_work_too(cloison: Cloison) -> None:
    await ok(cloison, "qvm-create -l red -t deb box")
    await ok(cloison, "qvm-start box")
    assert await ok(cloison, "qvm-ls --raw-data -O NAME,STATE,CLASS box") == "box|Running|AppVM\n"
    await ok(cloison, "qvm-check -q --running box")
    await ok(cloison, "qvm-shutdown --wait box")
    await ok(cloison, "qvm-prefs box vcpus 4")
    assert await ok(cloison, "qvm-prefs box vcpus") == "4\n"
    await ok(cloison, "qvm-features box a b")
    assert await ok(cloison, "qvm-features box") == "a  b\n"
    assert "box" in await ok(cloison, "qvm-volume list box")
    await ok(cloison, "qvm-clone box box2")
    await ok(cloison, "qvm-remove -f box box2")
    assert (await cloison("qvm-prefs", "box"))[0] == 2


async def test_a_template_becomes_a_standalone_qube(cloison: Cloison) -> None:
    code, _, _ = await cloison("create", "--standalone", "--template", "deb", "--label", "gray", "lab")
    assert code == 0
    assert await ok(cloison, "list --raw-data -o class,label lab") == "StandaloneVM|gray\n"
