"""qvm-convert-pdf: make a trusted PDF of an untrusted one. A disposable renders it; only pixels come back.

In: files. Out: ``NAME.trusted.pdf`` beside each, built here from checked pixels. May import: the standard library.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys

from cloison_tools.asked import CallFailed, open_call, plain
from cloison_tools.pdfwriter import PdfWriter
from cloison_tools.pixels import Answer, BadAnswer
from cloison_tools.placing import move_without_replacing, new_file
from cloison_tools.rendering import DEFAULT_RESOLUTION, HIGHEST_RESOLUTION, LOWEST_RESOLUTION, PASSWORD_MARK

MAX_PAGES = 10_000
MAX_RESULT_BYTES = 4 << 30
MAX_PASSWORD_BYTES = 512
INTERRUPTED = 130


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end with nothing left behind
    try:
        password = _password(options)
    except (OSError, ValueError) as error:
        print(f"qvm-convert-pdf: no password: {error}", file=sys.stderr)
        return 1
    try:
        if options.batch == 1 or len(options.files) == 1:
            codes = [_convert_and_tell(path, options, password) for path in options.files]
        else:
            codes = _convert_side_by_side(options, password)
    except KeyboardInterrupt:
        return INTERRUPTED
    return next((code for code in codes if code), 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qvm-convert-pdf",
        description="Make a trusted PDF of an untrusted one: a disposable qube renders it, only pixels come back.",
        epilog="example: qvm-convert-pdf --archive ~/untrusted invoice.pdf   (makes invoice.trusted.pdf)",
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE")
    add("-r", "--resolution", type=_resolution, metavar="DPI", help=f"dots per inch (default: {DEFAULT_RESOLUTION})")
    add(
        "-b", "--batch", type=_batch, default=1, metavar="N", help="convert up to N files at the same time (default: 1)"
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument("-a", "--archive", metavar="DIR", help="move each original there once it is converted")
    kept.add_argument("-i", "--in-place", action="store_true", help="the trusted PDF takes the original's place")
    add("-f", "--force", action="store_true", help="replace a NAME.trusted.pdf that is there already")
    add("--ask-password", action="store_true", help="ask for the password of the documents")
    add("--password-file", metavar="FILE", help="its first line is the password of the documents ('-': standard input)")
    add("--target", default="@dispvm", metavar="QUBE", help="where to render (default: a fresh disposable)")
    add("--page-limit", type=float, default=300.0, metavar="SECONDS", help="how long a page may take (default: 300)")
    add("-q", "--quiet", action="store_true", help="say nothing but errors")
    return parser


def _resolution(text: str) -> int:
    if not text.isdecimal() or not LOWEST_RESOLUTION <= int(text) <= HIGHEST_RESOLUTION:
        raise argparse.ArgumentTypeError(f"{LOWEST_RESOLUTION} to {HIGHEST_RESOLUTION} dots per inch are possible")
    return int(text)


def _batch(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 16:
        raise argparse.ArgumentTypeError("1 to 16 files at the same time are possible")
    return int(text)


def _password(options: argparse.Namespace) -> bytes:
    if options.ask_password:
        import getpass

        password = os.fsencode(getpass.getpass("Password of the documents: "))
    elif options.password_file == "-":
        password = sys.stdin.buffer.readline(MAX_PASSWORD_BYTES + 2).rstrip(b"\r\n")
    elif options.password_file:
        with open(options.password_file, "rb") as file:
            password = file.readline(MAX_PASSWORD_BYTES + 2).rstrip(b"\r\n")
    else:
        return b""
    if not 0 < len(password) <= MAX_PASSWORD_BYTES or b"\n" in password:
        raise ValueError(f"a line of 1 to {MAX_PASSWORD_BYTES} bytes is needed")
    return password


def trusted_name(path: str) -> str:
    stem, extension = os.path.splitext(path)
    return f"{stem if extension.lower() == '.pdf' else path}.trusted.pdf"


def _convert_and_tell(path: str, options: argparse.Namespace, password: bytes) -> int:
    progress = None if options.quiet else _Progress(path, alone=options.batch == 1)
    try:
        done = convert(path, options, password, progress)
    except CallFailed as error:
        _finish(progress, f"{plain(path)}: not converted: {error}")
        return error.exit_code
    except OSError as error:
        _finish(progress, f"{plain(path)}: not converted: {plain(str(error.filename or ''))} {error.strerror}")
        return 1
    if progress is not None:
        _finish(progress, f"{plain(path)} -> {plain(done)} ({progress.pages} pages)")
    return 0


def convert(path: str, options: argparse.Namespace, password: bytes, progress: _Progress | None = None) -> str:
    """Make the trusted PDF of one file; returns its path. On any error nothing is left, the original is untouched."""
    target = os.path.realpath(path) if options.in_place else trusted_name(path)  # a link stays a link
    service = "qubes.PdfConvert" + (f"+{options.resolution}" if options.resolution else "")
    prefix = PASSWORD_MARK + password + b"\n" if password else b""
    document = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with new_file(target, replace=options.force or options.in_place) as file:
            with open_call(options.target, service, document, prefix=prefix) as answer:
                writer = PdfWriter(file.write, options.resolution or DEFAULT_RESOLUTION)
                _take_pages(answer, writer, options.page_limit, progress)
            if options.in_place:
                os.fchmod(file.fileno(), os.fstat(document).st_mode & 0o777)
    finally:
        os.close(document)
    if options.archive:
        move_without_replacing(path, options.archive)
    return target


def _take_pages(answer: Answer, writer: PdfWriter, page_limit_s: float, progress: _Progress | None) -> None:
    """The whole answer, strictly: as many pages as it said, each of a sane size, each whole, and then nothing more."""
    answer.give_time(page_limit_s)
    untrusted_count = answer.read_line()
    if not re.fullmatch(rb"[1-9][0-9]{0,4}", untrusted_count) or int(untrusted_count) > MAX_PAGES:
        raise BadAnswer(f"its answer is not a number of 1 to {MAX_PAGES} pages")
    pages = int(untrusted_count)
    for number in range(1, pages + 1):
        answer.give_time(page_limit_s)
        width, height = answer.read_size()
        writer.add_page(width, height, answer.pieces(3 * width * height))
        if writer.size_bytes > MAX_RESULT_BYTES:
            raise BadAnswer(f"the result would be larger than {MAX_RESULT_BYTES >> 30} GiB")
        if progress is not None:
            progress.show(number, pages)
    answer.give_time(page_limit_s)
    answer.expect_end()
    writer.finish()


class _Progress:
    """One line on a terminal that counts pages; nothing where standard error is no terminal or many share it."""

    def __init__(self, path: str, *, alone: bool) -> None:
        self._path = path
        self._wanted = alone and sys.stderr.isatty()
        self.pages = 0

    def show(self, number: int, pages: int) -> None:
        self.pages = number
        if self._wanted:
            print(f"\r\x1b[K{plain(self._path)}: page {number} of {pages}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._wanted:
            print("\r\x1b[K", end="", file=sys.stderr)


def _finish(progress: _Progress | None, message: str) -> None:
    if progress is not None:
        progress.clear()
    print(f"qvm-convert-pdf: {message}", file=sys.stderr, flush=True)


def _convert_side_by_side(options: argparse.Namespace, password: bytes) -> list[int]:
    """Each file in a child; no more of them at a time than wanted."""
    waiting, running, codes = list(options.files), set[int](), []
    try:
        while waiting or running:
            while waiting and len(running) < options.batch:
                path = waiting.pop(0)
                pid = os.fork()
                if pid == 0:
                    os._exit(_child(path, options, password))
                running.add(pid)
            pid, status = os.wait()
            running.discard(pid)
            codes.append(os.waitstatus_to_exitcode(status))
    except KeyboardInterrupt:
        for pid in running:
            os.kill(pid, signal.SIGINT)
        for pid in running:
            os.waitpid(pid, 0)
        raise
    return codes


def _child(path: str, options: argparse.Namespace, password: bytes) -> int:
    try:
        return _convert_and_tell(path, options, password)
    except KeyboardInterrupt:
        return INTERRUPTED
