"""`python -m benchmarks.nexmark [QUERY...]`: Nexmark's q0 to q22: whether each result is right, its rate, and its ratio to Flink.

Two independent answers. Published: RisingWave's results over its small data set, for the queries that have them. Batch: the sink of the
measured run, row by row, against a recomputation over the same offsets by another path of the engine.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import storage_engine
from benchmarks.flink.cluster import FlinkOverFluss, FlinkRefused
from benchmarks.flink.theirs import Theirs
from benchmarks.processes import stop_on_sigterm
from benchmarks.streams import ours
from benchmarks.streams.case import StreamCase, shown_rate
from benchmarks.streams.queries import QUERIES
from storage_engine.errors import StatementRefused
from tests.stream import test_nexmark as published

HEADER = "| query | events | rows of the result | equal to batch | equal to published | ours, events/s | Flink, events/s | ratio | asked |"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.nexmark",
        description="Each query from the store's logs to a sink in real processes. Rates are events per second, first to last result.",
        epilog="example: python -m benchmarks.nexmark q4 q7 --rows 1000000 --flink",
    )
    parser.add_argument("queries", nargs="*", metavar="QUERY", help="q0 to q22 (default: all)")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="events (default %(default)s)")
    parser.add_argument("--flink", action="store_true", help="measure Flink over Fluss in turn; without, its recorded rates are named")
    given = parser.parse_args()
    stop_on_sigterm()
    cases = [case for case in QUERIES if not given.queries or case.name in given.queries]
    if not cases:
        parser.error(f"no such query: {' '.join(given.queries)}")
    right = published_matches({case.name for case in cases})
    print(f"{HEADER}\n{'|---' * 9}|", flush=True)
    is_right = True
    with ExitStack() as stack:
        theirs = None
        if given.flink:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="flashlake-flink-")))
            theirs = Theirs(stack.enter_context(FlinkOverFluss(directory)), given.rows, n_users=200_000)
            theirs.warm_up(cases[0])
        for case in cases:
            line, equal = _line(case, given.rows, right, theirs)
            is_right &= equal
            print(line, flush=True)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; commits synced to disk")
    if not given.flink:
        print(
            "Flink's rates: recorded on this kind of machine, own source into no sink (docs: benchmarks/RESULTS.md); --flink measures them."
        )
    return 0 if is_right else 1


def published_matches(names: set[str]) -> dict[str, bool]:
    """Per query with a published result: whether we give it, over events that come shuffled and in pieces."""
    selects = {name: published.QUERIES[name][0] for name in published.QUERIES if name.split("_")[0] in names}
    with tempfile.TemporaryDirectory(prefix="flashlake-nexmark-") as name, storage_engine.connect(f"file://{name}") as store:
        store.execute(published.TABLES)
        for query, select in selects.items():
            store.execute(f"CREATE MATERIALIZED VIEW nexmark.{query} REFRESH ASYNC AS {select}")
        published.fed(store, random.Random(0))
        return {query.split("_")[0]: _is_published(store, query) for query in selects}


def _is_published(store: storage_engine.Store, query: str) -> bool:
    n_hidden = published.QUERIES[query][1]
    table = store.table(f"nexmark.{query}")
    rows = table.read() if table.descriptor.has_primary_key else table.scan().read_all()
    names = rows.column_names[: rows.num_columns - n_hidden]
    got = Counter(" ".join(" ".join(published.printed(row[name]).split()) for name in names) for row in rows.to_pylist())
    return got == published.expected(query)


def _line(case: StreamCase, n_rows: int, right: dict[str, bool], theirs: Theirs | None) -> tuple[str, bool]:
    """A line of the table, and whether the results are right as far as there are any."""
    known = {True: "yes", False: "NO", None: "none published"}[right.get(case.name)]
    peer, rate, note = case.flink_rows_per_s, None, ""
    with tempfile.TemporaryDirectory(prefix="flashlake-streams-") as name:
        try:
            outcome = ours.run(case, Path(name), n_rows, n_users=1, is_checked=True)
            rate = outcome.measured.rate
            result = [f"{outcome.measured.n_sink:,}", "NO" if outcome.n_differing else "yes", known, shown_rate(rate)]
            is_right = not outcome.n_differing and known != "NO"
        except StatementRefused as refusal:
            result, is_right = ["-", f"not kept: {refusal.what.replace('|', ' ')}", known, "-"], known != "NO"
    if theirs is not None:
        try:
            peer = theirs.run(case).rate
        except FlinkRefused as refusal:
            peer, note = None, f"refused: {str(refusal).replace('|', ' ')[:200]}"
    ratio = f"**{rate / peer:.2f}**" if rate and peer else "-"
    asked = "-" if case.factor is None else f"{case.factor:g}x"
    return f"| {' | '.join([case.name, f'{n_rows:,}', *result, note or shown_rate(peer), ratio, asked])} |", is_right


if __name__ == "__main__":
    sys.exit(main())
