"""What qubes tell dom0 of themselves, and what dom0 has done in them."""

from __future__ import annotations

import asyncio
import time

import pytest

from cloison.admin.eventnames import records as wire_records
from cloison.daemon.guests import guest_handlers
from cloison.engine.agent import ServiceResult
from cloison.engine.announced import accept_apps, accept_features, accept_tools, accept_updates
from cloison.engine.errands import Errands
from cloison.errors import BackendFailed, BadRequest
from cloison.model.classes import Klass
from cloison.model.names import QubeName
from cloison.wire.appmenus import load_apps
from cloison.wire.dates import parse_date

DEB, WORK = QubeName("deb"), QubeName("work")
HOSTILE = (
    b"\xff\xfe",
    b"no equals sign",
    b"=1",
    b"a b=1",
    b"x=\x1b[31m",
    b"x=$(reboot)",
    b"x=" + b"y" * 257,
    b"x" * 256 + b"=1",
    b"".join(b"supported-rpc.s%d=1\n" % n for n in range(1025)),
)


async def test_a_template_announces_what_it_can_and_nothing_else(house):
    accept_features(
        house.ledger,
        DEB,
        b"qrexec=1\nos=Linux\nos-version=13\nvmexec=1\nsupported-service.cups=1\nsupported-rpc.a.B=1\n"
        b"internal=1\nprohibit-start=no\nservice.cups=1\ngui=0\nupdates-available=1\nsupported-rpc.off=0\n",
    )
    assert house.ledger.inventory.qube(DEB).features == {
        "qrexec": "1",
        "os": "Linux",
        "os-version": "13",
        "vmexec": "1",
        "supported-service.cups": "1",
        "supported-rpc.a.B": "1",
    }
    accept_features(house.ledger, DEB, b"supported-rpc.c=1\n")
    features = house.ledger.inventory.qube(DEB).features
    assert {name for name in features if name.startswith("supported-")} == {"supported-rpc.c"}


async def test_the_first_word_of_an_agent_is_told_once(house):
    subscription = house.ledger.bus.subscribe()
    accept_features(house.ledger, DEB, b"qrexec=1\nos=Linux\n")
    accept_features(house.ledger, DEB, b"qrexec=1\nos=Linux\nvmexec=1\n")
    names = [record.name for event in subscription.take_waiting() for record in wire_records(event)]
    assert names.count("template-postinstall") == 1
    assert names.index("template-postinstall") > names.index("domain-feature-set:qrexec")


async def test_what_a_person_switched_off_stays_off(house):
    await house.ok("admin.vm.feature.Set", "deb", "gui", "")
    accept_features(house.ledger, DEB, b"gui=1\n")
    assert house.ledger.inventory.qube(DEB).features["gui"] == ""


async def test_an_app_qube_speaks_of_its_services_only(house):
    accept_features(house.ledger, WORK, b"qrexec=1\nos=Windows\nsupported-service.x=1\nsupported-rpc.mine=1\n")
    assert house.ledger.inventory.qube(WORK).features == {"supported-rpc.mine": "1"}
    with pytest.raises(BadRequest):
        accept_tools(house.ledger, WORK, b"os=Windows\n")
    accept_tools(house.ledger, DEB, b"os=windows\nqrexec=1\nmore=1\n")
    assert house.ledger.inventory.qube(DEB).features == {"os": "Windows", "qrexec": "1"}


@pytest.mark.parametrize("payload", HOSTILE, ids=lambda payload: repr(payload[:20]))
async def test_a_payload_that_is_not_honest_changes_nothing(house, payload):
    with pytest.raises(BadRequest):
        accept_features(house.ledger, DEB, b"os=Linux\n" + payload)
    assert house.ledger.inventory.qube(DEB).features == {}


async def test_updates_are_noted_where_they_will_be_installed(house):

    def noted() -> str | None:
        return house.ledger.inventory.qube(DEB).features.get("updates-available")

    accept_updates(house.ledger, house.running, WORK, b"3\n")
    assert noted() == "1"
    accept_updates(house.ledger, house.running, WORK, b"0")
    assert noted() == "1", "an app qube that is up to date may run on an older root"
    accept_updates(house.ledger, house.running, DEB, b"0\n")
    assert noted() is None
    assert "last-updates-check" in house.ledger.inventory.qube(DEB).features
    await house.running.start(DEB)
    accept_updates(house.ledger, house.running, WORK, b"3")
    assert noted() is None, "the template runs: it will say so itself"
    for payload in (b"", b"-1", b"1e3", b"1\n2", b"9999999", "３".encode(), b"x" * 100_000):
        with pytest.raises(BadRequest):
            accept_updates(house.ledger, house.running, DEB, payload)


async def test_programs_are_kept_as_one_feature(house):
    accept_apps(house.ledger, DEB, b"b.desktop:Name=Beta\nb.desktop:Exec=x\na.desktop:Exec=y\na.desktop:Name=A\x1b[m\n")
    apps = load_apps(house.ledger.inventory.qube(DEB).features["menu-available"])
    assert [(app.id, app.name) for app in apps] == [("a", "A[m"), ("b", "Beta")]
    for payload in (b"../x.desktop:Exec=y\n", b"x.desktop:Exec\n", b"garbage\n", b"x" * (1 << 21)):
        with pytest.raises(BadRequest):
            accept_apps(house.ledger, DEB, payload)
    with pytest.raises(BadRequest):
        accept_apps(house.ledger, WORK, b"")


async def test_sleep_is_told_to_every_qube_and_devices_are_stilled(house):
    await house.create(Klass.APP, "sys-usb")
    usb = QubeName("sys-usb")
    with house.ledger.change() as records:
        records.put_assignment(usb, _pci())
    await house.running.start(WORK)
    await house.running.start(usb)
    await house.ok("internal.SuspendPre")
    work, holder = house.running.links[WORK], house.running.links[usb]
    assert [ran[:2] for ran in work.ran] == [("qubes.SuspendPreAll", "root")]
    assert [ran[0] for ran in holder.ran] == ["qubes.SuspendPreAll", "qubes.SuspendPre"]
    assert house.running.power_state(usb).value == "Paused"
    assert house.running.power_state(WORK).value == "Running"
    work.answer = BackendFailed("silent")
    holder.ran.clear()
    house.properties.set_setting("clockvm", "sys-usb")
    await house.ok("internal.SuspendPost")
    assert house.running.power_state(usb).value == "Running"
    assert [ran[0] for ran in holder.ran] == ["qubes.SetDateTime", "qubes.SuspendPost", "qubes.SuspendPostAll",
                                             "qubes.SyncNtpClock"]  # fmt: skip
    assert holder.ran[0][2].endswith(b"+00:00\n")


def _pci():
    from cloison.model.qube import Assignment

    return Assignment(devclass="pci", backend=QubeName("dom0"), port="00_1f.6", device_id="*", mode="required")


async def test_one_qube_is_suspended_and_resumed(house):
    assert await house.error("admin.vm.Suspend", "work") == "QubesVMNotRunningError"
    await house.running.start(WORK)
    await house.ok("admin.vm.Suspend", "work")
    assert house.running.power_state(WORK).value == "Paused"
    await house.ok("admin.vm.Resume", "work")
    ran = [service for service, _, _ in house.running.links[WORK].ran]
    assert ran == ["qubes.SuspendPreAll", "qubes.SetDateTime", "qubes.SuspendPostAll"]
    assert await house.error("admin.vm.Resume", "work") == "QubesVMNotPausedError"


async def test_clocks_are_set_where_processors_run_and_after_a_pause(house):
    errands = Errands(house.running, house.ledger)
    following = asyncio.create_task(errands.follow())
    await asyncio.sleep(0)
    await house.running.start(WORK)
    await house.running.start(DEB)
    link = house.running.link(WORK)
    await house.running.pause(WORK)
    await errands.set_clocks()
    assert link.ran == []
    await house.running.unpause(WORK)
    for _ in range(20):
        await asyncio.sleep(0)
    assert [ran[0] for ran in link.ran] == ["qubes.SetDateTime"]
    link.answer = ServiceResult(1, b"", b"\x1b[31mno")
    await errands.set_clocks()
    assert "qubes.PostInstall" in [ran[0] for ran in house.running.link(DEB).ran], "a template says what it can"
    following.cancel()
    await errands.close()


def _call(service: str, source: str = "work", argument: str = ""):
    from cloison.qrexec.ports import ServiceCall

    return ServiceCall(QubeName(source), service, argument, "@default")


async def test_the_time_is_the_clockvms_if_it_tells_it_properly(house):
    handlers = guest_handlers(house.ledger, house.running)
    far = b"2031-02-03T04:05:06,123456789+00:00\n"
    assert len(await handlers["qubes.GetDate"](_call("qubes.GetDate"), b"")) == 26
    house.properties.set_setting("clockvm", "dvm")
    clockvm = QubeName("dvm")
    assert (await handlers["qubes.GetDate"](_call("qubes.GetDate"), b""))[:4] != b"2031"
    await house.running.start(clockvm)
    link = house.running.link(clockvm)
    link.answer = ServiceResult(0, far, b"")
    assert await handlers["qubes.GetDate"](_call("qubes.GetDate", argument="nanoseconds"), b"") == far
    assert await handlers["qubes.GetDate"](_call("qubes.GetDate"), b"") == b"2031-02-03T04:05:06+00:00\n"
    own = await handlers["qubes.GetDate"](_call("qubes.GetDate", source="dvm"), b"")
    assert own[:4] != b"2031", "who is asked for the time is not told its own"
    for answer in (ServiceResult(0, b"now\x1b[m", b""), ServiceResult(0, b"x" * 65536, b""), BackendFailed("silent")):
        link.answer = answer
        assert len(await handlers["qubes.GetDate"](_call("qubes.GetDate"), b"")) == 26
    with pytest.raises(BadRequest):
        await handlers["qubes.GetDate"](_call("qubes.GetDate", argument="-u"), b"")


async def test_a_blurred_time_is_off_by_minutes_at_most(house):
    handlers = guest_handlers(house.ledger, house.running)
    told = {parse_date(await handlers["qubes.GetRandomizedTime"](_call("x"), b"")) / 1e9 for _ in range(20)}
    assert len(told) > 3 and all(abs(seconds - time.time()) <= 182 for seconds in told)


async def test_a_service_of_dom0_takes_no_argument_that_it_does_not_know(house):
    handlers = guest_handlers(house.ledger, house.running)
    for service in handlers:
        with pytest.raises(BadRequest):
            await handlers[service](_call(service, argument="x"), b"")
    assert await handlers["qubes.FeaturesRequest"](_call("qubes.FeaturesRequest"), b"supported-rpc.a=1\n") == b""
    assert house.ledger.inventory.qube(WORK).features == {"supported-rpc.a": "1"}


async def test_features_that_guests_read_reach_those_who_have_or_inherit_them(house):
    errands = Errands(house.running, house.ledger)
    following = asyncio.create_task(errands.follow())
    await house.running.start(WORK)
    await house.running.start(QubeName("dvm"))
    await asyncio.sleep(0)

    async def settled() -> list:
        for _ in range(20):
            await asyncio.sleep(0)
        told = [fields for verb, fields in house.running.link(WORK).told if verb == "tell"]
        house.running.link(WORK).told.clear()
        return told

    await house.ok("admin.vm.feature.Set", "deb", "service.cups", "1")
    assert await settled() == [{"services": {"cups": True}, "vm_config": {}}]
    await house.ok("admin.vm.feature.Set", "work", "service.cups", "")
    await house.ok("admin.vm.feature.Set", "work", "vm-config.x", "y")
    assert (await settled())[-1] == {"services": {"cups": False}, "vm_config": {"x": "y"}}
    await house.ok("admin.vm.feature.Set", "dvm", "service.other", "1")
    await house.ok("admin.vm.feature.Set", "work", "internal", "1")
    assert await settled() == []
    await house.ok("admin.vm.feature.Remove", "work", "service.cups")
    assert await settled() == [{"services": {"cups": True}, "vm_config": {"x": "y"}}]
    following.cancel()
    await errands.close()


async def test_a_disposable_that_waits_is_left_to_whoever_takes_it(house):
    await house.create(Klass.DISPOSABLE, "disp1", template="dvm")
    name = QubeName("disp1")
    with house.ledger.change() as records:
        records.set_feature(name, "internal", "1")
        records.set_feature(name, "preload-dispvm-in-progress", "")
    errands = Errands(house.running, house.ledger)
    following = asyncio.create_task(errands.follow())
    await asyncio.sleep(0)
    await house.running.start(name)
    await house.running.pause(name)
    await house.running.unpause(name)
    for _ in range(20):
        await asyncio.sleep(0)
    assert house.running.link(name).ran == []
    assert not following.done()
    following.cancel()
    await errands.close()
