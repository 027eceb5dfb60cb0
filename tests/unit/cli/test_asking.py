"""The ask-agent without a daemon: its state, its keys, its screen."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.cli.asking import FOCUSED, KeyReader, describe, draw
from cloison.cli.colours import Palette
from cloison.cli.table import cells_wide
from cloison.client.asking import DELAY_S, MAX_SHOWN, AskState, Key, Notice, Question, Reply

PLAIN = Palette(enabled=False)


def prompt(number: int = 1, *, source="work", targets=("personal", "vault"), default=None, turn=0, **more) -> dict:
    told = {
        "id": f"id{number}",
        "turn": turn,
        "source": {"name": source, "label": "blue", "colour": "0x0000cc"},
        "service": "qubes.Filecopy",
        "argument": "",
        "requested_target": "@default",
        "targets": [{"name": name, "label": "red", "colour": "0xcc0000"} for name in targets],
        "default_target": default,
        "warning": "",
        "rule": "/x/policy.d/90-default.policy:5",
        "left_s": 120.0,
        "remember": {
            "file": "/x/policy.d/30-user.policy",
            "allow": {name: f"qubes.Filecopy + {source} @default allow target={name}" for name in targets},
            "deny": f"qubes.Filecopy + {source} @default deny",
            "why_not": "",
        },
    }
    return told | more


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(clock: Clock) -> AskState:
    state = AskState(clock)
    state.told("ready", {})
    return state


def press(state: AskState, *keys: Key) -> list[Reply]:
    return [reply for key in keys if (reply := state.press(key)) is not None]


def test_keys_count_only_after_a_moment(state, clock):
    state.told("prompt", prompt(default="vault"))
    assert press(state, Key.ALLOW, Key.DENY, Key.UP, Key.REMEMBER) == []
    assert state.chosen is not None and state.chosen.name == "vault" and not state.is_remembering
    clock.now += DELAY_S - 0.01
    assert press(state, Key.ALLOW) == []
    clock.now += 0.01
    assert press(state, Key.ALLOW) == [Reply("id1", "vault", None)]
    assert press(state, Key.ALLOW, Key.DENY) == [], "one answer is on its way"


def test_nothing_is_chosen_but_the_default(state, clock):
    state.told("prompt", prompt(targets=("vault",)))
    clock.now += 2
    assert state.chosen is None and press(state, Key.ALLOW) == [] and "choose" in state.message
    assert press(state, Key.DOWN, Key.ALLOW) == [Reply("id1", "vault", None)]


def test_the_list_is_walked(state, clock):
    names = [f"q{number:02}" for number in range(30)]
    state.told("prompt", prompt(targets=names))
    clock.now += 2
    walk = [(Key.DOWN, 0), (Key.DOWN, 1), (Key.UP, 0), (Key.UP, 0), (Key.LAST, 29), (Key.DOWN, 29), (Key.PAGE_UP, 19),
            (Key.FIRST, 0), (Key.PAGE_DOWN, 10)]  # fmt: skip
    for key, expected in walk:
        press(state, key)
        assert state.selected == expected


def test_no_is_an_answer_without_a_choice(state, clock):
    state.told("prompt", prompt())
    clock.now += 2
    assert press(state, Key.DENY) == [Reply("id1", None, None)]


@pytest.mark.parametrize("event", ["new question", "focus", "remember", "next"])
def test_the_moment_begins_anew(state, clock, event):
    state.told("prompt", prompt(1, default="vault"))
    if event == "next":
        state.told("prompt", prompt(2, default="vault", turn=1))
    clock.now += 5
    match event:
        case "new question":
            state.told("prompt", prompt(2, default="vault", turn=1))
            state.told("gone", {"id": "id1"})
        case "focus":
            state.focused()
        case "remember":
            press(state, Key.REMEMBER)
        case "next":
            press(state, Key.NEXT)
    assert press(state, Key.ALLOW) == []
    clock.now += DELAY_S
    assert len(press(state, Key.ALLOW)) == 1


def test_a_question_in_view_stays_there_when_others_come(state, clock):
    state.told("prompt", prompt(1, turn=5))
    state.told("prompt", prompt(2, turn=0))
    assert state.current.id == "id1" and [question.id for question in state.questions] == ["id2", "id1"]
    state.told("gone", {"id": "id1"})
    assert state.current.id == "id2"
    state.told("gone", {"id": "id2"})
    assert state.current is None and press(state, Key.ALLOW, Key.DENY, Key.NEXT) == []


def test_remembering_sends_the_line_that_was_shown(state, clock):
    state.told("prompt", prompt(default="vault"))
    clock.now += 2
    press(state, Key.REMEMBER)
    clock.now += 2
    screen = "\n".join(draw(state, PLAIN, 80, 24))
    line = "qubes.Filecopy + work @default allow target=vault"
    assert line in screen and "qubes.Filecopy + work @default deny" in screen
    assert press(state, Key.ALLOW) == [Reply("id1", "vault", line)]


def test_what_cannot_be_remembered_says_why(state, clock):
    told = prompt(default="vault")
    told["remember"]["why_not"] = "disp7 is a disposable"
    state.told("prompt", told)
    clock.now += 2
    press(state, Key.REMEMBER)
    assert not state.is_remembering and "disp7 is a disposable" in "\n".join(draw(state, PLAIN, 80, 24))


def test_an_answer_that_was_not_taken_can_be_given_again(state, clock):
    state.told("prompt", prompt(default="vault"))
    clock.now += 2
    press(state, Key.ALLOW)
    state.refused("id1", "the line would not decide this call")
    assert state.message and press(state, Key.ALLOW) == []
    clock.now += 1
    assert len(press(state, Key.ALLOW)) == 1


def test_a_lost_daemon_takes_everything_away(state):
    state.told("prompt", prompt())
    state.connecting()
    assert state.current is None and "not there" in "\n".join(draw(state, PLAIN, 80, 24))


@pytest.mark.parametrize("broken", [{}, {"id": "x"}, prompt() | {"targets": 5}, prompt() | {"remember": None},
                                    prompt() | {"left_s": "soon"}])  # fmt: skip
def test_what_cannot_be_read_is_an_error_of_one_kind(state, broken):
    with pytest.raises(ValueError):
        state.told("prompt", broken)
    assert state.current is None


def test_what_qubes_choose_is_one_short_line():
    question = Question.parse(prompt(service="x\x1b[2J\ny", argument="a" * 5000), 0.0)
    assert "\x1b" not in question.service and "\n" not in question.service
    assert len(question.argument) < MAX_SHOWN + 30 and "5000 characters" in question.argument


# Keys


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        (b"a", [Key.ALLOW]),
        (b"\x1b[A\x1b[B", [Key.UP, Key.DOWN]),
        (b"\x1bOA\x1b[5~\x1b[6~", [Key.UP, Key.PAGE_UP, Key.PAGE_DOWN]),
        (b"\x1b[I\x1b[O", [FOCUSED]),
        (b"\x1b", []),
        (b"\x1bd", [Key.DENY]),
        (b"\x1b[1;5Aq", [Key.QUIT]),
        (b"\r\n x", []),
        (b"\x03", [Key.QUIT]),
    ],
)
def test_typed_bytes_are_keys(typed, keys):
    assert list(KeyReader().read(typed)) == keys
    reader = KeyReader()
    assert [key for byte in typed for key in reader.read(bytes([byte]))] == keys or typed.startswith(b"\x1b")


@given(st.binary(max_size=60))
def test_whatever_is_typed_nothing_breaks(typed):
    reader = KeyReader()
    for start in range(0, len(typed), 7):
        list(reader.read(typed[start : start + 7]))
    assert len(reader._rest) <= 18


# The screen


@pytest.mark.parametrize("size", [(80, 24), (40, 12), (200, 60), (20, 5)])
@pytest.mark.parametrize("count", [0, 1, 3, 120])
def test_the_screen_fits(state, clock, size, count):
    width, height = size
    if count:
        state.told("prompt", prompt(targets=[f"qube-{n}" for n in range(count)], argument="x" * 900, warning="w" * 99))
        clock.now += 2
        press(state, Key.REMEMBER)
        clock.now += 2
    for number in range(9):
        state.told("notice", {"kind": "denied", "source": "evil", "service": "qubes.VMShell", "target": "work",
                              "reason": "denied by 90-default.policy:23", "calls": number + 1, "time": 0})  # fmt: skip
    for key in [Key.DOWN] * (count // 2):
        press(state, key)
    for palette in (PLAIN, Palette(enabled=True)):
        lines = draw(state, palette, width, height)
        assert len(lines) <= height
        assert max(cells_wide(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in lines) <= width
    if count and width >= 80:
        text = "\n".join(lines)
        assert "work" in text and "copy files to" in text and "a allow" in text and "d deny" in text


def test_the_chosen_target_is_always_in_view(state, clock):
    state.told("prompt", prompt(targets=[f"qube-{n}" for n in range(120)]))
    clock.now += 2
    for _ in range(77):
        press(state, Key.DOWN)
    assert any("▸ qube-76 " in line for line in draw(state, PLAIN, 80, 24))
    assert "a lets work copy files to qube-76" in "\n".join(draw(state, PLAIN, 80, 24))


def test_a_screen_as_people_see_it(state, clock):
    state.told("prompt", prompt(default="vault", targets=("@dispvm:default-dvm", "personal", "vault")))
    state.told("notice", {"kind": "denied", "source": "evil", "service": "qubes.VMShell", "target": "work",
                          "reason": "denied by f:1", "calls": 12, "time": 0})  # fmt: skip
    clock.now += 2
    lines = draw(state, PLAIN, 80, 24)
    assert lines[2:14] == [
        "work (blue) wants to copy files to another qube",
        "",
        "  service    qubes.Filecopy",
        "  argument   (none)",
        "  asked for  any qube",
        "  rule       /x/policy.d/90-default.policy:5",
        "",
        "  To:",
        "     a new disposable of default-dvm (red)",
        "     personal (red)",
        "   ▸ vault (red)",
        "",
    ]
    assert lines[-5] == "a lets work copy files to vault; d says no"
    assert lines[-3].endswith(" denied: 12 more calls by evil of qubes.VMShell to work (denied by f:1)")
    assert len(lines) == 24


def test_notices_in_words():
    assert describe(Notice("denied", "evil", "", "", "other calls", 40, 0.0)).endswith(
        " denied: 40 more calls by evil (other calls)"
    )
    assert describe(Notice("allowed", "work", "qubes.Gpg", "@default", "", 1, 0.0)).endswith(
        " allowed: a call by work of qubes.Gpg to any qube"
    )
