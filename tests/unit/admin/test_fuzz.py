"""Whatever is asked, only declared errors leave, the daemon stays whole, and its records stay sound."""

from __future__ import annotations

import asyncio
import logging
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cloison import errors
from cloison.admin.dispatch import METHODS
from cloison.admin.framing import FramingError, encode_error, encode_event, encode_ok, parse_request

CLIENTS_KNOW = frozenset({
    "QubesException", "QubesVMNotFoundError", "QubesVMInvalidUUIDError", "QubesVMError", "QubesVMInUseError",
    "QubesVMNotStartedError", "QubesVMNotRunningError", "QubesVMNotPausedError", "QubesVMNotSuspendedError",
    "QubesVMNotHaltedError", "QubesVMShutdownTimeoutError", "QubesNoTemplateError", "QubesVMAlreadyStartedError",
    "QubesMemoryError", "QubesPoolInUseError", "QubesValueError", "QubesPropertyValueError",
    "QubesNoSuchPropertyError", "QubesNotImplementedError", "BackupCancelledError", "BackupAlreadyRunningError",
    "QubesFeatureNotFoundError", "QubesTagNotFoundError", "QubesLabelNotFoundError", "ProtocolError",
    "PermissionDenied", "DeviceNotAssigned", "DeviceAlreadyAttached", "DeviceAlreadyAssigned", "UnrecognizedDevice",
    "UnexpectedDeviceProperty", "StoragePoolException", "QubesVMAlreadyExistsError", "QubesVMCancelledPauseError",
    "QubesInvalidTagError", "QubesInvalidLabelError", "QubesInvalidLabelValueError", "QubesLabelInUseError",
    "QubesUnrecognizedDeviceAssignmentMode", "QubesVolumeCopyTokenNotFoundError", "QubesVolumeCopyInUseError",
    "QubesBackupProfileNotFoundError", "DeviceNotFound",
})  # fmt: skip
"""Section 15 of the notes on the Admin API."""


def test_every_error_has_a_name_that_clients_know():
    kinds = [errors.CloisonError]
    for kind in kinds:
        children = [child for child in kind.__subclasses__() if child.__module__.startswith("cloison.")]
        # The policy's own errors leave by the policy services, whose clients know other names.
        kinds += [child for child in children if not child.__module__.startswith("cloison.policy.")]
    assert {kind.wire_name for kind in kinds} <= CLIENTS_KNOW


@given(st.binary(max_size=300))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_request_or_a_framing_error(data):
    try:
        request = parse_request(data)
    except FramingError:
        return
    assert (request.method + request.arg + request.source + request.dest).isascii()


@given(st.text(max_size=40), st.text(max_size=80))
def test_an_error_survives_the_formatting_of_clients(name, text):
    record = encode_error("QubesException", text)
    kind, _, _, shown, rest = record.split(b"\0", 4)
    assert (kind, rest) == (b"2", b"") and shown.decode(errors="replace") % () == text.replace("\0", " ")


@given(
    st.text(max_size=20), st.text(max_size=20), st.dictionaries(st.text(min_size=1, max_size=5), st.text(max_size=9))
)
def test_an_event_is_one_record(subject, name, fields):
    record = encode_event(subject, name, fields)
    parts = record.split(b"\0")
    assert parts[0] == b"1" and parts[-2:] == [b"", b""] and len(parts) == 3 + 2 * len(fields) + 2


def test_an_answer_is_what_was_said():
    assert encode_ok("ä") == b"0\0\xc3\xa4" and encode_ok(b"\0\xff") == b"0\0\0\xff"


WORDS = [
    "", "work", "deb", "dvm", "dom0", "nobody", "none", "private", "root", "kernel", "memory", "label",
    "template", "netvm", "default", "linux-kernel", "red", "True", "False", "0", "1", "-1", "10737418240",
    "99999999999999999999", "ok", "fail\nx", "name=x label=red", "name=y label=red pool=default", "name=z\n",
    "dvm+sda+_", "dvm+sda", "+", "+++", "mode='required'", "action=drop", "action=accept dst4=1.2.3.4", "{}",
    "[]", "null", '{"name":"q"}', '{"name":null}', '{"properties":["memory"]}', '{"key":"k"}', "%s%d%%",
    "a" * 300, "\x00", "ÿ", "../../etc/passwd", "b******", "0xff00ff", "all", "force+wait",
]  # fmt: skip
NOT_FUZZED = {"admin.Events", "cloison.call.Follow", "admin.vm.Stats"}


async def test_a_storm_of_calls_meets_only_declared_errors(house, caplog):
    chance = random.Random(4)
    methods = sorted(set(METHODS) - NOT_FUZZED)
    caplog.set_level(logging.ERROR)
    answered = {b"0": 0, b"1": 0, b"2": 0}
    for _ in range(60):
        calls = []
        for _ in range(50):
            method, arg, dest = chance.choice(methods), chance.choice(WORDS), chance.choice(WORDS[:6])
            payload = chance.choice(WORDS).encode("latin-1")
            row = METHODS[method]
            arg = "" if row.arg.value == "-" and chance.random() < 0.9 else arg
            payload = b"" if row.payload.value == "-" and chance.random() < 0.9 else payload
            dest = "dom0" if row.dest.value == "dom0" and chance.random() < 0.9 else dest
            calls.append(house.call(method, dest, arg, payload))
        for answer in await asyncio.gather(*calls):
            answered[answer[:1]] += 1
            kind = answer[answer.rfind(b"\0\0", 0, -2) + 2 :][:1] if answer[:1] == b"1" else answer[:1]
            assert kind in b"02"
            if answer[:1] == b"2":
                assert answer.split(b"\0")[1].decode() in CLIENTS_KNOW
    assert min(answered[b"0"], answered[b"2"]) > 300, "all kinds of answers were seen"
    inside = [record for record in caplog.records if "failed" in record.getMessage()]
    assert not inside, inside[0].getMessage() + str(inside[0].exc_info)
    assert house.store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert house.store.doomed_volumes() == frozenset()
    recorded = {volume.vid for qube in house.ledger.inventory for volume in qube.volumes.values()}
    assert recorded <= set(house.pool.specs)
