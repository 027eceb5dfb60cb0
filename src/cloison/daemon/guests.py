"""What qubes may tell dom0 of themselves, and the time that dom0 tells them.

In: calls to dom0 that the broker admitted. Out: changed features, dates. May import: engine, qrexec, wire.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping

from cloison.drivers.wallclock import WallClock
from cloison.engine.announced import accept_apps, accept_features, accept_tools, accept_updates
from cloison.engine.errands import Errands
from cloison.engine.inventory import Ledger
from cloison.engine.system import System
from cloison.errors import BadRequest, CloisonError
from cloison.model.names import DOM0, QubeName
from cloison.model.power import PowerState
from cloison.qrexec.ports import Handler, ServiceCall
from cloison.wire.dates import format_date, parse_date
from cloison.wire.errors import RemoteProtocolError

log = logging.getLogger(__name__)

CLOCK_TIMEOUT_S = 10.0
JITTER_S = 180


def guest_handlers(ledger: Ledger, system: System) -> Mapping[str, Handler]:
    """Services of dom0 that any qube may be allowed to call."""

    def listen(accept: Callable[[QubeName, bytes], None]) -> Handler:
        async def serve(call: ServiceCall, stdin: bytes) -> bytes:
            if call.argument:
                raise BadRequest(f"{call.service} takes no argument")
            accept(call.source, stdin)
            return b""

        return serve

    async def date(call: ServiceCall, _stdin: bytes) -> bytes:
        return await tell_date(ledger, system, call)

    return {
        "qubes.FeaturesRequest": listen(lambda source, payload: accept_features(ledger, source, payload)),
        "qubes.NotifyTools": listen(lambda source, payload: accept_tools(ledger, source, payload)),
        "qubes.NotifyUpdates": listen(lambda source, payload: accept_updates(ledger, system, source, payload)),
        "qubes.SyncAppMenus": listen(lambda source, payload: accept_apps(ledger, source, payload)),
        "qubes.GetDate": date,
        "qubes.GetRandomizedTime": tell_randomized_time,
    }


async def tell_date(ledger: Ledger, system: System, call: ServiceCall) -> bytes:
    """qubes.GetDate[+nanoseconds]: the clockvm's time where one runs (and is not the one that asks), else ours."""
    if call.argument not in ("", "nanoseconds"):
        raise BadRequest(f"{call.service} knows no argument {call.argument[:32]!a}")
    clockvm = ledger.inventory.setting("clockvm")
    if isinstance(clockvm, str) and clockvm not in ("", DOM0, call.source):
        name = QubeName(clockvm)
        if system.power_state(name) is PowerState.RUNNING:
            try:
                asked = await system.link(name).run_service(call.full_name, timeout_s=CLOCK_TIMEOUT_S)
                return format_date(parse_date(asked.stdout), exact=bool(call.argument))
            except (CloisonError, RemoteProtocolError) as error:
                log.warning("the clockvm %s did not tell the time: %s", name, error)
    return format_date(time.time_ns(), exact=bool(call.argument))


async def tell_randomized_time(call: ServiceCall, _stdin: bytes) -> bytes:
    """The time, off by up to three minutes: for qubes that must not be recognised by their clock."""
    if call.argument:
        raise BadRequest(f"{call.service} takes no argument")
    return format_date(time.time_ns() + (secrets.randbelow(2 * JITTER_S * 10**9) - JITTER_S * 10**9))


async def keep_clocks(errands: Errands) -> None:
    """For as long as the daemon runs: after each jump of the computer's clock, running qubes get the time."""
    clock = WallClock()
    try:
        while True:
            jump_s = await clock.wait_jump()
            log.info("the clock moved by %.0f s: setting the clocks of running qubes", jump_s)
            await errands.set_clocks()
    finally:
        clock.close()
