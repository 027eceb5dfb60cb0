"""Ways out: passt in a jail, or the socket of somebody else.

In: which way. Out: connected sockets. May import: the contract, errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cloison.drivers.hypervisor.process import ProcessWatch, find_start_time
from cloison.drivers.network import guard
from cloison.drivers.network.base import OpenedExit
from cloison.errors import BackendFailed, BadRequest
from cloison.model.network import WIDE_MTU, Exit, WayOut
from cloison.wire.network import Uplink

ADDRESS, GATEWAY, RESOLVER, PREFIX = "10.139.2.2", "10.139.2.1", "10.139.2.3", "24"
"""What the last netvm has towards passt: outside of the ranges of qubes. passt itself is the resolver."""
ADDRESS6, GATEWAY6 = "fd09:24ef:4179:2::2", "fd09:24ef:4179:2::1"
JOIN_MTU = 1500
"""Nothing is known of what is behind somebody else's socket."""
SETTLE_S = 0.3
"""passt says within this time if it cannot work here."""
CONNECT_TIMEOUT_S = 5.0
_PROCESS = re.compile(r"passt([0-9]+)x([0-9]+)")
"""A passt's link: its process, and when that started."""


class HostWaysOut:
    """The contract's ``WaysOut``."""

    async def open(self, exit: Exit, name: str, mac: str, *, ipv6: bool = False) -> OpenedExit:
        match exit.kind:
            case WayOut.PASST:
                return await _open_passt(exit, name, mac, ipv6)
            case WayOut.JOIN:
                return await _join(exit, name, mac, ipv6)
            case WayOut.PCI:
                raise BadRequest(f"the way out of {name} is in its machine: there is nothing to open")
            case WayOut.NONE:
                raise BadRequest(f"{name} has no way out: its uplink is none")

    def resolvers(self, exit: Exit) -> tuple[str, ...]:
        """See WaysOut.resolvers."""
        return (RESOLVER,) if exit.kind in (WayOut.PASST, WayOut.JOIN) else ()

    async def wait_gone(self, link: str) -> None:
        """See WaysOut.wait_gone. Nobody tells when the owner of a joined socket goes."""
        if (found := _PROCESS.fullmatch(link)) is None:
            await asyncio.Event().wait()
        elif (watch := ProcessWatch.find(int(found[1]), int(found[2]))) is not None:
            try:
                await watch.wait_gone()
            finally:
                watch.close()


async def _join(exit: Exit, name: str, mac: str, ipv6: bool) -> OpenedExit:
    assert exit.socket is not None, "parsed so"
    port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    port.setblocking(False)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(port, str(exit.socket))
    except (OSError, TimeoutError) as error:
        port.close()
        why = error.strerror if isinstance(error, OSError) and error.strerror else "nobody answers"
        raise BackendFailed(f"{name} cannot join {exit.socket}: {why}") from error
    return OpenedExit(port, _uplink(mac, JOIN_MTU, ipv6=ipv6), f"join{secrets.token_hex(6)}")


def _uplink(mac: str, mtu: int, *, ipv6: bool) -> Uplink:
    ip6, gateway6 = (ADDRESS6, GATEWAY6) if ipv6 else ("", "")
    return Uplink(mac, ADDRESS, ip6, GATEWAY, gateway6, "", (RESOLVER,), mtu)


def plan_passt(exit: Exit, *, ipv6: bool) -> list[str]:
    """passt's command line, without the descriptor. The host's loopback is not mapped unless a port of it is named
    (and then the guard lets only those ports pass)."""
    addresses6 = ["-a", ADDRESS6, "-g", GATEWAY6] if ipv6 else ["--ipv4-only"]
    return [
        *["/usr/bin/passt", "--foreground", "--stderr", "--quiet"],
        *["-a", ADDRESS, "-n", PREFIX, "-g", GATEWAY, *addresses6],
        *["--mtu", str(WIDE_MTU), "--dns-forward", RESOLVER],
        *["--tcp-ports", "none", "--udp-ports", "none"],
        *["--no-dhcp", "--no-dhcpv6", "--no-ndp", "--no-ra"],
        *([] if exit.host_ports else ["--no-map-gw"]),
    ]


def plan_jail(command: Sequence[str], guard_file: Path, resolv_conf: Path) -> list[str]:
    """The jail of passt and its guard: the host's network, and nothing else of the host but programs."""
    return [
        "bwrap",
        *["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"],
        *["--uid", "65534", "--gid", "65534", "--hostname", "jail"],
        *["--cap-drop", "ALL", "--new-session", "--clearenv"],
        *["--ro-bind", "/usr", "/usr"],
        *["--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64", "--symlink", "usr/bin", "/bin"],
        *["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"],
        *["--ro-bind", str(resolv_conf), "/etc/resolv.conf", "--ro-bind", str(guard_file), "/guard.py"],
        *["--remount-ro", "/", "--chdir", "/", "--"],
        *command,
    ]


async def _open_passt(exit: Exit, name: str, mac: str, ipv6: bool) -> OpenedExit:
    if shutil.which("passt") is None:
        raise BackendFailed(f"{name} has no way out: passt is not installed", hint="apt install passt")
    near, far = socket.socketpair()
    try:
        with far:
            process, errors = _start(exit, far.fileno(), ipv6=ipv6)
        try:
            link = await _see_it_work(process, errors, name)
        finally:
            os.close(errors)
    except BaseException:
        near.close()
        raise
    return OpenedExit(near, _uplink(mac, WIDE_MTU, ipv6=ipv6), link)


def _start(exit: Exit, descriptor: int, *, ipv6: bool) -> tuple[subprocess.Popen[bytes], int]:
    """The jailed process, and a descriptor from which its errors are read (the caller closes it)."""
    ports = " ".join(str(port) for port in exit.host_ports)
    inner = ["/usr/bin/python3", "-IS", "/guard.py", str(descriptor), GATEWAY, ports]
    resolv_conf = Path(os.path.realpath("/etc/resolv.conf"))
    jailed = plan_jail([*inner, *plan_passt(exit, ipv6=ipv6)], Path(guard.__file__), resolv_conf)
    errors_read, errors_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        process = subprocess.Popen(
            jailed, stdin=subprocess.DEVNULL, stdout=errors_write, stderr=errors_write, pass_fds=(descriptor,),
            start_new_session=True, cwd="/", env={"PATH": "/usr/bin:/bin"},
        )  # fmt: skip
    except BaseException:
        os.close(errors_read)
        raise
    finally:
        os.close(errors_write)
    return process, errors_read


async def _see_it_work(process: subprocess.Popen[bytes], errors: int, name: str) -> str:
    """The link of a passt that works. It ends by itself when the machine's end of the socket closes; one that ends
    at once says why."""
    started = find_start_time(process.pid)
    watch = None if started is None else ProcessWatch.find(process.pid, started)
    if watch is not None:
        gone = asyncio.create_task(_reap(process, watch))
        _reaping.add(gone)
        gone.add_done_callback(_reaping.discard)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await asyncio.shield(gone)
        if not gone.done():
            return f"passt{process.pid}x{started}"
    process.poll()
    said = b""
    with contextlib.suppress(BlockingIOError):
        said = os.read(errors, 65536)
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if "syslog" not in line]
    raise BackendFailed(f"{name} has no way out: passt ended: {'; '.join(lines[-3:])}")


_reaping: set[asyncio.Task[None]] = set()


async def _reap(process: subprocess.Popen[bytes], watch: ProcessWatch) -> None:
    """Whoever started a process takes its exit code, so that it is not left a zombie."""
    try:
        await watch.wait_gone()
        process.poll()
    finally:
        watch.close()
