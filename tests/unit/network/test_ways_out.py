"""Ways out: what is started, and what is said when it cannot be."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from cloison.drivers.network.ways_out import HostWaysOut, plan_jail, plan_passt
from cloison.errors import BackendFailed, BadRequest
from cloison.model.network import Exit, WayOut

MAC = "00:16:3e:5e:6c:00"


def test_the_hosts_loopback_is_not_mapped_unless_a_port_of_it_is_named() -> None:
    assert "--no-map-gw" in plan_passt(Exit(WayOut.PASST), ipv6=False)
    assert "--no-map-gw" not in plan_passt(Exit(WayOut.PASST, host_ports=(8080,)), ipv6=False)


def test_nothing_leads_in_and_ip6_is_off_unless_wished() -> None:
    command = plan_passt(Exit(WayOut.PASST), ipv6=False)
    assert command[command.index("--tcp-ports") + 1] == command[command.index("--udp-ports") + 1] == "none"
    assert "--ipv4-only" in command
    assert "--ipv4-only" not in plan_passt(Exit(WayOut.PASST), ipv6=True)


def test_the_jail_has_the_hosts_network_and_nothing_else_of_it() -> None:
    jailed = plan_jail(["/usr/bin/true"], Path("/src/guard.py"), Path("/run/resolv.conf"))
    assert "--unshare-net" not in jailed
    for word in ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--clearenv"):
        assert word in jailed
    binds = [jailed[at + 1] for at, word in enumerate(jailed) if word.endswith("bind")]
    assert binds == ["/usr", "/run/resolv.conf", "/src/guard.py"]


async def test_a_socket_that_nobody_serves_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendFailed, match=f"sys-net cannot join {tmp_path}/peer: No such file"):
        await HostWaysOut().open(Exit(WayOut.JOIN, socket=PurePosixPath(tmp_path / "peer")), "sys-net", MAC)


async def test_no_way_out_is_none() -> None:
    with pytest.raises(BadRequest):
        await HostWaysOut().open(Exit(WayOut.NONE), "sys-net", MAC)
