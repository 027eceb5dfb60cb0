"""Row: the policy, in short; ``python benchmarks/policy.py`` tells more."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

from benchmarks import policy
from benchmarks.bench import Bench
from benchmarks.figures import Figure, Samples, times_faster
from cloison.policy import install_defaults

RULES = 500
SET = f"defaults + {RULES}"


def measure_policy(bench: Bench) -> Iterator[Figure]:
    bench.tell("policy evaluation")
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch, "policy.d")
        install_defaults(directory)
        (directory / "40-bench.policy").write_text(policy.make_rules(Random(1), RULES, 31))
        first, *_ = policy.measure_set(SET, directory, 31, Random(2))
    assert first.quoted is not None
    yield Figure(
        f"policy: evaluate, default set + {RULES} rules (mean)", Samples.of([first.mean], "us"),
        Samples.of([first.quoted], "us"), "Qubes's parser, quoted, other machine", times_faster(10),
    )  # fmt: skip
