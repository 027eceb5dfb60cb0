"""Trusted PDFs and pictures: the real tools against the real services, and against hostile ones."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.guest.joined import Joined, joined_qube

from cloison_tools import pixels, rendering
from cloison_tools.pdfwriter import PdfWriter

POPPLER = r"""#!{python}
# Stands for poppler: a document is lines "W H COLOUR"; "password WORD" first wants a password.
import sys
words = sys.argv[1:]
lines = open(words[-1], "rb").read().decode().splitlines()
if lines and lines[0].startswith("password "):
    if words[words.index("-upw") + 1 if "-upw" in words else 0] != lines.pop(0).split()[1]:
        sys.exit("Incorrect password")
pages = [line.split() for line in lines]
if sys.argv[0].endswith("pdfinfo"):
    print("Title:  x\nPages:          %d\nEncrypted: no" % len(pages))
else:
    assert words[:2] == ["-r", RESOLUTION], words
    for w, h, colour in pages:
        sys.stdout.buffer.write(b"P6\n%s %s\n255\n" % (w.encode(), h.encode()))
        sys.stdout.buffer.write(bytes([int(colour)]) * 3 * int(w) * int(h))
"""


@pytest.fixture
def qube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    with joined_qube(tmp_path, monkeypatch) as joined:
        use_resolution(joined, 300)
        yield joined


def use_resolution(qube: Joined, resolution: int) -> None:
    for name in ("pdfinfo", "pdftoppm"):
        script = POPPLER.replace("{python}", sys.executable).replace("RESOLUTION", repr(str(resolution)))
        qube.add_program(name, script)


def pictures(pdf: bytes) -> list[tuple[int, int, bytes]]:
    """Width, height and pixels of each picture of a PDF of ours; every object must lie where its table says."""
    start = int(pdf.rsplit(b"startxref\n", 1)[1].split()[0])
    assert pdf[start:].startswith(b"xref\n")
    offsets = [int(line.split()[0]) for line in pdf[start:].splitlines()[3:] if line.endswith(b" n ")]
    for number, offset in enumerate(offsets, 1):
        assert pdf[offset:].startswith(b"%d 0 obj\n" % number)
    found = []
    pattern = rb"/Width (\d+) /Height (\d+) .*? /Length (\d+) 0 R >>\nstream\n"
    for picture in re.finditer(pattern, pdf):
        size = re.match(rb"\d+ 0 obj\n(\d+)\n", pdf[offsets[int(picture[3]) - 1] :])
        assert size is not None
        packed = pdf[picture.end() : picture.end() + int(size[1])]
        assert pdf[picture.end() + int(size[1]) :].startswith(b"\nendstream\nendobj\n")
        found.append((int(picture[1]), int(picture[2]), zlib.decompress(packed)))
    return found


def test_a_document_becomes_pictures_of_its_pages(qube: Joined) -> None:
    (qube.home / "report.pdf").write_text("20 30 7\n600 400 255\n")
    done = qube.run("qvm-convert-pdf", "report.pdf")
    assert (done.returncode, done.stderr) == (
        0,
        b"qvm-convert-pdf: report.pdf -> report.trusted.pdf (2 pages)\n",
    )
    pdf = (qube.home / "report.trusted.pdf").read_bytes()
    assert pictures(pdf) == [(20, 30, b"\7" * 1800), (600, 400, b"\xff" * 720_000)]
    assert b"/MediaBox [0 0 4.800 7.200]" in pdf
    assert qube.calls == ["@dispvm qubes.PdfConvert"]
    assert (qube.home / "report.pdf").exists()
    again = qube.run("qvm-convert-pdf", "report.pdf")
    assert again.returncode == 1 and b"File exists" in again.stderr
    assert (qube.home / "report.trusted.pdf").read_bytes() == pdf


def test_resolution_password_archive_and_place_are_chosen(qube: Joined) -> None:
    use_resolution(qube, 72)
    (qube.home / "a.pdf").write_text("password secret word\n72 144 1\n".replace(" word", ""))
    (qube.home / "pass").write_text("secret\nmore\n")
    words = ("-r", "72", "--password-file", "pass", "--archive", "old", "a.pdf")
    assert qube.run("qvm-convert-pdf", *words).returncode == 0
    assert qube.calls == ["@dispvm qubes.PdfConvert+72"]
    assert b"[0 0 72.000 144.000]" in (qube.home / "a.trusted.pdf").read_bytes()
    assert [path.name for path in (qube.home / "old").iterdir()] == ["a.pdf"]
    assert not (qube.home / "a.pdf").exists()
    (qube.home / "a.pdf").write_text("1 1 1\n")
    (qube.home / "a.pdf").chmod(0o640)
    assert qube.run("qvm-convert-pdf", "-q", "-r", "72", "--in-place", "a.pdf").stderr == b""
    assert (qube.home / "a.pdf").read_bytes().startswith(b"%PDF-1.4")
    assert (qube.home / "a.pdf").stat().st_mode & 0o777 == 0o640
    (qube.home / "b.pdf").write_text("password x\n1 1 1\n")
    refused = qube.run("qvm-convert-pdf", "-r", "72", "b.pdf")
    assert refused.returncode == 1 and b"it says: Incorrect password" in refused.stderr
    for wrong in (("-r", "5"), ("--batch", "0"), ("--in-place", "--archive", "x")):
        assert qube.run("qvm-convert-pdf", *wrong, "b.pdf").returncode == 2


def test_many_files_are_converted_at_the_same_time(qube: Joined) -> None:
    names = [f"{number}.pdf" for number in range(5)]
    for name in names[:-1]:
        (qube.home / name).write_text("3 3 1\n")
    done = qube.run("qvm-convert-pdf", "--batch", "3", *names)
    assert done.returncode == 1 and done.stderr.count(b" -> ") == 4
    assert b"4.pdf: not converted: 4.pdf No such file or directory" in done.stderr
    assert sorted(path.name for path in qube.home.glob("*trusted*")) == [f"{n}.trusted.pdf" for n in range(4)]


@pytest.mark.parametrize("tool", ["qvm-convert-pdf", "qvm-convert-img"])
def test_a_refused_call_and_a_missing_service_say_so(qube: Joined, tool: str) -> None:
    (qube.home / "a.pdf").write_text("3 3 1\n")
    words = ["a.pdf"] if tool.endswith("pdf") else ["a.pdf", "a.png"]
    service = "qubes.PdfConvert" if tool.endswith("pdf") else "qubes.GetImageRGBA"
    (qube.directory / "rpc" / service).unlink(missing_ok=True)
    done = qube.run(tool, *words)
    assert done.returncode == 127 and b"no such service" in done.stderr
    qube.refused.add(service)
    done = qube.run(tool, *words)
    assert done.returncode == 126 and b"request refused" in done.stderr
    assert [path.name for path in qube.home.iterdir()] == ["a.pdf"]


HOSTILE_PDF = {
    "nothing": "",
    "not a number": "printf 'many\\n'",
    "no page": "printf '0\\n'",
    "too many pages": "printf '10001\\n'",
    "an absurd number": "printf '99999999999999999999999999999999\\n'",
    "a never-ending line": "yes 1 | tr -d '\\n'",
    "a negative size": "printf '1\\n-5 5\\n'",
    "a size of nothing": "printf '1\\n0 5\\n'",
    "too wide": "printf '1\\n10001 1\\n'",
    "a size with words": "printf '1\\n5 5 5\\n'",
    "other digits": "printf '1\\n\\331\\241 5\\n'",
    "half a page": "printf '1\\n100 100\\n'; head -c 29999 /dev/zero",
    "a page less": "printf '2\\n10 10\\n'; head -c 300 /dev/zero",
    "a byte too many": "printf '1\\n10 10\\n'; head -c 301 /dev/zero",
    "never-ending": "printf '1\\n10 10\\n'; cat /dev/zero",
    "silence": "printf '1\\n10 10\\n'; sleep 60",
    "a bad end": "printf '1\\n10 10\\n'; head -c 300 /dev/zero; exit 3",
    "lies on stderr": "printf '\\033[2Jdone: a.trusted.pdf\\b\\b\\a\\n' >&2; yes nonsense >&2",
}


@pytest.mark.parametrize("name", HOSTILE_PDF)
def test_a_hostile_renderer_leaves_an_error_and_no_file(qube: Joined, name: str) -> None:
    qube.add_service("qubes.PdfConvert", f"#!/bin/sh\n{HOSTILE_PDF[name]}\n")
    (qube.home / "a.pdf").write_text("3 3 1\n")
    done = qube.run("qvm-convert-pdf", "--page-limit", "3", "a.pdf")
    assert done.returncode == 1
    assert done.stderr.startswith(b"qvm-convert-pdf: a.pdf: not converted: the other qube did not do it: ")
    assert not any(byte in done.stderr for byte in b"\x1b\b\a\r") and done.stderr.count(b"\n") < 9
    assert [path.name for path in qube.home.iterdir()] == ["a.pdf"]


HOSTILE_PICTURES = {
    "nothing": "",
    "too high": "printf '1 10001\\n'",
    "no size": "printf 'P6 1 1\\n'",
    "too short": "printf '2 2\\n'; head -c 15 /dev/zero",
    "too long": "printf '2 2\\n'; head -c 17 /dev/zero",
    "never-ending": "printf '2 2\\n'; cat /dev/zero",
    "trickling": "printf '100 100\\n'; while sleep 0.2; do printf x; done",
}


@pytest.mark.parametrize("name", HOSTILE_PICTURES)
def test_a_hostile_picture_leaves_an_error_and_no_file(qube: Joined, name: str) -> None:
    qube.add_service("qubes.GetImageRGBA", f"#!/bin/sh\n{HOSTILE_PICTURES[name]}\n")
    (qube.home / "in.jpg").write_text("x")
    done = qube.run("qvm-convert-img", "--limit", "2", "in.jpg", "out.png")
    assert done.returncode == 1 and b"not converted: the other qube did not do it" in done.stderr
    assert [path.name for path in qube.home.iterdir()] == ["in.jpg"]


def test_pixels_become_a_picture(qube: Joined) -> None:
    qube.add_service("qubes.GetImageRGBA", "#!/bin/sh\nread -r line; echo 2 2; printf 'RGBArgba'; cat\n")
    (qube.home / "in.jpg").write_bytes(b"12345678")
    done = qube.run("qvm-convert-img", "--format", "jpeg", "in.jpg", "out.png")
    assert (done.returncode, done.stderr) == (0, b"qvm-convert-img: in.jpg -> out.png (2 x 2)\n")
    png = (qube.home / "out.png").read_bytes()
    packed = b"".join(re.findall(rb"IDAT(.*?).{4}(?=.{4}(?:IDAT|IEND))", png, re.DOTALL))
    assert zlib.decompress(packed) == b"\0RGBArgba\00012345678"
    assert qube.run("qvm-convert-img", "in.jpg", "out.jpg").returncode == 2


SERVICE = Path(__file__).resolve().parents[3] / "guest/files/etc/qubes-rpc/qubes.GetImageRGBA"


@pytest.mark.parametrize(
    "request_line", [b"/etc/passwd\n", b"/usr/share/icons/../../../etc/passwd\n", b"xdgicon:../x\n", b"no newline", b""]
)
def test_pictures_of_a_qube_are_not_given_to_other_qubes(request_line: bytes) -> None:
    environment = {"QREXEC_REMOTE_DOMAIN": "work", "PATH": "/usr/bin"}
    done = subprocess.run(
        [sys.executable, SERVICE], input=request_line, capture_output=True, env=environment, timeout=60
    )
    assert done.returncode == 1 and done.stdout == b""
    assert b"only dom0" in done.stderr or b"no name of an icon" in done.stderr or b"not a line" in done.stderr


@pytest.mark.parametrize("argument", ["49", "1201", "+1", "1e2", "300 -f", "٣٠٠", "-300"])
def test_a_resolution_is_a_number_in_bounds(argument: str) -> None:
    with pytest.raises(rendering.Unreadable):
        rendering.parse_resolution(argument)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.binary(min_size=1, max_size=9)), min_size=1))
def test_whatever_the_pixels_the_file_holds_exactly_them(pages: list[tuple[int, int, bytes]]) -> None:
    written: list[bytes] = []
    writer = PdfWriter(written.append, 300)
    expected = []
    for width, height, pattern in pages:
        samples = (pattern * (3 * width * height))[: 3 * width * height]
        writer.add_page(width, height, iter([samples[:7], samples[7:]]))
        expected.append((width, height, samples))
    writer.finish()
    assert pictures(b"".join(written)) == expected
    assert writer.size_bytes == sum(map(len, written))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_only_a_bad_answer_can_leave_the_reader(data: bytes) -> None:
    import os

    read_end, write_end = os.pipe()
    os.write(write_end, data)
    os.close(write_end)
    try:
        answer = pixels.Answer(read_end)
        answer.give_time(5)
        width, height = answer.read_size()
        assert 1 <= width <= pixels.MAX_SIDE and 1 <= height <= pixels.MAX_SIDE
        assert sum(map(len, answer.pieces(4 * width * height))) == 4 * width * height
        answer.expect_end()
    except pixels.BadAnswer:
        pass
    finally:
        os.close(read_end)
