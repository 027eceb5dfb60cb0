"""A management qube in a real system: the worked example, from inside of a guest, with plain calls."""

from __future__ import annotations

import shutil
from pathlib import Path

from .conftest import TEMPLATE, LiveSystem

EXAMPLE = Path(__file__).parents[2] / "examples/sys-admin/30-sys-admin.policy"
SCRIPT_LIMIT_S = 600
"""Some dozen calls and a start: seconds, and minutes on a busy machine without KVM."""
SCRIPT = f"""
ask() {{ qrexec-client-vm "$@" < /dev/null 2>/dev/null | tr '\\0' '|'; echo " ${{PIPESTATUS[0]}}"; }}
names() {{ qrexec-client-vm dom0 admin.vm.List < /dev/null | tail -c +3 | cut -d' ' -f1 | tr '\\n' ' '; echo; }}
timeout 500 qrexec-client-vm dom0 admin.Events < /dev/null > /tmp/events 2>/dev/null &
listener=$!
until tr '\\0' '\\n' < /tmp/events | grep -q connection-established; do kill -0 $listener || exit 3; sleep 0.2; done
names
printf 'name=shop label=red' | qrexec-client-vm dom0 admin.vm.Create.AppVM+{TEMPLATE} | tr '\\0' '|'; echo
names
ask shop admin.vm.Start
qrexec-client-vm shop admin.vm.CurrentState < /dev/null | tail -c 7; echo
ask shop admin.vm.Remove
ask shop admin.vm.Kill
ask hidden admin.vm.Start
ask nobody admin.vm.Start
ask shop admin.vm.tag.Set+created-by-dom0
ask shop admin.vm.Remove
names
until tr '\\0' '\\n' < /tmp/events | grep -q domain-delete; do kill -0 $listener || exit 4; sleep 0.2; done
kill $listener
tr '\\0' '\\n' < /tmp/events | grep -E '^(domain-(add|start|shutdown|delete))$' | tr '\\n' ' '; echo
grep -c hidden /tmp/events || true
"""


def test_the_example_of_a_management_qube(system: LiveSystem) -> None:
    policy = system.layout.policy / EXAMPLE.name
    try:
        system.cloison("create", "sys-admin", "--template", TEMPLATE, "--label", "black")
        system.cloison("create", "hidden", "--template", TEMPLATE, "--label", "red")
        shutil.copy(EXAMPLE, policy)
        said = system.run("sys-admin", "bash", "-c", SCRIPT, timeout_s=SCRIPT_LIMIT_S).stdout.decode().splitlines()
    finally:
        policy.unlink(missing_ok=True)
        for name in ("shop", "hidden", "sys-admin"):
            system.cloison("kill", name, expect=None)
            system.cloison("remove", "--yes", name, expect=None)
    known, created, more, started, state, runs, killed, hidden, nobody, tag, removed, left, heard, leaked = said
    assert "sys-admin" in known and "hidden" not in known and TEMPLATE in known
    assert (created, more.split()) == ("0|", sorted([*known.split(), "shop"], key=lambda name: (name != "dom0", name)))
    assert (started, state, killed, removed) == ("0| 0", "Running", "0| 0", "0| 0")
    assert runs.startswith("2|QubesVMNotHaltedError||") and runs.endswith("| 0")
    assert hidden == nobody == tag == " 126", "refused, and no way to tell which of them exists"
    assert left == known
    assert heard.split() == ["domain-add", "domain-start", "domain-shutdown", "domain-delete"]
    assert leaked == "0"
