"""qvm-convert-img: make a trusted picture of an untrusted one. A disposable reads it; only pixels come back.

In: a picture file of any kind that the disposable's Pillow reads. Out: a PNG built here from checked pixels.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys

from cloison_tools.asked import CallFailed, open_call, plain
from cloison_tools.pixels import write_png
from cloison_tools.placing import new_file

SERVICE = "qubes.GetImageRGBA"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="qvm-convert-img",
        description="Make a trusted PNG of an untrusted picture: a disposable qube reads it, only pixels come back.",
        epilog="example: qvm-convert-img holiday.jpg holiday.png",
    )
    parser.add_argument("input", metavar="IN")
    parser.add_argument("output", metavar="OUT", help="a name that ends in .png")
    parser.add_argument("--format", default="", metavar="NAME", help="take IN for this format (jpeg, png, gif...)")
    parser.add_argument("-f", "--force", action="store_true", help="replace OUT if it is there already")
    parser.add_argument("--target", default="@dispvm", metavar="QUBE", help="where to read it (default: a disposable)")
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS", help="how long it may take")
    options = parser.parse_args(arguments)
    if not options.output.lower().endswith(".png"):
        parser.error(f"{options.output} does not end in .png (hint: a PNG keeps every pixel; convert that further)")
    if not re.fullmatch("[a-zA-Z0-9]{0,16}", options.format):
        parser.error("a format is a word such as jpeg")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends with nothing left behind
    name = plain(options.input)
    try:
        width, height = convert(options)
    except KeyboardInterrupt:
        return 130
    except CallFailed as error:
        print(f"qvm-convert-img: {name}: not converted: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"qvm-convert-img: {name}: not converted: {plain(str(error.filename))} {error.strerror}", file=sys.stderr)
        return 1
    print(f"qvm-convert-img: {name} -> {plain(options.output)} ({width} x {height})", file=sys.stderr)
    return 0


def convert(options: argparse.Namespace) -> tuple[int, int]:
    """Width and height of the picture that was made; on any error no file is left."""
    request = f"{options.format}:-\n" if options.format else "-\n"
    source = os.open(options.input, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with new_file(options.output, replace=options.force) as file:
            with open_call(options.target, SERVICE, source, prefix=request.encode()) as answer:
                answer.give_time(options.limit)
                width, height = answer.read_size()
                write_png(file.write, width, height, answer.pieces(4 * width * height))
                answer.expect_end()
    finally:
        os.close(source)
    return width, height
