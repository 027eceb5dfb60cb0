"""Systems from elsewhere, without our agent; and the properties that choose how a qube starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

MakeQube = Callable[..., str]
BOOT_LIMIT_S = 420
HELLO = b"a system from elsewhere\r\n"
DISK_BYTES = 2 << 20


def boot_sector() -> bytes:
    """A whole system in 512 bytes: says hello on the first serial port, then echoes what is typed there."""
    set_up = bytes.fromhex("fa 31c0 8ed8 8ed0 bc007c fb fc")  # cli; ds = ss = 0; sp = 7c00; sti; cld
    put = bytes.fromhex("88c4 bafd03 ec a820 74fb 88e0 baf803 ee c3")  # wait until the port takes al; out
    say = bytes.fromhex("ac 84c0 7405 e8") + b"%s" + bytes.fromhex("ebf6")  # lodsb; until 0: put
    # The BIOS reads the serial port for us, as its keyboard: int 16h waits for a key.
    listen = bytes.fromhex("30e4 cd16 e8") + b"%s" + bytes.fromhex("ebf7")
    say_at = len(set_up) + 3
    listen_at = say_at + len(say)
    put_at = listen_at + len(listen)
    text_at = 0x7C00 + put_at + len(put)

    def call(block: bytes, start: int) -> bytes:
        """The block with its call of ``put``: two bytes, relative to what follows them."""
        after = start + block.index(b"%s") + 2
        return block.replace(b"%s", (put_at - after).to_bytes(2, "little", signed=True))

    load_text = b"\xbe" + text_at.to_bytes(2, "little")  # si = text
    code = set_up + load_text + call(say, say_at) + call(listen, listen_at) + put + HELLO + b"\0"
    return code.ljust(510, b"\0") + b"\x55\xaa"


def state_of(system: LiveSystem, qube: str) -> str:
    (row,) = system.json("list", qube)
    return str(row["state"])


def console_log(system: LiveSystem, qube: str) -> bytes:
    return system.cloison("console", "--log", qube).stdout


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "elsewhere.raw"
    path.write_bytes(boot_sector().ljust(DISK_BYTES, b"\0"))
    return path


@pytest.fixture(scope="module")
def imported(system: LiveSystem, image: Path) -> Iterator[str]:
    system.cloison("standalone", "import", "--memory", "64M", "elsewhere", str(image))
    yield "elsewhere"
    system.cloison("remove", "--yes", "--kill", "elsewhere", expect=None)


def test_a_foreign_system_boots_without_agent_and_speaks_on_its_console(system: LiveSystem, imported: str) -> None:
    from tests.live.conftest import wait_until

    system.cloison("start", imported)
    assert state_of(system, imported) == "Running"
    wait_until(lambda: HELLO in console_log(system, imported), 30, "its greeting")
    # Each watcher sees the greeting again; what is typed reaches the system and comes back.
    typed = system.start("console", imported, stdin=-1, stdout=-1, stderr=-1)
    assert typed.stdin and typed.stdout
    typed.stdin.write(b"echo me;")
    typed.stdin.flush()
    shown = b""
    while b"echo me;" not in shown:
        piece = os.read(typed.stdout.fileno(), 4096)
        assert piece, shown
        shown += piece
    assert HELLO in shown
    typed.kill()
    typed.communicate()


def test_calls_into_a_system_without_agent_fail_in_words(system: LiveSystem, imported: str) -> None:
    system.cloison("start", imported, expect=None)
    said = system.run(imported, "true", expect=None)
    assert said.returncode in (125, 126)
    assert b"agent" in said.stderr
    assert len(said.stderr.strip().splitlines()) == 1


def test_it_is_paused_and_killed_like_any_qube_and_its_disk_is_kept(system: LiveSystem, imported: str) -> None:
    from tests.live.conftest import wait_until

    system.cloison("start", imported, expect=None)
    system.cloison("pause", imported)
    assert state_of(system, imported) == "Paused"
    system.cloison("unpause", imported)
    system.cloison("kill", imported)
    assert state_of(system, imported) == "Halted"
    system.cloison("start", imported)
    wait_until(lambda: HELLO in console_log(system, imported), 30, "its greeting")
    system.kill_daemon()
    assert state_of(system, imported) == "Running", "the next daemon finds it again"
    system.cloison("kill", imported)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "0 bytes"),
        (b"x" * 1000, "no disk image"),
        (b"KDMV".ljust(2 << 20, b"\0"), "vmdk"),
        (b"\x1f\x8b".ljust(2 << 20, b"\0"), "gzip"),
    ],
    ids=["empty", "too small", "vmdk", "packed"],
)
def test_what_is_no_disk_is_refused_and_makes_no_qube(
    system: LiveSystem, tmp_path: Path, content: bytes, word: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    said = system.cloison("standalone", "import", "no-such", str(path), expect=None)
    assert said.returncode != 0
    assert word.encode() in said.stderr
    assert "no-such" not in [row["name"] for row in system.json("list")]


def test_a_qube_that_shall_boot_is_not_forked_and_memory_is_not_shared_unless_it_may(
    system: LiveSystem, new_qube: MakeQube
) -> None:
    booted = new_qube("--property", "start_mode=boot")
    apart = new_qube("--property", "share_memory=False")
    start = system.start("start", booted)
    system.cloison("start", apart)
    users = {user for point in system.json("forkpoint", "list") for user in point["users"]}
    assert apart in users, "a copied memory still comes from a fork point"
    assert private_mib(apart) > 390, "its memory is its own from the start"
    assert start.wait(BOOT_LIMIT_S) == 0
    users = {user for point in system.json("forkpoint", "list") for user in point["users"]}
    assert booted not in users
    assert system.run(booted, "hostname").stdout.decode().strip() == booted


def private_mib(qube: str) -> int:
    """Memory that the qube's machine shares with nobody."""
    from tests.live.test_faults import pids_of

    (pid,) = pids_of(f"guest={qube}", b"qemu-system")
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) >> 10


def test_a_qube_that_may_only_fork_says_so_when_it_cannot(system: LiveSystem, new_qube: MakeQube) -> None:
    qube = new_qube("--property", "start_mode=fork", "--property", "kernel=")
    said = system.cloison("start", qube, expect=None)
    assert said.returncode != 0
    assert b"start_mode" in said.stderr
    assert state_of(system, qube) == "Halted"
