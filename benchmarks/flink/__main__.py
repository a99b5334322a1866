"""`python -m benchmarks.flink [CASE...]`: ours and Flink over Fluss in turn, the same events, from a log to a sink, as one table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.flink.cluster import FlinkOverFluss, FlinkRefused
from benchmarks.flink.setup import FLINK_VERSION
from benchmarks.flink.theirs import Theirs
from benchmarks.processes import stop_on_sigterm
from benchmarks.streams import ours
from benchmarks.streams.case import Measured, StreamCase, shown_rate
from benchmarks.streams.cases import CASES, chosen
from storage_engine.errors import StatementRefused
from storage_engine.fluss.cluster import FLUSS_VERSION

HEADER = (
    "| case | events | ours, submitted to last | Flink, submitted to last | ours, first to last | Flink, first to last | ratio | asked "
    "| CPU s ours / Flink | peak MiB ours / Flink | rows of the sink ours / Flink | ours equal to batch |\n" + "|---" * 12 + "|"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.flink",
        description=(
            f"Compare stream jobs with Apache Flink {FLINK_VERSION} over Apache Fluss {FLUSS_VERSION} on loopback. Rates are events "
            "per second. Needs Java 11 or newer with javac, Maven, and the extra `fluss`; sets Flink up in an environment of its own, once."
        ),
        epilog="example: python -m benchmarks.flink q4 q7 --rows 1000000",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="words of a case's name, such as q4 or minute (default: all)")
    parser.add_argument("--rows", type=int, default=5_000_000, metavar="N", help="events (default %(default)s)")
    parser.add_argument("--users", type=int, default=200_000, metavar="N", help="users of the shop events (default %(default)s)")
    parser.add_argument("--no-check", action="store_true", help="do not compare ours with the batch computation")
    given = parser.parse_args()
    stop_on_sigterm()
    cases = chosen(given.cases)
    if not cases:
        parser.error(f"no case has one of these words: {' '.join(given.cases)}. Cases: {'; '.join(case.name for case in CASES)}")
    print(HEADER, flush=True)
    is_equal = True
    with tempfile.TemporaryDirectory(prefix="flashlake-flink-") as name, FlinkOverFluss(Path(name)) as cluster:
        theirs = Theirs(cluster, given.rows, given.users)
        theirs.warm_up(cases[0])
        for case in cases:
            line, equal = compared(case, theirs, given.rows, given.users, is_checked=not given.no_check)
            is_equal &= equal
            print(line, flush=True)
    versions = f"Flink {FLINK_VERSION}, Fluss {FLUSS_VERSION}, Python {platform.python_version()}"
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {versions}; ours synced to disk, Fluss not; {time.strftime('%F')}")
    return 0 if is_equal else 1


def compared(case: StreamCase, theirs: Theirs, n_rows: int, n_users: int, *, is_checked: bool) -> tuple[str, bool]:
    """A line of the table, and whether ours is what the batch says. Who refuses a statement has the reason instead of figures."""
    notes: list[str] = []
    mine: ours.Outcome | None = None
    peer: Measured | None = None
    with tempfile.TemporaryDirectory(prefix="flashlake-streams-") as name:
        try:
            mine = ours.run(case, Path(name), n_rows, n_users, is_checked=is_checked)
        except StatementRefused as refusal:
            notes.append(f"ours refuses: {refusal.what}")
    try:
        peer = theirs.run(case)
    except FlinkRefused as refusal:
        notes.append(f"Flink refuses: {refusal}")
    own = mine.measured if mine else None
    shown = [
        " ".join([case.name, *(f"({note.replace('|', ' ')[:300]})" for note in notes)]), f"{n_rows:,}",
        shown_rate(own and own.submit_rate), shown_rate(peer and peer.submit_rate),
        shown_rate(own and own.steady_rate), shown_rate(peer and peer.steady_rate),
        shown_ratio(own, peer), "-" if case.factor is None else f"{case.factor:g}x",
        _pair(own, peer, lambda it: f"{sum(it.usage.cpu_s.values()):.1f}"), _pair(own, peer, lambda it: f"{it.usage.peak_mb:,.0f}"),
        _pair(own, peer, lambda it: f"{it.n_sink:,}"),
        {None: "-", 0: "yes"}.get(mine.n_differing, f"NO: {mine.n_differing}") if mine else "-",
    ]  # fmt: skip
    return f"| {' | '.join(shown)} |", mine is None or not mine.n_differing


def shown_ratio(own: Measured | None, peer: Measured | None) -> str:
    """Ours to Flink: steady by steady, or from the submission by the same where one of them has no steady part."""
    if own is None or peer is None:
        return "-"
    if own.steady_rate and peer.steady_rate:
        return f"**{own.steady_rate / peer.steady_rate:.2f}**"
    return f"{own.submit_rate / peer.submit_rate:.2f} (submitted to last)"


def _pair(own: Measured | None, peer: Measured | None, shown: Callable[[Measured], str]) -> str:
    return f"{shown(own) if own else '-'} / {shown(peer) if peer else '-'}"


if __name__ == "__main__":
    sys.exit(main())
