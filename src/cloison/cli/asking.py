"""The terminal's face of the ask-agent: keys out of bytes, and the screen out of the state. Pure.

In: typed bytes; AskState, sizes. Out: keys; lines of text. May import: client.asking, cli.
"""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterator

from cloison.cli.colours import Palette
from cloison.cli.table import cells_wide
from cloison.client.asking import AskState, Face, Key, Notice, Question

FOCUS_REPORTS_ON, FOCUS_REPORTS_OFF = "\x1b[?1004h", "\x1b[?1004l"
MIN_WIDTH, MIN_HEIGHT = 40, 12
_DIRECTORIES = re.compile(r"/\S*/")
NOTICES_SHOWN = 3
FOCUSED = b"\x1b[I"
_SEQUENCES: dict[bytes, Key] = {
    b"\x1b[A": Key.UP,
    b"\x1bOA": Key.UP,
    b"\x1b[B": Key.DOWN,
    b"\x1bOB": Key.DOWN,
    b"\x1b[5~": Key.PAGE_UP,
    b"\x1b[6~": Key.PAGE_DOWN,
    b"\x1b[H": Key.FIRST,
    b"\x1b[1~": Key.FIRST,
    b"\x1bOH": Key.FIRST,
    b"\x1b[F": Key.LAST,
    b"\x1b[4~": Key.LAST,
    b"\x1bOF": Key.LAST,
}
_LETTERS: dict[bytes, Key] = {
    b"k": Key.UP,
    b"j": Key.DOWN,
    b"a": Key.ALLOW,
    b"d": Key.DENY,
    b"r": Key.REMEMBER,
    b"n": Key.NEXT,
    b"\t": Key.NEXT,
    b"q": Key.QUIT,
    b"\x03": Key.QUIT,
    b"\x04": Key.QUIT,
}


class KeyReader:
    """Keys out of typed bytes, which may come in any portions; what means nothing is dropped."""

    def __init__(self) -> None:
        self._rest = b""

    def read(self, typed: bytes) -> Iterator[Key | bytes]:
        """Keys, and FOCUSED where the terminal says that it got the focus."""
        self._rest += typed
        while self._rest:
            word = _first(self._rest)
            if word is None:
                return
            self._rest = self._rest[len(word) :]
            if word == FOCUSED:
                yield FOCUSED
            elif (key := _SEQUENCES.get(word) or _LETTERS.get(word)) is not None:
                yield key


def _first(data: bytes) -> bytes | None:
    """The first key press in the data; None if its end is still to come."""
    if data[:1] != b"\x1b":
        return data[:1]
    if len(data) == 1 or data[1:2] not in b"[O":
        return data[:1]  # the escape key by itself means nothing here, and must not swallow what follows
    if data[1:2] == b"O":
        return data[:3] if len(data) >= 3 else None
    for index, byte in enumerate(data[2:18], 2):
        if 0x40 <= byte <= 0x7E:
            return data[: index + 1]
    return None if len(data) < 18 else data[:2]


def _state_of_rest(state: AskState) -> str:
    if state.is_connected:
        return "No question is open."
    return "The daemon is not there." if state.was_connected else "Looking for the daemon…"


def draw(state: AskState, palette: Palette, width: int, height: int) -> list[str]:
    """At most ``height`` lines of at most ``width`` columns."""
    if width < MIN_WIDTH or height < MIN_HEIGHT:
        return [_cut("a question waits; make this terminal larger" if state.current else "larger, please", width)]
    question = state.current
    head = _head(state, palette, width)
    foot = _foot(state, palette, width)
    if question is None:
        body = ["", _cut(f"  {_state_of_rest(state)}", width)]
        room = height - len(head) - len(foot) - len(body)
    else:
        body = _about(question, palette, width)
        room = height - len(head) - len(foot) - len(body)
        body += _targets(state, question, palette, width, max(1, room))
        room = height - len(head) - len(foot) - len(body)
    return (head + body + [""] * max(0, room) + foot)[:height]


def _head(state: AskState, palette: Palette, width: int) -> list[str]:
    count = len(state.questions)
    right = f"{count} open" if count > 1 else ""
    title = "Cloison: questions of qubes"
    return [palette.bold(title) + " " * (width - len(title) - len(right)) + right, palette.dim("─" * width)]


def _about(question: Question, palette: Palette, width: int) -> list[str]:
    source = palette.label(question.source.name, question.source.label)
    label = f" ({question.source.label})" if question.source.label else ""
    wish = f"{label} wants to {question.wish()}"
    rows = [
        source + _cut(wish, width - cells_wide(question.source.name)),
        "",
        _cut(f"  service    {question.service}", width),
        _cut(f"  argument   {question.argument or '(none)'}", width),
        _cut(f"  asked for  {_plainly(question.requested_target)}", width),
        _cut(f"  rule       {_tail(question.rule, width - 13)}", width),
    ]
    if question.warning:
        rows.append(_cut(f"  note       {question.warning}", width))
    return [*rows, "", "  To:"]


def _targets(state: AskState, question: Question, palette: Palette, width: int, room: int) -> list[str]:
    """The part of the list around the chosen one."""
    count = len(question.targets)
    chosen = state.selected
    first = 0
    if count > room:
        first = min(max((chosen or 0) - room // 2, 0), count - room)
    rows = []
    for index, face in enumerate(question.targets[first : first + room], first):
        mark = "▸" if index == chosen else " "
        more = "  ↑" if index == first > 0 else "  ↓" if index == first + room - 1 < count - 1 else ""
        rows.append(_target(face, mark, more, palette, width, bold=index == chosen))
    return rows


def _target(face: Face, mark: str, more: str, palette: Palette, width: int, *, bold: bool) -> str:
    label = f" ({face.label})" if face.label else ""
    text = _cut(face.spoken + label, width - 6 - len(more))
    return f"   {mark} {palette.label(text, face.label) if not bold else palette.style(text, '7')}{more}"


def _foot(state: AskState, palette: Palette, width: int) -> list[str]:
    rows: list[str] = []
    if state.current is not None:
        rows += ["", *_memory(state, palette, width), _cut(_prompt(state, state.current), width)]
    notices = list(state.notices)[-NOTICES_SHOWN:]
    if notices:
        rows += ["", *(palette.dim(_cut(describe(notice), width)) for notice in notices)]
    keys = "↑ ↓ choose   a allow   d deny   r remember   n next   q quit"
    if state.current is None:
        keys = "q quit (then every question is answered with no)"
    return [*rows, palette.dim("─" * width), _cut(keys, width)]


def _memory(state: AskState, palette: Palette, width: int) -> list[str]:
    if not state.is_remembering or state.current is None:
        return []
    allow, deny = state.line(allow=True), state.line(allow=False)
    rows = [f"  remembered in {_tail(state.current.file, width - 17)}:"]
    for key, line in (("a", allow or "(choose a target)"), ("d", deny)):
        rows += textwrap.wrap(line, width - 4, initial_indent=f"  {key}  ", subsequent_indent="     ")[:3]
    return [palette.style(_cut(row, width), "33") for row in rows]


def _prompt(state: AskState, question: Question) -> str:
    if state.message:
        return state.message
    if state.is_sent:
        return "answering…"
    chosen = state.chosen
    if state.waits_s > 0:
        return f"read it first… {state.waits_s:.0f} s" if state.waits_s >= 0.5 else "read it first…"
    if chosen is None:
        return "choose a target with ↑ ↓; d says no"
    return f"a lets {question.source.name} {question.wish(chosen)}; d says no"


def describe(notice: Notice) -> str:
    """One line on calls that were refused, failed or went through."""
    when = time.strftime("%H:%M:%S", time.localtime(notice.time))
    many = f"{notice.calls} more calls" if notice.calls > 1 else "a call"
    what = f" of {notice.service} to {_plainly(notice.target)}" if notice.service else ""
    why = f" ({_DIRECTORIES.sub('', notice.reason)})" if notice.reason else ""
    return f"{when} {notice.kind}: {many} by {notice.source}{what}{why}"


def _plainly(target: str) -> str:
    return "any qube" if target == "@default" else target


def _cut(text: str, width: int) -> str:
    if cells_wide(text) <= width:
        return text
    while text and cells_wide(text) >= width:
        text = text[:-1]
    return text + "…"


def _tail(text: str, width: int) -> str:
    """The end of a path says more than its beginning."""
    return text if len(text) <= width else "…" + text[-(width - 1) :]
