"""qvm-sync-clock: this qube's clock set to what qubes.GetDate says."""

import sys

from cloison_tools.client import REFUSED, TROUBLE, CallRefused, RemoteCall, complain

AGENT_ARCHIVE = "/usr/lib/cloison/agent.pyz"
MAX_ANSWER_BYTES = 64


def sync_clock(arguments: list[str]) -> int:
    """Needs root."""
    if arguments:
        complain("usage: qvm-sync-clock")
        return 1
    try:
        call = RemoteCall("@default", "qubes.GetDate+nanoseconds")
        call.connect()
        code, answer = call.feed(iter([]), MAX_ANSWER_BYTES)
    except CallRefused:
        complain("Request refused")
        return REFUSED
    except OSError as error:
        complain(f"cannot call qubes.GetDate: {error}")
        return TROUBLE
    if code:
        complain(f"qubes.GetDate ended with code {code}")
        return code
    sys.path.append(AGENT_ARCHIVE)
    from cloison_agent.clock import set_clock

    return set_clock(answer)
