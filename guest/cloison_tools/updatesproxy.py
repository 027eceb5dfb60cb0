"""qubes.UpdatesProxy: one connection of a package manager to package servers, and to nobody else.

In: an HTTP proxy's requests on standard input (hostile: a template may be anything). Out: answers of the servers that
the lists of this qube name. Runs as an ordinary user, one process for each connection, and ends with it.

Requests: GET and HEAD of ``http://HOST[:PORT]/...``, and CONNECT to port 443. A host is allowed by a line of a list:
``HOST``, ``*.DOMAIN`` or ``HOST:PORT``. Names must lead to addresses of the world outside, unless a line of the user's
own list names that very address.
"""

import http.client
import ipaddress
import os
import re
import select
import socket
import sys
from urllib.parse import urlsplit

SWITCH = "/run/qubes-service/qubes-updates-proxy"
LISTS = ("/usr/lib/cloison/updates-proxy.d", "/etc/qubes/updates-proxy.d", "/rw/config/updates-proxy.d")
MAX_LINE, MAX_HEADERS = 8192, 64
TIMEOUT_S = 60
PIECE_BYTES = 65536
FORWARDED = frozenset(
    {"accept", "range", "if-range", "if-modified-since", "if-none-match", "cache-control", "user-agent"}
)
_DROPPED = frozenset({"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "content-length"})
_HOST = re.compile(r"[a-z0-9.-]{1,253}", re.ASCII)


class Refused(Exception):
    """What the client is answered: a status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def serve(arguments: list[str]) -> int:
    """The service's entry."""
    if not os.path.exists(SWITCH):
        print("this qube is no updates proxy (service qubes-updates-proxy)", file=sys.stderr)
        return 1
    allowed = read_lists()
    upstream = Upstream()
    try:
        while (request := read_request(sys.stdin.buffer)) is not None:
            if not answer(request, allowed, upstream):
                break
    except (Refused, OSError, http.client.HTTPException, ValueError) as error:  # ValueError: addresses that are none
        complain(error)
    finally:
        upstream.close()
    return 0


def read_lists(directories: tuple[str, ...] = LISTS) -> frozenset[str]:
    """The lines of all lists, without comments."""
    lines: set[str] = set()
    for directory in directories:
        for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
            with open(f"{directory}/{name}", encoding="ascii", errors="replace") as file:
                lines.update(line.partition("#")[0].strip().lower() for line in file)
    return frozenset(lines - {""})


def read_request(stream) -> tuple[str, str, dict[str, str]] | None:  # type: ignore[no-untyped-def]
    """Method, target and headers; None: the client has gone. Refused if it makes no sense."""
    line = stream.readline(MAX_LINE + 1)
    if not line.strip():
        return None
    words = line.decode("ascii", "replace").split()
    if len(line) > MAX_LINE or len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise Refused(400, "this is no request")
    headers: dict[str, str] = {}
    count = 0
    while (line := stream.readline(MAX_LINE + 1)).strip():
        count += 1
        key, colon, value = line.decode("latin-1").partition(":")
        if len(line) > MAX_LINE or not colon or count > MAX_HEADERS or not re.fullmatch(r"[\w-]+", key):
            raise Refused(400, "this is no header")
        headers[key.lower()] = value.strip()
    return words[0], words[1], headers


def answer(request: tuple[str, str, dict[str, str]], allowed: frozenset[str], upstream: "Upstream") -> bool:
    """Carry one request out; False: nothing more can follow on this connection."""
    method, target, headers = request
    if method == "CONNECT":
        host, _, text = target.lower().rpartition(":")
        if text != "443":
            raise Refused(403, "only port 443 may be connected to")
        tunnel(reach(check(host, 443, allowed), allowed))
        return False
    parts = urlsplit(target)
    if method not in ("GET", "HEAD") or parts.scheme != "http" or parts.username or "content-length" in headers:
        raise Refused(403, "only GET and HEAD of http addresses, and CONNECT")
    try:
        port = parts.port or 80
    except ValueError:
        raise Refused(400, "this is no port") from None
    where = check((parts.hostname or "").lower(), port, allowed)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not re.fullmatch(r"[!-~]+", path):
        raise Refused(400, "this is no path")
    wanted = {key: value for key, value in headers.items() if key in FORWARDED}
    response = upstream.ask(where, allowed, method, path, wanted)
    return relay(response, method) and headers.get("connection", "").lower() != "close"


def check(host: str, port: int, allowed: frozenset[str]) -> tuple[str, int]:
    """The place, if a list names it."""
    parents = host.split(".")
    named = {host, *("*." + ".".join(parents[n:]) for n in range(1, len(parents)))} if port in (80, 443) else set()
    if not _HOST.fullmatch(host) or not (named | {f"{host}:{port}"}) & allowed:
        raise Refused(403, f"{host[:80]}:{port} is no package server known here")
    return host, port


def reach(where: tuple[str, int], allowed: frozenset[str]) -> socket.socket:
    """A connection to it; a name may lead to the world outside only."""
    host, port = where
    trouble = "no address"
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        ip = ipaddress.ip_address(address[0])
        if not (ip.is_global and not ip.is_multicast) and f"{ip}:{port}" not in allowed:
            trouble = f"{ip} is inside"
            continue
        connection = socket.socket(family)
        connection.settimeout(TIMEOUT_S)
        try:
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            trouble = error.strerror or str(error)
    raise Refused(502, f"{host}: {trouble}")


class Upstream:
    """The server spoken to last: a package manager asks the same one again and again."""

    def __init__(self) -> None:
        self._where: tuple[str, int] | None = None
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, where: tuple[str, int], allowed: frozenset[str], method: str, path: str,
            headers: dict[str, str]) -> http.client.HTTPResponse:  # fmt: skip
        for is_last in (False, True):
            is_used = self._where == where and self._connection is not None
            if not is_used:
                self.close()
                self._connection = http.client.HTTPConnection(*where)
                self._connection.sock = reach(where, allowed)
                self._where = where
            assert self._connection is not None
            try:
                self._connection.request(method, path, headers={"Accept-Encoding": "identity", **headers})
                return self._connection.getresponse()
            except (OSError, http.client.HTTPException):
                self.close()
                if is_last or not is_used:  # one that was kept open may have been closed meanwhile
                    raise
        raise AssertionError

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._where = None


def relay(response: http.client.HTTPResponse, method: str) -> bool:
    """Pass the answer on; True: its end was said, so another may follow."""
    out = sys.stdout.buffer
    length = response.length if method != "HEAD" else 0
    lines = [f"HTTP/1.1 {response.status} {response.reason}"]
    lines += [f"{key}: {value}" for key, value in response.getheaders() if key.lower() not in _DROPPED]
    if method == "HEAD":
        lines += [f"Content-Length: {value}" for value in [response.getheader("Content-Length")] if value]
    elif length is not None:
        lines.append(f"Content-Length: {length}")
    else:
        lines.append("Transfer-Encoding: chunked")
    out.write("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))
    while method != "HEAD" and (piece := response.read(PIECE_BYTES)):
        out.write(piece if length is not None else b"%x\r\n%s\r\n" % (len(piece), piece))
    if length is None:
        out.write(b"0\r\n\r\n")
    out.flush()
    response.close()
    return True


def tunnel(server: socket.socket) -> None:
    """Bytes both ways until one end is done."""
    os.write(1, b"HTTP/1.1 200 Connection established\r\n\r\n")
    server.settimeout(None)
    while True:
        ready, _, _ = select.select([0, server.fileno()], [], [], TIMEOUT_S)
        if not ready:
            return
        for source in ready:
            piece = os.read(0, PIECE_BYTES) if source == 0 else server.recv(PIECE_BYTES)
            if not piece:
                return
            if source == 0:
                server.sendall(piece)
            else:
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()


def complain(error: Exception) -> None:
    """An answer that package managers show to people."""
    status = error.status if isinstance(error, Refused) else 502
    why = "".join(c if " " <= c <= "~" else "?" for c in str(error))[:300]
    print(f"updates proxy: {why}", file=sys.stderr)
    body = f"{why}\n"
    head = f"HTTP/1.1 {status} {why}\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n"
    head += "Connection: close\r\n\r\n"
    try:
        sys.stdout.buffer.write((head + body).encode("ascii"))
        sys.stdout.buffer.flush()
    except OSError:
        pass
