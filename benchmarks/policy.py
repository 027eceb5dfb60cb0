"""How fast policies are loaded and calls are decided. Run: ``python benchmarks/policy.py [--json]``.

Needs no guest and no daemon. Figures of Qubes's own parser are quoted from its fact sheet (core-qrexec 4.4.2, measured
on two AMD EPYC vCPUs with Python 3.11: another machine); the plain evaluator of our tests is measured in the same run.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

from cloison.policy import PolicySet, PolicySource, Request, SystemInfo, evaluate, install_defaults, load_policy

TREE = Path(__file__).resolve().parents[1]
REQUESTS = 10_000
QUOTED_US = {"defaults": 59.0, "defaults + 500": 143.0, "defaults + 5000": 632.0}
QUOTED_LOAD_MS = {"defaults": 26.6, "defaults + 500": 40.7, "defaults + 5000": 170.0}
QUOTED_10K_S = 1.43


@dataclass(frozen=True)
class Row:
    """``mean`` is processor time where many short acts were measured, so that a busy machine does not change it."""

    what: str
    median: float
    p99: float
    mean: float
    unit: str
    quoted: float | None = None
    quoted_is: str = "mean"

    @property
    def ratio(self) -> float | None:
        return None if self.quoted is None else self.quoted / (self.mean if self.quoted_is == "mean" else self.median)


def row(what: str, samples_s: Iterable[float], unit: str, quoted: float | None = None, quoted_is: str = "mean") -> Row:
    scale = {"us": 1e6, "ms": 1e3, "s": 1.0}[unit]
    values = sorted(sample * scale for sample in samples_s)
    p99 = values[min(len(values) - 1, len(values) * 99 // 100)]
    return Row(what, statistics.median(values), p99, statistics.fmean(values), unit, quoted, quoted_is)


def make_domains(count: int) -> dict[str, Any]:
    domains: dict[str, Any] = {
        "dom0": {"type": "AdminVM", "tags": [], "template_for_dispvms": False, "default_dispvm": None, "internal": None,
                 "power_state": "Running", "uuid": "00000000-0000-0000-0000-000000000000", "icon": "adminvm-black",
                 "label": "black", "guivm": None, "relayvm": None, "transport_rpc": None}
    }  # fmt: skip
    for i in range(count - 1):
        domains[f"qube-{i}"] = {
            "type": ("AppVM", "AppVM", "TemplateVM", "DispVM")[i % 4],
            "tags": [f"tag-{i % 7}", "created-by-dom0"],
            "template_for_dispvms": i % 8 == 1,
            "default_dispvm": "qube-1",
            "internal": "1" if i % 20 == 3 else None,
            "power_state": "Running" if i % 3 else "Halted",
            "uuid": f"{i:08x}-0000-4000-8000-000000000001",
            "icon": "appvm-red",
            "label": "red",
            "guivm": "dom0",
            "relayvm": None,
            "transport_rpc": None,
        }
    return domains


def make_rules(dice: Random, rules: int, qubes: int) -> str:
    """Rules as users write them: mostly one qube to another, some by tag or class; 60 services."""

    def anyone() -> str:
        named = f"qube-{dice.randrange(qubes - 1)}"
        return dice.choice([*[named] * 5, "@anyvm", f"@tag:tag-{dice.randrange(7)}", "@type:AppVM"])

    lines = []
    for _ in range(rules):
        target = dice.choice([*[anyone()] * 6, "@dispvm", "@default", "@adminvm", "@dispvm:qube-1"])
        action = dice.choice(["allow", "deny", "ask"])
        redirect = " target=qube-3" if action == "allow" and target == "@default" else ""
        argument = dice.choice(["*", "*", "+one", "+two"])
        lines.append(f"bench.Service{dice.randrange(60)} {argument} {anyone()} {target} {action}{redirect}")
    return "\n".join(lines) + "\n"


def make_requests(dice: Random, policy: PolicySet, qubes: int) -> list[Request]:
    services = [rule.service for rule in policy.rules]
    return [
        Request(
            f"qube-{dice.randrange(qubes - 1)}",
            dice.choice([*[f"qube-{dice.randrange(qubes - 1)}"] * 4, "@dispvm", "@default", "dom0"]),
            dice.choice(services),
            dice.choice(["+", "+one", "+unnamed"]),
        )
        for _ in range(REQUESTS)
    ]


def timed_each(policy: PolicySet, system: SystemInfo, requests: list[Request], what: str, quoted: float) -> Row:
    clock, samples = time.perf_counter, []
    begin = time.process_time()
    for request in requests:
        start = clock()
        evaluate(policy, system, request)
        samples.append(clock() - start)
    mean_s = (time.process_time() - begin) / len(requests)
    return replace(row(what, samples, "us", quoted), mean=mean_s * 1e6)


def timed(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def measure_set(name: str, directory: Path, qubes: int, dice: Random) -> list[Row]:
    policy = load_policy(directory)
    system = SystemInfo.parse({"domains": make_domains(qubes)})
    requests = make_requests(dice, policy, qubes)
    label = f"{name} ({len(policy.rules)} rules), {qubes} qubes"
    quoted = QUOTED_US[name]
    return [
        timed_each(policy, system, requests, f"evaluate, first time · {label}", quoted),
        timed_each(policy, system, requests, f"evaluate, again · {label}", quoted),
    ]


def measure_changing_system(directory: Path, qubes: int, dice: Random) -> Row:
    """The worst case: before every single call a qube was made or removed, so that nothing remembered holds."""
    policy = load_policy(directory)
    samples, total_s = [], 0.0
    for number, request in enumerate(make_requests(dice, policy, qubes)[:1000]):
        system = SystemInfo.parse({"domains": {**make_domains(qubes), f"disp{number}": {"type": "DispVM"}}})
        begin, start = time.process_time(), time.perf_counter()
        evaluate(policy, system, request)
        samples.append(time.perf_counter() - start)
        total_s += time.process_time() - begin
    what = f"evaluate, system changed before each call · defaults + 500, {qubes} qubes"
    return replace(row(what, samples, "us"), mean=total_s / len(samples) * 1e6)


def measure_rest(directory: Path, runtime: Path, dice: Random) -> list[Row]:
    source = PolicySource(directory, runtime)
    time.sleep(0.1)  # let the files come to rest
    source.current()
    untrusted = {"domains": make_domains(100)}
    text = json.dumps(untrusted)
    return [
        row("has a policy file changed? (each call)", [timed(source.current) for _ in range(2000)], "us"),
        row("SystemInfo of 100 qubes, from JSON values", _repeat(lambda: SystemInfo.parse(untrusted)), "us"),
        row("SystemInfo of 31 qubes, from JSON text", _parse_texts(31), "us"),
        row("JSON decoding of 100 qubes", _repeat(lambda: json.loads(text)), "us"),
        *measure_process(directory, dice),
    ]  # fmt: skip


def _repeat(act: Callable[[], object]) -> list[float]:
    return [timed(act) for _ in range(300)]


def _parse_texts(qubes: int) -> list[float]:
    text = json.dumps({"domains": make_domains(qubes)})
    return _repeat(lambda: SystemInfo.parse(json.loads(text)))


def measure_process(directory: Path, dice: Random) -> list[Row]:
    """The whole program ``cloison policy eval``: start, load, 10 000 requests in, 10 000 verdicts out."""
    requests = make_requests(dice, load_policy(directory), 31)
    lines = "".join(json.dumps(r._asdict()) + "\n" for r in requests).encode()
    with tempfile.TemporaryDirectory() as scratch:
        system = Path(scratch, "system.json")
        system.write_text(json.dumps({"domains": make_domains(31)}))
        code = "import sys; from cloison.cli import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "policy", "eval", "--policy", str(directory), "--system", str(system)]

        def run(stdin: bytes) -> float:
            return timed(lambda: subprocess.run(command, input=stdin, stdout=subprocess.DEVNULL, check=True))

        return [
            row("`policy eval`, whole process, 10,000 requests", _five(run, lines), "s", QUOTED_10K_S, "median"),
            row("`policy eval`, whole process, no request", _five(run, b""), "s"),
        ]


def _five(run: Callable[[bytes], float], stdin: bytes) -> list[float]:
    return [run(stdin) for _ in range(5)]


def measure_plain_evaluator(directory: Path, dice: Random) -> Row:
    """The straightforward evaluator of the tests on the same policy: what not optimising costs, on this machine."""
    slow = _load_slow()
    policy = load_policy(directory)
    domains = make_domains(31)
    plain = slow.Slow(domains, slow.parse("\n".join(str(rule) for rule in policy.rules)))
    requests = make_requests(dice, policy, 31)[:1000]
    samples = [timed(lambda r=request: plain.answer(*r[:4])) for request in requests]  # type: ignore[misc]
    return row("(the plain evaluator of the tests · defaults + 500, 31 qubes)", samples, "us")


def _load_slow() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slow_policy", TREE / "tests/unit/policy/slow.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["slow_policy"] = module
    spec.loader.exec_module(module)
    return module


def measure() -> list[Row]:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        directories = {}
        for name, count in (("defaults", 0), ("defaults + 500", 500), ("defaults + 5000", 5000)):
            directory = directories[name] = Path(scratch, str(count), "policy.d")
            install_defaults(directory)
            (directory / "40-bench.policy").write_text(make_rules(Random(1), count, 31))
            loads = [timed(lambda d=directory: load_policy(d)) for _ in range(15)]  # type: ignore[misc]
            rows.append(row(f"load · {name}", loads, "ms", QUOTED_LOAD_MS[name], "median"))
        for name, directory in directories.items():
            for qubes in (31, 100):
                rows += measure_set(name, directory, qubes, Random(2))
        usual = directories["defaults + 500"]
        rows.append(measure_changing_system(usual, 100, Random(3)))
        rows.append(measure_plain_evaluator(usual, Random(4)))
        runtime = Path(scratch, "run")
        runtime.mkdir()
        rows += measure_rest(usual, runtime, Random(5))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    as_json = parser.parse_args().json
    rows = measure()
    if as_json:
        print(json.dumps([{**r.__dict__, "ratio": r.ratio} for r in rows], indent=2))
        return 0
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs. Quoted: Qubes's own parser, on another machine.\n")
    print(f"{'':72} {'median':>9} {'p99':>9} {'mean':>9}       {'quoted':>8} {'times faster':>13}")
    for r in rows:
        quoted = "" if r.quoted is None else f"{r.quoted:8.2f}"
        ratio = "" if r.ratio is None else f"{r.ratio:.1f}"
        print(f"{r.what:72} {r.median:9.2f} {r.p99:9.2f} {r.mean:9.2f} {r.unit:5} {quoted:>8} {ratio:>13}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
