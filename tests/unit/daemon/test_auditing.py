"""What the daemon records: calls with the policy that decided them, changes before and after, qubes' ups and downs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cloison.admin.methods import Call
from cloison.daemon.auditing import Auditing
from cloison.drivers.state.sqlite import Store
from cloison.engine import events as e
from cloison.engine.features import add_tag, set_feature
from cloison.engine.inventory import Ledger
from cloison.model.classes import Klass
from cloison.model.names import DOM0, QubeName
from cloison.policy import PolicySource, install_defaults
from cloison.qrexec.audit.recordkeys import RecordKeys
from cloison.qrexec.audit.segments import list_segments, read_entry, read_lines
from cloison.qrexec.audit.verify import verify_directory

WORK, DVM, DISP = QubeName("work"), QubeName("dvm"), QubeName("disp7")


class Records:
    """An Auditing over a real store with three qubes."""

    def __init__(self, tmp: Path) -> None:
        self.store = Store.open(tmp / "state.sqlite")
        self.ledger = Ledger(self.store, e.EventBus())
        self.policy_directory = tmp / "policy.d"
        install_defaults(self.policy_directory)
        self.policy = PolicySource(self.policy_directory)
        with self.ledger.change() as records:
            for number, (name, klass, properties) in enumerate(
                (
                    (WORK, Klass.STANDALONE, {}),
                    (DVM, Klass.STANDALONE, {"template_for_dispvms": True}),
                    (DISP, Klass.DISPOSABLE, {"template": "dvm", "auto_cleanup": True}),
                ),
                start=1,
            ):
                uuid = f"00000000-0000-4000-8000-00000000000{number}"
                records.add_qube(name, qid=number, uuid=uuid, klass=klass, label="red")
                for key, value in properties.items():
                    records.set_property(name, key, value)
        self.directory = tmp / "audit"
        self.auditing = Auditing(self.directory, self.ledger, self.policy)

    def found(self, *wanted: str, directory: Path | None = None) -> list[tuple[Any, ...]]:
        """These fields of every readable record."""
        directory = directory or self.directory
        keys = RecordKeys(directory)
        entries = [read_entry(line, keys) for s in list_segments(directory) for line in read_lines(s.path)]
        return [tuple(x.fields.get(field) for field in wanted) for x in entries if x is not None and x.fields]


@pytest.fixture
async def records(tmp_path: Path) -> AsyncIterator[Records]:
    it = Records(tmp_path)
    it.auditing.begin()
    yield it
    await it.auditing.close()
    it.store.close()
    assert verify_directory(it.directory).is_whole


def call(it: Records, **more: Any) -> None:
    it.policy.current()
    it.auditing.write({"event": "allowed", "source": "work", "target": "dom0", "service": "test.Echo+x",
                       "policy": it.policy.digest, **more})  # fmt: skip


async def test_the_daemon_says_when_it_comes_and_goes(tmp_path: Path) -> None:
    it = Records(tmp_path)
    it.auditing.begin()
    await it.auditing.close()
    it.store.close()
    assert it.found("kind", "event") == [("daemon", "started"), ("daemon", "stopped")]
    report = verify_directory(it.directory)
    assert report.is_whole and report.signed_until == report.lines - 1


async def test_a_changed_policy_is_recorded_before_the_first_call_that_it_decides(records: Records) -> None:
    call(records)
    old = records.policy.digest
    (records.policy_directory / "30-user.policy").write_text("test.Echo * work dom0 allow\n")
    call(records)
    call(records)
    found = records.found("kind", "event", "policy", "old")
    assert found[1:] == [
        ("call", "allowed", old, None),
        ("policy", "changed", records.policy.digest, old),
        ("call", "allowed", records.policy.digest, None),
        ("call", "allowed", records.policy.digest, None),
    ]


async def test_a_call_keeps_the_policy_that_decided_it_when_there_is_another_one_by_now(records: Records) -> None:
    call(records)
    old = records.policy.digest
    (records.policy_directory / "30-user.policy").write_text("test.Echo * work dom0 allow\n")
    new = records.policy.current().digest
    call(records, event="ended", policy=old)
    call(records, policy=new)
    call(records, event="ended", policy=old)
    assert records.found("kind", "event", "policy", "old")[2:] == [
        ("policy", "changed", new, old),
        ("call", "ended", old, None),
        ("call", "allowed", new, None),
        ("call", "ended", old, None),
    ]


async def test_a_policy_that_was_there_for_one_decision_is_recorded_and_so_is_the_return_to_an_old_one(
    records: Records,
) -> None:
    file = records.policy_directory / "30-user.policy"
    text, old = file.read_text(), records.policy.digest
    file.write_text("test.Echo * work dom0 allow\n")
    short = records.policy.current().digest
    file.write_text(text)
    assert records.policy.current().digest == old
    call(records, policy=short)
    assert records.found("kind", "event", "policy", "old")[1:] == [
        ("policy", "changed", short, old),
        ("policy", "changed", old, short),
        ("call", "allowed", short, None),
    ]


async def test_a_policy_that_somebody_changed_is_recorded_when_it_is_said(records: Records) -> None:
    records.auditing.note_policy(who="dom0")
    (records.policy_directory / "30-user.policy").write_text("broken\n")
    records.auditing.note_policy(who="dom0")
    assert records.found("kind", "event", "policy", "who")[1:] == [("policy", "changed", "broken", "dom0")]


async def test_a_change_is_recorded_before_it_is_made_and_after(records: Records) -> None:
    tell_end = records.auditing.witness(Call(DOM0, WORK, "admin.vm.feature.Set", "service.crond", b"1"))
    assert records.found("event", "service", "argument", "value")[-1] == (
        "asked",
        "admin.vm.feature.Set",
        "service.crond",
        "1",
    )
    set_feature(records.ledger, WORK, "service.crond", "1")
    tell_end("")
    add_tag(records.ledger, WORK, "office")
    await asyncio.sleep(0.01)
    assert records.found("event", "argument")[2:] == [
        ("done", "service.crond"),
        ("set", "feature service.crond"),
        ("set", "tag office"),
    ]
    records.auditing.witness(Call(WORK, WORK, "admin.vm.Start", "", b""))("no memory")
    assert records.found("event", "who", "reason")[-1] == ("failed", "work", "no memory")
    assert all(target == "work" for (target,) in records.found("target")[1:])


async def test_a_name_without_a_key_is_not_written_where_it_would_stay(records: Records) -> None:
    for method, arg, payload in (
        ("admin.vm.Create.AppVM", "debian", b"name=secret-love label=red"),
        ("cloison.audit.Erase", "secret-love", b""),
        ("cloison.standalone.Import", "secret-love", b"{}"),
    ):
        records.auditing.witness(Call(DOM0, DOM0, method, arg, payload))("")
    assert len(records.found("service")) == 7
    assert all(b"secret-love" not in path.read_bytes() for path in records.directory.iterdir())


async def test_what_became_of_qubes_is_recorded(records: Records) -> None:
    records.ledger.tell(e.QubeStarted(WORK), e.QubeStopped(WORK, "it was killed"), e.QubeStartFailed(DVM, "no room"))
    await asyncio.sleep(0.01)
    assert records.found("kind", "event", "qube", "reason")[1:] == [
        ("qube", "started", "work", None),
        ("qube", "stopped", "work", "it was killed"),
        ("qube", "start failed", "dvm", "no room"),
    ]


async def test_a_disposable_s_records_are_erased_with_the_qube_it_was_made_from(records: Records) -> None:
    call(records, source="disp7", target="work")
    call(records)
    assert await records.auditing.erase("disp7") == 0
    assert await records.auditing.erase("dvm") == 1
    assert records.found("source")[1:] == [("work",), (None,)]
    assert verify_directory(records.directory).erased == 1


async def test_what_a_qube_wants_to_keep_quiet_is_not_recorded(records: Records) -> None:
    with records.ledger.change() as changed:
        changed.set_property(DVM, "audit", "off")
    call(records, source="disp7", target="work")
    assert records.found("kind") == [("daemon",)], "a disposable is as quiet as what it is made from"
    with records.ledger.change() as changed:
        changed.set_setting("default_audit", "metadata")
    call(records)
    assert records.found("service", "argument")[-1] == ("test.Echo", None)
