"""The programs of this qube as its .desktop files tell them: found, read, started.

In: application directories, names. Out: entries, running programs. May import: the standard library.

Half of such a file may come from the user's own home, so nothing here trusts it more than the user: values are bounded,
and a line that cannot be read is as if it were not there.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cloison_tools.client import complain

SUFFIX = ".desktop"
MAX_FILE_BYTES = 1 << 20
MAX_ENTRIES = 4096
SYSTEM_DIRECTORIES = "/usr/local/share:/usr/share:/var/lib/flatpak/exports/share:/var/lib/snapd/desktop"
GROUP = "[Desktop Entry]"
SERVICES = "/run/qubes-service"
ELSEWHERE = "/usr/lib/cloison/open-elsewhere"
"""Goes before PATH where a program shall open files in disposables; its xdg-open does."""


@dataclass(frozen=True)
class Entry:
    """``name``: the path below applications/ with ``-`` for ``/`` (its desktop file id)."""

    name: str
    path: str
    values: Mapping[str, str]

    def is_true(self, key: str) -> bool:
        return self.values.get(key, "").lower() == "true"

    @property
    def is_shown(self) -> bool:
        """A program that belongs into a menu."""
        if self.values.get("Type", "Application") != "Application" or not self.values.get("Exec"):
            return False
        if self.is_true("NoDisplay") or self.is_true("Hidden"):
            return False
        return "Screensaver" not in self.values.get("Categories", "").split(";")

    @property
    def kinds(self) -> list[str]:
        """MIME types that it opens."""
        return [kind for kind in self.values.get("MimeType", "").split(";") if kind]


def application_directories(environment: Mapping[str, str] | None = None) -> list[str]:
    """The user's own first, then the system's; the first that has an entry decides it."""
    variables = os.environ if environment is None else environment
    home = variables.get("XDG_DATA_HOME") or os.path.join(variables.get("HOME", "/root"), ".local/share")
    system = variables.get("XDG_DATA_DIRS") or SYSTEM_DIRECTORIES
    places = [home, *system.split(":"), *SYSTEM_DIRECTORIES.split(":")]
    return [os.path.join(place, "applications") for place in dict.fromkeys(place for place in places if place)]


def parse_entry(text: str) -> dict[str, str]:
    """Keys and values of the main group, with the escapes of values resolved; translations are left out."""
    values: dict[str, str] = {}
    inside = False
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            inside = line == GROUP
        elif inside and not line.startswith("#"):
            key, sign, value = line.partition("=")
            key = key.strip()
            if sign and key and "[" not in key and key not in values:
                values[key] = _unescaped(value.strip())
    return values


def _unescaped(value: str) -> str:
    if "\\" not in value:
        return value
    pieces = {"\\s": " ", "\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}
    out, position = [], 0
    while position < len(value):
        pair = value[position : position + 2]
        out.append(pieces.get(pair, value[position]))
        position += 2 if pair in pieces else 1
    return "".join(out)


def read_entry(path: str, name: str) -> Entry | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return Entry(name, path, parse_entry(file.read(MAX_FILE_BYTES)))
    except OSError:
        return None


def find_entries(directories: Sequence[str]) -> Iterator[Entry]:
    """All entries, each name once, as the first directory that has it tells."""
    seen: set[str] = set()
    for top in directories:
        for directory, inner, files in os.walk(top):
            inner.sort()
            for file in sorted(files):
                path = os.path.join(directory, file)
                name = os.path.relpath(path, top).replace("/", "-")
                if file.endswith(SUFFIX) and name not in seen and len(seen) < MAX_ENTRIES:
                    seen.add(name)
                    if (entry := read_entry(path, name)) is not None:
                        yield entry


def find_entry(name: str, directories: Sequence[str]) -> Entry | None:
    wanted = name if name.endswith(SUFFIX) else name + SUFFIX
    return next((entry for entry in find_entries(directories) if entry.name == wanted), None)


def command_of(entry: Entry, arguments: Sequence[str]) -> list[list[str]]:
    """The command lines that open the arguments: one for all, or one each where the program takes one at a time.

    Raises ValueError for an Exec line that is no command.
    """
    words = shlex.split(entry.values.get("Exec", ""))
    if not words:
        raise ValueError(f"{entry.path} has no command")
    takes_one = any(word in ("%f", "%u") for word in words)
    groups = [[argument] for argument in arguments] if takes_one and arguments else [list(arguments)]
    return [[out for word in words for out in _expand(word, entry, group)] for group in groups]


def _expand(word: str, entry: Entry, arguments: Sequence[str]) -> list[str]:
    if word in ("%f", "%u", "%F", "%U"):
        return list(arguments)
    if word == "%i":
        icon = entry.values.get("Icon", "")
        return ["--icon", icon] if icon else []
    texts = {"%c": entry.values.get("Name", entry.name), "%k": entry.path, "%%": "%"}
    if word in texts:
        return [texts[word]]
    out, position = [], 0
    while position < len(word):
        pair = word[position : position + 2]
        if pair[0] == "%" and len(pair) == 2:
            out.append(texts.get(pair, ""))  # a code that is deprecated, or belongs alone
            position += 2
        else:
            out.append(word[position])
            position += 1
    return ["".join(out)]


def run(entry: Entry, arguments: Sequence[str]) -> int:
    """Start the program and wait for it; its exit code (127: there is none)."""
    code = 0
    for words in command_of(entry, arguments):
        if entry.is_true("Terminal") and not os.isatty(1) and (terminal := _find_terminal()):
            words = [terminal, "-e", *words]
        try:
            code = subprocess.run(words, check=False, cwd=entry.values.get("Path") or None).returncode or code
        except OSError as error:
            complain(f"{words[0]}: {error.strerror}")
            return 127
    return code if code >= 0 else 128 - code


def _find_terminal() -> str:
    """A program that gives others a window to write into; there is none without a screen."""
    import shutil

    if not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        return ""
    return next((found for name in ("x-terminal-emulator", "xterm") if (found := shutil.which(name))), "")


# Programs


def desktop_run(arguments: list[str]) -> int:
    """qubes-desktop-run FILE.desktop [ARGUMENTS...]"""
    if not arguments or arguments[0].startswith("-"):
        complain("usage: qubes-desktop-run FILE.desktop [FILE|URL...]")
        return 1
    path = arguments[0]
    entry = read_entry(path, os.path.basename(path)) if "/" in path else find_entry(path, application_directories())
    return _start(entry, path, arguments[1:])


def start_app(arguments: list[str]) -> int:
    """qubes.StartApp+APP: the argument is the entry's name without its suffix."""
    wanted = arguments[0] if arguments else ""
    if not wanted or "/" in wanted:
        complain("which application? The service is qubes.StartApp+NAME")
        return 1
    if os.path.exists(f"{SERVICES}/app-dispvm.{wanted}"):
        os.environ["PATH"] = f"{ELSEWHERE}:{os.environ.get('PATH', os.defpath)}"
    entry = find_entry(wanted, application_directories())
    if entry is None and "_" in wanted:  # what cannot stand in a service's argument comes as _
        entry = next((e for e in find_entries(application_directories()) if _as_argument(e.name) == wanted), None)
    return _start(entry, wanted, [])


def _as_argument(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "_.-+@:") else "_" for c in name.removesuffix(SUFFIX))


def _start(entry: Entry | None, wanted: str, arguments: Sequence[str]) -> int:
    if entry is None:
        complain(f"there is no application {wanted!a}")
        return 127
    try:
        return run(entry, arguments)
    except ValueError as error:
        complain(str(error))
        return 1


def list_apps(arguments: list[str]) -> int:
    """qubes.GetAppmenus: lines ``FILE.desktop:KEY=VALUE`` of every program that belongs into a menu."""
    sys.stdout.writelines(menu_lines(application_directories()))
    return 0


def menu_lines(directories: Sequence[str]) -> Iterator[str]:
    for entry in find_entries(directories):
        if entry.is_shown:
            values = {**entry.values, "Exec": f"qubes-desktop-run {entry.name}"}
            values.pop("TryExec", None)
            for key, value in values.items():
                if value.isprintable():
                    yield f"{entry.name}:{key}={value}\n"
