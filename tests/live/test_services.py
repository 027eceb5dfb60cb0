"""Standard services between real qubes, and what they make of payloads that mean harm."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

HERE, THERE = "services-here", "services-there"
POLICY = f"""
qubes.Filecopy  *  {HERE}  {THERE}  allow
qubes.OpenInVM  *  {HERE}  {THERE}  allow
qubes.OpenURL   *  {HERE}  {THERE}  allow
qubes.StartApp  *  {HERE}  {THERE}  allow
"""


@pytest.fixture(scope="module", autouse=True)
def pair(system: LiveSystem) -> Iterator[None]:
    """Two running qubes; the second has features that its scripts look for."""
    rules = system.layout.policy / "30-user.policy"
    before = rules.read_text()
    rules.write_text(before + POLICY)
    for name in (HERE, THERE):
        system.cloison("create", "--template", "debian-13", "--label", "blue", name)
    system.cloison("features", THERE, "service.cups", "1")
    system.cloison("features", THERE, "service.off", "")
    system.cloison("features", THERE, "vm-config.colour", "blue")
    system.cloison("start", HERE, THERE)
    yield
    rules.write_text(before)
    for name in (HERE, THERE):
        system.cloison("kill", name, expect=None)
        system.cloison("remove", "--yes", name, expect=None)


def shell(system: LiveSystem, qube: str, script: str, *, user: str = "") -> str:
    done = system.run(qube, "sh", "-c", f"exec 2>&1; {script}", user=user)
    return done.stdout.decode().strip()


def test_a_qube_reads_what_it_was_told(system: LiveSystem) -> None:
    script = """ls /run/qubes-service; qubesdb-read /name /type /qubes-base-template /vm-config/colour
        qubesdb-multiread /qubes-service/; qubesdb-read /absent; echo $?"""
    expected = ["cups", THERE, "AppVM", "debian-13", "blue", "cups = 1", "off = 0", "1"]
    assert shell(system, THERE, script).splitlines() == expected
    system.cloison("features", THERE, "service.cups", "")
    system.cloison("features", THERE, "service.late", "1")
    system.cloison("features", THERE, "vm-config.colour", "red")
    told = '[ -e /run/qubes-service/late ] && [ "$(qubesdb-read /vm-config/colour)" = red ]'
    assert shell(system, THERE, f"until {told}; do sleep 0.1; done; ls /run/qubes-service") == "late"


def test_files_of_the_host_arrive_and_are_never_overwritten(system: LiveSystem, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "big").write_bytes(data := os.urandom(5 << 20))
    os.symlink("../big", tree / "sub" / "link")
    system.cloison("copy", str(tree), THERE)
    assert shell(system, THERE, "cd QubesIncoming/dom0/tree; readlink sub/link; sha256sum < sub/link").split() == [
        "../big",
        hashlib.sha256(data).hexdigest(),
        "-",
    ]
    assert b"has it already" in system.cloison("copy", str(tree / "big"), str(tree / "big"), THERE, expect=1).stderr
    script = f"mkdir many; cd many; seq 1 500 | xargs touch; qvm-move-to-vm {THERE} . ; ls -d ../many; true"
    assert "No such file" in shell(system, HERE, script)
    assert shell(system, THERE, f"ls QubesIncoming/{HERE}/many | wc -l") == "500"


def test_a_file_is_shown_in_a_disposable_that_has_no_screen(system: LiveSystem) -> None:
    script = r"""printf 'plain \033]0;title\007 text\n' > note.txt; qvm-open-in-dvm note.txt; echo "code $?"
        qvm-open-in-dvm --view-only /usr/bin/true; echo "code $?"; qvm-open-in-dvm https://example.org; echo "code $?"
        QREXEC_SERVICE_FULL_NAME=qubes.OpenInVM qvm-open-in-dvm note.txt < /dev/null; echo "code $?" """
    said = shell(system, HERE, script)
    assert "plain ·]0;title· text\ncode 0" in said
    assert said.count("nothing here can show") == 2 and said.count("code 4") == 2
    assert said.endswith("code 126")


def test_programs_are_named_and_started(system: LiveSystem) -> None:
    entry = r"""mkdir -p ~/.local/share/applications/x
        printf '[Desktop Entry]\nName=Say\nExec=sh -c "echo said; exit 3"\n' > ~/.local/share/applications/x/say.desktop
        printf '[Desktop Entry]\nName=No\nNoDisplay=true\nExec=x\n' > ~/.local/share/applications/no.desktop"""
    shell(system, THERE, entry)
    system.cloison("apps", "refresh", THERE)
    assert [app["id"] for app in system.json("apps", "list", THERE)] == ["x-say"]
    assert system.cloison("apps", "start", THERE, "x-say", expect=3).stdout == b"said\n"
    assert shell(system, HERE, f"qrexec-client-vm {THERE} qubes.StartApp+x-say; echo $?").splitlines()[-1] == "3"


def test_clocks_follow_the_computers(system: LiveSystem) -> None:
    def ahead_s() -> float:
        return abs(float(system.json("clock", "show", THERE)[0]["ahead_s"]))

    wrong = "date -s 2030-01-01 > /dev/null"
    shell(system, THERE, wrong, user="root")
    assert ahead_s() > 3600
    system.cloison("clock", "sync")
    assert ahead_s() < 3
    shell(system, THERE, f"{wrong}; qvm-sync-clock", user="root")
    assert ahead_s() < 3
    shell(system, THERE, wrong, user="root")
    shell(system, THERE, "mkdir -p /rw/config/suspend-pre.d; printf '#!/bin/sh\\necho told > /tmp/told\\n' > "
          "/rw/config/suspend-pre.d/x.sh; chmod 755 /rw/config/suspend-pre.d/x.sh", user="root")  # fmt: skip
    system.cloison("suspend-hooks", "pre")
    system.cloison("suspend-hooks", "post")
    assert shell(system, THERE, "cat /tmp/told") == "told"
    assert ahead_s() < 3


WATCH = """
import asyncio, sys, time
sys.path.insert(0, "/tmp")
from wallclock import WallClock
async def main():
    clock = WallClock()
    waiting = asyncio.create_task(clock.wait_jump())
    await asyncio.sleep(0.2)
    time.clock_settime(time.CLOCK_REALTIME, time.time() + 0.3)
    await asyncio.sleep(0.2)
    assert not waiting.done()
    time.clock_settime(time.CLOCK_REALTIME, time.time() + 3600)
    print(round(await asyncio.wait_for(waiting, 5)))
asyncio.run(main())
"""


def test_the_watch_over_the_computers_clock_sees_a_jump(system: LiveSystem) -> None:
    """In a qube, whose clock a test may set."""
    from cloison.drivers import wallclock

    source = Path(wallclock.__file__).read_bytes()
    system.run(THERE, "sh", "-c", "cat > /tmp/wallclock.py", stdin=source)
    assert system.run(THERE, "python3", "-", user="root", stdin=WATCH.encode()).stdout == b"3600\n"
    system.cloison("clock", "sync")


HOSTILE = r"""
import json, subprocess, sys
target = sys.argv[1]
def name(text):
    return text.ljust(256, b"\0")
attacks = {
    # what: (target, service, payload)
    "open: path": (target, "qubes.OpenInVM", name(b"../../../etc/outside") + b"x"),
    "open: absolute": (target, "qubes.OpenInVM", name(b"/etc/cron.d/outside") + b"x"),
    "open: escapes": (target, "qubes.OpenInVM", name(b"outside\x1b]0;x\x07\n.txt") + b"text"),
    "open: dots": (target, "qubes.OpenInVM", name(b"..") + b"text"),
    "open: option": (target, "qubes.OpenInVM", name(b"--outside.txt") + b"text"),
    "open: nothing": (target, "qubes.OpenInVM", b""),
    "open: half a name": (target, "qubes.OpenInVM", b"outside"),
    "url: file": (target, "qubes.OpenURL", b"file:///etc/passwd\n"),
    "url: script": (target, "qubes.OpenURL", b"javascript:outside()\n"),
    "url: option": (target, "qubes.OpenURL", b"--outside\n"),
    "url: spaces": (target, "qubes.OpenURL", b"http://x $(touch /tmp/outside)\n"),
    "url: endless": (target, "qubes.OpenURL", b"http://" + b"x" * 1000000),
    "app: path": (target, "qubes.StartApp+..", b""),
    "app: absent": (target, "qubes.StartApp+outside", b""),
    "exec: bad escape": (target, "qubes.VMExec+touch+-2", b""),
    "date": (target, "qubes.SetDateTime", b"2030-01-01T00:00:00+00:00\n"),
    "root shell": (target, "qubes.VMRootShell", b"touch /tmp/outside\n"),
    "shell": (target, "qubes.VMShell", b"touch /tmp/outside\n"),
    "menus": (target, "qubes.GetAppmenus", b""),
    "resize": (target, "qubes.ResizeDisk", b"root\n"),
    "post-install": (target, "qubes.PostInstall", b""),
    "suspend": (target, "qubes.SuspendPreAll", b""),
    "features: not mine": ("dom0", "qubes.FeaturesRequest", b"internal=1\nprohibit-start=x\nos=Windows\nqrexec=1\n"),
    "features: garbage": ("dom0", "qubes.FeaturesRequest", b"supported-rpc.x=1\n\x1b[2J=\xff\n"),
    "features: endless": ("dom0", "qubes.FeaturesRequest", b"supported-rpc.x=1\n" * 100000),
    "menus: not mine": ("dom0", "qubes.SyncAppMenus", b"x.desktop:Exec=reboot\n"),
    "updates: garbage": ("dom0", "qubes.NotifyUpdates", b"1; reboot\n"),
    "updates: huge": ("dom0", "qubes.NotifyUpdates", b"9" * 100000),
    "tools": ("dom0", "qubes.NotifyTools", b"os=Windows\n"),
    "date: argument": ("@default", "qubes.GetDate+-u", b""),
    "own sleep": ("dom0", "internal.SuspendPre", b""),
}
answers = {}
for what, (where, service, payload) in attacks.items():
    done = subprocess.run(["qrexec-client-vm", where, service], input=payload, capture_output=True)
    answers[what] = done.returncode
print(json.dumps(answers))
"""
SHOWN = {"open: escapes": 0, "open: dots": 0, "open: option": 0, "open: path": 0, "open: absolute": 0}
"""These arrive under harmless names and are shown, as text."""
WITHOUT_HARM = {
    **SHOWN,
    "open: nothing": 0,
    "open: half a name": 0,
    "features: not mine": 0,
    "app: absent": 127,
    "app: path": 127,
}
REFUSED_BY_POLICY = (
    "date",
    "root shell",
    "shell",
    "menus",
    "resize",
    "post-install",
    "suspend",
    "own sleep",
    "exec: bad escape",
)


def test_payloads_that_mean_harm_change_nothing(system: LiveSystem) -> None:
    before = system.json("features", HERE), system.json("features", "debian-13")
    answers = json.loads(system.run(HERE, "python3", "-c", HOSTILE, THERE).stdout)
    assert {what: answers[what] for what in REFUSED_BY_POLICY} == dict.fromkeys(REFUSED_BY_POLICY, 126), answers
    assert {what: answers[what] for what in WITHOUT_HARM} == WITHOUT_HARM, answers
    others = {what: code for what, code in answers.items() if what not in {*WITHOUT_HARM, *REFUSED_BY_POLICY}}
    assert {what: code for what, code in others.items() if code not in (1, 125)} == {}
    assert (system.json("features", HERE), system.json("features", "debian-13")) == before
    found = shell(
        system, THERE, "find / /home /rw -xdev -name '*outside*' -not -path '/proc/*' 2>/dev/null", user="root"
    )
    assert all(line.startswith(f"/tmp/{HERE}-") for line in found.splitlines()), found
