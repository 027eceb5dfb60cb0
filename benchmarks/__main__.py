"""``python -m benchmarks``: measure, print."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks.admin import measure_admin
from benchmarks.auditing import measure_audit
from benchmarks.bench import QUICK, Bench, Options
from benchmarks.calling import measure_call, measure_copy, measure_stream
from benchmarks.crowding import measure_clients
from benchmarks.deciding import measure_policy
from benchmarks.figures import Figure
from benchmarks.listing import measure_list
from benchmarks.memory import measure_memory
from benchmarks.networking import measure_network
from benchmarks.starting import measure_app, measure_disposable, measure_forks, measure_preloaded
from cloison.errors import CloisonError

ROWS: dict[str, Callable[[Bench], Iterator[Figure]]] = {
    "disposable": measure_disposable,
    "preloaded": measure_preloaded,
    "app": measure_app,
    "call": measure_call,
    "stream": measure_stream,
    "copy": measure_copy,
    "memory": measure_memory,
    "forks": measure_forks,
    "list": measure_list,
    "admin": measure_admin,
    "policy": measure_policy,
    "audit": measure_audit,
    "network": measure_network,
    "clients": measure_clients,
}
"""In the order of the table. ``forks`` measures the daemon's memory as well."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("rows", nargs=-1, type=click.Choice(list(ROWS)), metavar="[ROW]...")
@click.option("--quick", is_flag=True, help="Fewer repetitions: some minutes instead of a quarter of an hour.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every sample.")
@click.option("--repeat", type=click.IntRange(1), help="Repetitions of what takes about a second.")
@click.option("--boots", type=click.IntRange(1), help="Plain boots that are timed.")
@click.option("--idle", type=click.IntRange(1), help="Idle machines on each side whose memory is compared.")
@click.option("--burst", type=click.IntRange(1), help="Calls at once.")
@click.option("--file-mib", type=click.IntRange(1), help="Size of the large file that is copied (full: 256).")
@click.option("--files", type=click.IntRange(1, 400_000), help="Small files that are copied (full: 10000).")
@click.option("--clients", type=click.IntRange(1, 60), help="Qubes behind one firewall.")
@click.option("--forks", type=click.IntRange(1), help="Disposables at once.")
def main(rows: tuple[str, ...], quick: bool, as_json: bool, **counts: int | None) -> None:
    """Measure this machine against plain QEMU, in one run.

    ROWS: disposable preloaded app call stream copy memory forks list admin policy audit network clients. Without any:
    all. A system is made for the run and removed afterwards; other systems on this machine are not touched, but what
    they do falsifies the figures.
    """
    console = Console(stderr=True, highlight=False)
    options = replace(QUICK if quick else Options(), **{k: v for k, v in counts.items() if v is not None})
    started, load_before = time.monotonic(), os.getloadavg()[0]
    figures: list[Figure] = []
    failed: list[str] = []
    accelerator = ""
    with Bench(
        options, lambda text: console.print(f"[{time.monotonic() - started:5.0f} s] {text}", markup=False)
    ) as bench:
        for name in rows or ROWS:
            try:
                figures += ROWS[name](bench)
            except (RuntimeError, OSError, CloisonError) as error:
                console.print(f"row {name} failed: {error}", style="red", markup=False)
                failed.append(name)
            except KeyboardInterrupt:
                console.print(f"interrupted at row {name}: here is what was measured before", style="red")
                failed.append(name)
                break
        accelerator = bench.peer.host.accelerator.value if "peer" in bench.__dict__ else ""
    circumstances = {
        "accelerator": accelerator,
        "processors": os.cpu_count(),
        "load_before": round(load_before, 2),
        "seconds": round(time.monotonic() - started),
        "options": options.__dict__,
        "failed": failed,
    }
    if as_json:
        click.echo(json.dumps({**circumstances, "figures": [figure.as_json() for figure in figures]}, indent=1))
    else:
        _print_table(figures, circumstances)
    sys.exit(1 if failed else 0)


def _print_table(figures: list[Figure], circumstances: dict[str, Any]) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 170)
    table = Table(title="Medians (least–greatest); against a peer in the same run")
    for heading in ("what", "Cloison", "against", "peer", "ratio", "goal", "reached", "note"):
        table.add_column(heading, overflow="fold")
    for figure in figures:
        reached = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[figure.reached]
        table.add_row(
            figure.what, str(figure.ours), figure.against, str(figure.peer or ""), figure.ratio_text(),
            figure.goal.text if figure.goal else "", reached, figure.note,
        )  # fmt: skip
    console.print(table)
    load, processors = circumstances["load_before"], circumstances["processors"]
    accelerator = {"kvm": "KVM", "tcg": "software emulation", "": "not asked"}[circumstances["accelerator"]]
    console.print(f"Accelerator: {accelerator}. {processors} processors, {circumstances['seconds']} s.")
    if load > 0.5:
        console.print(
            f"[yellow]This machine was busy before the run began (load {load}): take these figures as preliminary.[/]"
        )
    if circumstances["failed"]:
        console.print(f"[red]Not measured: {', '.join(circumstances['failed'])}[/]")


if __name__ == "__main__":
    main()
