"""Runs inside the emulated PC: carries out the commands which the test sends through a port.

One request is one line of JSON (``command``, ``stdin``, ``limit_s``), so is one answer (``code``, null after the time
limit; ``out``, ``err``, ``seconds``). The first line says that the PC is ready. Standard library only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def carry_out(command: list[str], stdin: str, limit_s: float) -> dict[str, Any]:
    started = time.monotonic()
    code: int | None = None
    try:
        done = subprocess.run(command, input=stdin.encode(), capture_output=True, timeout=limit_s, check=False)
        code, out, err = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        out, err = error.stdout or b"", error.stderr or b""
    except OSError as error:
        code, out, err = 127, b"", str(error).encode()
    seconds = time.monotonic() - started
    texts = {"out": out.decode(errors="replace"), "err": err.decode(errors="replace")}
    return {"code": code, **texts, "seconds": round(seconds, 3)}


def main(path: str) -> None:
    with open(os.open(path, os.O_RDWR), "r+b", buffering=0) as port:

        def answer(message: dict[str, Any]) -> None:
            left = json.dumps(message).encode() + b"\n"
            while left:
                left = left[port.write(left) :]

        answer({"ready": float(Path("/proc/uptime").read_text().split()[0])})
        pending = b""
        while chunk := port.read(65536):
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                request = json.loads(line)
                answer(carry_out(request["command"], request["stdin"], request["limit_s"]))


main(sys.argv[1])
