"""cloisond: wiring only, the one room that knows which drivers exist.

In: a layout. Out: a running system behind its sockets. May import: every room but cli.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import signal
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

from cloison.daemon.ground import SystemLock, prepare_ground
from cloison.errors import CloisonError
from cloison.layout import Layout

log = logging.getLogger(__name__)

LOG_BYTES = 4 << 20
MAX_DESCRIPTORS = 65536
"""Beyond what any system of qubes needs; some programs that we start close every number that they might have."""


def main(argv: list[str] | None = None) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT; 0 also when another one serves this system already."""
    parser = argparse.ArgumentParser(prog="cloisond", description="The daemon of one Cloison system.")
    parser.add_argument("--verbose", "-v", action="store_true", help="log debugging details too")
    parser.add_argument("--log-to-stderr", action="store_true", help="log to standard error instead of the log file")
    options = parser.parse_args(argv)
    layout = Layout.from_environment()
    os.umask(0o077)
    take_descriptors()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until it is served: the next daemon that finds us nudges us with it
    try:
        prepare_ground(layout)
        _start_logging(layout.log, to_stderr=options.log_to_stderr, verbose=options.verbose)
        with SystemLock(layout.lock) as lock:
            if not lock.held:
                lock.nudge()
                return 0
            from cloison.daemon.house import serve  # everything else is loaded only by the one that serves

            asyncio.run(_until_told(serve(layout)))
    except CloisonError as error:
        log.critical("%s", error)
        print(f"cloisond: {error}", file=sys.stderr)  # noqa: T201 - nobody else is there to say it
        return 1
    return 0


def take_descriptors() -> None:
    """As many as this user may have: the usual 1024 are a hundred running qubes, or some hundred calls at once."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, MAX_DESCRIPTORS), most))


async def _until_told(serving: object) -> None:
    assert asyncio.iscoroutine(serving)
    task: asyncio.Task[None] = asyncio.create_task(serving, name="serve")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        log.info("told to stop")


def _start_logging(path: Path, *, to_stderr: bool, verbose: bool) -> None:
    handler: logging.Handler
    if to_stderr:
        handler = logging.StreamHandler()
    else:
        handler = RotatingFileHandler(path, maxBytes=LOG_BYTES, backupCount=2, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler], force=True)
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
