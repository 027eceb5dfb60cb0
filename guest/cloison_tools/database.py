"""qubesdb-read, -list and -multiread: what dom0 told this qube, under the paths by which Qubes's scripts ask for it.

In: paths. Out: values on standard output; exit code 1 for what is not there. There is no database: the agent wrote down
what it was told, and changes of it that programs of this qube make are theirs alone (qubesdb-write).
"""

from __future__ import annotations

import json
import os

from cloison_tools.client import complain, write_all

TOLD = "/run/cloison/told"
WRITTEN = "/run/cloison/written"
_KINDS = {"TemplateVM": "TemplateVM", "StandaloneVM": "StandaloneVM", "AppVM": "AppVM", "DispVM": "DispVM"}
_PERSISTENCE = {"TemplateVM": "full", "StandaloneVM": "full", "AppVM": "rw-only", "DispVM": "none"}


def entries(told: dict[str, object], written: dict[str, str]) -> dict[str, str]:
    """Every path and its value."""
    klass = str(told.get("klass", ""))
    found = {
        "/name": told.get("name"),
        "/type": klass,
        "/qubes-vm-type": "ProxyVM" if told.get("provides_network") else _KINDS.get(klass, klass),
        "/qubes-vm-persistence": _PERSISTENCE.get(klass, ""),
        "/qubes-vm-updateable": str(klass in ("TemplateVM", "StandaloneVM")),
        "/qubes-base-template": told.get("template"),
        "/qubes-timezone": told.get("timezone"),
        "/qubes-gui-enabled": "False",
        "/qubes-debug-mode": "0",
        "/default-user": told.get("default_user"),
    }
    values = {path: str(value) for path, value in found.items() if value}
    for prefix, key in (("/qubes-service/", "services"), ("/vm-config/", "vm_config"), ("/", "database")):
        group = told.get(key)
        for name, value in group.items() if isinstance(group, dict) else ():
            values[prefix + str(name)] = str(int(value)) if isinstance(value, bool) else str(value)
    return values | written


def _read_json(path: str) -> dict[str, object]:
    try:
        with open(path) as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _all() -> dict[str, str]:
    return entries(_read_json(TOLD), {path: str(value) for path, value in _read_json(WRITTEN).items()})


def _words(arguments: list[str], usage: str) -> tuple[set[str], list[str]]:
    options = {word for word in arguments if word.startswith("-")}
    words = [word for word in arguments if not word.startswith("-")]
    if not words or options - {"-r", "--raw", "-f", "--fullpath", "-q", "--quiet"}:
        complain(f"usage: {usage}")
        raise SystemExit(2)
    return options, words


def read(arguments: list[str]) -> int:
    _, paths = _words(arguments, "qubesdb-read PATH...")
    known, code = _all(), 0
    for path in paths:
        if path in known:
            write_all(1, f"{known[path]}\n".encode())
        else:
            code = 1
    return code


def list_paths(arguments: list[str]) -> int:
    options, prefixes = _words(arguments, "qubesdb-list [-f] PREFIX...")
    for prefix in prefixes:
        for path in sorted(_all()):
            if path.startswith(prefix):
                write_all(1, f"{path if options & {'-f', '--fullpath'} else path[len(prefix) :]}\n".encode())
    return 0


def multiread(arguments: list[str]) -> int:
    options, prefixes = _words(arguments, "qubesdb-multiread [-f] PREFIX...")
    for prefix in prefixes:
        for path, value in sorted(_all().items()):
            if path.startswith(prefix):
                shown = path if options & {"-f", "--fullpath"} else path[len(prefix) :]
                write_all(1, f"{shown} = {value}\n".encode())
    return 0


def write(arguments: list[str]) -> int:
    _, words = _words(arguments, "qubesdb-write PATH VALUE [PATH VALUE...]")
    if len(words) % 2:
        complain("usage: qubesdb-write PATH VALUE [PATH VALUE...]")
        return 2
    return _change(dict(zip(words[::2], words[1::2], strict=True)), [])


def remove(arguments: list[str]) -> int:
    _, paths = _words(arguments, "qubesdb-rm PATH...")
    return _change({}, paths)


def _change(added: dict[str, str], removed: list[str]) -> int:
    known = {**_read_json(WRITTEN), **added}
    for path in removed:
        known.pop(path, None)
    try:
        with open(f"{WRITTEN}.new", "w") as file:
            json.dump(known, file)
        os.rename(f"{WRITTEN}.new", WRITTEN)
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}")
        return 1
    return 0
