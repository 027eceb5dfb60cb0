"""The updates proxy: package servers and nothing else, asked by a real client; and how an update tells its progress."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloison_tools import updatesproxy, updating

GUEST = Path(updatesproxy.__file__).parents[1]
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from cloison_tools import updatesproxy as u; "
    "u.SWITCH = sys.argv[2]; lists = u.read_lists; u.read_lists = lambda: lists((sys.argv[3],)); sys.exit(u.serve([]))"
)


class _Archive(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, dict[str, str]]]

    def do_GET(self) -> None:
        type(self).seen.append((self.command, self.path, dict(self.headers)))
        body = b"x" * 200_000 if self.path == "/big" else b"Packages of " + self.path.encode()
        self.send_response(304 if "If-Modified-Since" in self.headers else 200)
        if self.path == "/pieces":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
            return
        self.send_header("Set-Cookie", "a=b")
        self.send_header("Content-Length", "0" if "If-Modified-Since" in self.headers else str(len(body)))
        self.end_headers()
        if self.command == "GET" and "If-Modified-Since" not in self.headers:
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def archive() -> Iterator[http.server.ThreadingHTTPServer]:
    _Archive.seen = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Archive)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def proxy(tmp_path: Path, archive: Any) -> Any:
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "mine").write_text(f"# mine\n127.0.0.1:{archive.server_port}\n*.debian.example\nlocalhost\n")
    (tmp_path / "switch").touch()

    def ask(text: str, switch: str = "switch") -> bytes:
        done = subprocess.run([sys.executable, "-IS", "-c", PROGRAM, str(GUEST), str(tmp_path / switch), str(lists)],
                              input=text.replace("\n", "\r\n").encode(), capture_output=True, timeout=30)  # fmt: skip
        assert b"Traceback" not in done.stderr, done.stderr
        return done.stdout

    return ask


def test_packages_are_fetched_one_after_the_other(proxy: Any, archive: Any) -> None:
    base = f"http://127.0.0.1:{archive.server_port}"
    said = proxy(f"GET {base}/one?a=b HTTP/1.1\nHost: x\nCookie: secret\nRange: bytes=0-\n\n"
                 f"GET {base}/pieces HTTP/1.1\n\nGET {base}/big HTTP/1.1\n\nHEAD {base}/two HTTP/1.1\n\n"
                 f"GET {base}/three HTTP/1.1\nIf-Modified-Since: now\n\n")  # fmt: skip
    assert said.count(b"HTTP/1.1 200") == 4 and said.count(b"HTTP/1.1 304") == 1
    assert b"Packages of /one?a=b" in said and b"6\r\nonetwo\r\n0\r\n\r\n" in said and b"x" * 200_000 in said
    assert [path for _, path, _ in _Archive.seen] == ["/one?a=b", "/pieces", "/big", "/two", "/three"]
    headers = {key.title(): value for key, value in _Archive.seen[0][2].items()}
    assert "Cookie" not in headers and headers["Range"] == "bytes=0-"
    assert headers["Host"] == f"127.0.0.1:{archive.server_port}"


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        ("GET http://evil.example/ HTTP/1.1\n\n", 403), ("GET http://debian.example/ HTTP/1.1\n\n", 403),
        ("GET http://debian.example.evil.example/ HTTP/1.1\n\n", 403),
        ("GET http://deb.debian.example:8080/ HTTP/1.1\n\n", 403),
        ("GET http://user@deb.debian.example/ HTTP/1.1\n\n", 403),
        ("GET http://localhost/ HTTP/1.1\n\n", 502),  # named in a list, but inside
        ("GET https://deb.debian.example/ HTTP/1.1\n\n", 403), ("GET /etc/passwd HTTP/1.1\n\n", 403),
        ("GET ftp://deb.debian.example/ HTTP/1.1\n\n", 403), ("POST http://PLACE/ HTTP/1.1\n\n", 403),
        ("PUT http://PLACE/ HTTP/1.1\n\n", 403), ("GET http://PLACE/ HTTP/1.1\nContent-Length: 5\n\nhello", 403),
        ("CONNECT deb.debian.example:22 HTTP/1.1\n\n", 403), ("CONNECT evil.example:443 HTTP/1.1\n\n", 403),
        ("CONNECT PLACE HTTP/1.1\n\n", 403), ("CONNECT 10.137.0.5:443 HTTP/1.1\n\n", 403),
        ("CONNECT localhost:443 HTTP/1.1\n\n", 502), ("nonsense\n\n", 400),
        ("GET http://[x/ HTTP/1.1\n\n", 502), ("GET http://a..debian.example/ HTTP/1.1\n\n", 502),
        ("GET http://PLACE/ SSH-2\n\n", 400),
        ("GET http://PLACE/ HTTP/1.1\nno header\n\n", 400), ("GET http://PLACE/ HTTP/1.1\n\x00: x\n\n", 400),
        ("GET http://deb.debian.example:99999/ HTTP/1.1\n\n", 400), ("GET http://PLACE/\u00e4 HTTP/1.1\n\n", 400),
        ("GET http://PLACE/" + "a" * 9000 + " HTTP/1.1\n\n", 400),
        ("GET http://PLACE/ HTTP/1.1\n" + "a: b\n" * 99 + "\n", 400),
    ],
)  # fmt: skip
def test_whatever_is_no_package_is_refused(proxy: Any, archive: Any, request_text: str, status: int) -> None:
    said = proxy(request_text.replace("PLACE", f"127.0.0.1:{archive.server_port}"))
    assert said.startswith(b"HTTP/1.1 %d " % status), said[:200]
    assert _Archive.seen == []


def test_a_qube_that_is_no_proxy_says_nothing(proxy: Any, archive: Any) -> None:
    assert proxy(f"GET http://127.0.0.1:{archive.server_port}/ HTTP/1.1\n\n", switch="absent") == b""


def test_apts_progress_becomes_steps() -> None:
    assert updating.read_status("dlstatus:1:50.0:Retrieving file 1 of 2\n") == "step 25 Retrieving file 1 of 2"
    assert updating.read_status("pmstatus:bash:40.5:Unpacking bash: x\n") == "step 70 Unpacking bash: x"
    for noise in ("", "media-change:x", "pmstatus:a:b:c", "pmerror:a:1:b", "dlstatus:1"):
        assert updating.read_status(noise) == ""
    assert updating.differences({"a": "1", "b": "1", "c": "1"}, {"a": "2", "c": "1", "d": "1"}) == [
        "a 1 2", "b 1 -", "d - 1",
    ]  # fmt: skip
    assert updating.count_planned("Inst bash [1] (2)\nConf bash (2)\nInst d (1)\n") == 2
