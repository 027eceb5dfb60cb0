"""Service qubes.PdfConvert[+RESOLUTION]: a document goes in, pixels of its pages come out.

In: standard input, an optional line ``--password=...``, then the document to its end. Out: ``PAGES\\n``, then for each
page ``W H\\n`` and RGB samples. Runs in a disposable: the document may take it and poppler over, and gains nothing.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from typing import IO

DEFAULT_RESOLUTION = 300
LOWEST_RESOLUTION, HIGHEST_RESOLUTION = 50, 1200
PASSWORD_MARK = b"--password="
MAX_PASSWORD_LINE = 1024
MAX_DOCUMENT_BYTES = 1 << 30
MAX_PAGES = 10_000
PIECE_BYTES = 1 << 18
INFO_LIMIT_S = 300


class Unreadable(Exception):
    """The document, or the request, is not one that can be rendered."""


def serve(arguments: list[str]) -> int:
    try:
        resolution = parse_resolution(os.environ.get("QREXEC_SERVICE_ARGUMENT", ""))
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "document.pdf")
            password = _store(sys.stdin.buffer, path)
            _render(path, password, resolution)
    except (Unreadable, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def parse_resolution(untrusted_argument: str) -> int:
    """Dots per inch; nothing said is 300."""
    if not untrusted_argument:
        return DEFAULT_RESOLUTION
    if not re.fullmatch("[1-9][0-9]{1,3}", untrusted_argument, re.ASCII):
        raise Unreadable("the resolution is not a number")
    if not LOWEST_RESOLUTION <= int(untrusted_argument) <= HIGHEST_RESOLUTION:
        raise Unreadable(f"the resolution is not within {LOWEST_RESOLUTION} and {HIGHEST_RESOLUTION}")
    return int(untrusted_argument)


def _store(stdin: IO[bytes], path: str) -> bytes:
    """Keep the document in a file; returns its password, if one came."""
    first = stdin.read(len(PASSWORD_MARK))
    password = b""
    if first == PASSWORD_MARK:
        line = stdin.readline(MAX_PASSWORD_LINE)
        if not line.endswith(b"\n") or b"\0" in line:
            raise Unreadable("the line with the password is not one")
        first, password = b"", line[:-1]
    size_bytes = len(first)
    with open(path, "wb") as file:
        file.write(first)
        while piece := stdin.read(PIECE_BYTES):
            size_bytes += len(piece)
            if size_bytes > MAX_DOCUMENT_BYTES:
                raise Unreadable(f"the document is larger than {MAX_DOCUMENT_BYTES >> 20} MiB")
            file.write(piece)
    return password


def _render(path: str, password: bytes, resolution: int) -> None:
    words = [b"-upw", password, os.fsencode(path)] if password else [os.fsencode(path)]
    info = subprocess.run(
        [b"pdfinfo", *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=INFO_LIMIT_S
    ).stdout
    found = re.search(rb"^Pages:\s+([0-9]{1,9})\s*$", info, re.MULTILINE)
    if found is None:
        raise Unreadable("this is no PDF document that can be read")
    pages = int(found[1])
    if not 1 <= pages <= MAX_PAGES:
        raise Unreadable(f"it has {pages} pages, not 1 to {MAX_PAGES}")
    sys.stdout.buffer.write(b"%d\n" % pages)
    sys.stdout.buffer.flush()
    command: list[bytes] = [b"pdftoppm", b"-r", b"%d" % resolution, *words]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as renderer:
        assert renderer.stdout is not None
        for number in range(1, pages + 1):
            _pass_page(renderer.stdout, number)
    if renderer.returncode:
        raise Unreadable(f"the renderer ended with code {renderer.returncode}")


def _pass_page(ppm: IO[bytes], number: int) -> None:
    """One picture ``P6 W H 255`` of the renderer, as one page of the answer."""
    header = b"".join(ppm.readline(64) for _ in range(3))
    size = re.fullmatch(rb"P6\n([0-9]{1,6}) ([0-9]{1,6})\n255\n", header)
    if size is None:
        raise Unreadable(f"page {number} cannot be rendered")
    sys.stdout.buffer.write(b"%s %s\n" % size.groups())
    left = 3 * int(size[1]) * int(size[2])
    while left:
        piece = ppm.read(min(left, PIECE_BYTES))
        if not piece:
            raise Unreadable(f"page {number} was not rendered to its end")
        sys.stdout.buffer.write(piece)
        left -= len(piece)
    sys.stdout.buffer.flush()
