"""`cloison run` over the real wire, with local processes in place of qubes."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
import time
from typing import Any

import pytest

from cloison.cli.run import RunCommand, command_line
from cloison.client.qrexec import run_captured
from cloison.client.streams import DescriptorSink, StringDropper, TerminalSink
from cloison.layout import Layout
from cloison.wire import LEG_SESSION, Call, Reset, Tty, WindowSize

PROGRAM = [sys.executable, "-m", "cloison.cli"]


def run(*words: str, **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*PROGRAM, "run", *words], capture_output=True, timeout=60, check=False, **kwargs)


@pytest.mark.parametrize(
    ("words", "target", "command"),
    [
        (("work", "true"), "work", "true"),
        (("work", "--", "ls", "-l", "a b"), "work", "ls -l 'a b'"),
        (("work", "ls", "-l"), "work", "ls -l"),
        (("--user", "root", "work", "id"), "work", "id"),
        (("work", "--user", "root", "--", "id"), "work", "id"),
        (("--dispvm", "--", "id"), "@dispvm", "id"),
        (("--dispvm", "id", "-u"), "@dispvm", "id -u"),
        (("--dispvm=my-dvm", "id"), "@dispvm:my-dvm", "id"),
        (("work", "--dispvm", "--", "id"), "@dispvm:default-dvm", "id"),
        (("default-dvm", "--dispvm", "id"), "@dispvm:default-dvm", "id"),
        (("@dispvm:x", "id"), "@dispvm:x", "id"),
    ],
)
def test_words_say_where_and_what(daemon: Any, broker: Any, words: tuple[str, ...], target: str, command: str) -> None:
    broker.refuse = "only looking"
    assert run(*words).returncode == 125
    assert (broker.calls[0].target, broker.calls[0].command) == (target, command)
    assert broker.calls[0].user == ("root" if "root" in words else "")


def test_a_service_is_called_by_name(daemon: Any, broker: Any) -> None:
    broker.refuse = "only looking"
    run("--service", "work", "qubes.GetDate+nanoseconds")
    assert (broker.calls[0].service, broker.calls[0].command) == ("qubes.GetDate+nanoseconds", "")


@pytest.mark.parametrize("words", [("work",), (), ("--dispvm",), ("--dispvm=a", "b c", "d") and ("bad name", "id")])
def test_wrong_use_is_one_line_and_2(daemon: Any, broker: Any, words: tuple[str, ...]) -> None:
    done = run(*words, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [("work", "a" * 100000), ("work", b"\xff".decode("utf-8", "surrogateescape")), ("--user", "a b", "work", "id")],
)
def test_a_call_that_cannot_be_put_into_words_is_one_line_and_125(
    daemon: Any, broker: Any, words: tuple[str, ...]
) -> None:
    done = run(*words, stdin=subprocess.DEVNULL)
    assert done.returncode == 125
    assert done.stderr.count(b"\n") == 1
    assert b"cannot be made" in done.stderr
    assert (b"sh < SCRIPT" in done.stderr) == (len(words[-1]) > 4096)


def test_streams_and_exit_code_are_those_of_the_command(daemon: Any, broker: Any) -> None:
    done = run("work", "cat; echo problem >&2; exit 7", input=b"hello")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"hello", b"problem\n")


def test_a_command_killed_by_a_signal_ends_with_128_and_its_number(daemon: Any, broker: Any) -> None:
    assert run("work", "kill -9 $$").returncode == 137


def test_much_data_go_both_ways_at_once(daemon: Any, broker: Any) -> None:
    data = os.urandom(1 << 16) * 64
    assert run("work", "cat", input=data).stdout == data


def test_input_that_nobody_reads_does_not_hold_the_command_up(daemon: Any, broker: Any) -> None:
    assert run("work", "exit 3", input=b"x" * (8 << 20)).returncode == 3


def test_closed_descriptors_are_empty_not_ours(daemon: Any, broker: Any) -> None:
    program = " ".join(PROGRAM)
    done = subprocess.run(f"{program} run work 'wc -c; exit 3' <&-", shell=True, capture_output=True, timeout=30)
    assert (done.returncode, done.stdout.strip()) == (3, b"0")
    done = subprocess.run(f"{program} run work 'echo x; exit 4' >&- 2>&-", shell=True, timeout=30)
    assert done.returncode == 4
    done = subprocess.run(f"{program} remove vault <&-", shell=True, capture_output=True, timeout=30)
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)


def test_no_stdin_gives_end_of_file_at_once(daemon: Any, broker: Any) -> None:
    assert run("-n", "work", "wc -c", input=b"ignored").stdout.strip() == b"0"


def test_a_refused_call_is_125_and_says_why(daemon: Any, broker: Any) -> None:
    broker.refuse = "no qube is named 'nope'"
    done = run("nope", "id")
    assert done.returncode == 125
    assert b"no qube is named 'nope'" in done.stderr


def test_a_lost_connection_is_255_and_says_so(daemon: Any, broker: Any) -> None:
    broker.cut = True
    done = run("work", "id")
    assert done.returncode == 255
    assert b"lost" in done.stderr


def test_a_reader_that_goes_away_ends_the_command(daemon: Any, broker: Any) -> None:
    process = subprocess.Popen([*PROGRAM, "run", "work", "yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout and process.stderr
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == b""
    for _ in range(100):
        if any(isinstance(e, Reset) for e in broker.events):
            break
        time.sleep(0.02)
    assert any(isinstance(e, Reset) for e in broker.events)


def test_ctrl_c_reaches_the_command_and_its_answer_comes_back(daemon: Any, broker: Any) -> None:
    command = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.05; done"
    process = subprocess.Popen([*PROGRAM, "run", "work", command], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == b"caught\n"
    assert process.wait(30) == 5


def test_a_second_ctrl_c_ends_us(daemon: Any, broker: Any) -> None:
    command = "trap '' INT; echo ready; while :; do sleep 0.05; done"
    process = subprocess.Popen([*PROGRAM, "run", "work", command], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_a_command_that_does_not_heed_sigterm_is_left_after_a_while(
    daemon: Any, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys, cloison.client.qrexec as q; q.TERM_GRACE_S = 0.2; from cloison.cli import main; sys.exit(main())"
    )
    command = "trap '' TERM; echo ready; while :; do sleep 0.05; done"
    process = subprocess.Popen([sys.executable, "-c", code, "run", "work", command], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    process.terminate()
    assert process.wait(30) == 143


def _in_terminal(*words: str, rows: int = 31, cols: int = 101) -> tuple[int, int]:
    pid, master = pty.fork()
    if pid == 0:
        termios.tcsetwinsize(0, (rows, cols))
        os.environ["TERM"] = "xterm"
        os.execv(sys.executable, [*PROGRAM, "run", *words])
    return pid, master


def _read_until(master: int, text: bytes, timeout_s: float = 20) -> bytes:
    import select

    seen, deadline = b"", time.monotonic() + timeout_s
    while text not in seen and time.monotonic() < deadline:
        if select.select([master], [], [], 0.2)[0]:
            try:
                seen += os.read(master, 65536)
            except OSError:
                break
    return seen


def test_a_terminal_is_raw_inside_and_restored_afterwards(daemon: Any, broker: Any) -> None:
    pid, master = _in_terminal("-t", "work", "printf 'R%sY\\n' EAD; read x; echo got:$x; exit 9")
    before = termios.tcgetattr(master)
    assert b"READY" in _read_until(master, b"READY")
    assert broker.calls[0].tty == Tty("xterm", 31, 101)
    assert not termios.tcgetattr(master)[3] & termios.ICANON
    termios.tcsetwinsize(master, (40, 120))
    os.kill(pid, signal.SIGWINCH)
    os.write(master, b"hello\r")
    assert b"got:hello" in _read_until(master, b"got:hello")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert any(isinstance(e, WindowSize) and (e.rows, e.cols) == (40, 120) for e in broker.events)
    assert termios.tcgetattr(master)[3] == before[3]


def test_three_times_the_escape_key_lets_go_of_a_terminal(daemon: Any, broker: Any) -> None:
    pid, master = _in_terminal("-t", "work", "stty raw -echo; printf 'R%sY\\n' EAD; sleep 100")
    _read_until(master, b"READY")
    os.write(master, b"\x1d\x1d\x1d")
    assert b"let go" in _read_until(master, b"let go")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 255
    assert termios.tcgetattr(master)[3] & termios.ICANON


def test_without_a_terminal_of_its_own_a_command_cannot_speak_to_ours(daemon: Any, broker: Any) -> None:
    pid, master = _in_terminal("work", "printf '\\033]0;evil\\007 \\302\\233 caf\\303\\251 done'")
    seen = _read_until(master, b"done")
    os.waitpid(pid, 0)
    assert b"\x1b" not in seen
    assert "_]0;evil\a _ café done".encode() in seen


def test_a_person_who_waits_is_told_for_what(daemon: Any, broker: Any) -> None:
    broker.slow_s = 4.0
    pid, master = _in_terminal("work", "echo 'h'i")
    seen = _read_until(master, b"hi")
    os.waitpid(pid, 0)
    assert seen.startswith("starting work…\r\x1b[Khi".encode())


def test_words_become_a_command_line() -> None:
    assert command_line(["a b"]) == "a b"
    assert command_line(["a", "b c", "$x"]) == "a 'b c' '$x'"
    assert command_line([]).startswith("exec")


def test_a_terminal_sink_counts_what_it_took_not_what_it_wrote() -> None:
    reading, writing = os.pipe()
    sink = TerminalSink(writing)
    sink.put("é".encode()[:1])
    sink.put("é".encode()[1:] + b"\x1b")
    assert sink.flush() == 3
    assert os.read(reading, 10) == "é_".encode()


SCREEN = "\x1b[31mred\x1b]0;title\x07 \x1b]52;c;ZXZpbA==\x1b\\end\x1bP+q544e\x1b\\\x1b[2J\x9d0;x\x9c!\x1b]8;;\x1b[1m?"


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_a_full_screen_program_may_draw_but_not_set_titles_or_the_clipboard(step: int) -> None:
    dropper = StringDropper()
    kept = "".join(dropper.clean(SCREEN[i : i + step]) for i in range(0, len(SCREEN), step))
    assert kept == "\x1b[31mred end\x1b[2J!\x1b[1m?"


def test_a_slow_pipe_is_never_waited_for_and_keeps_its_flags() -> None:
    reading, writing = os.pipe()
    sink = DescriptorSink(writing)
    sink.put(b"x" * (1 << 20))
    done = sink.flush()
    assert 0 < done < 1 << 20
    assert sink.waiting() == (1 << 20) - done
    assert os.get_blocking(writing)
    os.close(reading)


def test_a_whole_call_in_memory(daemon: Any, broker: Any, system: Layout) -> None:
    ending, out, err = run_captured(system, Call(LEG_SESSION, "work", command="cat; exit 4"), stdin=b"abc")
    assert (ending.code, out, err) == (4, b"abc", b"")


def test_the_parser_keeps_options_of_the_command_apart() -> None:
    import click

    made = RunCommand("run", params=[click.Option(["-u", "--user"]), click.Option(["-t"], is_flag=True)])
    assert made._sorted(["-u", "root", "work", "-t", "ls", "-l"]) == ["-u", "root", "-t", "--", "work", "ls", "-l"]
    assert made._sorted(["work", "--", "-t"]) == ["--", "work", "-t"]


def test_the_reader_of_a_pipe_sees_the_end_of_the_output_before_the_end_of_the_call() -> None:
    reading, writing = os.pipe()
    sink = DescriptorSink(writing, closing=True)
    sink.put(b"all of it")
    assert sink.flush() == 9
    sink.end()
    assert os.read(reading, 100) == b"all of it"
    assert os.read(reading, 100) == b""
    os.write(writing, b"no longer the pipe")
    for descriptor in (reading, writing):
        os.close(descriptor)
