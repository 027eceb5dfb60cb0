"""The one archive's entry: the agent itself, or the service whose name it was called by."""

from __future__ import annotations

import os
import sys

PORT_NAME = "org.cloison.agent"
PORT_WAIT_S, PORT_DEADLINE_S = 0.05, 60.0


def main() -> int:
    name = os.path.basename(sys.argv[0])
    if name.startswith("qubes."):
        from cloison_agent.builtins import run_service

        return run_service(name, sys.argv[1] if len(sys.argv) > 1 else "")
    if sys.argv[1:] == ["precompile"]:
        from cloison_agent.precompile import precompile

        precompile(sys.argv[0])
        return 0
    return serve()


def serve() -> int:
    import gc

    from cloison_agent import udev
    from cloison_agent.agent import Agent, listen
    from cloison_agent.control import VERBS
    from cloison_agent.told import told
    from cloison_agent.users import DEFAULT_USER

    os.umask(0o022)
    udev.let_go()  # an agent that died may have left it held
    # One that died has been told already who this is; dom0 says it once.
    agent = Agent(open_port(), listen(), VERBS, default_user=told.text("default_user") or DEFAULT_USER)
    agent.name = told.text("name")
    agent.announce_when_booted()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20000, 50, 100)
    agent.serve()
    return 0


def open_port() -> int:
    """The virtio-serial port of our name; while the machine starts its driver may still be on the way."""
    import time

    classes = "/sys/class/virtio-ports"
    for _ in range(round(PORT_DEADLINE_S / PORT_WAIT_S)):
        for name in os.listdir(classes) if os.path.isdir(classes) else ():
            try:
                with open(f"{classes}/{name}/name") as file:
                    if file.read().strip() == PORT_NAME:
                        return os.open(f"/dev/{name}", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                continue
        time.sleep(PORT_WAIT_S)
    raise SystemExit(f"there is no port {PORT_NAME}")
