"""The record of what real qubes did: complete, whole after a kill of the daemon, and gone where it was erased."""

from __future__ import annotations

import json
from collections.abc import Callable

from tests.live.conftest import LiveSystem, wait_until

POLICY = "20-audit-test"


def events(system: LiveSystem, *words: str) -> list[str]:
    return [f"{row.get('kind', '-')} {row.get('event', '-')}" for row in system.json("audit", "-n", "0", *words)]


def is_signed(system: LiveSystem) -> bool:
    """All but the last checkpoint's own line."""
    report = json.loads(system.cloison("audit", "verify", "--json").stdout)
    return bool(report["signed_until"] == report["last"] - 1)


def is_in_order(wanted: list[str], found: list[str]) -> bool:
    rest = iter(found)
    return all(word in rest for word in wanted)


def test_the_record_of_a_qube_s_life(system: LiveSystem, new_qube: Callable[..., str]) -> None:
    key = system.cloison("audit", "key").stdout.decode().strip()
    qube = new_qube()
    system.cloison("features", qube, "service.audit-test", "1")
    system.run(qube, "sh", "-c", "cat > /dev/null; echo 12345; exit 3", stdin=b"x" * 1000, expect=3)
    system.cloison("policy", "replace", POLICY, stdin=f"test.Nothing * {qube} dom0 deny\n".encode())
    system.run(qube, "qrexec-client-vm", "dom0", "test.Nothing+secret", expect=126)
    system.cloison("policy", "remove", POLICY)
    changed = system.json("audit", "--kind", "policy", "-n", "2")
    assert [row["who"] for row in changed] == ["dom0", "dom0"] and changed[0]["policy"] == changed[1]["old"]
    told = ["qube created", "change asked", "change set", "call allowed", "qube started", "call ended"]
    found = events(system, "--qube", qube)
    assert is_in_order([*told, "call allowed", "call denied", "call ended"], found), found

    [ended, _] = [row for row in system.json("audit", "--target", qube, "-n", "0") if row["event"] == "ended"]
    assert (ended["exit_code"], ended["stdin_bytes"], ended["stdout_bytes"]) == (3, 1000, 6)
    assert ended["source"] == "dom0" and ended["seconds"] > 0
    [denied] = system.json("audit", "--source", qube, "--verdict", "deny")
    assert (denied["service"], denied["argument"]) == ("test.Nothing", "secret")
    assert denied["rule"].endswith(f"/{POLICY}.policy:1") and denied["policy"] == changed[0]["policy"]

    # The daemon dies in the middle of everything: the record goes on and hangs together.
    system.run(qube, "true")
    system.kill_daemon()
    system.run(qube, "true")
    report = json.loads(system.cloison("audit", "verify", "--json", "--key", key).stdout)
    assert report["whole"]
    wait_until(lambda: is_signed(system), 30, "the last records to be signed")
    assert events(system, "--kind", "daemon")[-1] == "daemon started"

    # What is off is not recorded, but for who switched it off.
    system.cloison("prefs", qube, "audit", "off")
    before = len(events(system, "--qube", qube))
    system.run(qube, "true")
    assert len(events(system, "--qube", qube)) == before
    assert system.json("audit", "--qube", qube, "--kind", "change", "-n", "1")[0]["argument"] == "audit"

    # Removing the qube keeps its record; erasing that takes nothing but its content.
    system.cloison("kill", qube)
    system.cloison("remove", "--yes", qube)
    assert len(events(system, "--qube", qube)) >= before
    everything = len(events(system))
    system.cloison("audit", "erase", "--yes", qube)
    assert events(system, "--qube", qube) == []
    assert len(events(system)) >= everything
    report = json.loads(system.cloison("audit", "verify", "--json", "--key", key).stdout)
    assert report["whole"] and report["erased"] >= before
    files = [path.read_bytes() for path in system.layout.audit.iterdir()]
    assert not any(qube.encode() in content for content in files)
