"""qubes-open: show a file or an address with the program that is meant for it, and wait until it is closed.

In: a path or an address. Out: a program that shows it; its exit code. May import: the standard library.

With a screen the programs' own .desktop files say who opens what. Without one, a table does: text is shown as text,
documents as the text in them, archives as their list of contents.
"""

from __future__ import annotations

import configparser
import fnmatch
import mimetypes
import os
import re
import shutil
import subprocess
import sys
import unicodedata

from cloison_tools import desktop
from cloison_tools.client import complain

HANDLERS = ("/rw/config/qubes-open-handler", "/usr/local/bin/qubes-open-handler", "/etc/qubes/open-handler")
"""Programs of the user that decide themselves; the first one there is gets everything."""
TABLES = ("/rw/config/open.d", "/etc/qubes/open.d", "/usr/lib/cloison/open.d")
"""Lines ``KIND COMMAND``: the first whose pattern fits and whose program exists. %f is the file, else it comes last."""
NOTHING_SHOWS = 4
MAX_TEXT_BYTES = 1 << 20
PEEK_BYTES = 8192
PLAIN = "text/plain"
UNKNOWN = "application/octet-stream"
_ADDRESS = re.compile(r"(https?|ftp)://\S+")
_MAGIC = ((b"%PDF-", "application/pdf"), (b"PK\3\4", "application/zip"), (b"\x1f\x8b", "application/gzip"))


def qubes_open(arguments: list[str]) -> int:
    words = [word for word in arguments if word != "--"]
    if len(words) != 1:
        complain("usage: qubes-open FILE|URL")
        return 1
    what = words[0]
    for handler in HANDLERS:
        if os.access(handler, os.X_OK):
            os.execv(handler, [handler, what])
    if address := _ADDRESS.fullmatch(what):
        kind = f"x-scheme-handler/{address[1]}"
    elif os.path.exists(what):
        kind = kind_of(what)
        what = os.path.abspath(what)  # no option of any program
    else:
        complain(f"{what!a}: there is no such file")
        return 1
    if _has_screen() and (code := _open_on_screen(what, kind)) is not None:
        return code
    return _open_by_table(what, kind, TABLES)


def kind_of(path: str) -> str:
    """Its MIME type: by its name, and where that says nothing by its first bytes."""
    guessed, packed = mimetypes.guess_type(path, strict=False)
    if packed:
        return f"application/{packed}" if not (guessed or "").endswith("tar") else "application/x-tar"
    try:
        with open(path, "rb") as file:
            first = file.read(PEEK_BYTES)
    except OSError:
        return guessed or UNKNOWN
    for magic, kind in _MAGIC:
        if first.startswith(magic) and not guessed:
            return kind
    is_text = b"\0" not in first
    if guessed is None or (guessed.startswith("text/") and not is_text):
        return PLAIN if is_text else UNKNOWN
    return guessed


def _has_screen() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _open_on_screen(what: str, kind: str) -> int | None:
    """The exit code of the program for this kind; None if there is none."""
    directories = desktop.application_directories()
    for name in [*default_programs(kind, directories), *_programs_for(kind, directories)]:
        entry = desktop.find_entry(name, directories)
        if entry is not None and entry.values.get("Exec"):
            return desktop.run(entry, [what])
    if shutil.which("xdg-open"):
        return subprocess.run(["xdg-open", what], check=False).returncode
    return None


def default_programs(kind: str, directories: list[str]) -> list[str]:
    """What mimeapps.list of the user, then of the system, names for the kind."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    found: list[str] = []
    for directory in (config, "/etc/xdg", *directories):
        parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
        try:
            parser.read(os.path.join(directory, "mimeapps.list"), encoding="utf-8")
            found += parser.get("Default Applications", kind, fallback="").split(";")
        except (configparser.Error, UnicodeDecodeError):
            continue
    return [name for name in found if name]


def _programs_for(kind: str, directories: list[str]) -> list[str]:
    return [entry.name for entry in desktop.find_entries(directories) if kind in entry.kinds]


def _open_by_table(what: str, kind: str, tables: tuple[str, ...]) -> int:
    for pattern, words in read_tables(tables):
        if fnmatch.fnmatchcase(kind, pattern) and (words[0] == "show-text" or shutil.which(words[0])):
            command = [what if word == "%f" else word for word in words]
            if "%f" not in words:
                command.append(what)
            return _show(command)
    complain(f"qubes-open: nothing here can show {what!a} ({kind})")
    return NOTHING_SHOWS


def read_tables(directories: tuple[str, ...]) -> list[tuple[str, list[str]]]:
    """Patterns and commands, in the order in which they are tried."""
    rows = []
    for directory in directories:
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            if not name.endswith(".conf"):
                continue
            with open(f"{directory}/{name}", encoding="utf-8", errors="replace") as file:
                for line in file:
                    words = line.split("#")[0].split()
                    if len(words) >= 2:
                        rows.append((words[0], words[1:]))
    return rows


def _show(command: list[str]) -> int:
    """The command's output: page by page on a terminal, else as text without anything that a terminal would obey."""
    if command[0] == "show-text":
        with open(command[-1], "rb") as file:
            data, code = file.read(MAX_TEXT_BYTES + 1), 0
    else:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            data = process.stdout.read(MAX_TEXT_BYTES + 1)
            if len(data) > MAX_TEXT_BYTES:
                process.kill()
        code = max(0, process.returncode)
    text = harmless(data[:MAX_TEXT_BYTES].decode("utf-8", "replace"))
    if len(data) > MAX_TEXT_BYTES:
        text += f"\n[only the first {MAX_TEXT_BYTES >> 20} MiB are shown]\n"
    if os.isatty(0) and os.isatty(1) and shutil.which("less"):
        less = ["less", "--no-init", "--quit-if-one-screen"]
        subprocess.run(less, input=text.encode(), env={**os.environ, "LESSSECURE": "1"}, check=False)
    else:
        sys.stdout.write(text if text.endswith("\n") or not text else text + "\n")
        sys.stdout.flush()
    return code


def harmless(text: str) -> str:
    """With everything that a terminal could obey made visible: controls, and marks that change the direction."""
    text = text.replace("\r\n", "\n").replace("\f", "\n")
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else "\N{MIDDLE DOT}" for c in text)
