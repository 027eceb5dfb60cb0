"""The e-mail example: its mailbox is what its makers make, and a hostile preview cannot cross the caller's parser."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import struct
import subprocess
import sys
import zlib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

TOP = Path(__file__).parents[3]
EXAMPLE = TOP / "examples/email"
SERVICE = TOP / "guest/files/etc/qubes-rpc/cloison.Preview"


def load(path: Path) -> ModuleType:
    """A program without a suffix as a module."""
    loader = SourceFileLoader(path.name.replace("-", "_").replace(".", "_"), str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    loader.exec_module(module)
    sys.dont_write_bytecode = before
    return module


preview = load(TOP / "guest/files/usr/bin/cloison-preview")


def test_the_mailbox_is_what_its_maker_makes() -> None:
    made = subprocess.run([sys.executable, str(EXAMPLE / "make_mailbox.py")], capture_output=True, check=True).stdout
    assert made == (EXAMPLE / "inbox.mbox").read_bytes(), "run examples/email/make_mailbox.py > inbox.mbox"


def test_the_mailbox_does_not_hold_the_mark_that_is_searched_for_later() -> None:
    origin = 'MARK = hashlib.sha256(b"cloison e-mail scenario").hexdigest().encode()'
    assert origin in (EXAMPLE / "run.py").read_text()
    assert origin in (EXAMPLE / "harm.py").read_text()
    mark = hashlib.sha256(b"cloison e-mail scenario").hexdigest().encode()
    assert mark not in (EXAMPLE / "inbox.mbox").read_bytes()


def test_the_reader_lists_the_mailbox() -> None:
    command = [sys.executable, str(EXAMPLE / "mailread"), "--mbox", str(EXAMPLE / "inbox.mbox")]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "[1] report.pdf" in listed
    assert "[1] invoice-2291.pdf" in listed


@pytest.mark.parametrize(("content", "seen"), [(b"hello\n", "hello\n"), (b"#!/bin/sh\necho ran\n", "ran\n")])
def test_the_service_shows_text_and_runs_scripts(tmp_path: Path, content: bytes, seen: str) -> None:
    request = b"../../name with $(odd) parts".ljust(256, b"\0") + content
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, str(SERVICE)]
    done = subprocess.run(command, input=request, capture_output=True, check=True, env=environment)
    assert preview.parse_answer(io.BytesIO(done.stdout)) == (seen, [])
    assert [path.name for path in tmp_path.glob("*/*")] == ["name_with___odd__parts"]


def test_a_page_becomes_a_picture_made_here() -> None:
    pixels = bytes(range(2 * 3 * 3))
    text, (png,) = preview.parse_answer(io.BytesIO(b"TEXT 2\nhiPAGE 2 3\n" + pixels + b"END\n"))
    assert text == "hi"
    assert struct.unpack(">II", png[16:24]) == (2, 3)
    body = zlib.decompress(png[png.index(b"IDAT") + 4 : png.index(b"IEND") - 8])
    assert body == b"\0" + pixels[:6] + b"\0" + pixels[6:12] + b"\0" + pixels[12:]


@pytest.mark.parametrize(
    "hostile",
    [
        b"",
        b"TEXT 5\nhi",
        b"TEXT 5\nhello",
        b"TEXT 999999\n",
        b"TEXT -1\nEND\n",
        b"TEXT 0x5\nhelloEND\n",
        b"TEXT 2\nhiTEXT 2\nhiEND\n",
        b"PAGE 0 1\nEND\n",
        b"PAGE 5000 1\n" + bytes(15000) + b"END\n",
        b"PAGE 4096 4096\n",
        b"PAGE 1 1\nabcPAGE 1 1\nabcEND\n",
        b"PAGE 1 1\nab",
        b"PNG 4\nabcdEND\n",
        b"END",
        b"END \n",
        b"A" * 1000,
    ],
)
def test_a_hostile_answer_is_refused(hostile: bytes) -> None:
    with pytest.raises(preview.BadAnswer):
        preview.parse_answer(io.BytesIO(hostile))


@given(st.binary(max_size=300))
def test_no_answer_gets_anything_else_out_of_the_parser(hostile: bytes) -> None:
    try:
        text, pages = preview.parse_answer(io.BytesIO(hostile))
    except preview.BadAnswer:
        return
    assert len(text) <= 300
    assert len(pages) <= 1


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        (b"plain\ttext\r\nline", "plain\ttext\nline"),
        (b"\x1b[2J\x1b]0;owned\x07", "\N{MIDDLE DOT}[2J\N{MIDDLE DOT}]0;owned\N{MIDDLE DOT}"),
        ("gpj.\N{RIGHT-TO-LEFT OVERRIDE}exe".encode(), "gpj.\N{MIDDLE DOT}exe"),
        (b"\x9b31m", "\N{REPLACEMENT CHARACTER}31m"),
        ("\x9b31m".encode(), "\N{MIDDLE DOT}31m"),
    ],
)
def test_text_loses_what_a_terminal_could_obey(said: bytes, seen: str) -> None:
    assert preview.shown(said) == seen
