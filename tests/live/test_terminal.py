"""A terminal in a qube, and what a person does to running commands."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.live.conftest import LiveSystem

MakeQube = Callable[..., str]
CLOISON = str(Path(sys.executable).with_name("cloison"))
PATIENCE_S = 40.0


class Terminal:
    """A command on a terminal of its own; what it shows is read until it shows what is waited for."""

    def __init__(self, system: LiveSystem, *words: str) -> None:
        self.shown = b""
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            termios.tcsetwinsize(0, (31, 101))
            os.execvpe(words[0], list(words), {**system.environment, "TERM": "xterm"})

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while text.encode() not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} never came: {self.shown!r}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.master, 65536)
                except OSError:
                    assert text.encode() in self.shown, f"it ended without {text!r}: {self.shown!r}"
        self.shown = self.shown.partition(text.encode())[2]

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def exit_code(self) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"it does not end; it showed {self.shown!r}")
            if select.select([self.master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self.master, 65536)
        return os.waitstatus_to_exitcode(ended[1])

    def is_cooked(self) -> bool:
        return bool(termios.tcgetattr(self.master)[3] & termios.ICANON)


@pytest.fixture(scope="module")
def qube(system: LiveSystem) -> Iterator[str]:
    system.cloison("create", "--label", "blue", "--template", "debian-13", "tty-qube")
    system.cloison("start", "tty-qube")
    yield "tty-qube"
    system.cloison("remove", "--yes", "--kill", "tty-qube", expect=None)


def test_a_shell_in_a_terminal_knows_its_size_and_hears_ctrl_c(system: LiveSystem, qube: str) -> None:
    terminal = Terminal(system, CLOISON, "run", "--tty", qube, "bash --norc")
    terminal.wait_for("$ ")
    assert not terminal.is_cooked()
    terminal.type("stty size; echo term=$TERM; sleep 100\r")
    terminal.wait_for("31 101")
    terminal.wait_for("term=xterm")
    time.sleep(0.5)
    terminal.type("\x03")
    terminal.wait_for("$ ")
    termios.tcsetwinsize(terminal.master, (40, 120))
    os.kill(terminal.pid, signal.SIGWINCH)
    time.sleep(0.5)
    terminal.type("stty size; exit 7\r")
    terminal.wait_for("40 120")
    assert terminal.exit_code() == 7
    assert terminal.is_cooked()


def test_three_escape_keys_let_go_and_the_command_ends(system: LiveSystem, qube: str) -> None:
    terminal = Terminal(system, CLOISON, "run", "--tty", qube, "echo he''re; exec sleep 4321")
    terminal.wait_for("here")
    terminal.type("\x1d\x1d\x1d")
    terminal.wait_for("let go")
    assert terminal.exit_code() == 255
    deadline = time.monotonic() + 20
    while system.run(qube, "pgrep", "-f", "sleep 4321$", expect=None).returncode == 0:
        assert time.monotonic() < deadline, "the command goes on without its terminal"
        time.sleep(0.3)


def test_without_a_terminal_of_its_own_a_qube_cannot_speak_to_ours(system: LiveSystem, qube: str) -> None:
    terminal = Terminal(system, CLOISON, "run", qube, r"printf '\033]0;evil\007<%s>' done")
    terminal.wait_for("_]0;evil")
    terminal.wait_for("<done>")
    assert terminal.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
def test_signals_reach_the_command_and_its_last_words_come_back(
    system: LiveSystem, qube: str, number: signal.Signals
) -> None:
    command = f"trap 'echo heard; exit 9' {int(number)}; echo ready; while :; do sleep 0.2; done"
    running = system.start("run", qube, command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert running.stdout
    assert running.stdout.readline() == b"ready\n"
    running.send_signal(number)
    assert running.stdout.read() == b"heard\n"
    assert running.wait(PATIENCE_S) == 9


def test_the_serial_console_is_a_terminal_too(system: LiveSystem, qube: str) -> None:
    terminal = Terminal(system, CLOISON, "console", qube)
    terminal.wait_for("attached")
    deadline = time.monotonic() + PATIENCE_S
    while b"# " not in terminal.shown and time.monotonic() < deadline:  # the getty of a fork wakes up at a key
        terminal.type("\r")
        if select.select([terminal.master], [], [], 1.0)[0]:
            terminal.shown += os.read(terminal.master, 65536)
    terminal.type("echo $((6*7))-$(hostname)\r")
    terminal.wait_for(f"42-{qube}")
    terminal.type("\x1d\x1d\x1d")
    assert terminal.exit_code() == 0
    assert terminal.is_cooked()


def test_a_program_is_suspended_and_the_shell_goes_on(system: LiveSystem, qube: str) -> None:
    terminal = Terminal(system, CLOISON, "run", "--tty", qube, "bash --norc")
    terminal.wait_for("$ ")
    terminal.type("sleep 4321\r")
    terminal.wait_for("sleep 4321")
    time.sleep(1)
    terminal.type("\x1a")
    terminal.wait_for("Stopped")
    terminal.wait_for("$ ")
    terminal.type("kill -9 %1; wait; echo al''ive\r")  # with a job left the shell would not end
    terminal.wait_for("alive")
    terminal.wait_for("$ ")  # before its prompt the shell is not listening yet, and Ctrl-D would be lost
    terminal.type("\x04")
    assert terminal.exit_code() == 0
    assert terminal.is_cooked()


@pytest.mark.parametrize(("way", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), ("the qube dies", 255)])
def test_the_terminal_is_given_back_however_the_command_ends(
    system: LiveSystem, qube: str, way: signal.Signals | str, code: int
) -> None:
    terminal = Terminal(system, CLOISON, "run", "--tty", qube, "echo he''re; exec cat")
    terminal.wait_for("here")
    assert not terminal.is_cooked()
    if isinstance(way, signal.Signals):
        os.kill(terminal.pid, way)
    else:
        system.cloison("kill", qube)
    assert terminal.exit_code() == code
    assert terminal.is_cooked()


def test_several_people_watch_a_console_and_it_ends_with_its_qube(system: LiveSystem, qube: str) -> None:
    system.run(qube, "true")
    first, second = (Terminal(system, CLOISON, "console", qube) for _ in range(2))
    for watcher in (first, second):
        watcher.wait_for("attached")
    time.sleep(0.5)
    system.run(qube, "sh", "-c", "echo said on the console > /dev/ttyS0", user="root")
    for watcher in (first, second):
        watcher.wait_for("said on the console")
    first.type("\x1d\x1d\x1d")
    assert first.exit_code() == 0
    system.run(qube, "sh", "-c", "echo one is left > /dev/ttyS0", user="root")
    second.wait_for("one is left")
    assert b"said on the console" in system.cloison("console", "--log", qube).stdout
    system.cloison("kill", qube)
    assert second.exit_code() == 0
    assert first.is_cooked() and second.is_cooked()
