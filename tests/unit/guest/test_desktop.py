"""Programs of a qube: .desktop files read and started, files opened by kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cloison_tools.desktop import (
    Entry,
    application_directories,
    command_of,
    find_entries,
    find_entry,
    menu_lines,
    parse_entry,
)
from cloison_tools.opening import harmless, kind_of, read_tables

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "guest/files/usr/lib/cloison/open.d"


def write(top: Path, name: str, **values: str) -> None:
    path = top / "applications" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[Desktop Entry]\n" + "".join(f"{key}={value}\n" for key, value in values.items()))


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    home, system = tmp_path / "home", tmp_path / "system"
    write(system, "editor.desktop", Name="Editor", Exec="editor %F", Icon="pen", MimeType="text/plain;text/html;")
    write(system, "kde/viewer.desktop", Name="Viewer", Exec="viewer -o '%u'", Categories="Graphics;")
    write(system, "hidden.desktop", Name="Hidden", Exec="x", NoDisplay="true")
    write(system, "saver.desktop", Name="Saver", Exec="x", Categories="Screensaver;")
    write(system, "link.desktop", Name="Link", Type="Link", URL="https://x")
    write(home, "editor.desktop", Name="My editor", Exec="mine %f")
    (system / "applications" / "bad.desktop").write_bytes(b"\xff\xfe[Desktop Entry]\nName=x\n=\n[Desktop")
    return application_directories({"HOME": "/nowhere", "XDG_DATA_HOME": str(home), "XDG_DATA_DIRS": str(system)})[:2]


def test_an_entry_is_read_as_its_standard_says() -> None:
    text = "# c\nName=before\n[Desktop Entry]\nName = Tab\\tand\\\\s\nName[de]=Nein\nName=again\n[Other]\nExec=no\n"
    assert parse_entry(text) == {"Name": "Tab\tand\\s"}


def test_the_users_entry_goes_before_the_systems(places: list[str]) -> None:
    assert next(entry.name for entry in find_entries(places)) == "editor.desktop"
    entry = find_entry("editor", places)
    assert entry is not None and entry.values["Name"] == "My editor"
    assert find_entry("kde-viewer.desktop", places) is not None
    assert find_entry("viewer", places) is None


def test_menus_get_what_belongs_into_them(places: list[str]) -> None:
    lines = list(menu_lines(places))
    assert {line.partition(":")[0] for line in lines} == {"editor.desktop", "kde-viewer.desktop"}
    assert "kde-viewer.desktop:Exec=qubes-desktop-run kde-viewer.desktop\n" in lines


@pytest.mark.parametrize(
    ("line", "arguments", "commands"),
    [
        ("p", ["a"], [["p"]]),
        ("p %F -x", ["a", "b"], [["p", "a", "b", "-x"]]),
        ("p %f", ["a", "b"], [["p", "a"], ["p", "b"]]),
        ("p %f", [], [["p"]]),
        ("p 'one word' %U", ["a b; rm"], [["p", "one word", "a b; rm"]]),
        ("p %i --name=%c 100%% %d", [], [["p", "--icon", "pic", "--name=Name", "100%", ""]]),
    ],
)
def test_field_codes_become_words(line: str, arguments: list[str], commands: list[list[str]]) -> None:
    entry = Entry("e.desktop", "/e", {"Exec": line, "Name": "Name", "Icon": "pic"})
    assert command_of(entry, arguments) == commands


@pytest.mark.parametrize("line", ["", "'"])
def test_a_line_that_is_no_command_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        command_of(Entry("e.desktop", "/e", {"Exec": line}), [])


def call(function: str, *words: str, **environment: str) -> tuple[int, str]:
    module, _, name = function.partition(":")
    code = f"import sys; from cloison_tools.{module} import {name}; sys.exit({name}(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=30,
                          env={"PATH": os.defpath, "PYTHONPATH": str(ROOT / "guest"), **environment})  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_an_application_is_started_by_its_name(tmp_path: Path) -> None:
    write(tmp_path / "home", "org.x.Say.desktop", Name="Say", Exec="echo said %F")
    write(tmp_path / "home", "ends.desktop", Name="Ends", Exec="sh -c 'exit 3'")
    write(tmp_path / "home", "gone.desktop", Name="Gone", Exec="no-such-program-anywhere")
    where = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "home")}
    assert call("desktop:start_app", "org.x.Say", **where) == (0, "said\n")
    assert call("desktop:start_app", "ends", **where)[0] == 3
    assert call("desktop:start_app", "gone", **where)[0] == 127
    assert call("desktop:start_app", "absent", **where)[0] == 127
    assert call("desktop:start_app", "../etc/passwd", **where)[0] == 1
    assert call("desktop:desktop_run", "org.x.Say.desktop", "a b", **where) == (0, "said a b\n")


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", b"x", "text/plain"),
        ("a.txt", b"\0\1", "application/octet-stream"),
        ("a", b"#!/bin/sh\n", "text/plain"),
        ("a", b"%PDF-1.4\n\0", "application/pdf"),
        ("a.pdf", b"no such thing", "application/pdf"),
        ("a.tar.gz", b"\x1f\x8b", "application/x-tar"),
        ("a.gz", b"\x1f\x8b", "application/gzip"),
        ("a", b"\x7fELF\0", "application/octet-stream"),
    ],
)
def test_a_files_kind_is_known_by_its_name_and_its_beginning(tmp_path: Path, name: str, content: bytes, kind: str):
    (tmp_path / name).write_bytes(content)
    assert kind_of(str(tmp_path / name)) == kind


def test_text_is_shown_without_what_a_terminal_would_obey(tmp_path: Path) -> None:
    path = tmp_path / "evil.txt"
    path.write_bytes("line\n\x1b]0;title\x07\u202eevil\x9b2J\ttab".encode())
    opener = tmp_path / "open.py"
    opener.write_text("import sys; from cloison_tools import opening; opening.TABLES = (sys.argv[1],)\n"
                      "sys.exit(opening.qubes_open(sys.argv[2:]))")  # fmt: skip
    done = subprocess.run([sys.executable, opener, SHIPPED, path], capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT / "guest"), "PATH": os.defpath}, timeout=30)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "line\n·]0;title··evil·2J\ttab\n")
    (tmp_path / "blob").write_bytes(bytes(100))
    done = subprocess.run([sys.executable, opener, SHIPPED, tmp_path / "blob"], capture_output=True, text=True,
                          env={"PYTHONPATH": str(ROOT / "guest"), "PATH": os.defpath}, timeout=30)  # fmt: skip
    assert done.returncode == 4 and "nothing here can show" in done.stderr
    assert harmless("a\r\nb\fc\u2066") == "a\nb\nc·"


def test_the_tables_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "10.conf").write_text("# c\ntext/*  mine %f --x # why\nlonely\n")
    rows = read_tables((str(tmp_path), str(SHIPPED)))
    assert rows[0] == ("text/*", ["mine", "%f", "--x"])
    assert ("text/*", ["show-text"]) in rows
