"""The view of `cloison compat run`, with a client that knows nothing of ours but the fixed paths."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")

RAW_CLIENT = """
import os, socket, sys
assert os.path.exists("/etc/qubes-release")
def ask(method, arg, dest, payload=b""):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect("/var/run/qubesd.sock")
        s.sendall(f"{method}+{arg} dom0 name {dest}".encode() + b"\\0" + payload)
        s.shutdown(socket.SHUT_WR)
        answer = b""
        while data := s.recv(65536):
            answer += data
    assert answer[:2] == b"0\\0", answer
    return answer[2:].decode()
for line in ask("admin.vm.List", "", "dom0").splitlines():
    print(line.split()[0])
ask("admin.vm.tag.Set", "seen", "work")
"""


async def in_view(root: Path, *command: str, stdin: bytes = b"", **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cloison.cli", "compat", "run", "--", *command,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "CLOISON_ROOT": str(root), **environment},
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_a_client_that_knows_the_fixed_paths_only_finds_our_qubes(house, socket_path) -> None:
    code, out, err = await in_view(house.tmp, sys.executable, "-c", RAW_CLIENT)
    assert (code, err) == (0, "")
    assert out.split() == ["dom0", "deb", "dvm", "work"]
    assert "seen" in await house.ok("admin.vm.tag.List", "work")
    assert not Path("/etc/qubes-release").exists()  # nothing was written on the host
    assert not Path("/run/qubesd.sock").is_symlink()


async def test_the_rest_of_the_host_is_as_it_is(house, socket_path) -> None:
    script = "ls /etc | grep -v qubes | md5sum; readlink /etc/mtab; pwd; cat /etc/hostname; id -u; ls /usr/lib | wc -l"
    here = await asyncio.create_subprocess_exec("sh", "-c", script, stdout=asyncio.subprocess.PIPE)
    out, _ = await here.communicate()
    *same, libraries = out.decode().splitlines()
    code, seen, _ = await in_view(house.tmp, "sh", "-c", script)
    assert (code, seen.splitlines()) == (0, [*same, str(int(libraries) + 1)])
    assert (await in_view(house.tmp, "touch", "/etc/something"))[0] == 1
    assert (await in_view(house.tmp, "sh", "-c", "exit 7"))[0] == 7


async def test_what_the_library_asks_of_the_host_is_there(house, socket_path) -> None:
    program = "import grp, os, shutil; print(len(grp.getgrnam('qubes').gr_mem)); open('/etc/qubes/backup/x', 'w')\n"
    program += "print(shutil.which('qvm-appmenus') is not None, os.access('/usr/lib/qubes/qrexec-client', os.X_OK))"
    assert await in_view(house.tmp, sys.executable, "-c", program) == (0, "1\nTrue True\n", "")
    assert (house.tmp / "data/backup/x").exists()


async def test_volumes_are_imported_through_the_service(house, socket_path) -> None:
    command = ["sudo", "env", "QREXEC_REMOTE_DOMAIN=dom0", "QREXEC_REQUESTED_TARGET=work"]
    command = command if os.geteuid() else command[1:]
    service = "/etc/qubes-rpc/admin.vm.volume.ImportWithSize"
    code, out, err = await in_view(house.tmp, *command, service, "private", stdin=b"5\nhello")
    assert (code, out, err) == (0, "0\0", "")
    code, out, _ = await in_view(house.tmp, *command, service, "private", stdin=b"5\nhel")
    assert (code, out[:2]) == (0, "2\0")
    code, out, _ = await in_view(house.tmp, *command, service, "nope", stdin=b"5\nhello")
    assert (code, out[:2]) == (0, "2\0")


async def test_menus_of_a_clone_are_carried_over(house, socket_path) -> None:
    code, _, err = await in_view(house.tmp, "qvm-appmenus", "--set-whitelist", "-", "work", stdin=b"a.desktop\nb\n")
    assert (code, err) == (0, "")
    assert await house.ok("admin.vm.feature.Get", "work", "menu-items") == "a.desktop b"
    assert await in_view(house.tmp, "qvm-appmenus", "--get-whitelist", "work") == (0, "a.desktop\nb\n", "")
    assert await in_view(house.tmp, "qvm-appmenus", "--create", "work") == (0, "", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root needs no sudo of ours")
async def test_nobody_becomes_somebody_else(house, socket_path) -> None:
    assert (await in_view(house.tmp, "sudo", "-u", "daemon", "id"))[0] == 1
    code, out, _ = await in_view(house.tmp, "sudo", "-u", "root", "--", "X=1", "sh", "-c", "echo $X")
    assert (code, out) == (0, "1\n")
