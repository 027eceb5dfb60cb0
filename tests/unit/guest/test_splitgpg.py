"""Split GPG: the real client against the real server; a small stand-in for gpg shows what the server starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.guest.joined import Joined, joined_qube

from cloison_tools import gpgserver
from cloison_tools.gpgframes import (
    COMMAND_SIZE,
    FrameReader,
    FramingError,
    encode_command,
    encode_data,
    encode_exit,
    exit_status,
    parse_command,
)
from cloison_tools.gpgoptions import FORCED, NotAllowed, plan_command

GPG = r"""#!{python}
# Stands for gpg: prints its words and what it reads, tells the descriptors named on the command line.
import os, sys
words = sys.argv[1:]
for word in words:
    if word.startswith("--status-fd="):
        os.write(int(word[12:]), b"[GNUPG:] HERE\n")
print(" ".join(word for word in words if word not in FORCED), flush=True)
if "--list-keys" not in words:
    for place in words[words.index("--") + 1:] or ["-"]:
        data = sys.stdin.buffer.read() if place == "-" else open(place, "rb").read()
        sys.stdout.buffer.write(b"%d bytes, %s\n" % (len(data), data[:20]))
sys.stderr.write("said\n")
sys.exit(3 if "fail" in words else 0)
"""


@pytest.fixture
def qube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    with joined_qube(tmp_path, monkeypatch) as joined:
        joined.environment["QUBES_GPG_DOMAIN"] = "vault"
        joined.add_program("gpg", GPG.replace("{python}", sys.executable).replace("FORCED", repr(FORCED)))
        yield joined


def test_data_go_to_the_vault_and_come_back(qube: Joined) -> None:
    done = qube.run("qubes-gpg-client", "-bsau", "me", "--status-fd=2", stdin=b"x" * 300_000)
    assert done.returncode == 0
    assert done.stdout == (
        b"--output=- --armor --local-user=me --status-fd=2 --detach-sign --\n300000 bytes, " + b"x" * 20 + b"\n"
    )
    assert sorted(done.stderr.splitlines()) == [b"[GNUPG:] HERE", b"said"]
    assert qube.calls == ["vault qubes.Gpg"]


def test_a_key_list_needs_no_input_and_the_exit_code_is_gpgs(qube: Joined) -> None:
    reader, writer = os.pipe()
    done = subprocess.run(
        qube.command("qubes-gpg-client", "--with-colons", "-k", "fail"),
        stdin=reader,
        capture_output=True,
        env=qube.environment,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (3, b"--with-colons --list-keys -- fail\n")
    os.close(reader)
    os.close(writer)


def test_other_descriptors_are_carried_both_ways(qube: Joined) -> None:
    (qube.home / "signature").write_bytes(b"S" * 5000)
    script = "exec 7>status 9<signature; " + " ".join(
        qube.command("qubes-gpg-client", "--status-fd", "7", "--verify", "/dev/fd/9", "-")
    )
    environment = qube.environment
    done = subprocess.run(
        ["sh", "-c", script], input=b"data", capture_output=True, env=environment, cwd=qube.home, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [b"5000 bytes, " + b"S" * 20, b"4 bytes, data"]
    assert (qube.home / "status").read_text() == "[GNUPG:] HERE\n"
    closed = qube.run("qubes-gpg-client", "--status-fd", "77", "-k")
    assert closed.returncode == 2 and b"descriptor 77 is not open" in closed.stderr


def test_the_wrapper_sends_files_and_keeps_results(qube: Joined) -> None:
    (qube.home / "letter").write_bytes(b"dear")
    (qube.home / "sig").write_bytes(b"sig")
    done = qube.run("qubes-gpg-client-wrapper", "--status-fd=1", "--verify", "sig", "-", stdin=b"dear")
    assert done.stdout.splitlines()[2:] == [b"3 bytes, sig", b"4 bytes, dear"]
    assert qube.run("qubes-gpg-client-wrapper", "-ao", "out", "-s", "letter").stdout == b""
    assert (qube.home / "out").read_bytes().endswith(b"4 bytes, dear\n")
    again = qube.run("qubes-gpg-client-wrapper", "-a", "-o", "out", "-s", "letter")
    assert again.returncode == 2 and b"File exists" in again.stderr
    assert qube.run("qubes-gpg-client-wrapper", "--yes", "--output", "out", "-s", "letter").returncode == 0
    assert qube.run("qubes-gpg-client-wrapper", "-ab", "letter").returncode == 0
    assert (qube.home / "letter.asc").exists()
    failed = qube.run("qubes-gpg-client-wrapper", "-e", "-r", "fail", "--comment", "x", "letter")
    assert (failed.returncode, (qube.home / "letter.gpg").exists()) == (0, True)
    assert qube.run("qubes-gpg-client-wrapper", "-d", "letter").stdout.endswith(b"4 bytes, dear\n")
    missing = qube.run("qubes-gpg-client-wrapper", "-d", "nowhere")
    assert missing.returncode == 2 and b"gpg: nowhere: No such file" in missing.stderr


def test_a_failed_gpg_leaves_no_file(qube: Joined) -> None:
    (qube.home / "letter").write_bytes(b"dear")
    qube.add_program("gpg", "#!/bin/sh\necho half; exit 2\n")
    assert qube.run("qubes-gpg-client-wrapper", "-s", "letter").returncode == 2
    qube.add_program("gpg", "#!/bin/sh\nkill -9 $$\n")
    assert qube.run("qubes-gpg-client-wrapper", "-s", "letter").returncode == 137
    assert sorted(path.name for path in qube.home.iterdir()) == ["letter"]


def test_a_gpg_that_does_not_read_all_or_leaves_a_child_does_not_hang(qube: Joined) -> None:
    qube.add_program("gpg", "#!/bin/sh\nsleep 30 &\nhead -c 10; exit 4\n")
    done = qube.run("qubes-gpg-client", "-s", stdin=b"y" * 3_000_000)
    assert (done.returncode, done.stdout) == (4, b"y" * 10)


def test_a_refused_call_and_a_vault_without_the_service(qube: Joined) -> None:
    (qube.directory / "rpc" / "qubes.Gpg").unlink()
    done = qube.run("qubes-gpg-client", "-k")
    assert done.returncode == 2 and b"the vault has no split GPG" in done.stderr
    qube.refused.add("qubes.Gpg")
    done = qube.run("qubes-gpg-client", "-k")
    assert done.returncode == 126 and b"Request refused" in done.stderr


NOT_OFFERED = [
    [],
    ["--export-secret-keys"],
    ["--export-secret-subkeys", "me"],
    ["--import"],
    ["--gen-key"],
    ["--edit-key", "me"],
    ["--delete-secret-keys", "me"],
    ["--symmetric"],
    ["-c"],
    ["-s", "--output", "/home/user/.bashrc"],
    ["-so/home/user/.bashrc"],
    ["-s", "/home/user/secret"],
    ["-s", "--", "/home/user/secret"],
    ["-e", "-r", "me", "../secret"],
    ["-s", "/dev/fd/../../etc/passwd"],
    ["-s", "/dev/fd/05"],
    ["-s", "-&1"],
    ["-s", "-", "/dev/fd/5"],
    ["--verify", "-", "-"],
    ["-d", "--homedir=/tmp"],
    ["-d", "--options", "x"],
    ["-d", "--keyring=x"],
    ["-d", "--passphrase-fd", "0"],
    ["-d", "--use-embedded-filename"],
    ["-d", "--photo-viewer=sh"],
    ["-d", "--agent-program=/bin/sh"],
    ["-d", "--log-file=x"],
    ["-d", "--status-file=x"],
    ["-d", "--list-packets"],
    ["-d", "--show-session-key"],
    ["-d", "--override-session-key=x"],
    ["-d", "--debug-all"],
    ["-k", "--list-options=show-photos"],
    ["-k", "--list-options=show-usage show-photos"],
    ["--verify", "--verify-options", "show-photos", "-"],
    ["-e", "--recipient-file=x"],
    ["-e", "-f", "x"],
    ["--send-keys", "me"],
    ["--recv-keys", "me"],
    ["--locate-keys", "me"],
    ["-k", "--auto-key-locate=wkd"],
    ["-k", "--keyserver=x"],
    ["-k", "--export"],
    ["-s", "-d"],
    ["-s", "--status-fd=0"],
    ["-s", "--status-fd=1e1"],
    ["-s", "--status-fd=256"],
    ["-s", "--status-fd"],
    ["-s", "--armor=yes"],
    ["--sig"],
    ["--list-secret"],
    ["-k", "a\nb"],
    ["-u", "a\x1b[2J", "-s"],
    ["-s", "--comment", "a\nb"],
    ["-k", *["x"] * 300],
]


@pytest.mark.parametrize("words", NOT_OFFERED, ids=" ".join)
def test_what_is_not_about_using_keys_is_refused_by_the_server(qube: Joined, words: list[str]) -> None:
    with pytest.raises(NotAllowed):
        plan_command([word.encode() for word in words])
    if len(words) < 50:
        code, _, stderr = ask_server(qube, encode_command([word.encode() for word in words]) + encode_data(0, b""))
        assert (code, stderr[:13]) == (2, b"gpg (split): ")


def ask_server(qube: Joined, request: bytes) -> tuple[int | None, bytes, bytes]:
    """Exit code, stdout and stderr that the server's frames tell; None when it ended without."""
    (qube.home / "request").write_bytes(request)
    done = qube.run("qrexec-client-vm", "vault", "qubes.Gpg", stdin=request)
    frames = FrameReader().receive(done.stdout)
    code = exit_status(frames.pop()[0]) if frames and frames[-1][0] < 0 else None
    return code, *(b"".join(data for fd, data in frames if fd == wanted) for wanted in (1, 2))


def test_a_server_is_told_what_gpg_is_told(qube: Joined) -> None:
    code, stdout, _ = ask_server(qube, encode_command([b"-s"]) + encode_data(0, b"abc") + encode_data(0, b""))
    assert (code, stdout) == (0, b"--output=- --sign --\n3 bytes, abc\n")
    closed = encode_command([b"-s", b""])[:8] + encode_command([b"-s"])[8:]  # another client: NUL behind the last
    assert parse_command(closed) == [b"-s"]


HOSTILE_STREAMS = {
    "nothing": b"",
    "half a command": encode_command([b"-s"])[:500],
    "an absurd length": b"\xff" * COMMAND_SIZE,
    "a frame that is too long": encode_command([b"-s"]) + b"\0\0\0\0\x01\x10\0\0" + bytes(4097),
    "a frame for nobody": encode_command([b"-s"]) + encode_data(5, b"x"),
    "a frame for an output": encode_command([b"-s"]) + encode_data(1, b"x"),
    "an exit from a client": encode_command([b"-s"]) + encode_exit(0),
    "data after the end": encode_command([b"-s"]) + encode_data(0, b"") + encode_data(0, b"x"),
    "no end": encode_command([b"-s"]) + encode_data(0, b"half of a contract"),
}


@pytest.mark.parametrize("name", HOSTILE_STREAMS)
def test_a_hostile_client_gets_nothing_signed(qube: Joined, name: str) -> None:
    qube.add_program("gpg", "#!/bin/sh\ncat > /dev/null && touch $HOME/signed\n")
    code, stdout, _ = ask_server(qube, HOSTILE_STREAMS[name])
    assert code in (None, 2) and stdout == b""
    assert not (qube.home / "signed").exists() or name == "data after the end"


HOSTILE_VAULTS = {
    "an ended one": b"",
    "a frame for nobody": encode_data(5, b"x"),
    "a frame for an input": encode_data(0, b"x"),
    "an impossible exit": b"\0\0\0\x80\0\0\0\0",
    "a frame that is too long": b"\1\0\0\0\xff\xff\xff\x7f",
}


@pytest.mark.parametrize("name", HOSTILE_VAULTS)
def test_a_hostile_vault_is_an_error(qube: Joined, name: str) -> None:
    (qube.home / "answer").write_bytes(HOSTILE_VAULTS[name])
    qube.add_service("qubes.Gpg", f"#!/bin/sh\ncat {qube.home}/answer\n")
    done = qube.run("qubes-gpg-client", "-s")
    assert done.returncode == 2 and b"gpg: the vault: " in done.stderr


CONSENT = "consent = call\nperiod_s = 100  # seconds\n"


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Questions that dom0 got; it says yes to them while the list is short."""
    asked: list[str] = []

    def ask(argument: str) -> bool:
        asked.append(argument)
        return len(asked) < 4

    conf = tmp_path / "split-gpg.conf"
    conf.write_text(CONSENT)
    monkeypatch.setattr(gpgserver, "SETTINGS", str(conf))
    monkeypatch.setattr(gpgserver, "_ask_dom0", ask)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return asked


def test_consent_by_call_is_asked_once_per_period_service_and_client(
    asking: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.clock_gettime", lambda clock: now)
    for _ in range(3):
        gpgserver.get_consent("qubes.Gpg", "work")
    gpgserver.get_consent("qubes.Gpg", "mail")
    gpgserver.get_consent("qubes.GpgImportKey", "work")
    now += 99
    gpgserver.get_consent("qubes.Gpg", "work")
    assert asking == ["qubes.Gpg+work", "qubes.Gpg+mail", "qubes.GpgImportKey+work"]
    for later in (101, 105, 130, 132, -500):  # after the period; a no holds for a while; a stamp of the future is none
        now = 1000.0 + later
        with pytest.raises(gpgserver.Refused):
            gpgserver.get_consent("qubes.Gpg", "work")
    assert asking[3:] == ["qubes.Gpg+work"] * 3


@pytest.mark.parametrize("text", ["consent = no", "consent", "period_s = soon", "conssent = call"])
def test_a_slip_in_the_settings_does_not_open_the_vault(asking: list[str], text: str) -> None:
    Path(gpgserver.SETTINGS).write_text(text)
    with pytest.raises(gpgserver.Refused):
        gpgserver.get_consent("qubes.Gpg", "work")


@pytest.mark.parametrize("source", ["", "..", "a/b", "x" * 65, "a\n"])
def test_a_caller_without_a_name_is_refused(asking: list[str], source: str) -> None:
    with pytest.raises(gpgserver.Refused):
        gpgserver.get_consent("qubes.Gpg", source)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.binary(max_size=10_000)), max_size=5), st.integers(0, 255))
def test_frames_arrive_as_they_were_sent_however_cut(sent: list[tuple[int, bytes]], status: int) -> None:
    stream = b"".join(encode_data(fd, data) for fd, data in sent) + encode_exit(status)
    reader, got = FrameReader(), list[tuple[int, bytes]]()
    for start in range(0, len(stream), 777):
        got += reader.receive(stream[start : start + 777])
    assert exit_status(got.pop()[0]) == status and reader.is_between_frames
    assert b"".join(data for _, data in got) == b"".join(data for _, data in sent)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=COMMAND_SIZE + 2), st.binary(max_size=100))
def test_only_the_declared_errors_leave_the_parsers(command: bytes, frames: bytes) -> None:
    for untrusted in (command, command.ljust(COMMAND_SIZE, b"\0"), b"\x20\0\0\0" + command.ljust(1024, b"s")[:1024]):
        try:
            plan = plan_command(parse_command(untrusted))
            assert all(b"\0" not in word for word in plan.gpg_arguments())
        except (FramingError, NotAllowed):
            pass
    try:
        FrameReader().receive(frames)
    except FramingError:
        pass


needs_gpg = pytest.mark.skipif(shutil.which("gpg") is None, reason="no gpg here: the live test signs with one")


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Joined]:
    """A qube whose vault has a key of its own and the machine's gpg."""
    with joined_qube(tmp_path, monkeypatch) as joined:
        (joined.home / ".gnupg").mkdir(mode=0o700)
        new_key = ("--batch", "--quick-gen-key", "--passphrase", "", "me@example.org", "ed25519", "sign")
        subprocess.run(["gpg", *new_key], check=True, env=joined.environment, capture_output=True, timeout=60)
        yield joined
        subprocess.run(["gpgconf", "--kill", "all"], env=joined.environment, timeout=60)


@needs_gpg
def test_git_signs_and_verifies_with_a_key_of_the_vault(real: Joined) -> None:
    def git(*words: str) -> str:
        tool = real.directory / "bin" / "qubes-gpg-client-wrapper"
        settings = (
            "-c",
            f"gpg.program={tool}",
            "-c",
            "user.name=M",
            "-c",
            "user.email=me@example.org",
            "-c",
            "user.signingKey=me@example.org",
        )
        done = subprocess.run(
            ["git", *settings, *words],
            cwd=real.home,
            env=real.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout.decode()

    git("init", "-q", "repo")
    git("-C", "repo", "commit", "-q", "-S", "--allow-empty", "-m", "signed")
    assert "Good signature" in git("-C", "repo", "verify-commit", "HEAD")
    git("-C", "repo", "tag", "-s", "-m", "x", "v1")
    assert "Good signature" in git("-C", "repo", "verify-tag", "v1")


@needs_gpg
def test_a_file_is_encrypted_and_decrypted_and_a_forged_one_is_told(real: Joined) -> None:
    add = ("gpg", "--batch", "--passphrase", "", "--quick-gen-key", "friend@example.org", "future-default", "default")
    subprocess.run(add, check=True, env=real.environment, capture_output=True, timeout=60)
    (real.home / "letter").write_bytes(bytes(range(256)) * 2000)
    sealed = real.run("qubes-gpg-client-wrapper", "-se", "-u", "me@example.org", "-r", "friend@example.org", "letter")
    assert sealed.returncode == 0, sealed.stderr
    assert (real.home / "letter.gpg").read_bytes()[:1] >= b"\x80"
    opened = real.run("qubes-gpg-client-wrapper", "-o", "again", "--status-fd=1", "-d", "letter.gpg")
    assert opened.returncode == 0 and b"[GNUPG:] GOODSIG" in opened.stdout
    assert (real.home / "again").read_bytes() == (real.home / "letter").read_bytes()
    piped = real.run("qubes-gpg-client", "-d", stdin=(real.home / "letter.gpg").read_bytes())
    assert piped.stdout == (real.home / "letter").read_bytes()
    clear = real.run("qubes-gpg-client-wrapper", "--clearsign", "-u", "me@example.org", stdin=b"yes\n").stdout
    assert real.run("qubes-gpg-client", "--verify", stdin=clear).returncode == 0
    assert real.run("qubes-gpg-client", "--verify", stdin=clear.replace(b"\nyes", b"\nno")).returncode == 1


@needs_gpg
def test_public_keys_may_be_imported_and_secret_ones_not(real: Joined) -> None:
    def other(*words: str) -> bytes:
        home = real.home / "other"
        home.mkdir(mode=0o700, exist_ok=True)
        environment = real.environment | {"GNUPGHOME": str(home)}
        return subprocess.run(
            ["gpg", "--batch", "--passphrase", "", *words], env=environment, capture_output=True, timeout=60, check=True
        ).stdout

    other("--quick-gen-key", "you@example.org", "ed25519", "sign")
    public, secret = other("--armor", "--export"), other("--export-secret-keys")
    subprocess.run(["gpgconf", "--homedir", real.home / "other", "--kill", "all"], env=real.environment, timeout=60)
    for wrong, why in ((secret, b"secret key"), (b"", b"1 to"), (b"nonsense", b"no public key")):
        done = real.run("qubes-gpg-import-key", stdin=wrong)
        assert done.returncode == 1 and why in done.stderr
    (real.home / "key.asc").write_bytes(public)
    assert real.run("qubes-gpg-import-key", "key.asc").returncode == 0
    listed = real.run("qubes-gpg-client", "--with-colons", "--list-keys").stdout
    assert b"you@example.org" in listed and b"me@example.org" in listed
    assert b"you@" not in real.run("qubes-gpg-client", "-K", "--with-colons").stdout
