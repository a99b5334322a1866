"""`python -m benchmarks.peers [CASE...]`: ours beside real peers, in one run, as one table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from benchmarks.measure import HEADER, Case
from benchmarks.peers import lookups, reads, writes
from benchmarks.peers.servers import Peers

CASES: dict[str, Callable[[Peers, int, int], list[Case]]] = {
    "upsert": writes.upsert,
    "fsync": writes.upsert_fsync,
    "append": writes.append,
    "lookup": lookups.lookup,
    "prefix": lookups.prefix,
    "columns": reads.columns,
    "uniques": reads.uniques,
    "memory": reads.memory,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=(
            "Compare with Redis, Kafka and Apache Fluss on loopback. Needs redis-server, Java 17, Maven for the first fetch, "
            "and the extras `peers` and `fluss`. Ours and the peer are measured in turn, after a warm-up pair; medians and their ratio."
        ),
        epilog="example: python -m benchmarks.peers lookup append --runs 5",
    )
    parser.add_argument("case", nargs="*", choices=[[], *CASES], help=f"which comparisons (default: all of {', '.join(CASES)})")
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each pair (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rows: for a look, not for the record")
    given = parser.parse_args()
    cases: list[Case] = []
    with tempfile.TemporaryDirectory(prefix="flashlake-peers-") as name, Peers(Path(name)) as peers:
        for case in given.case or CASES:
            started = time.monotonic()
            cases += CASES[case](peers, 10 if given.quick else 1, given.runs)
            print(f"  {case}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    print(HEADER)
    for case in cases:
        print(case.row())
    versions = f"Python {platform.python_version()}, pyarrow {pa.__version__}"
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {versions}; {time.strftime('%F')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
