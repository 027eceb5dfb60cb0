"""Calls between two qubes as qrexec has them, in one table; and what happens when an end of a call dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.live.conftest import wait_until

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

HERE, THERE = "calls-here", "calls-there"
POLICY = f"""
t.Root     *  {HERE}  {THERE}  allow  user=root
t.Nobody   *  {HERE}  {THERE}  allow  user=no-such-user
t.Barred   *  {HERE}  {THERE}  allow  user=barred
t.Refused  *  {HERE}  {THERE}  deny
qubes.ConnectTCP  *  {HERE}  {THERE}  allow
qubes.ConnectTCP  *  {HERE}  @default  allow  target={THERE}
*          *  {HERE}  {THERE}  allow
"""

SET_UP = r"""
set -e
run=/run/qubes-rpc local=/usr/local/etc/qubes-rpc etc=/etc/qubes-rpc config=/usr/local/etc/qubes/rpc-config
mkdir -p $run $local $config
service() { { echo '#!/bin/sh'; cat; } > "$1"; chmod 755 "$1"; }
for place in run local etc; do echo "echo $place" | service $(eval echo \$$place)/t.Where; done
echo 'echo local' | service $local/t.Second; echo 'echo etc' | service $etc/t.Second
echo 'echo "etc with $1"' | service $etc/t.Where+special
echo 'echo "empty argument, $# words"' | service $etc/t.Where+
echo 'exit $1' | service $etc/t.Exit
echo 'kill -$1 $$' | service $etc/t.Kill
echo 'id -un; umask; ulimit -n; echo $FROM_PAM' | service $etc/t.Who
for name in Root Nobody Barred Forced Refused; do cp $etc/t.Who $etc/t.$name; done
echo 'env | grep -a "^QREXEC_[RS]" | grep -v SERVICE_PATH | sort
echo "$# $1"; pwd; echo "$HOME $USER"' | service $etc/t.Env
echo 'echo out; echo err >&2' | service $etc/t.Err
echo 'printf "a\033[31mb\tc\n"; printf "\033e\n" >&2' | service $etc/t.Escape
echo 'exec cat' | service $etc/t.Cat
echo 'exec >&- 2>&-; cat > /tmp/halves' | service $etc/t.Halves
echo 'exec <&-; sleep 0.2; echo talked on' | service $etc/t.Deaf
echo 'echo $$ > /tmp/long; exec sleep 1000' | service $etc/t.Long
echo 'exec yes' | service $etc/t.Flood
echo text > $etc/t.Plain; mkdir $etc/t.Directory; ln -s nowhere $etc/t.Dangling
for name in Good Unknown Twice Type Both Quotes; do cp $etc/t.Who $etc/t.$name; done
printf "# all of it\r\nwait-for-session = 1 # yes\r\nforce-user = 'root'" > $config/t.Good
echo "no-such-key = true" > $config/t.Unknown
printf "wait-for-session = true\nwait-for-session = true\n" > $config/t.Twice
echo "wait-for-session = 'yes'" > $config/t.Type
printf "force-user = 'root'\nskip-service-descriptor = true\n" > $config/t.Both
echo 'force-user = "root"' > $config/t.Quotes
echo "force-user = 'root'" > $config/t.Forced
echo "skip-service-descriptor = true" > $config/t.Bare
printf "skip-service-descriptor = true\nexit-on-client-eof = true\n" > $config/t.ClientEnd
printf "skip-service-descriptor = true\nexit-on-service-eof = true\n" > $config/t.ServiceEnd
useradd -m barred; sed -i '1i session requisite pam_succeed_if.so quiet user != barred' /etc/pam.d/runuser
echo 'user soft nofile 777' > /etc/security/limits.d/test.conf; echo FROM_PAM=yes >> /etc/environment
cat > /root/sockets.py <<'X'
import os, socket, threading, time
def echo(peer):
    seen = b""
    while data := peer.recv(65536):
        seen += data
    peer.sendall(seen + b"|heard"); peer.close()
def quiet(peer):
    while peer.recv(65536):
        pass
    time.sleep(60)
def first(peer):
    peer.sendall(b"bye"); peer.shutdown(socket.SHUT_WR); time.sleep(60)
def serve(listener, how):
    while True:
        threading.Thread(target=how, args=(listener.accept()[0],)).start()
def unix(name):
    listener = socket.socket(socket.AF_UNIX); listener.bind("/etc/qubes-rpc/" + name); listener.listen()
    return listener
tcp = socket.create_server(("127.0.0.1", 7777))
os.symlink("/dev/tcp/127.0.0.1/7777", "/etc/qubes-rpc/t.Tcp")
os.symlink("/dev/tcp/127.0.0.1", "/etc/qubes-rpc/t.TcpHost")
os.symlink("/dev/tcp", "/etc/qubes-rpc/t.TcpAny")
jobs = [(unix("t.Sock"), echo), (unix("t.Bare"), echo), (tcp, echo)]
jobs += [(unix("t.ClientEnd"), quiet), (unix("t.ServiceEnd"), first)]
if os.fork() == 0:
    os.setsid()
    for job in jobs:
        threading.Thread(target=serve, args=job).start()
X
python3 /root/sockets.py < /dev/null > /dev/null 2>&1
"""

ENVIRONMENT = f"""QREXEC_REMOTE_DOMAIN={HERE}
QREXEC_REQUESTED_TARGET_TYPE=
QREXEC_SERVICE_ARGUMENT=a+b
QREXEC_SERVICE_FULL_NAME=t.Env+a+b
1 a+b
/home/user
/home/user user
"""
USER, ROOT = "user\n0022\n777\nyes\n", "root\n0022\n"
"""What t.Who says: whom it runs as, umask, a limit and a variable that PAM gives."""

# words of qrexec-client-vm, its input; exit code, output (None: not looked at), its stderr (a part of it).
Row = tuple[str, str, int, str | None, str]
TABLE: dict[str, Row] = {
    # Lookup: three directories, first with the argument in all of them, then without.
    "/run goes first": ("t.Where+x", "", 0, "run\n", ""),
    "then /usr/local": ("t.Second", "", 0, "local\n", ""),
    "an argument's own file goes before all": ("t.Where+special", "", 0, "etc with special\n", ""),
    "no argument is the empty one": ("t.Where", "", 0, "empty argument, 0 words\n", ""),
    "absent": ("t.None+x", "", 127, "", "t.None: no such service"),
    "a dangling link is absent": ("t.Dangling", "", 127, "", "no such service"),
    "not a program": ("t.Plain", "", 125, "", "neither a program"),
    "a directory": ("t.Directory", "", 125, "", "neither a program"),
    "name longer than a file's": ("t." + "n" * 260, "", 127, "", "too long"),
    "argument longer than a file's": ("t.Where+" + "n" * 260, "", 0, "run\n", ""),
    # Exit codes.
    "zero": ("t.Exit+0", "", 0, "", ""),
    "its own": ("t.Exit+77", "", 77, "", ""),
    "killed": ("t.Kill+9", "", 137, "", ""),
    "terminated": ("t.Kill+TERM", "", 143, "", ""),
    "refused": ("t.Refused", "", 126, "", "Request refused"),
    "another source's name": ("--source-qube=work t.Who", "", 126, "", "Request refused"),
    "no such user": ("t.Nobody", "", 125, "", "no user"),
    "a user whom PAM refuses": ("t.Barred", "", 125, "", "may not log in"),
    # Who and where.
    "the default user, with PAM's limits and environment": ("t.Who", "", 0, USER, ""),
    "policy's user": ("t.Root", "", 0, None, ""),
    "configuration's user": ("t.Forced", "", 0, None, ""),
    "environment": ("t.Env+a+b", "", 0, ENVIRONMENT, ""),
    "stderr": ("t.Err", "", 0, "out\n", "err\n"),
    # Configuration.
    "CRLF, comment, no end of line": ("t.Good", "", 0, None, ""),
    "unknown keys are ignored": ("t.Unknown", "", 0, USER, ""),
    "a key twice": ("t.Twice", "", 125, "", "repeats"),
    "a value of the wrong type": ("t.Type", "", 125, "", "wrong type"),
    "force-user with a socket's key": ("t.Both", "", 125, "", "does not go with"),
    "double quotes": ("t.Quotes", "", 125, "", "cannot be read"),
    # Sockets and TCP; half-close: the answer comes after the end of input.
    "a socket gets the descriptor": ("t.Sock+x", "in", 0, f"t.Sock+x {HERE}\0in|heard", ""),
    "unless it is skipped": ("t.Bare", "in", 0, "in|heard", ""),
    "exit-on-client-eof": ("t.ClientEnd", "in", 0, "", ""),
    "exit-on-service-eof": ("t.ServiceEnd", None, 0, "bye", ""),  # type: ignore[dict-item]
    "TCP": ("t.Tcp", "in", 0, f"t.Tcp+ {HERE}\0in|heard", ""),
    "TCP takes no argument": ("t.Tcp+x", "in", 125, "", "no argument"),
    "TCP, port from the argument": ("t.TcpHost+7777", "in", 0, f"t.TcpHost+7777 {HERE}\0in|heard", ""),
    "TCP, all from the argument": ("t.TcpAny+127.0.0.1+7777", "", 0, None, ""),
    "TCP, bad port": ("t.TcpHost+07777", "", 125, "", "illegal port"),
    "TCP, name": ("t.TcpAny+localhost+7777", "", 125, "", "numeric"),
    "TCP, nobody there": ("t.TcpHost+7", "", 125, "", "cannot reach"),
    "ConnectTCP": ("qubes.ConnectTCP+7777", "in", 0, "in|heard", ""),
    # Half-close of programs.
    "a service that closes its output reads on": ("t.Halves", "late", 0, "", ""),
    "a service that closes its input talks on": ("t.Deaf", "ignored", 0, "talked on\n", ""),
    # The client's options.
    "escape characters pass a pipe": ("t.Escape", "", 0, "a\033[31mb\tc\n", "\033e"),
    "unless they are to be filtered": ("--filter-escape-chars-stdout --filter-escape-chars-stderr t.Escape", "", 0,
                                       "a_[31mb\tc\n", "_e"),
    "the short options": ("-t -T t.Escape", "", 0, "a\033[31mb\tc\n", "\033e"),
    "the long ones": ("--no-filter-escape-chars-stdout --no-filter-escape-chars-stderr --buffer-size=4096 t.Escape",
                      "", 0, "a\033[31mb\tc\n", "\033e"),
    "data before stdin": ("--prefix-data=before- t.Cat", "in", 0, "before-in", ""),
    "an unknown option": ("--nonsense t.Cat", "", 125, "", "unknown option"),
}  # fmt: skip

ASK = r"""
import json, subprocess, sys
answers = {}
for what, (words, given) in json.load(sys.stdin).items():
    *options, service = words.split()
    command = ["timeout", "60", "qrexec-client-vm", *options, sys.argv[1], service]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if given is None:  # an input that does not end
        out, err = process.stdout.read(), process.stderr.read()
    else:
        out, err = process.communicate(given.encode())
    answers[what] = process.wait(), out.decode("latin-1"), err.decode("latin-1")
print(json.dumps(answers))
"""


@pytest.fixture(scope="module", autouse=True)
def pair(system: LiveSystem) -> Iterator[None]:
    rules = system.layout.policy / "30-user.policy"
    before = rules.read_text()
    rules.write_text(before + POLICY)
    for name in (HERE, THERE):
        system.cloison("create", "--template", "debian-13", "--label", "green", name)
    system.cloison("start", HERE, THERE)
    system.run(THERE, "sh", "-s", user="root", stdin=SET_UP.encode())
    yield
    rules.write_text(before)
    for name in (HERE, THERE):
        system.cloison("kill", name, expect=None)
        system.cloison("remove", "--yes", name, expect=None)


def test_calls_are_as_the_table_says(system: LiveSystem) -> None:
    asked = json.dumps({what: row[:2] for what, row in TABLE.items()}).encode()
    answers = json.loads(system.run(HERE, "python3", "-c", ASK, THERE, stdin=asked, timeout_s=300).stdout)
    wrong = {
        what: (answers[what], row[2:])
        for what, row in TABLE.items()
        if answers[what][0] != row[2] or row[3] not in (None, answers[what][1]) or row[4] not in answers[what][2]
    }
    assert not wrong, "\n".join(f"{what}: {got} is not {wanted}" for what, (got, wanted) in wrong.items())
    for what in ("policy's user", "configuration's user", "CRLF, comment, no end of line"):
        assert answers[what][1].startswith(ROOT), what
    assert system.run(THERE, "cat", "/tmp/halves").stdout == b"late"
    journal = system.run(THERE, "journalctl", "-q", "-o", "cat", "-t", f"t.Err+-{HERE}", user="root").stdout
    assert journal == b"err\n"


def test_the_client_speaks_for_programs_and_sockets(system: LiveSystem) -> None:
    program = f"""qrexec-client-vm {THERE} t.Cat sh -c 'echo asked; exec 1>&-; cat >&$SAVED_FD_1; exit 3'; echo $?"""
    assert system.run(HERE, "sh", "-c", program).stdout == b"asked\n3\n"
    server = f"""
import socket, subprocess
ours, theirs = socket.socketpair()
done = subprocess.Popen(["qrexec-client-vm", "--use-stdin-socket", "{THERE}", "t.Cat"], stdin=theirs)
theirs.close(); ours.sendall(b"through a socket"); ours.shutdown(socket.SHUT_WR)
print(ours.recv(100), done.wait())
"""
    assert system.run(HERE, "python3", "-c", server).stdout == b"b'through a socket' 0\n"
    connect = f"""
qvm-connect-tcp 8080:{THERE}:7777; qvm-connect-tcp ::7777; qvm-connect-tcp 1:2 2>/dev/null; echo $?
for port in 8080 7777; do python3 -c "
import socket
peer = socket.create_connection(('127.0.0.1', $port)); peer.sendall(b'by tcp'); peer.shutdown(1); print(peer.recv(99))
"; done; pkill -f qvm-connect-tcp"""
    said = system.run(HERE, "sh", "-c", connect, expect=None).stdout.decode().splitlines()
    assert said[0] == f"Port 8080 of localhost is port 7777 of {THERE}"
    assert said[2:] == ["125", "b'by tcp|heard'", "b'by tcp|heard'"]


def test_dom0_is_told_why_a_service_did_not_run(system: LiveSystem) -> None:
    for qube, why in ((THERE, b"t.None: no such service in this qube"), ("dom0", b"t.None: no such service in dom0")):
        done = system.cloison("run", "--service", qube, "t.None", expect=127)
        assert done.stderr.strip() == why


LONG = f"qrexec-client-vm {THERE} t.Long"
IS_GONE = 'for i in $(seq 100); do [ -d "/proc/$(cat /tmp/long)" ] || exit 0; sleep 0.1; done; exit 1'


def begin_long(system: LiveSystem) -> subprocess.Popen[bytes]:
    """A call that does not end by itself, once its service runs."""
    system.run(THERE, "rm", "-f", "/tmp/long", user="root")
    call = system.start("run", HERE, "--", "sh", "-c", f"{LONG}; echo ended with $?", stdout=subprocess.PIPE)
    system.run(THERE, "sh", "-c", "until [ -s /tmp/long ]; do sleep 0.05; done")
    return call


def ended(call: subprocess.Popen[bytes]) -> bytes:
    return call.communicate(timeout=60)[0]


def test_either_end_of_a_call_that_vanishes_ends_the_other(system: LiveSystem) -> None:
    call = begin_long(system)
    system.run(HERE, "pkill", "-9", "-f", "^/usr/bin/python3 .*t[.]Long")
    system.run(THERE, "sh", "-c", IS_GONE)
    assert ended(call) == b"ended with 137\n"
    call = begin_long(system)
    system.run(THERE, "sh", "-c", "kill -9 $(cat /tmp/long)")
    assert ended(call) == b"ended with 137\n"


def relay_of(qube: str) -> int:
    for entry in Path("/proc").iterdir():
        try:
            if (entry / "comm").read_text().startswith(f"qrexec {qube}"[:15]):
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"no process is called after the relay of {qube}")


def test_a_killed_relay_ends_both_sides_of_its_calls(system: LiveSystem) -> None:
    call = begin_long(system)
    os.kill(relay_of(THERE), signal.SIGKILL)
    assert ended(call) == b"ended with 255\n"
    wait_until(lambda: system.run(THERE, "true", expect=None).returncode == 0, 60, "another relay")
    system.run(THERE, "sh", "-c", IS_GONE)


def test_a_reader_that_does_not_read_holds_up_nobody(system: LiveSystem) -> None:
    call = f"qrexec-client-vm {THERE} t.Flood < /dev/null | sleep 60"
    with system.start("run", HERE, "--", "sh", "-c", call) as flood:
        time.sleep(1)
        started = time.monotonic()
        for _ in range(3):
            assert system.run(HERE, "sh", "-c", f"echo quick | qrexec-client-vm {THERE} t.Cat").stdout == b"quick\n"
        assert time.monotonic() - started < 10
        system.run(HERE, "pkill", "sleep")
        assert flood.wait(30) is not None


def test_a_qube_that_dies_ends_its_calls_at_the_other_side(system: LiveSystem) -> None:
    """Last, since both qubes are gone afterwards."""
    call = begin_long(system)
    system.cloison("kill", HERE)
    assert call.wait(30) == 255
    system.run(THERE, "sh", "-c", IS_GONE)
    system.cloison("start", HERE)
    call = begin_long(system)
    system.cloison("kill", THERE)
    assert ended(call) == b"ended with 255\n"
