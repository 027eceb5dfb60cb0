"""`qvm-pool`, `qvm-device`, `qvm-block`, `qvm-notes`, `qvm-console-dispvm`."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloison.cli.qvm import run
from cloison.client.devicecalls import parse_device

Run = Callable[..., Any]
STICK = ("sda:1234:5678::b****** device_id='1234:5678::b******' port_id='sda' devclass='block' "
         "backend_domain='sys-net' serial='It\\'s mine' manufacturer='hosted by sys-net'\n")  # fmt: skip
GIVEN = ("sys-net+sda:* device_id='*' port_id='sda' devclass='block' backend_domain='sys-net' mode='{}' "
         "frontend_domain='work' _read-only='yes'\n")  # fmt: skip


@pytest.fixture
def qvm(daemon: Any, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(program: str, *words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = run(program, list(words))
        out, err = capfd.readouterr()
        return int(code), out, err

    return call


PAIRS = "device_id='*' port_id='sda' devclass='block' backend_domain='sys-usb' mode='{}' frontend_domain='work'"


MANUAL, AUTO = PAIRS.format("manual"), PAIRS.format("auto-attach")


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (
            "qvm-pool add -o dir_path=/x,a=b -o c=d big qcow2",
            "admin.pool.Add+qcow2 dom0 name=big\ndir_path=/x\na=b\nc=d",
        ),
        ("qvm-pool remove big", "admin.pool.Remove+big dom0"),
        ("qvm-pool set -o revisions_to_keep=3 big", "admin.pool.Set.revisions_to_keep+big dom0 3"),
        ("qvm-block attach work sys-usb:sda", f"admin.vm.device.block.Attach+sys-usb+sda+_ work {MANUAL}"),
        (
            "qvm-device block at --ro work sys-usb:sda",
            f"admin.vm.device.block.Attach+sys-usb+sda+_ work {MANUAL} _read-only='yes'",
        ),
        (
            "qvm-block assign --required -o devtype=cdrom work sys-usb:sda",
            f"admin.vm.device.block.Assign+sys-usb+sda+_ work {PAIRS.format('required')} _devtype='cdrom'",
        ),
        ("qvm-block assign work sys-usb:sda", f"admin.vm.device.block.Assign+sys-usb+sda+_ work {AUTO}"),
        ("qvm-block detach work sys-usb:sda", "admin.vm.device.block.Detach+sys-usb+sda+_ work"),
        ("qvm-block u work sys-usb:sda:0:1::b******", "admin.vm.device.block.Unassign+sys-usb+sda+0+1++b______ work"),
        ("qvm-notes --append two work", "admin.vm.notes.Set work two"),
        ("qvm-notes --set two work", "admin.vm.notes.Set work two"),
        ("qvm-notes -f --delete work", "admin.vm.notes.Set work"),
    ],
)
def test_a_program_asks_the_daemon(qvm: Run, daemon: Any, words: str, asked: str) -> None:
    daemon.answers("admin.deviceclass.List", daemon.ok("block\nusb\n"))
    code, _, err = qvm(*words.split())
    assert (code, err) == (0, "")
    assert daemon.calls()[-1] == asked


def test_pools_are_listed(qvm: Run, daemon: Any) -> None:
    daemon.answers("admin.pool.List", daemon.ok("main\nlinux-kernel\n"))
    daemon.answers("admin.pool.Info", daemon.ok("driver=qcow2\ndir_path=/x\n"))
    daemon.answers("admin.pool.ListDrivers", daemon.ok("qcow2 dir_path size\n"))
    assert [line.split() for line in qvm("qvm-pool", "list")[1].splitlines()] == [
        ["NAME", "DRIVER"], ["linux-kernel", "qcow2"], ["main", "qcow2"]]  # fmt: skip
    assert qvm("qvm-pool", "info", "main")[1] == "dir_path  /x\ndriver    qcow2\n"
    assert qvm("qvm-pool", "drivers")[1].splitlines()[1].split() == ["qcow2", "dir_path,", "size"]
    assert qvm("qvm-pool", "set", "-o", "driver=x", "main")[0] == 1


def test_devices_are_listed_with_their_users(qvm: Run, daemon: Any) -> None:
    daemon.answers("admin.vm.device.block.Available", daemon.ok(STICK), dest="sys-net")
    daemon.answers("admin.vm.device.block.Assigned", daemon.ok(GIVEN.format("required")), dest="work")
    _, out, _ = qvm("qvm-block")
    heading, line = out.splitlines()
    assert heading.split("  ")[0] == "BACKEND:DEVID"
    assert line.split("  ") == [
        "sys-net:sda",
        "",
        "It's mine (hosted by sys-net)",
        "work (required, read-only=yes)",
    ] or (" ".join(line.split()) == "sys-net:sda It's mine (hosted by sys-net) work (required, read-only=yes)")
    daemon.answers("admin.vm.device.block.Attached", daemon.ok(GIVEN.format("manual")), dest="work")
    assert json.loads(qvm("qvm-block", "list", "--json", "sys-net")[1]) == [
        {"device": "sys-net:sda", "description": "It's mine (hosted by sys-net)", "used_by": ["work (read-only=yes)"]}
    ]
    assert qvm("qvm-block", "list", "vault") == (0, "", "")
    assert qvm("qvm-block", "detach", "work")[0] == 0
    assert daemon.calls()[-1] == "admin.vm.device.block.Detach+sys-net+sda+_ work"


def test_what_is_assigned_and_not_there_is_listed_on_request(qvm: Run, daemon: Any) -> None:
    daemon.answers("admin.vm.device.block.Assigned", daemon.ok(GIVEN.format("auto-attach")), dest="work")
    assert qvm("qvm-block", "list")[1] == ""
    assert "work (assigned, read-only=yes)" in qvm("qvm-block", "list", "-s")[1]


def test_classes_of_devices_are_the_daemons(qvm: Run, daemon: Any) -> None:
    daemon.answers("admin.deviceclass.List", daemon.ok("block\nusb\n"))
    assert qvm("qvm-device", "--list-device-classes")[1] == "block\nusb\n"
    code, _, err = qvm("qvm-device", "blok", "list")
    assert (code, "there are block, usb" in err) == (2, True)


@pytest.mark.parametrize("text", ["", "sda", ":sda", "sys-usb:"])
def test_a_device_is_named_with_its_backend(qvm: Run, text: str) -> None:
    with pytest.raises(ValueError, match="BACKEND:DEVICE"):
        parse_device(text)
    assert qvm("qvm-block", "attach", "work", text)[0] == 2


def test_a_refusal_is_one_line(qvm: Run, daemon: Any) -> None:
    daemon.answers("admin.vm.device.block.Detach", daemon.refused("DeviceNotAssigned", "it is not attached"))
    assert qvm("qvm-block", "detach", "work", "sys-usb:sda") == (1, "", "qvm-block: it is not attached\n")


def test_notes_are_printed_and_not_lost_unasked(qvm: Run, daemon: Any, tmp_path: Path) -> None:
    daemon.answers("admin.vm.notes.Get", daemon.ok("one\n"))
    assert qvm("qvm-notes", "--print", "work") == (0, "one\n", "")
    assert qvm("qvm-notes", "--set", "two", "work")[0] == 2
    assert qvm("qvm-notes", "--set", "two", "--delete", "work")[0] == 2
    (tmp_path / "n").write_text("three\n")
    assert qvm("qvm-notes", "-f", "-i", str(tmp_path / "n"), "work")[0] == 0
    assert daemon.asked[-1][3] == b"three\n"
    qvm("qvm-notes", "--append", "two", "work")
    assert daemon.asked[-1][3] == b"one\ntwo\n"


def test_notes_open_in_the_editor(qvm: Run, daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "sh -c 'echo more >> \"$0\"'")
    daemon.answers("admin.vm.notes.Get", daemon.ok("one\n"))
    assert qvm("qvm-notes", "work")[0] == 0
    assert daemon.asked[-1][3] == b"one\nmore\n"


def test_the_console_is_started_for_if_asked(qvm: Run, daemon: Any, tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(tmp_path / "c"))
    listener.listen()

    def say() -> None:
        peer, _ = listener.accept()
        peer.sendall(b"login:")
        peer.close()

    threading.Thread(target=say, daemon=True).start()
    daemon.answers("admin.vm.Console", daemon.ok(str(tmp_path / "c")))
    assert qvm("qvm-console-dispvm", "--autostart", "vault")[:2] == (0, "login:")
    assert daemon.calls() == ["admin.vm.Start vault", "admin.vm.Console vault"]
    listener.close()


def test_our_own_command_is_the_same(cloison: Run, daemon: Any) -> None:
    assert cloison("device", "detach", "work", "sys-usb:sda").code == 0
    assert daemon.calls() == ["admin.vm.device.block.Detach+sys-usb+sda+_ work"]
    assert "cloison device attach --ro work sys-usb:sda" in cloison("device", "attach", "--help").out
    daemon.answers("admin.deviceclass.List", daemon.ok("block\nusb\n"))
    assert cloison("device", "--list-classes").out == "block\nusb\n"
    assert cloison("device", "--class", "usb", "list", "--json").out == "[]\n"
    assert cloison("device", "-c", "blok", "list").code == 2
    daemon.answers("admin.vm.device.block.Available", daemon.ok(STICK), dest="sys-net")
    assert json.loads(cloison("device", "info", "--json", "sys-net:sda").out)["serial"] == "It's mine"
    assert cloison("device", "info", "sys-net:sdb").code == 1


def drive_calls(daemon: Any) -> list[str]:
    looking = ("admin.vm.List", "admin.vm.device.block.Available")
    return [call for call in daemon.calls() if not call.startswith(looking)]


@pytest.mark.parametrize(
    ("option", "kind", "port"),
    [
        ("--cdrom=sys-usb:sr0", "cdrom", "sr0"),
        ("--hddisk=sys-usb:sda", "disk", "sda"),
        ("--drive=hd:sys-usb:sda", "disk", "sda"),
        ("--drive=cdrom:sys-usb:sr0", "cdrom", "sr0"),
        ("--drive=sys-usb:sr0", "cdrom", "sr0"),
    ],
)
def test_a_qube_is_started_with_a_drive_once(qvm: Run, daemon: Any, option: str, kind: str, port: str) -> None:
    assert qvm("qvm-start", option, "vault") == (0, "", "")
    pairs = (f"device_id='*' port_id='{port}' devclass='block' backend_domain='sys-usb' mode='required' "
             f"frontend_domain='vault' _devtype='{kind}'")  # fmt: skip
    argument = f"sys-usb+{port}+_"
    assert drive_calls(daemon) == [
        f"admin.vm.device.block.Assign+{argument} vault {pairs}",
        "admin.vm.Start vault",
        f"admin.vm.device.block.Unassign+{argument} vault",
    ]


def test_a_file_is_exposed_first_and_a_failed_start_leaves_no_assignment(qvm: Run, cloison: Run, daemon: Any) -> None:
    daemon.answers("cloison.block.Expose", daemon.ok({"device": "dom0:x.iso"}))
    daemon.answers("admin.vm.Start", daemon.refused("QubesVMError", "no memory"))
    assert qvm("qvm-start", "--cdrom", "dom0:/tmp/x:y.iso", "vault")[0] == 1
    asked = drive_calls(daemon)
    assert asked[0] == 'cloison.block.Expose dom0 {"path": "/tmp/x:y.iso", "read_only": true}'
    assert asked[-1] == "admin.vm.device.block.Unassign+dom0+x.iso+_ vault"
    there = STICK.replace("sys-net", "dom0").replace("serial='It\\'s mine'", "name='/tmp/x'")
    daemon.answers("admin.vm.device.block.Available", daemon.ok(there), dest="dom0")
    daemon.asked.clear()
    assert cloison("start", "--hddisk", "dom0:/tmp/x", "vault").code != 0
    asked = drive_calls(daemon)
    assert asked[0].startswith("admin.vm.device.block.Assign+dom0+sda+_ vault ")
    assert asked[-1] == "admin.vm.device.block.Unassign+dom0+sda+_ vault"


@pytest.mark.parametrize(
    "words",
    [
        "--cdrom x vault",
        "--cdrom sys-usb:/x vault",
        "--cdrom a:b --hddisk a:b vault",
        "--cdrom a:b --skip-if-running work",
    ],
)
def test_wrong_drives_are_told_before_anything_is_done(qvm: Run, daemon: Any, words: str) -> None:
    code, _, err = qvm("qvm-start", *words.split())
    assert code == 2
    assert err
    assert not [call for call in daemon.calls() if "device" in call or "Start" in call]


def test_files_are_exposed_and_hidden(cloison: Run, daemon: Any, tmp_path: Path) -> None:
    daemon.answers("cloison.block.Expose", daemon.ok({"device": "dom0:disk"}))
    assert cloison("device", "expose", "--ro", "--name", "disk", "x.img").out == "dom0:disk\n"
    assert json.loads(cloison("device", "expose", "--json", "/x.img").out) == {"device": "dom0:disk"}
    assert cloison("device", "hide", "dom0:disk").code == 0
    assert daemon.calls() == [
        f'cloison.block.Expose+disk dom0 {{"path": "{Path.cwd() / "x.img"}", "read_only": true}}',
        'cloison.block.Expose dom0 {"path": "/x.img", "read_only": false}',
        "cloison.block.Hide+disk dom0",
    ]


def test_a_root_is_made_of_an_image(qvm: Run, daemon: Any, tmp_path: Path) -> None:
    image = tmp_path / "root.img"
    image.write_bytes(b"x" * 1024)
    daemon.answers("admin.vm.volume.ImportWithSize", daemon.ok(), dest="new")
    make = ("qvm-create", "-l", "red", "--standalone")
    assert qvm(*make, "--root-copy-from", str(image), "new")[0] == 0
    assert daemon.asked[-1] == ("admin.vm.volume.ImportWithSize", "root", "new", b"1024\n" + b"x" * 1024)
    assert qvm(*make, "--root-move-from", str(image), "new")[0] == 0
    assert not image.exists()
    image.write_bytes(b"x" * 1024)
    daemon.answers("admin.vm.volume.ImportWithSize", daemon.refused("DiskFull", "full"), dest="new")
    daemon.answers("admin.vm.Remove", daemon.ok(), dest="new")
    assert qvm(*make, "--root-move-from", str(image), "new") == (1, "", "qvm-create: full\n")
    assert daemon.calls()[-1].startswith("admin.vm.Remove new")
    assert image.exists()
    for words in ((*make, "--root-move-from", str(image), "--root-copy-from", str(image), "new"),
                  ("qvm-create", "-l", "red", "--root-copy-from", str(image), "new")):  # fmt: skip
        asked = len(daemon.asked)
        assert qvm(*words)[0] == 2
        assert len(daemon.asked) == asked
