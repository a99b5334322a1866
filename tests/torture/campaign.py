"""The campaign: many seeds over all cores, with a progress bar and a table of what it did. `make torture` (SEEDS=10000 FIRST=0).

It stops at the end of the seeds; each seed that fails is shrunk and printed, and the exit status is then 1.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tests.torture.harness import run
from tests.torture.judge import Tally
from tests.torture.simulated_disk import PowerLost
from tests.torture.workload import N_STEPS, generate, report_of

_SEEDS_PER_TASK = 10


def attack(seed: int, tally: Tally, n_steps: int) -> str:
    """Run one seed; what went wrong, shrunk, or nothing."""
    try:
        run(generate(seed, n_steps), seed, tally)
    except (Exception, PowerLost):  # noqa: BLE001 - anything is a finding
        return report_of(seed, n_steps)
    return ""


def attack_many(seeds: Sequence[int], n_steps: int = N_STEPS) -> tuple[Tally, list[str]]:
    """Run some seeds in this process, quietly."""
    logging.disable(logging.CRITICAL)
    tally = Tally()
    return tally, [report for seed in seeds if (report := attack(seed, tally, n_steps))]


def campaign(first: int, n_seeds: int, n_processes: int, console: Console, n_steps: int = N_STEPS) -> tuple[Tally, list[str]]:
    """Run seeds `first` to `first + n_seeds`, each a workload of `n_steps` operations and faults; what was done, and what failed."""
    tasks = [range(at, min(at + _SEEDS_PER_TASK, first + n_seeds)) for at in range(first, first + n_seeds, _SEEDS_PER_TASK)]
    tally, reports = Tally(), []
    columns = (TextColumn("torture"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")
    with context.Pool(n_processes) as pool, Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("seeds", total=n_seeds)
        for seeds, (done, failed) in zip(tasks, pool.imap(partial(attack_many, n_steps=n_steps), tasks), strict=True):
            tally.add(done)
            reports += failed
            for report in failed:
                console.print(report, markup=False, highlight=False)
            bar.advance(task, len(seeds))
        pool.close()  # not by SIGTERM, as leaving the block does: under a parent that ignores it they would not end, and be waited for
        pool.join()
    return tally, reports


def summary(tally: Tally, seconds: float, n_failed: int) -> str:
    """What a campaign did, as Markdown tables."""
    counts = {
        "seeds": tally.seeds, "seeds that failed": n_failed, "commits acknowledged": tally.commits, "operations refused": tally.refused,
        "reopened": tally.reopens, "backups": tally.backups, "comparisons of everything with the model": tally.compared,
        "rounds of cleaning": tally.cleanings, "compactions of a table on demand": tally.compactions,
        "bytes that these gave back": tally.compacted_bytes, "rows that outlived their time": tally.outlived,
        "lookups among commits on their way": tally.looks,
        "calls of the disk": tally.disk.calls.total(), "faults": tally.disk.faults.total(), "seconds": round(seconds),
    }  # fmt: skip
    kinds: dict[str, dict[str, int]] = {}
    for what, n in sorted(tally.disk.faults.items()):
        word = next((word for word in (" from ", " at ", " in ") if word in what), " between ")
        kind, _, where = what.partition(word)
        kinds.setdefault(kind, {})[where] = n
    lines = ["| | |", "|---|---|", *(f"| {name} | {n:,} |" for name, n in counts.items()), "", "| fault | times | at |", "|---|---|---|"]
    for kind, places in kinds.items():
        by_count = sorted(places.items(), key=lambda item: -item[1])
        lines.append(f"| {kind} | {sum(places.values()):,} | {', '.join(f'{place} {n:,}' for place, n in by_count)} |")
    outcomes = ", ".join(f"{name} {n:,}" for name, n in tally.outcomes.most_common())
    return "\n".join([*lines, "", f"errors that callers saw: {outcomes}"])


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="torture", description=__doc__)
    parser.add_argument("--seeds", type=int, default=int(os.environ.get("SEEDS", "10000")))
    parser.add_argument("--first", type=int, default=int(os.environ.get("FIRST", "0")))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    console = Console()
    begun = time.monotonic()
    tally, reports = campaign(options.first, options.seeds, options.processes, console)
    console.print(summary(tally, time.monotonic() - begun, len(reports)), markup=False, highlight=False, soft_wrap=True)
    return 1 if reports else 0


if __name__ == "__main__":
    sys.exit(main())
