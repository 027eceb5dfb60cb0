"""The tools that a qube's programs use to reach other qubes, and the services that answer them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from tests.live.conftest import wait_until

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

MakeQube = Callable[..., str]
HERE, THERE = "tools-here", "tools-there"
"""Two running qubes: programs of the first call services of the second."""

POLICY = f"""
qubes.Filecopy  *  {HERE}  {THERE}    allow
qubes.Filecopy  *  {HERE}  @default   allow  target={THERE}
qubes.VMShell   *  {HERE}  {THERE}    allow
qubes.VMExec    *  {HERE}  {THERE}    allow
test.AsRoot     *  {HERE}  {THERE}    allow  user=root
test.AsNobody   *  {HERE}  {THERE}    allow  user=no-such-user
test.Refused    *  {HERE}  {THERE}    deny
test.Told       +one  {HERE}  {THERE}  allow
test.Told       *  {HERE}  {THERE}    deny
"""
SERVICES = ("Env", "Exit", "Where", "Config", "None", "Plain", "Echo", "Tcp", "Halves", "Stream", "Sink")

SET_UP = r"""
set -e
service() { cat > "$1"; chmod 755 "$1"; }
mkdir -p /usr/local/etc/qubes-rpc /usr/local/etc/qubes/rpc-config
cd /etc/qubes-rpc
service test.Env <<'X'
#!/bin/sh
env | grep '^QREXEC_[RS]' | sort
echo "words: $# $1"; id -un; pwd; echo "$HOME $USER $LOGNAME $SHELL"
X
service test.Exit <<'X'
#!/bin/sh
case $1 in signal) kill -9 $$;; *) exit "$1";; esac
X
service test.AsRoot <<'X'
#!/bin/sh
exec id -un
X
for name in AsNobody Told Config Refused; do cp test.AsRoot "test.$name"; done
echo "force-user = 'root'  # whatever the policy says" > /usr/local/etc/qubes/rpc-config/test.Config
printf '#!/bin/sh\necho etc\n' | service test.Where
printf '#!/bin/sh\necho local\n' | service /usr/local/etc/qubes-rpc/test.Where
printf '#!/bin/sh\necho etc, special\n' | service test.Where+special
echo 'no program' > test.Plain
printf '#!/bin/sh\nexec 1>&-\ncat > /tmp/halves\n' | service test.Halves
printf '#!/bin/sh\nexec head -c 20971520 /dev/zero\n' | service test.Stream
printf '#!/bin/sh\nexec wc -c\n' | service test.Sink
cat > /root/echo.py <<'X'
import os, socket
def serve(listener):
    while True:
        peer, _ = listener.accept()
        with peer:
            seen = b""
            while data := peer.recv(65536):
                seen += data
            peer.sendall(seen + b"|after your end of file")
unix = socket.socket(socket.AF_UNIX)
unix.bind("/etc/qubes-rpc/test.Echo")
unix.listen()
tcp = socket.create_server(("127.0.0.1", 0))
os.symlink("/dev/tcp/127.0.0.1/%d" % tcp.getsockname()[1], "/etc/qubes-rpc/test.Tcp")
if os.fork() == 0:
    serve(unix)
if os.fork() == 0:
    serve(tcp)
X
python3 /root/echo.py < /dev/null > /dev/null 2>&1
"""


@pytest.fixture(scope="module", autouse=True)
def pair(system: LiveSystem) -> Iterator[None]:
    """The two qubes, the services of the second, and a policy that lets the first call them."""
    rules = system.layout.policy / "30-user.policy"
    before = rules.read_text()
    rules.write_text(before + POLICY + "".join(f"test.{name} * {HERE} {THERE} allow\n" for name in SERVICES))
    for name in (HERE, THERE):
        system.cloison("create", "--template", "debian-13", "--label", "green", name)
    system.cloison("start", HERE, THERE)
    system.run(THERE, "sh", "-s", user="root", stdin=SET_UP.encode())
    yield
    rules.write_text(before)
    for name in (HERE, THERE):
        system.cloison("kill", name, expect=None)
        system.cloison("remove", "--yes", name, expect=None)


def shell(system: LiveSystem, qube: str, script: str, *, user: str = "", expect: int | None = 0) -> str:
    """What a shell script prints in that qube, both its streams."""
    done = system.run(qube, "sh", "-c", f"exec 2>&1; {script}", user=user, expect=expect)
    return done.stdout.decode().strip()


def call(system: LiveSystem, service: str, *, target: str = THERE, stdin: str = "", expect: int = 0) -> str:
    """What a call from the first qube answers."""
    words = ("sh", "-c", f"exec 2>&1; qrexec-client-vm '{target}' '{service}'")
    return system.run(HERE, *words, stdin=stdin.encode(), expect=expect).stdout.decode().strip()


# Copying files

LIST_TREE = """find . -type l -printf '%P -> %l\\n' -o -printf '%P %y %m %T@\\n' | sed 's/\\.[0-9]*$//' | sort
find . -type f | sort | xargs sha256sum"""


def test_files_directories_and_links_arrive_as_they_were(system: LiveSystem) -> None:
    make = """
        mkdir -p ~/out/tree/inner/empty; cd ~/out; head -c 5242880 /dev/urandom > tree/big; echo hi > tree/small
        : > tree/nothing; chmod 640 tree/small; chmod 751 tree/inner; ln -s big tree/link; ln -s ../small tree/inner/up
        touch -d 2001-02-03T04:05:06 tree/small; chmod 500 tree/inner/empty
    """
    shell(system, HERE, f"{make} qvm-copy-to-vm {THERE} tree")
    sent = shell(system, HERE, f"cd ~/out/tree; {LIST_TREE}")
    assert sent.count("\n") == 10
    assert shell(system, THERE, f"cd ~/QubesIncoming/{HERE}/tree; {LIST_TREE}") == sent


def test_what_is_there_already_is_never_overwritten(system: LiveSystem) -> None:
    said = shell(
        system, HERE, "cd ~; echo first > note; qvm-copy note; echo $?; echo second > note; qvm-copy note; echo $?"
    )
    first, why, second = said.splitlines()
    assert (first, second) == ("0", "1")
    assert "note" in why
    assert shell(system, THERE, f"cat ~/QubesIncoming/{HERE}/note") == "first"


def test_a_moved_file_is_gone_here_only_when_it_is_there(system: LiveSystem) -> None:
    script = "mkdir -p ~/m; cd ~/m; echo 1 > gone; echo 2 > note; qvm-move-to-vm {0} gone; qvm-move-to-vm {0} note; ls"
    assert shell(system, HERE, script.format(THERE)).splitlines()[-1] == "note"
    assert shell(system, THERE, f"cat ~/QubesIncoming/{HERE}/gone") == "1"


def test_odd_names_arrive_and_absent_files_are_named(system: LiveSystem) -> None:
    script = r"""cd ~; n=$(printf 'a \033[31m\nb'); echo odd > "$n"; echo dash > ./-x
        qvm-copy-to-vm {0} "$n" ./-x; echo $?; qvm-copy-to-vm {0} absent; echo $?"""
    said = shell(system, HERE, script.replace("{0}", THERE)).splitlines()
    assert (said[0], said[-1]) == ("0", "1")
    assert "absent" in said[1]
    there = shell(system, THERE, f"cd ~/QubesIncoming/{HERE}; cat ./-x; printf 'a \\033[31m\\nb' | xargs -0 cat")
    assert there == "dash\nodd"


HOSTILE = r"""
import json, struct, subprocess, sys
FILE, DIRECTORY, LINK = 0o100644, 0o40755, 0o120777
def entry(name, mode, size=0, content=b""):
    return struct.pack("<IIQIIII", len(name) + 1, mode, size, 0, 0, 0, 0) + name + b"\0" + content
def file(name, mode=FILE):
    return entry(name, mode, 3, b"bad")
def folder(name):
    return entry(name, DIRECTORY)
def link(name, target):
    return entry(name, LINK, len(target), target)
END = bytes(32)
attacks = {
    "up": file(b"../outside"), "far up": file(b"x/../../../outside"), "absolute": file(b"/tmp/outside"),
    "dot": file(b"./outside"), "double slash": file(b"x//outside"), "slash at the end": file(b"outside/"),
    "escape sequence": file(b"outside\x1b[2J"), "direction override": file("outside\u202egnp.exe".encode()),
    "not unicode": file(b"outside\xff"), "absolute link": folder(b"l") + link(b"l/outside", b"/etc/passwd"),
    "link out": folder(b"l") + link(b"l/outside", b"../../outside"), "link on top": link(b"outside", b"x"),
    "through a link": folder(b"h") + folder(b"h/real") + link(b"h/way", b"real") + file(b"h/way/outside"),
    "device": entry(b"outside", 0o020666), "fifo": entry(b"outside", 0o010666),
    "name too long": file(b"o" * 300), "path too long": file(b"/".join([b"o" * 200] * 90)),
    "breaks off": entry(b"outside-half", FILE, 1 << 20, b"half"),
}
answers = {}
for what, stream in attacks.items():
    if what != "breaks off":
        stream += END
    done = subprocess.run(["qrexec-client-vm", sys.argv[1], "qubes.Filecopy"], input=stream, capture_output=True)
    answers[what] = done.returncode, int.from_bytes(done.stdout[:4], "little") if done.stdout else None
print(json.dumps(answers))
"""


def test_hostile_file_streams_are_refused_and_leave_nothing(system: LiveSystem) -> None:
    done = system.run(HERE, "python3", "-c", HOSTILE, THERE)
    answers = json.loads(done.stdout)
    accepted = [what for what, (code, error) in answers.items() if code == 0 or error == 0]
    assert not accepted, answers
    assert shell(system, THERE, "find / /home /rw -xdev -name '*outside*' 2>/dev/null; true") == ""


# Calls


def test_a_refused_call_says_so_and_gives_126(system: LiveSystem) -> None:
    assert call(system, "test.Refused", expect=126) == "Request refused"
    assert call(system, "test.Unmentioned", expect=126) == "Request refused"
    assert call(system, "test.Env", target="dom0", expect=126) == "Request refused"
    assert call(system, "test.Env", target="no-such-qube", expect=126) == "Request refused"
    assert shell(system, THERE, f"qvm-copy-to-vm {HERE} /etc/hostname", expect=126) == "Request refused"
    assert shell(system, THERE, f"qvm-run-vm {HERE} true", expect=126) == "Request refused"


def test_a_rule_may_allow_one_argument_only(system: LiveSystem) -> None:
    assert call(system, "test.Told+one") == "user"
    assert call(system, "test.Told+two", expect=126) == "Request refused"
    assert call(system, "test.Told", expect=126) == "Request refused"


def test_a_service_is_told_who_calls_and_what(system: LiveSystem) -> None:
    lines = call(system, "test.Env+some-thing").splitlines()
    assert [line for line in lines if not line.startswith("QREXEC_SERVICE_PATH")] == [
        f"QREXEC_REMOTE_DOMAIN={HERE}",
        "QREXEC_REQUESTED_TARGET_TYPE=",
        "QREXEC_SERVICE_ARGUMENT=some-thing",
        "QREXEC_SERVICE_FULL_NAME=test.Env+some-thing",
        "words: 1 some-thing",
        "user",
        "/home/user",
        "/home/user user user /bin/bash",
    ]
    assert "words: 0 " in call(system, "test.Env") + " "


@pytest.mark.parametrize(
    ("service", "code"),
    [
        ("test.Exit+0", 0),
        ("test.Exit+77", 77),
        ("test.Exit+signal", 137),
        ("test.None", 127),
        ("test.Plain", 125),
        ("test.AsNobody", 125),
        ("qubes.VMExec+-zz", 125),
        ("qubes.VMExec+no--such--program", 127),
    ],
)
def test_exit_codes_of_services_reach_the_caller(system: LiveSystem, service: str, code: int) -> None:
    call(system, service, expect=code)


def test_policy_and_configuration_choose_the_user(system: LiveSystem) -> None:
    assert call(system, "test.AsRoot") == "root"
    assert call(system, "test.Config") == "root"


def test_a_service_for_the_argument_goes_before_one_for_all_and_the_users_own_before_the_systems(
    system: LiveSystem,
) -> None:
    assert call(system, "test.Where") == "local"
    assert call(system, "test.Where+special") == "etc, special"
    assert call(system, "test.Where+other") == "local"


def test_a_socket_service_gets_its_descriptor_first_and_may_answer_after_the_end_of_input(system: LiveSystem) -> None:
    assert call(system, "test.Echo+x", stdin="said") == f"test.Echo+x {HERE}\0said|after your end of file"
    assert call(system, "test.Tcp", stdin="said") == f"test.Tcp+ {HERE}\0said|after your end of file"


def test_a_service_may_end_its_output_and_go_on_reading(system: LiveSystem) -> None:
    slow_input = "(for i in $(seq 50); do sleep 0.1; [ -e /tmp/ended ] && break; done; ls /tmp/ended; echo late)"
    script = f"{slow_input} | qrexec-client-vm {THERE} test.Halves | (cat; touch /tmp/ended); rm /tmp/ended"
    assert shell(system, HERE, script) == ""
    assert shell(system, THERE, "cat /tmp/halves") == "/tmp/ended\nlate"


def test_twenty_megabytes_flow_between_qubes_while_others_call(system: LiveSystem) -> None:
    script = f"""
        qrexec-client-vm {THERE} test.Stream < /dev/null | wc -c &
        head -c 20971520 /dev/zero | qrexec-client-vm {THERE} test.Sink &
        for i in 1 2 3; do qrexec-client-vm {THERE} test.Exit+$i < /dev/null; echo $?; done; wait
    """
    lines = shell(system, HERE, script).split()
    assert sorted(lines) == ["1", "2", "20971520", "20971520", "3"]
    assert lines[0] == "1", "a small call need not wait for the large ones"


def test_commands_in_another_qube_and_in_a_disposable(system: LiveSystem) -> None:
    said = shell(system, HERE, f"echo typed | qvm-run-vm {THERE} 'hostname; cat; exit 5'; echo $?")
    assert said == f"{THERE}\ntyped\n5"
    assert call(system, "qubes.VMExec+printf+-25s-2C+a-20b+--c") == "a b,-c,"
    name, code = shell(
        system, HERE, "echo 'hostname; exit 6' | qrexec-client-vm @dispvm qubes.VMShell; echo $?"
    ).split()
    assert (name[:4], code) == ("disp", "6")


OPENER = r"""#!/bin/sh
echo "seen as $(basename "$1") in $(hostname)" >&2
[ -w "$1" ] && echo edited >> "$1"
exit 0
"""


@pytest.fixture
def disposables_with_an_opener(system: LiveSystem) -> Iterator[None]:
    """Disposables of the first qube have a program of their own for opening files."""
    name = "tools-dvm"
    system.cloison("create", "--template", "debian-13", "--label", "red", "--disposable-template", name)
    install = "cat > /rw/config/qubes-open-handler; chmod 755 /rw/config/qubes-open-handler; sync"
    system.run(name, "sh", "-c", install, user="root", stdin=OPENER.encode())
    system.cloison("shutdown", "--wait", name)
    system.cloison("prefs", HERE, "default_dispvm", name)
    yield
    system.cloison("prefs", HERE, "--default", "default_dispvm", expect=None)
    system.cloison("kill", name, expect=None)
    wait_until(lambda: not [q for q in system.json("list") if q["class"] == "DispVM"], 30, "disposables to be gone")
    system.cloison("remove", "--yes", name)


@pytest.mark.usefixtures("disposables_with_an_opener")
def test_a_file_opened_in_a_disposable_comes_back_edited(system: LiveSystem) -> None:
    script = """cd ~; echo text > 'my letter.txt'; chmod 640 my*
        qvm-open-in-dvm 'my letter.txt'; echo $?; cat my*; stat -c %a my*"""
    seen, *rest = shell(system, HERE, script).splitlines()
    assert seen.startswith("seen as my_letter.txt in disp")
    assert rest == ["0", "text", "edited", "640"]
    script = "cd ~; echo text > looked; qvm-open-in-dvm --view-only looked; echo $?; cat looked; ls | grep -c looked"
    assert shell(system, HERE, script).splitlines()[1:] == ["0", "text", "1"]


def test_dom0_calls_services_by_name(system: LiveSystem) -> None:
    assert system.cloison("run", "--service", THERE, "qubes.WaitForSession").stdout == b""
    done = system.cloison("run", "--service", THERE, "test.Env+x")
    assert b"QREXEC_REMOTE_DOMAIN=dom0\n" in done.stdout
    system.cloison("run", "--service", THERE, "test.None", expect=127)


def test_a_command_sees_what_a_login_would(system: LiveSystem) -> None:
    script = "echo 'export FROM_PROFILE=yes' > /etc/profile.d/test.sh; echo FROM_ENVIRONMENT=yes >> /etc/environment"
    shell(system, HERE, script, user="root")
    said = shell(
        system, HERE, "echo $FROM_PROFILE $FROM_ENVIRONMENT; umask; ulimit -c; pwd; id -Gn; ls -ld $XDG_RUNTIME_DIR"
    )
    profile, umask, core, home, groups, runtime = said.splitlines()
    assert profile == "yes yes"
    assert umask in ("0022", "0002")
    assert (core, home) == ("0", "/home/user")
    assert "user" in groups.split()
    assert runtime.startswith("drwx------") and " user user " in runtime
    assert shell(system, HERE, "echo $HOME $USER; pwd", user="root") == "/root root\n/root"


def test_bind_dirs_and_rc_local_hold_after_a_restart(system: LiveSystem) -> None:
    script = r"""
        mkdir -p /rw/config/qubes-bind-dirs.d /var/lib/thing
        echo kept > /var/lib/thing/data; echo conf > /etc/thing.conf
        echo "binds+=( '/var/lib/thing' '/etc/thing.conf' )" > /rw/config/qubes-bind-dirs.d/50_user.conf
        printf '#!/bin/sh\nhostname > /run/rc-local-ran\n' > /rw/config/rc.local; chmod 755 /rw/config/rc.local
        mkdir -p /rw/bind-dirs/var/lib /rw/bind-dirs/etc
        cp -a /var/lib/thing /rw/bind-dirs/var/lib/; cp -a /etc/thing.conf /rw/bind-dirs/etc/; sync
    """
    shell(system, HERE, script, user="root")
    system.cloison("restart", HERE)
    said = shell(system, HERE, "cat /var/lib/thing/data /etc/thing.conf; echo more > /var/lib/thing/more", user="root")
    assert said == "kept\nconf"
    assert shell(system, HERE, "while ! cat /run/rc-local-ran 2>/dev/null; do sleep 0.1; done") == HERE
    system.cloison("restart", HERE)
    assert shell(system, HERE, "cat /var/lib/thing/more") == "more"
