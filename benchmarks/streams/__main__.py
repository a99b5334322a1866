"""`python -m benchmarks.streams [CASE...]`: rows per second of stream jobs from a log to their sink, in real processes, exactly once."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
from pathlib import Path

from benchmarks.processes import stop_on_sigterm
from benchmarks.streams import latency, ours
from benchmarks.streams.case import StreamCase, shown_rate
from benchmarks.streams.cases import CASES, chosen
from storage_engine.errors import StatementRefused

HEADER = (
    "| case | events | submitted to last result, events/s | first to last, events/s | Flink's recorded rate | ratio | asked "
    "| CPU s worker / server | peak MiB worker + server (of it mapped files) | rows of the sink | equal to batch |\n" + "|---" * 11 + "|"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streams",
        description="Events wait in the store's logs; a job is submitted; the clock stops when its last result can be read.",
        epilog="example: python -m benchmarks.streams q4 q7 --rows 1000000",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="words of a case's name, such as q4 or minute (default: all)")
    parser.add_argument("--rows", type=int, default=5_000_000, metavar="N", help="events (default %(default)s)")
    parser.add_argument("--users", type=int, default=200_000, metavar="N", help="users of the shop events (default %(default)s)")
    parser.add_argument("--no-check", action="store_true", help="do not compare with the batch computation")
    parser.add_argument("--latency", action="store_true", help="instead: event to visible result of scenario 2, by rate of events")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="N", help="length of a latency run (default %(default)s)")
    given = parser.parse_args()
    stop_on_sigterm()
    if given.latency:
        return latency.report(given.seconds)
    cases = chosen(given.cases)
    if not cases:
        parser.error(f"no case has one of these words: {' '.join(given.cases)}. Cases: {'; '.join(case.name for case in CASES)}")
    print(HEADER)
    is_equal = True
    for case in cases:
        line, equal = _line(case, given.rows, given.users, is_checked=not given.no_check)
        is_equal &= equal
        print(line, flush=True)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; commits synced to disk")
    return 0 if is_equal else 1


def _line(case: StreamCase, n_rows: int, n_users: int, *, is_checked: bool) -> tuple[str, bool]:
    """A line of the table, and whether the sink is what the batch says; a refused query has its reason instead of figures."""
    with tempfile.TemporaryDirectory(prefix="flashlake-streams-") as name:
        try:
            outcome = ours.run(case, Path(name), n_rows, n_users, is_checked=is_checked)
        except StatementRefused as refusal:
            return f"| {case.name} | refused: {refusal.what.replace('|', ' ')} |", True
    measured, usage = outcome.measured, outcome.measured.usage
    peer = case.flink_rows_per_s
    shown = [
        case.name, f"{n_rows:,}", shown_rate(measured.submit_rate), shown_rate(measured.steady_rate), shown_rate(peer),
        "-" if peer is None else f"**{measured.rate / peer:.2f}**", "-" if case.factor is None else f"{case.factor:g}x",
        f"{usage.cpu_s['worker']:.1f} / {usage.cpu_s['server']:.1f}",
        " + ".join(f"{usage.own_mb[of] + usage.mapped_mb[of]:.0f} ({usage.mapped_mb[of]:.0f})" for of in ("worker", "server")),
        f"{measured.n_sink:,}", {None: "-", 0: "yes"}.get(outcome.n_differing, f"NO: {outcome.n_differing}"),
    ]  # fmt: skip
    return f"| {' | '.join(shown)} |", not outcome.n_differing


if __name__ == "__main__":
    sys.exit(main())
