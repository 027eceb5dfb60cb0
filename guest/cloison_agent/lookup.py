"""Which program, socket or address serves a call, and how it wants to be called (the rules are qrexec's).

In: a service name as ``SERVICE+ARGUMENT``. Out: one of the ``Target`` types and a ``ServiceConfig``, or LookupProblem.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass

SERVICE_PATH = ("/run/qubes-rpc", "/usr/local/etc/qubes-rpc", "/etc/qubes-rpc")
CONFIG_PATH = ("/run/qubes/rpc-config", "/usr/local/etc/qubes/rpc-config", "/etc/qubes/rpc-config")
MAX_FILE_NAME = 255
TROUBLE, REFUSED, NOT_FOUND = 125, 126, 127
SETTLED_NS = 100_000_000
"""A directory that changed less than this ago may change again without a newer time (clocks of file systems tick)."""


class LookupProblem(Exception):
    """The call cannot be served; ``exit_code`` is what its caller sees."""

    def __init__(self, message: str, exit_code: int = TROUBLE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Program:
    path: str


@dataclass(frozen=True)
class UnixSocket:
    path: str


@dataclass(frozen=True)
class TcpAddress:
    host: str
    port: int


Target = Program | UnixSocket | TcpAddress


@dataclass(frozen=True)
class ServiceConfig:
    wait_for_session: bool = False
    skip_service_descriptor: bool = False
    exit_on_client_eof: bool = False
    exit_on_service_eof: bool = False
    force_user: str = ""


def _directories(variable: str, default: tuple[str, ...]) -> tuple[str, ...]:
    value = os.environ.get(variable)
    return tuple(value.split(":")) if value else default


def _find_file(service: str, directories: tuple[str, ...]) -> tuple[str, os.stat_result] | None:
    """The file for SERVICE+ARG, else for SERVICE, in the first directory that has it (lstat result with it)."""
    full = service if "+" in service else service + "+"
    name = full.partition("+")[0]
    if len(name) > MAX_FILE_NAME:
        raise LookupProblem("service name is too long", NOT_FOUND)
    listings = [(directory, names) for directory in directories if (names := _names_in(directory))]
    for wanted in (full, name):
        for directory, names in listings:
            if wanted not in names:
                continue
            path = f"{directory}/{wanted}"
            try:
                found = os.lstat(path)
                if stat.S_ISLNK(found.st_mode) and not _is_tcp_link(path):
                    found = os.stat(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise LookupProblem(f"{path}: {error.strerror}") from None
            return path, found
    return None


_listings: dict[str, tuple[tuple[int, int, int], frozenset[str]]] = {}
"""Per directory: which directory it was when, and what was in it. Absent names cost most of a lookup otherwise."""


def _names_in(directory: str) -> frozenset[str]:
    """The names in a directory, as long as it has not changed; none if there is no such directory."""
    if not os.access(directory, os.F_OK):
        return frozenset()
    try:
        status = os.stat(directory)
        key = status.st_dev, status.st_ino, status.st_mtime_ns
        known = _listings.get(directory)
        if known is not None and known[0] == key:
            return known[1]
        names = frozenset(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise LookupProblem(f"{directory}: {error.strerror}") from None
    if time.time_ns() - status.st_mtime_ns > SETTLED_NS:
        _listings[directory] = key, names
    return names


def _is_tcp_link(path: str) -> bool:
    target = os.readlink(path)
    return target == "/dev/tcp" or target.startswith("/dev/tcp/")


def find_service(service: str) -> Target:
    """What serves the call; raises LookupProblem (127 when there is no such service)."""
    found = _find_file(service, _directories("QREXEC_SERVICE_PATH", SERVICE_PATH))
    if found is None:
        raise LookupProblem(f"{service.partition('+')[0][:200]}: no such service in this qube", NOT_FOUND)
    path, status = found
    if stat.S_ISLNK(status.st_mode):
        return parse_tcp(os.readlink(path), service.partition("+")[2])
    if stat.S_ISSOCK(status.st_mode):
        return UnixSocket(path)
    if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111:
        return Program(path)
    raise LookupProblem(f"{path} is neither a program nor a socket nor a link to /dev/tcp")


def parse_tcp(link: str, untrusted_argument: str) -> TcpAddress:
    """The address that a link to ``/dev/tcp[/HOST[/PORT]]`` and the call's argument mean together."""
    parts = link.split("/")[3:]
    if len(parts) == 2:
        host, port = parts
        if untrusted_argument:
            raise LookupProblem("this service takes no argument")
    elif len(parts) == 1:
        host, port = parts[0], untrusted_argument
    elif not parts:
        if "_" in untrusted_argument or "+" not in untrusted_argument:
            raise LookupProblem("the argument is not HOST+PORT")
        host, _, port = untrusted_argument.rpartition("+")
        host = host.replace("+", ":")
    else:
        raise LookupProblem(f"{link} is not /dev/tcp/HOST/PORT")
    if not re.fullmatch(r"[1-9][0-9]{0,4}", port, re.ASCII) or int(port) > 65535:
        raise LookupProblem("illegal port")
    try:
        return TcpAddress(str(ipaddress.ip_address(host)), int(port))
    except ValueError:
        raise LookupProblem("only numeric hosts") from None


_LINE = re.compile(r"([A-Za-z][A-Za-z0-9._-]*)[ \t]*=[ \t]*('[^']*'|true|false|0|[1-9][0-9]*)[ \t]*(?:#.*)?", re.ASCII)
_BOOLEAN_KEYS = {"skip-service-descriptor", "exit-on-client-eof", "exit-on-service-eof"}


def parse_config(text: str) -> ServiceConfig:
    """A service's configuration file; anything odd makes the call fail (LookupProblem)."""
    values: dict[str, bool | int | str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip(" \t") or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise LookupProblem(f"line {number} of the service's configuration cannot be read")
        key, raw = match.groups()
        if key in values:
            raise LookupProblem(f"line {number} of the service's configuration repeats {key}")
        values[key] = raw[1:-1] if raw[0] == "'" else raw == "true" if raw in ("true", "false") else int(raw)
    return _typed_config(values)


def _typed_config(values: Mapping[str, bool | int | str]) -> ServiceConfig:
    typed: dict[str, bool | str] = {}
    for key, value in values.items():
        if key == "wait-for-session" and (isinstance(value, bool) or value in (0, 1)):
            typed["wait_for_session"] = bool(value)
        elif key in _BOOLEAN_KEYS and isinstance(value, bool):
            typed[key.replace("-", "_")] = value
        elif key == "force-user" and isinstance(value, str):
            typed["force_user"] = value
        elif key in _BOOLEAN_KEYS or key in ("wait-for-session", "force-user"):
            raise LookupProblem(f"{key} has a value of the wrong type")
    if "force_user" in typed and any(value is True for key, value in typed.items() if key != "wait_for_session"):
        raise LookupProblem("force-user does not go with a socket's settings")
    return ServiceConfig(**typed)  # type: ignore[arg-type]


def find_config(service: str) -> ServiceConfig:
    found = _find_file(service, _directories("QUBES_RPC_CONFIG_PATH", CONFIG_PATH))
    if found is None:
        return ServiceConfig()
    try:
        with open(found[0], encoding="utf-8") as file:
            return parse_config(file.read(65536))
    except (OSError, ValueError) as error:
        raise LookupProblem(f"{found[0]}: {error}") from None
