"""Whoever changes a line that was signed is found out, and the first changed line is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from auditlogs import LogBench
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloison.cli.entry import run_program
from cloison.qrexec.audit.chain import Tip, link, parse_line
from cloison.qrexec.audit.signing import KEY_FILE, ROOT_FILE, find_signing

Bench = Callable[..., LogBench]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A record in a directory, written as the daemon writes it, without a loop: ``settle`` is called by hand."""
    return lambda name="audit", **options: LogBench(tmp_path / "data" / name, **options)


CALLS = 9


@pytest.fixture
def whole(bench: Bench) -> LogBench:
    """Nine records with a checkpoint after every third, all signed."""
    it = bench()
    for number in range(1, CALLS + 1):
        it.call(number)
        if number % 3 == 0:
            it.log.settle()
    assert it.verify().is_whole
    return it


def positions(bench: LogBench) -> range:
    """Every line but the last checkpoint, whose own line is also kept beside the log."""
    return range(len(bench.lines()) - 1)


def test_an_untouched_record_is_whole(whole: LogBench) -> None:
    report = whole.verify()
    assert report.fault is None and report.notes == []
    assert report.checkpoints == 3 and report.lines == 1 + CALLS + 3
    assert report.signed_until == report.lines - 1
    assert whole.calls() == list(range(1, CALLS + 1))


def test_any_altered_byte_is_found_in_its_line(whole: LogBench) -> None:
    lines = whole.lines()
    for at in positions(whole):
        for offset in range(at % 5, len(lines[at]) - 1, 11):
            changed = bytearray(lines[at])
            changed[offset] ^= 1
            if b"\n" in changed[:-1]:
                continue
            whole.put_lines([*lines[:at], bytes(changed), *lines[at + 1 :]])
            fault = whole.verify().fault
            assert fault is not None and fault.number == at + 1, (at, offset, fault)


def test_any_removed_line_is_named(whole: LogBench) -> None:
    lines = whole.lines()
    for at in positions(whole):
        whole.put_lines([*lines[:at], *lines[at + 1 :]])
        fault = whole.verify().fault
        assert fault is not None and fault.number == at + 1 and "missing" in fault.why, (at, fault)


def test_any_two_lines_that_changed_places_are_named(whole: LogBench) -> None:
    lines = whole.lines()
    for first in positions(whole):
        for second in range(first + 1, len(lines)):
            swapped = list(lines)
            swapped[first], swapped[second] = lines[second], lines[first]
            whole.put_lines(swapped)
            fault = whole.verify().fault
            assert fault is not None and fault.number == first + 1 and "moved" in fault.why, (first, second, fault)


def test_any_cut_end_is_found_and_the_first_missing_line_named(whole: LogBench) -> None:
    lines = whole.lines()
    for kept in range(1, len(lines) - 1):
        whole.put_lines(lines[:kept])
        fault = whole.verify().fault
        assert fault is not None and fault.number == kept + 1 and "missing" in fault.why, (kept, fault)
    whole.put_lines([])
    fault = whole.verify().fault
    assert fault is not None and fault.number == 1
    whole.files()[0].unlink()
    assert whole.verify().fault == fault


def test_a_repeated_line_is_found(whole: LogBench) -> None:
    lines = whole.lines()
    for at in positions(whole):
        whole.put_lines([*lines[: at + 1], lines[at], *lines[at + 1 :]])
        fault = whole.verify().fault
        assert fault is not None and fault.number == at + 2


def test_a_line_replaced_with_its_right_hash_is_named_by_the_next(whole: LogBench) -> None:
    lines = whole.lines()
    for at in positions(whole):
        line = parse_line(lines[at].rstrip(b"\n"))
        payload = json.dumps({**line.fields, "t": 1}, separators=(",", ":")).encode()
        forged = sha256(payload).hexdigest().encode() + b" " + payload + b"\n"
        whole.put_lines([*lines[:at], forged, *lines[at + 1 :]])
        fault = whole.verify().fault
        assert fault is not None and fault.number == at + 1, (at, fault)


def rewrite_from(lines: list[bytes], at: int) -> list[bytes]:
    """All of it forged from a line on, with hashes that fit: only the signatures do not."""
    found = list(lines)
    previous = parse_line(found[at - 1].rstrip(b"\n")).hash if at else "0" * 64
    for index in range(at, len(found)):
        fields = dict(parse_line(found[index].rstrip(b"\n")).fields)
        if index == at:
            fields["t"] = 1
        payload = json.dumps({**fields, "p": previous}, separators=(",", ":")).encode()
        previous = sha256(payload).hexdigest()
        found[index] = previous.encode() + b" " + payload + b"\n"
    return found


def test_a_history_rewritten_with_right_hashes_breaks_the_next_checkpoint(whole: LogBench) -> None:
    lines = whole.lines()
    for at in positions(whole):
        whole.put_lines(rewrite_from(lines, at))
        fault = whole.verify().fault
        assert fault is not None and fault.number <= at + 1 <= fault.number + 4 and "rewritten" in fault.why, (
            at,
            fault,
        )


def test_who_takes_the_present_key_cannot_sign_the_past(whole: LogBench) -> None:
    """The thief of today: rewrites all, and signs with the key that lies on the disk."""
    signing = find_signing(whole.directory)
    assert signing is not None
    lines = rewrite_from(whole.lines(), 4)
    tip = parse_line(lines[-1].rstrip(b"\n")).tip
    forged = signing.succeed(tip)
    assert forged.last is not None
    line, _ = link(tip, {"checkpoint": forged.last.to_json()})
    whole.put_lines([*lines, line])
    (whole.directory / KEY_FILE).write_bytes(forged.to_bytes())
    assert whole.verify().fault is not None


def test_old_keys_are_not_on_the_disk(whole: LogBench) -> None:
    key = json.loads((whole.directory / KEY_FILE).read_bytes())["key"]
    whole.call(99)
    whole.log.settle()
    for path in whole.directory.iterdir():
        assert key.encode() not in path.read_bytes(), path


def test_a_cut_end_with_an_old_key_put_back_is_found(whole: LogBench) -> None:
    """An end that is cut exactly behind a checkpoint needs the key that the checkpoint names, and that is erased."""
    lines = whole.lines()
    signing = find_signing(whole.directory)
    assert signing is not None
    ends = [at for at, line in enumerate(lines) if b'"checkpoint"' in line]
    for end in ends[:-1]:
        whole.put_lines(lines[: end + 1])
        checkpoint = parse_line(lines[end].rstrip(b"\n")).fields["checkpoint"]
        forged = json.dumps({"key": signing.key.private_bytes_raw().hex(), "last": checkpoint})
        (whole.directory / KEY_FILE).write_text(forged)
        fault = whole.verify().fault
        assert fault is not None and fault.number == end + 2 and "cut off" in fault.why
    (whole.directory / KEY_FILE).unlink()
    assert whole.verify().fault is not None


def test_a_whole_new_history_needs_the_noted_key(whole: LogBench, bench: Bench) -> None:
    noted = (whole.directory / ROOT_FILE).read_text().strip()
    other = bench("other")
    other.call(1)
    other.log.settle()
    assert other.verify().is_whole
    fault = other.verify(root_key=noted).fault
    assert fault is not None and "the given key" in fault.why
    assert whole.verify(root_key=noted).is_whole


def test_a_log_that_is_gone_altogether_does_not_pass_for_a_new_one(whole: LogBench) -> None:
    noted = (whole.directory / ROOT_FILE).read_text().strip()
    line = parse_line(whole.lines()[5].rstrip(b"\n"))
    for path in whole.directory.iterdir():
        if path.is_file():
            path.unlink()
    assert whole.verify().is_whole
    assert whole.verify(root_key=noted).fault is not None
    fault = whole.verify(includes=line.tip).fault
    assert fault is not None and "was noted down" in fault.why


def test_a_noted_head_must_be_contained(whole: LogBench) -> None:
    line = parse_line(whole.lines()[5].rstrip(b"\n"))
    assert whole.verify(includes=line.tip).is_whole
    assert whole.verify(includes=Tip(6, "0" * 64)).fault is not None
    assert whole.verify(includes=Tip(999, line.hash)).fault is not None


def test_a_record_key_that_vanished_without_a_record_is_a_fault(whole: LogBench) -> None:
    (whole.directory / "record-keys").unlink()
    fault = whole.verify().fault
    assert fault is not None and "nobody recorded" in fault.why and fault.number == 2


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["t", "m", "b", "r", "k", "x", "checkpoint", "segment", "n", "p"])
BODY = st.dictionaries(
    st.sampled_from(["kind", "event", "keys", "until", "seconds", "exit_code", "stdin_bytes", "argument", "value"]),
    st.sampled_from(["audit", "shortened", "erased", "ended", "call"]) | JSON,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(forged=st.lists(st.dictionaries(NAMES, JSON) | st.builds(lambda body: {"t": 1, "r": body}, BODY), max_size=4))
def test_lines_that_somebody_wrote_by_hand_break_nothing(
    whole: LogBench, forged: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their hashes are right: whoever can write the file can count. Reading goes on, verify answers."""
    (path,) = whole.files()
    good = path.read_bytes()
    tip = parse_line(whole.lines()[-1].rstrip(b"\n")).tip
    lines = []
    for fields in forged:
        line, tip = link(tip, fields)
        lines.append(line)
    path.write_bytes(good + b"".join(lines))
    try:
        whole.verify()
        monkeypatch.setenv("CLOISON_ROOT", str(whole.directory.parents[1]))
        assert run_program(["audit", "-n", "0"]) == 0
        assert run_program(["audit", "-n", "0", "--json"]) == 0
    finally:
        path.write_bytes(good)


@settings(max_examples=80, deadline=None)
@given(data=st.binary(max_size=600), at=st.integers(0, 10_000), cut=st.integers(0, 200))
def test_whatever_is_written_over_a_log_verify_answers(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int, cut: int
) -> None:
    it = LogBench(tmp_path_factory.mktemp("fuzz") / "audit")
    for number in range(3):
        it.call(number)
        it.log.settle()
    (path,) = it.files()
    good = path.read_bytes()
    at %= len(good)
    bad = good[:at] + data + good[at + cut :]
    path.write_bytes(bad)
    report = it.verify()
    last_line = good[:-1].rfind(b"\n") + 1
    assert report.is_whole == (bad[:last_line] == good[:last_line] and report.fault is None)
    if bad != good and at < last_line and bad[:last_line] != good[:last_line]:
        assert report.fault is not None
